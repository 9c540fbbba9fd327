"""Fine-pruning: take away what clean images do not use, and fine-tune the rest."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import OpenShare, PositiveShare, Share, method
from gifthorse.core.metrics import accuracy
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Samples, Subject
from gifthorse.data.samples import Subset, labels_of, split
from gifthorse.models.features import head
from gifthorse.training import Recipe, evaluate, fit


@method
class FinePruning:
    """Silence the features that clean images stir least, then tune what is left.

    Features are what goes into the last layer, whatever the architecture. They are ranked on the
    clean images without augmentation, and those silenced stay so while the net is tuned.
    Cost: one forward, then `recipe.epochs` passes over the clean images; with `tolerance` also
    `1 / step` forwards at most over those held out.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        policy: How many are silenced: a `ratio` of them, or as many as clean accuracy bears
            (`tolerance`).
        ratio: Share that `ratio` silences, in [0, 1]; rounded down.
        tolerance: How much accuracy on held-out clean images `tolerance` lets go: a share, not
            points.
        held: Share of the clean images that `tolerance` holds out; the rest ranks and tunes.
        step: Share of the features that `tolerance` silences at a time.
        recipe: How the rest is tuned; no epochs leave it as it is.

    Source: Liu et al., Fine-Pruning, RAID 2018; TrojanZoo Table 21 (0.95).
    Differs: silences inputs of the last layer, not filters of the last convolution, whose channels
    live on beside it in residual nets; clean images set the level, never test images; the last
    level within the tolerance is kept, not the first beyond it.
    """

    policy: Literal["ratio", "tolerance"] = "ratio"
    ratio: Annotated[float, Share] = 0.95
    tolerance: Annotated[float, Share] = 0.04
    held: Annotated[float, OpenShare] = 0.2
    step: Annotated[float, PositiveShare] = 0.01
    recipe: Recipe = Recipe(epochs=20, lr=0.01, schedule="cosine")

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the pruned and tuned net.

        An interrupted tuning goes on from what the run kept of it.

        Raises:
            NotApplicable: If the net has no last layer, or it reads its input in groups.
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        rest, held = clean, None
        if self.policy == "tolerance":
            held, rest = split(clean, self.held, spawn(rng))
        order = activity(subject, rest).argsort(stable=True)
        masked, kept = _masked(subject, len(order))
        kept[order[: self._level(masked, kept, order, held)]] = 0.0
        return _folded(fit(masked, rest, self.recipe, rng, run))

    def _level(self, masked: Subject, kept: Tensor, order: Tensor, held: Subset | None) -> int:
        """Return how many features go; `kept`, which `masked` reads, is all ones after."""
        if held is None:
            return math.floor(self.ratio * len(order) + 1e-9)
        y = labels_of(held)
        right = accuracy(evaluate(masked, held), y).value
        level, stride = 0, max(1, round(self.step * len(order)))
        for count in range(stride, len(order) + 1, stride):
            kept[order[:count]] = 0.0
            if right - accuracy(evaluate(masked, held), y).value > self.tolerance + 1e-9:
                break
            level = count
        kept.fill_(1.0)
        return level


class Kept(nn.Module):
    """Zeroes some features on their way into a layer: linear `(..., d)` or maps `(N, d, H, W)`.

    Attributes:
        mask: 1 for features that pass and 0 for others, `(d,)`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, maps: bool) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the features that pass, zeros for the others."""
        return x * (self.mask[:, None, None] if self.maps else self.mask)


def activity(subject: Subject, clean: Samples) -> Tensor:
    """Return the mean absolute value of each input of the last layer, `(d,)`, over clean images."""
    net = deepcopy(subject.net).eval()
    last, sums = net.get_submodule(head(net)), list[Tensor]()

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0].movedim(1, -1) if isinstance(last, nn.Conv2d) else given[0]
        rows = rows.double().abs().reshape(len(rows), -1, rows.shape[-1])
        sums.append(rows.mean(1).sum(0))

    last.register_forward_pre_hook(note)
    evaluate(replace(subject, net=net), clean)
    return torch.stack(sums).sum(0) / len(clean)


def _masked(subject: Subject, features: int) -> tuple[Subject, Tensor]:
    """Return a copy whose last layer stands behind a mask, and that mask, all ones."""
    net = deepcopy(subject.net).eval()
    name = head(net)
    last = net.get_submodule(name)
    maps = isinstance(last, nn.Conv2d)
    if isinstance(last, nn.Conv2d) and last.groups != 1:
        raise NotApplicable(
            "the last layer reads its input in groups: its features cannot be pruned"
        )
    mask = torch.ones(features, device=subject.device)
    net.set_submodule(name, nn.Sequential(Kept(mask, maps), last))
    return replace(subject, net=net), mask


@torch.no_grad()
def _folded(masked: Subject) -> Subject:
    """Return the same net without the mask, which goes into the weights of the last layer."""
    net = masked.net
    name = head(net).rpartition(".")[0]
    mask, last = net.get_submodule(name).children()
    assert isinstance(mask, Kept)
    assert isinstance(last, nn.Linear | nn.Conv2d)
    last.weight[:, mask.mask == 0] = 0.0
    net.set_submodule(name, last)
    return masked
