"""Blend: the faintest smooth change of the whole image that sends it to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import QUICK, CostController, Objective, Search, SearchConfig
from gifthorse.search.parametrizations.low_frequency import LowFrequency


@method
class Blend:
    """Minimize `CE(f(clip(x + d)), t) + cost * size(d)` over changes d of low frequency.

    Assumes a trigger that lies over the whole image and changes slowly from pixel to pixel, as a
    picture that is blended in does; it does not see what is small and sharp. Needs clean images and
    gradients. The size of a trigger is `H W rms(d)`, in pixels.

    Attributes:
        cell: Pixels along a cell of the grid that the change is interpolated from.
        initial: Weight of the size at the start.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        config: Steps, success threshold and stopping.

    Source: ours, after Wang et al., Neural Cleanse, S&P 2019, eq. 3, whose controller of the cost
    it takes, for the triggers of Chen et al., Targeted Backdoor Attacks on Deep Learning Systems
    Using Data Poisoning, 2017.
    """

    cell: Annotated[int, AtLeast(1)] = 4
    initial: Annotated[float, NotNegative] = 1e-3
    patience: Annotated[int, AtLeast(1)] = 3
    up: Annotated[float, Positive] = 1.5
    config: SearchConfig = replace(QUICK, min_improvement=0.02, lr=0.03)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over smooth changes, one arm a goal."""
        _, height, width = subject.shape
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)
        form = LowFrequency(cell=self.cell, shape=(height, width))
        return Search(subject, clean, goals, rng, Objective(form, cost), self.config)
