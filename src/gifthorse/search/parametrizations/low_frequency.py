"""A smooth change of the whole image: few numbers on a coarse grid, drawn out to every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Shape
from gifthorse.search.parametrizations.bounded import BoundedChange
from gifthorse.search.parametrizations.masks import Parts


@dataclass(frozen=True)
class LowFrequency(BoundedChange):
    """A change d `(C, H, W)` interpolated from a coarse grid, stamped as `clip(x + d)`.

    Its size is `H W rms(d)`: the pixels that would have to change from black to white to be as
    many grey levels away.

    Attributes:
        cell: Side of a cell of the grid, in pixels; in between, values are interpolated.
        shape: Height and width of an image.
    """

    eps: float = 1.0
    cell: int = 4
    shape: tuple[int, int] = (32, 32)

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Faint noise on the grid, since at no change at all the size has no slope."""
        height, width = (-(-side // self.cell) for side in self.shape)
        return (torch.randn(shape[0], height, width, generator=rng) * 0.02,)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Refuse: a patch is not smooth."""
        raise BadOption("a smooth change cannot start from a probed patch: set probe to null")

    def decode(self, variables: Parts) -> Parts:
        """Return the change of every pixel, `(a, C, H, W)`."""
        return (F.interpolate(variables[0], self.shape, mode="bilinear", align_corners=False),)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the size."""
        return self.soft_size(parts)

    def size(self, parts: Parts) -> Tensor:
        """Return `H W rms(d)`."""
        return self.soft_size(parts)

    def soft_size(self, parts: Parts) -> Tensor:
        """Return `H W rms(d)`."""
        area = self.shape[0] * self.shape[1]
        return area * (parts[0].square().flatten(1).mean(1) + 1e-12).sqrt()
