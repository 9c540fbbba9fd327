"""Color filter: the least change of colors over the whole image that sends it to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import QUICK, CostController, Objective, Search, SearchConfig
from gifthorse.search.parametrizations.developing import FreeFilter


@method
class FilterInversion:
    """Minimize `CE(f(clip(x + K * x + b + v r x)), t) + cost * size` over filters.

    Assumes a trigger that changes colors over the whole image, as filters of photographs do. Needs
    clean images and gradients. The size of a trigger is `H W rms` of the change, in pixels.

    Attributes:
        initial: Weight of the size at the start.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        config: Steps, success threshold and stopping.

    Source: ours, after Wang et al., Neural Cleanse, S&P 2019, eq. 3, for the Instagram filters of
    TrojAI's rounds 2 to 4.
    """

    initial: Annotated[float, NotNegative] = 1e-3
    patience: Annotated[int, AtLeast(1)] = 3
    up: Annotated[float, Positive] = 1.5
    config: SearchConfig = replace(QUICK, min_improvement=0.02, lr=0.02)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over filters, one arm a goal."""
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)
        form = FreeFilter(subject.shape[1:])
        return Search(subject, clean, goals, rng, Objective(form, cost), self.config)
