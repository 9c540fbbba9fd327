"""TABOR: Neural Cleanse with penalties on scattered, overlarge and blocking triggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import CostController, MaskPattern, Objective, PatchInit, Search, SearchConfig
from gifthorse.search.losses import Alone, Blocking, Elastic, Roughness


@method
class Tabor:
    """Minimize Neural Cleanse's loss plus six terms R1 to R4 over mask and pattern.

    Assumes a compact patch at a fixed place that works alone, without the image under it. Needs
    clean images and gradients; costs as much as Neural Cleanse and one more image a step for R4.
    The size of a trigger is the L1 norm of its mask over one channel.

    Attributes:
        mask_norm: lambda 1, on the elastic norm of the mask (R1, large masks).
        outside_norm: lambda 2, on the elastic norm of the pattern outside the mask.
        mask_rough: lambda 3, on squared differences of neighbors in the mask (R2, scatter).
        outside_rough: lambda 4, on the same in the pattern outside the mask.
        blocking: lambda 5, on the cross entropy to the true label without the masked part (R3).
        alone: lambda 6, on the cross entropy to the target of the trigger on black (R4).
        pattern_scale: Brightest pattern value as the weights see it: 1, or 255 as in the code
            that the weights were made for.
        initial: Weight of the plain mask norm.
        warmup: Successful rounds before that weight goes from 0 to `initial`; 0 starts with it.
        patience: Rounds in a row before the weight moves.
        up: Factor by which it rises, and falls by `up ** 1.5`; 1 keeps it, as TrojanZoo does.
        config: Steps, success bar and stopping.
        probe: Where to start; None starts at random.

    Source: Guo et al., TABOR, 2019; weights and the fixed plain norm of TrojanZoo, Table 21.
    Differs: terms of weight 0 are not computed; R4 looks at one image a step; rounds over a few
    images instead of ten passes over the training set; only what meets the bar is stored.
    """

    mask_norm: Annotated[float, NotNegative] = 1e-6
    outside_norm: Annotated[float, NotNegative] = 1e-5
    mask_rough: Annotated[float, NotNegative] = 1e-7
    outside_rough: Annotated[float, NotNegative] = 1e-8
    blocking: Annotated[float, NotNegative] = 0.0
    alone: Annotated[float, NotNegative] = 1e-2
    pattern_scale: Annotated[float, Positive] = 1.0
    initial: Annotated[float, NotNegative] = 1e-3
    warmup: Annotated[int, NotNegative] = 0
    patience: Annotated[int, AtLeast(1)] = 10
    up: Annotated[float, Positive] = 1.0
    config: SearchConfig = SearchConfig(success_threshold=0.99, rounds=500, schedule="cosine")
    probe: PatchInit | None = None

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over masks and patterns, one arm a goal."""
        scale = self.pattern_scale
        terms = (
            (self.mask_norm, Elastic("mask")),
            (self.outside_norm, Elastic("outside", scale)),
            (self.mask_rough, Roughness("mask")),
            (self.outside_rough, Roughness("outside", scale)),
            (self.blocking, Blocking()),
            (self.alone, Alone()),
        )
        cost = CostController.rising(
            len(goals), self.initial, self.patience, self.up, warmup=self.warmup
        )
        objective = Objective(MaskPattern(), cost, terms=terms, init=self.probe)
        return Search(subject, clean, goals, rng, objective, self.config)
