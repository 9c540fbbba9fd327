"""A change of every pixel that stays within a bound, as universal perturbations are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.tensors import STEP
from gifthorse.core.types import Shape, Trigger
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.triggers import Additive


@dataclass(frozen=True)
class BoundedChange:
    """A change d `(C, H, W)` with `|d| <= eps` everywhere, stamped as `clip(x + d)`.

    Attributes:
        eps: The bound, on the 0-1 scale.
        spread: Start uniform within this share of the bound; 0 starts at no change.

    Source: Shafahi et al., Universal Adversarial Training, AAAI 2020; PixelBackdoor, appendix B.
    """

    eps: float = 8 / 255
    spread: float = 0.0

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """No change, or a random one within the bound."""
        noise = torch.rand(shape, generator=rng) * 2 - 1
        return (noise * self.eps * self.spread,)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Refuse: a bounded change has no patch to start from."""
        raise BadOption("a bounded change cannot start from a probed patch: set probe to null")

    def decode(self, variables: Parts) -> Parts:
        """Return the change."""
        return variables

    def project(self, variables: Parts) -> Parts:
        """Return the change cut back to the bound."""
        return (variables[0].clamp(-self.eps, self.eps),)

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return changes of live pixels only."""
        return (parts[0] * live,)

    def stamp(self, parts: Parts, x: Tensor) -> Tensor:
        """Return `clip(x + d, 0, 1)`."""
        return (x + parts[0].unsqueeze(1)).clamp(0, 1)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return 0: the bound takes the place of a penalty."""
        return parts[0].flatten(1).sum(1) * 0

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are."""
        return parts

    def size(self, parts: Parts) -> Tensor:
        """Return the number of pixels that change by 1/255 or more in any channel."""
        return (parts[0].abs() >= STEP - 1e-6).any(1).flatten(1).sum(1).to(parts[0])

    def soft_size(self, parts: Parts) -> Tensor:
        """Return the sum over pixels of the largest change of a channel."""
        return parts[0].abs().amax(1).flatten(1).sum(1)

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables."""
        return variables

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return an additive trigger."""
        return Additive(parts[0])
