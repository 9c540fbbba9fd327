"""Which goals clean images lean to already: the screening before K-Arm's race."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gifthorse.core.stats import robust_z
from gifthorse.core.types import Batch, Goal, Labels, Samples, Shape
from gifthorse.data.samples import labels_of


@dataclass(frozen=True)
class PairArm:
    """What one arm searches: a trigger that sends images of some classes to a target.

    Attributes:
        target: Where they are sent.
        victims: Whose images, the likeliest class first.
    """

    target: int
    victims: tuple[int, ...]

    @property
    def pairs(self) -> tuple[Goal, ...]:
        """The class pairs that the arm stands for, the likeliest first."""
        return tuple(Goal(self.target, victim) for victim in self.victims)


class Victims:
    """Images of the victims of some arms, under one label for all victims of an arm.

    An image of a class that several arms attack comes up once for each.

    Attributes:
        labels: Of arm `i` the `i`-th of the numbers given, `(N,)`.
        classes: One more than the largest of them, or as many as there are of images.
    """

    def __init__(self, samples: Samples, arms: Sequence[PairArm], numbers: Sequence[int]) -> None:
        y = labels_of(samples)
        rows = [torch.isin(y, torch.tensor(a.victims)).nonzero().flatten() for a in arms]
        self._samples, self._index = samples, torch.cat(rows)
        self.labels = torch.cat(
            [torch.full_like(row, n) for row, n in zip(rows, numbers, strict=True)]
        )
        self.classes = max(samples.classes, *(n + 1 for n in numbers))

    @property
    def shape(self) -> Shape:
        """Channels, height and width of every image."""
        return self._samples.shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._index)

    def __getitem__(self, index: Tensor, /) -> Batch:
        """Return images and labels."""
        return self._samples[self._index[index]][0], self.labels[index]


def ranks(classes: int, top: float) -> int:
    """Return how many ranks count as high; halves go to even, as the released code rounds."""
    return 2 if classes <= 8 else round(top * classes)


def _high(chances: Tensor, top: float) -> Tensor:
    """Return which classes rank high on which images, `(N, K)` bool."""
    high = torch.zeros_like(chances, dtype=torch.bool)
    index = chances.topk(ranks(chances.shape[1], top)).indices
    return high.scatter_(1, index, torch.ones_like(high))


def standing_out(
    chances: Tensor, *, top: float = 0.25, outlier: float = 5.0, most: float = 0.5
) -> Goal | None:
    """Return the target that clean images of all classes lean to, if one stands out.

    Args:
        chances: Softmax outputs on clean images, `(N, K)`.
        top: Share of K that counts as high ranks; two classes count for K of 8 or fewer.
        outlier: Robust deviations by which the share of images that a class ranks high on must
            exceed the median of all classes; the least deviation is that of a share drawn by
            chance.
        most: And the least such share.

    Source: K-Arm's released code, Arm_Pre_Screening.py. Differs: the share of 0.95 that it asks for
    is one of TrojAI's nets; an outlier test tells without it, or does not.

    Example:
        >>> chances = torch.rand(80, 40, generator=torch.Generator().manual_seed(0))
        >>> standing_out(chances)
        >>> chances[:, 7] += 0.5
        >>> standing_out(chances)
        Goal(target=7, source=None)
    """
    count, classes = chances.shape
    even = ranks(classes, top) / classes
    if even >= 1:
        return None
    share = _high(chances, top).double().mean(0)
    ahead = robust_z(share, math.sqrt(even * (1 - even) / count))
    best = int(share.argmax())
    return Goal(best) if ahead[best] > outlier and share[best] > most else None


def pair_arms(
    chances: Tensor,
    labels: Labels,
    *,
    top: float = 0.25,
    within: float = 0.9,
    victims: int = 3,
    least: float = 1e-8,
) -> list[PairArm]:
    """Return the targets that images of single classes lean to, each with those classes.

    Args:
        chances: Softmax outputs on clean images, `(N, K)`.
        labels: Their classes, `(N,)`; a class may be missing.
        top: Share of K that counts as high ranks; two classes count for K of 8 or fewer.
        within: Share of a class's images on which the target ranks high.
        victims: Most victims of a target, those with the largest sum of softmax.
        least: Sum and median of the target's softmax, where it ranks high, lie above this.

    Source: K-Arm's released code, Arm_Pre_Screening.py. Differs: images are grouped by their
    labels, not by predictions.

    Example:
        >>> chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
        >>> pair_arms(chances, torch.tensor([0, 2]))
        [PairArm(target=1, victims=(0, 2))]
    """
    classes = chances.shape[1]
    if classes <= ranks(classes, top):
        return []
    high = _high(chances, top)
    found: dict[int, list[tuple[float, int]]] = {}
    for source in labels.unique().tolist():
        mine = labels == source
        share = high[mine].double().mean(0)
        leaning = chances[mine].masked_fill(~high[mine], math.nan)
        total, middle = leaning.nansum(0), leaning.nanquantile(0.5, 0)
        close = (share >= within) & (total > least) & (middle > least)
        close[source] = False
        for target in close.nonzero().flatten().tolist():
            found.setdefault(target, []).append((-float(total[target]), source))
    return [
        PairArm(target, tuple(source for _, source in sorted(found[target])[:victims]))
        for target in sorted(found)
    ]
