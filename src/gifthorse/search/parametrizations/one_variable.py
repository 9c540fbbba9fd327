"""Pixel changes from one variable instead of two: what PixelBackdoor's ablation compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.tensors import from_box
from gifthorse.core.types import Shape, Trigger
from gifthorse.search.parametrizations.masks import Parts, SignedPixels


@dataclass(frozen=True)
class OneVariable:
    """A change `(C, H, W)` that a single variable b makes: only brighter, or of either sign.

    Attributes:
        sign: `positive` is `clip(b, 0, 1)`; `signed` is `clip(b, -1, 1)`.
        gamma: Divides b in the size loss.
        spread: `tanh` takes tanh(b / gamma) into the size loss, `plain` the change itself.

    Source: PixelBackdoor, appendix K, Table 6, rows 3 to 5.
    """

    sign: Literal["positive", "signed"] = "positive"
    gamma: float = 10.0
    spread: Literal["tanh", "plain"] = "tanh"

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """The variable uniform in [0, 1), as for two of them."""
        return (torch.rand(shape, generator=rng),)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Return a variable that pushes pixels to the bright parts of the pattern."""
        pushed = pattern if self.sign == "positive" else 2 * pattern - 1
        return (torch.where(support, pushed, variables[0]),)

    def decode(self, variables: Parts) -> Parts:
        """Return what is added and what is removed, each in [0, 1]."""
        low = 0.0 if self.sign == "positive" else -1.0
        change = variables[0].clamp(low, 1)
        # clamp lets the gradient pass at 0, where the snap puts removed pixels; relu would not
        return change.clamp_min(0), (-change).relu()

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the size loss over the one variable."""
        if self.spread == "plain":
            tops = (parts[0] + parts[1]).amax(1)
        elif self.sign == "positive":
            tops = from_box(variables[0].amax(1) / self.gamma)
        else:
            tops = torch.tanh(variables[0] / self.gamma).abs().amax(1)
        return tops.flatten(1).sum(1)

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Snap, as for two variables."""
        return (parts[0] - parts[1],)

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return changes of live pixels only."""
        return _TWO.restrict(parts, live)

    def stamp(self, parts: Parts, x: Tensor) -> Tensor:
        """Return `clip(x + change, 0, 1)`."""
        return _TWO.stamp(parts, x)

    def postprocess(self, parts: Parts) -> Parts:
        """Drop changes below 1/255."""
        return _TWO.postprocess(parts)

    def size(self, parts: Parts) -> Tensor:
        """Return the number of changed pixels."""
        return _TWO.size(parts)

    def soft_size(self, parts: Parts) -> Tensor:
        """Return the sum over pixels of the largest change of a channel."""
        return _TWO.soft_size(parts)

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return an additive trigger."""
        return _TWO.to_trigger(parts)


_TWO = SignedPixels("clip")  # once decoded, both have the same parts
