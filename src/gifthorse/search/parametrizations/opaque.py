"""An opaque replacement of the pixels that a search still allows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.tensors import from_box, to_box
from gifthorse.core.types import Shape, Trigger
from gifthorse.search.parametrizations.masks import MaskPattern, Parts


@dataclass(frozen=True)
class Opaque:
    """A pattern p `(C, H, W)` that replaces the live pixels, the same in every image.

    Attributes:
        noise: Half-width of the uniform noise around middle gray that the pattern starts from.

    Source: PixelBackdoor, eq. 9: Carlini and Wagner's change of variables for a set of images.
    """

    noise: float = 0.05

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Middle gray with a little noise."""
        gray = 0.5 + self.noise * (2 * torch.rand(shape, generator=rng) - 1)
        return (to_box(gray),)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Return a pattern that shows another one on its support."""
        return (torch.where(support, to_box(pattern, 1e-2), variables[0]),)

    def decode(self, variables: Parts) -> Parts:
        """Return mask and pattern; every pixel is replaced."""
        pattern = from_box(variables[0])
        return torch.ones_like(pattern[:, :1]), pattern

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return a mask of the live pixels."""
        return parts[0] * live, parts[1]

    def stamp(self, parts: Parts, x: Tensor) -> Tensor:
        """Return `(1 - m) x + m p`."""
        return _MASK.stamp(parts, x)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return 0: the live pixels take the place of a penalty."""
        return parts[1].flatten(1).sum(1) * 0

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are."""
        return parts

    def size(self, parts: Parts) -> Tensor:
        """Return the number of replaced pixels."""
        return _MASK.size(parts)

    soft_size = size

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables."""
        return variables

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return a patch."""
        return _MASK.to_trigger(parts)


_MASK = MaskPattern()
