"""A trigger that bends the image a little instead of painting on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Shape


@dataclass(frozen=True, eq=False)
class Warp:
    """Move every pixel by a smooth field: `T(x) = sample(x, clip(id + s n / size, -1, 1))`.

    Places run from -1 to 1 between the centers of the outermost pixels, so that `s / 2` pixels
    belong to a field of 1, whatever the size of the image. What would come from outside comes from
    the edge.

    Attributes:
        field: n, `(2, H, W)`: to the right, then down; see `smooth_field`.
        strength: s; 0 changes nothing.
        cells: Rows and columns of the coarse random field that n was made from.
        channels: Channels of the images; only the picture needs to know.

    Source: Nguyen and Tran, WaNet, ICLR 2021. Differs: height and width are scaled each
    by itself, so that images need not be square; rounding is clipped to [0, 1].
    """

    field: Tensor
    strength: float = 0.5
    cells: int = 4
    channels: int = 3

    def __post_init__(self) -> None:
        if self.field.ndim != 3 or len(self.field) != 2:
            raise BadOption(f"a field has shape (2, H, W); got {tuple(self.field.shape)}")

    def __call__(self, x: Images, /) -> Images:
        """Return warped copies of `(N, C, H, W)` images."""
        if self.strength == 0:  # sampling at the pixels themselves would round
            return x.clone()
        return _sampled(x, self._shift(x).expand(len(x), -1, -1, -1))

    def jittered(self, x: Images, rng: Generator) -> Images:
        """Return copies warped by the field and, beyond that, by noise of each image's own.

        The noise moves each pixel by up to about half a pixel along each axis.

        Args:
            x: `(N, C, H, W)` in [0, 1].
            rng: Source of the noise.

        Source: Nguyen and Tran, WaNet, ICLR 2021 (noise mode), and its public code.
        """
        n, _, H, W = x.shape
        noise = torch.rand(n, 2, H, W, generator=rng).to(x) * 2 - 1
        return _sampled(x, self._shift(x) + noise / _size(x))

    @property
    def displacement(self) -> Tensor:
        """How far each pixel's source lies to the right and down, in pixels, `(2, H, W)`."""
        _, H, W = self.field.shape
        half = torch.tensor([(W - 1) / 2, (H - 1) / 2]).view(2, 1, 1).to(self.field)
        return self._shift(self.field[None])[0] * half

    def shuffled(self, rng: Generator, /) -> Warp:
        """Return a warp of the same strength by a fresh random field."""
        _, H, W = self.field.shape
        fresh = smooth_field((self.channels, H, W), self.cells, rng)
        return replace(self, field=fresh.to(self.field))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return how far pixels move, beside the farthest and in pixels (1 at the most)."""
        far = torch.linalg.vector_norm(self.displacement, dim=0)[None]
        relative = far / far.max().clamp(min=1e-9)
        return relative.repeat(self.channels, 1, 1), far.clamp(max=1)

    def _shift(self, x: Tensor) -> Tensor:
        return self.strength * self.field.to(x)[None] / _size(x)


def smooth_field(shape: Shape, cells: int, rng: Generator) -> Tensor:
    """Return a smooth random field `(2, H, W)` for images of `shape`.

    Drawn uniformly for `cells` x `cells` places, scaled to a mean absolute value of 1 there, and
    interpolated (bicubic) in between, where it is smaller: with 4 cells a pixel moves `0.37 s`
    pixels along each axis on average over all fields and pixels, a distance of `0.58 s`.

    Raises:
        BadOption: If there are fewer than two cells a side.

    Source: Nguyen and Tran, WaNet, ICLR 2021 (warping field generation).
    """
    if cells < 2:
        raise BadOption(f"a field needs at least 2 cells a side, the paper has 4; got {cells}")
    coarse = torch.rand(1, 2, cells, cells, generator=spawn(rng)) * 2 - 1
    coarse = coarse / coarse.abs().mean()
    return F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=True)[0]


def _size(x: Tensor) -> Tensor:
    """Return width and height, in the order of a field's planes, `(1, 2, 1, 1)`."""
    return torch.tensor([x.shape[-1], x.shape[-2]], dtype=x.dtype, device=x.device).view(1, 2, 1, 1)


def _sampled(x: Images, shift: Tensor) -> Images:
    """Return images `(N, C, H, W)` seen at their own places plus a shift `(N, 2, H, W)`."""
    _, _, H, W = x.shape
    down, right = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    grid = (torch.stack([right, down]).to(x) + shift).clamp(-1, 1)
    seen = F.grid_sample(x, grid.permute(0, 2, 3, 1), mode="bilinear", align_corners=True)
    return seen.clamp(0, 1)
