"""Warp: the least smooth displacement that sends images to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import QUICK, CostController, Objective, Search, SearchConfig
from gifthorse.search.parametrizations.warped import DisplacementField


@method
class WarpInversion:
    """Minimize `CE(f(x at its places + d), t) + cost * size(d)` over smooth displacements d.

    Assumes a trigger that bends the whole image, the same way in every one. Needs clean images and
    gradients. The size of a trigger is `H W` times its mean displacement over the longer side, in
    pixels.

    Attributes:
        cells: Arrows along a side, between which the displacement is bicubic.
        initial: Weight of the size at the start.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        config: Steps, success threshold and stopping.

    Source: ours, after Wang et al., Neural Cleanse, S&P 2019, eq. 3, for the triggers of Nguyen
    and Tran, WaNet, ICLR 2021.
    """

    cells: Annotated[int, AtLeast(2)] = 4
    initial: Annotated[float, NotNegative] = 3e-3
    patience: Annotated[int, AtLeast(1)] = 3
    up: Annotated[float, Positive] = 1.5
    config: SearchConfig = replace(QUICK, min_improvement=0.02, lr=0.15)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over displacements, one arm a goal."""
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)
        form = DisplacementField(self.cells, subject.shape)
        return Search(subject, clean, goals, rng, Objective(form, cost), self.config)
