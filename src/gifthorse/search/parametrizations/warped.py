"""A smooth displacement of the whole image: few arrows on a coarse grid, bent between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images, Shape, Trigger
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.triggers.warp import Warp

START = 0.05  # pixels: at no displacement at all, its length has no slope


@dataclass(frozen=True)
class DisplacementField:
    """Arrows `(2, k, k)`, to the right and down in pixels, between which the field is bicubic.

    Its size is `H W` times the mean length of the displacement over the longer side: a displacement
    by the whole image counts as a change of all its pixels, so that sizes compare with those of
    other families. Half a pixel, on average, is 16 pixels of 32 x 32.

    Attributes:
        cells: k, arrows along a side.
        shape: Channels, height and width of an image.

    Source: Nguyen and Tran, WaNet, ICLR 2021 (how its field is made from a coarse one).
    """

    cells: int = 4
    shape: Shape = (3, 32, 32)

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Faint random arrows."""
        return (torch.randn(2, self.cells, self.cells, generator=rng) * START,)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Refuse: a patch is no displacement."""
        raise BadOption("a warp cannot start from a probed patch: set probe to null")

    def decode(self, variables: Parts) -> Parts:
        """Return the displacement of every pixel, `(a, 2, H, W)`, and the arrows."""
        field = F.interpolate(variables[0], self.shape[1:], mode="bicubic", align_corners=True)
        return field, variables[0]

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Return `(a, B, C, H, W)` images seen at their own places plus the displacement."""
        a, b, c, h, w = x.shape
        scale = torch.tensor([2 / max(1, w - 1), 2 / max(1, h - 1)]).view(1, 2, 1, 1).to(x)
        down, right = torch.meshgrid(
            torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"
        )
        grid = (torch.stack([right, down]).to(x) + parts[0] * scale).clamp(-1, 1)
        # All images of an arm are seen alike, as if they were channels of one.
        seen = F.grid_sample(
            x.reshape(a, b * c, h, w), grid.permute(0, 2, 3, 1), align_corners=True
        )
        return seen.view(a, b, c, h, w).clamp(0, 1)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the size."""
        return self.size(parts)

    def project(self, variables: Parts) -> Parts:
        """Return arrows that lead no farther than the image is long."""
        far = float(max(self.shape[1:]))
        return (variables[0].clamp(-far, far),)

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return a displacement of live pixels only."""
        return parts[0] * live, parts[1]

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are."""
        return parts

    def size(self, parts: Parts) -> Tensor:
        """Return the mean length of the displacement, as an area in pixels."""
        _, height, width = self.shape
        mean = (parts[0].square().sum(1) + 1e-12).sqrt().flatten(1).mean(1)
        return height * width / max(height, width) * mean

    soft_size = size

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables."""
        return variables

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return a warp, in units in which its coarse field has a mean of 1 as random ones have."""
        channels, height, width = self.shape
        side = torch.tensor([width, height]).to(parts[0])
        unit = (2 * side / (side - 1).clamp(min=1)).view(2, 1, 1)
        strength = max(float((parts[1] * unit).abs().mean()), 1e-6)
        return Warp(parts[0] * unit / strength, strength, self.cells, channels)
