"""PixelBackdoor: the fewest changed pixels that send every image to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Generator

from gifthorse.search import Adaptive, Pace, Probe, Search, SignedPixels
from gifthorse.types import Goal, Hunt, Samples, Subject


@dataclass(frozen=True)
class PixelBackdoor:
    """Minimize `CE(f(clip(x + P+ - P-)), t) + alpha R` over added and removed light.

    Assumes a trigger that changes few pixels, the same way in every image. Needs clean images and
    gradients. The size of a trigger is its number of changed pixels.

    Attributes:
        mode: `tanh` (the paper's choice for scanning) or `clip` (for natural triggers).
        gamma: Divides the variables in the size loss.
        initial: alpha at the start.
        wait: Rounds in a row before alpha moves.
        up: Factor by which alpha rises; it falls by `up ** 1.5`.
        pace: Steps, success bar and stopping.
        probe: Where to start; None starts at random, as published.

    Source: Tao et al., Better Trigger Inversion Optimization in Backdoor Scanning, CVPR 2022,
    eqs. 3 to 6; constants that the paper leaves open from its released code. Differs: true cross
    entropy; the trigger after a step, truncated, is tested on all generation images before it is
    stored, by size first; in tanh mode the snap goes through the inverse of tanh.
    """

    mode: Literal["tanh", "clip"] = "tanh"
    gamma: float = 10.0
    initial: float = 1e-3
    wait: int = 10
    up: float = 1.5
    pace: Pace = Pace(bar=0.9, rounds=1000)
    probe: Probe | None = None

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Hunt:
        """Return a search over pixel changes, one arm a goal."""
        cost = Adaptive.start(
            len(goals),
            initial=self.initial,
            patience=self.wait,
            up=self.up,
            down=self.up**1.5,
        )
        form = SignedPixels(self.mode, self.gamma)
        return Search(subject, clean, goals, form, rng, cost=cost, pace=self.pace, probe=self.probe)
