"""PixelBackdoor: the fewest changed pixels that send every image to the goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import (
    CostController,
    Objective,
    OneVariable,
    Parametrization,
    PatchInit,
    RandomAffine,
    Search,
    SearchConfig,
    SignedPixels,
)


@method
class PixelBackdoor:
    """Minimize `CE(f(clip(x + P+ - P-)), t) + alpha R` over added and removed light.

    Assumes a trigger that changes few pixels, the same way in every image. Needs clean images and
    gradients. The size of a trigger is its number of changed pixels.

    Attributes:
        mode: `tanh` (the paper's choice for scanning) or `clip` (for natural triggers).
        variables: `two` (P+ and P-), or for the ablation one `positive` or one `signed` variable;
            those need the clip mode.
        spread: Size loss over tanh of the variables, or over the `plain` changes (ablation).
        ties: Channels that tie for a pixel's maximum `share` the gradient, or the `first` takes it.
        gamma: Divides the variables in the size loss.
        initial: alpha at the start.
        patience: Rounds in a row before alpha moves.
        up: Factor by which alpha rises; it falls by `up ** 1.5`.
        turning: Transformations during generation (appendix J); None for none.
        config: Steps, success bar and stopping.
        probe: Where to start; None starts at random, as published.

    Source: Tao et al., Better Trigger Inversion Optimization in Backdoor Scanning, CVPR 2022,
    eqs. 3 to 6; constants that the paper leaves open from its released code. Differs: true cross
    entropy; the trigger after a step, truncated, is tested on all generation images before it is
    stored, by size first; light that is added and removed alike is dropped as well as what is below
    1/255; in tanh mode the snap goes through the inverse of tanh.
    """

    mode: Literal["tanh", "clip"] = "tanh"
    variables: Literal["two", "positive", "signed"] = "two"
    spread: Literal["tanh", "plain"] = "tanh"
    ties: Literal["share", "first"] = "share"
    gamma: Annotated[float, Positive] = 10.0
    initial: Annotated[float, NotNegative] = 1e-3
    patience: Annotated[int, AtLeast(1)] = 10
    up: Annotated[float, Positive] = 1.5
    turning: RandomAffine | None = None
    config: SearchConfig = SearchConfig(success_threshold=0.9, rounds=1000)
    probe: PatchInit | None = None

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over pixel changes, one arm a goal.

        Raises:
            BadOption: If one variable is asked for in tanh mode.
        """
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)
        objective = Objective(self._form(), cost, stamped_transform=self.turning, init=self.probe)
        return Search(subject, clean, goals, rng, objective, self.config)

    def _form(self) -> Parametrization:
        if self.variables == "two":
            return SignedPixels(self.mode, self.gamma, self.spread, self.ties)
        if self.mode != "clip":
            raise BadOption(f"variables={self.variables} needs mode=clip; got mode={self.mode}")
        return OneVariable(self.variables, self.gamma, self.spread)
