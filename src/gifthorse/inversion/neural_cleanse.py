"""Neural Cleanse: the smallest mask and pattern that send every image to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import (
    CostController,
    MaskPattern,
    Objective,
    PatchInit,
    RandomAffine,
    Search,
    SearchConfig,
)


@method
class NeuralCleanse:
    """Minimize `CE(f((1 - m) x + m p), t) + lambda |m|_1` over mask m and pattern p.

    Assumes a patch trigger that covers a fixed place, opaque or blended. Needs clean images and
    gradients. The size of a trigger is the L1 norm of its mask over one channel.

    Attributes:
        norm: Penalty on the mask: `l1` or `l2`.
        initial: lambda once it starts to count.
        warmup: Successful rounds before lambda goes from 0 to `initial`; 0 starts with it.
        patience: Rounds in a row before lambda moves.
        up: Factor by which lambda rises.
        fall: It falls by `up ** fall`.
        jitter: Noise when a best is stored, see `MaskPattern`.
        square: Side of a nearly opaque square in the middle to start from, as a share of the
            image's; 0 starts at random.
        one_color: Whether all pixels of the pattern share one color.
        turning: Transformations during generation (PixelBackdoor, appendix J); None for none.
        config: Steps, success bar and stopping.
        probe: Where to start; None starts at random, as published.

    Source: Wang et al., Neural Cleanse, S&P 2019; defaults of its released GTSRB example: rounds of
    31 batches of 32, however few the images (each comes up more often then), at most 1000, fewer
    once the weight of the size went both ways and 25 rounds brought no smaller mask.
    Differs: true cross entropy; what is smaller is the mask after a round, tested on all generation
    images, not the mean over the round; images of the target class are left out.
    """

    norm: Literal["l1", "l2"] = "l1"
    initial: Annotated[float, NotNegative] = 1e-3
    warmup: Annotated[int, NotNegative] = 5
    patience: Annotated[int, AtLeast(1)] = 5
    up: Annotated[float, Positive] = 2.0
    fall: Annotated[float, NotNegative] = 1.5
    jitter: Annotated[float, NotNegative] = 0.0
    square: Annotated[float, Share] = 0.0
    one_color: bool = False
    turning: RandomAffine | None = None
    config: SearchConfig = SearchConfig(
        steps=31, min_steps=31, success_threshold=0.99, patience=25, min_delta=0.0
    )
    probe: PatchInit | None = None

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over masks and patterns, one arm a goal."""
        cost = CostController.rising(
            len(goals), self.initial, self.patience, self.up, warmup=self.warmup, fall=self.fall
        )
        form = MaskPattern(self.norm, self.jitter, square=self.square, one_color=self.one_color)
        objective = Objective(form, cost, stamped_transform=self.turning, init=self.probe)
        return Search(subject, clean, goals, rng, objective, self.config)
