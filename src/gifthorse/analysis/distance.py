"""How far classes lie apart: the smallest trigger that sends images of one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inverter, Samples, Subject
from gifthorse.search import Exhaustive, found


@dataclass(frozen=True, eq=False)
class ClassDistances:
    """Distances of ordered pairs of classes, all tensors `(P,)`.

    Attributes:
        goals: The pairs: images of `source` come out as `target`.
        size: Size of the smallest trigger of all restarts, in pixels; `H * W` where all failed.
        asr: Success of that trigger on the generation images, in [0, 1]; 0 where all failed.
        failed: Where no restart found a trigger that meets the inverter's bar, bool.
    """

    goals: tuple[Goal, ...]
    size: Tensor
    asr: Tensor
    failed: Tensor

    @property
    def failures(self) -> int:
        """How many pairs failed in all restarts; their size is only a bound that says so."""
        return int(self.failed.sum())

    @property
    def mean(self) -> float:
        """The mean size over pairs, in pixels."""
        return self.size.mean().item()

    @property
    def tripled(self) -> Tensor:
        """Sizes times three, `(P,)`: the unit of the paper's mask distances on color images.

        The masks behind its Tables 2 and 7 were summed over three equal channels; its counts of
        pixels were not.
        """
        return self.size * 3


def distances(
    subject: Subject,
    samples: Samples,
    goals: Sequence[Goal],
    inverter: Inverter,
    rng: Generator,
    run: Run,
    *,
    restarts: int = 3,
) -> ClassDistances:
    """Return the distances of pairs of classes as an inverter measures them.

    All pairs and restarts are arms of one inversion.

    Args:
        subject: The classifier.
        samples: Images that it was not trained on, in the paper 100 of every source class.
        goals: Ordered pairs, with source and target each.
        inverter: What finds small triggers; its measure is the unit.
        rng: Source of all randomness.
        restarts: Searches of every pair, of which the smallest trigger counts.
        run: Who watches, and where an unfinished search is kept.

    Raises:
        BadOption: If there is no pair, a pair has no source or is none, or `restarts` is below 1.
        BadImages: If a source class has no images.
        Incomplete: If the run ends before the search does; what it found is kept.

    Source: Tao et al., PixelBackdoor, CVPR 2022, appendix L.1 (NC and Pixel, 1000 rounds, bar 0.9,
    three runs). Differs: a pair without a trigger counts as the whole image and is counted, where
    the code of the same group (MOTH) averages it in as 0.
    """
    if restarts < 1:
        raise BadOption(f"restarts must be 1 or more, 3 in the paper; got {restarts}")
    if not goals or any(g.source is None or g.source == g.target for g in goals):
        raise BadOption("a distance is between two classes: give goals with source and target")
    inversion = inverter(subject, samples, [*goals] * restarts, rng)
    kept = run.keyed((inverter, tuple(goals), restarts), subject, samples, rng)
    best = found(inversion, Exhaustive(), kept, "distances are not measured")
    _, h, w = subject.shape
    works = torch.tensor([c.feasible for c in best]).view(restarts, -1)
    size = torch.tensor([c.size for c in best]).view(restarts, -1)
    asr = torch.tensor([c.asr for c in best]).view(restarts, -1)
    size, least = size.where(works, torch.inf).min(0)
    failed = ~works.any(0)
    asr = asr.gather(0, least[None])[0].masked_fill(failed, 0.0)
    return ClassDistances(tuple(goals), size.masked_fill(failed, float(h * w)), asr, failed)


def increase(before: ClassDistances, after: ClassDistances) -> float:
    """Return the mean relative increase of distances over pairs; 1 is twice as far.

    It is the mean of ratios, which the ratio of means is not. Infinite if a distance was 0.

    Raises:
        BadOption: If the two are not of the same pairs.

    Source: PixelBackdoor, eq. 12.

    Example:
        >>> pairs, works = (Goal(1, 0), Goal(0, 1)), torch.zeros(2, dtype=torch.bool)
        >>> one = ClassDistances(pairs, torch.tensor([10.0, 100.0]), torch.ones(2), works)
        >>> two = ClassDistances(pairs, torch.tensor([30.0, 100.0]), torch.ones(2), works)
        >>> increase(one, two)
        1.0
    """
    if before.goals != after.goals:
        raise BadOption("an increase is of the same pairs in the same order, before and after")
    return (after.size / before.size - 1).mean().item()


def asymmetry(measured: ClassDistances) -> dict[tuple[int, int], float]:
    """Return how lopsided pairs are: the larger of both distances over the smaller, 1 or more.

    Args:
        measured: Distances; only pairs that were measured both ways count.

    Returns:
        A ratio for each pair of classes, the lower class first. It is infinite if one distance
        is 0, and 1 if both are.

    Source: PixelBackdoor, appendix L.1, has distances either way but no measure of this; the ratio
    is ours.
    """
    size = {(g.source, g.target): s for g, s in zip(measured.goals, measured.size, strict=True)}
    out: dict[tuple[int, int], float] = {}
    for goal in measured.goals:
        i, j = goal.source, goal.target
        if i is not None and i < j and (j, i) in size:
            low, high = sorted((size[i, j].item(), size[j, i].item()))
            out[i, j] = 1.0 if low == high else high / low if low else float("inf")
    return out
