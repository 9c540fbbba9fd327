"""A filter that was recovered: colors mixed, neighbors mixed, and a vignette."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.types import Images
from gifthorse.triggers.filters import chart


@dataclass(frozen=True, eq=False)
class Developed:
    """Change whole images: `T(x) = clip(x + K * x + b + v r x)`.

    Attributes:
        kernel: K, `(C, C, 3, 3)`: what a pixel's colors and those of its neighbors add to it.
        bias: b, `(C,)`.
        vignette: v, `(C,)`; r runs from 0 at the center to 1 in the corners, squared.
        height: Height of the picture to show.
        width: Its width.
    """

    kernel: Tensor
    bias: Tensor
    vignette: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        c = self.bias.numel()
        if self.kernel.shape != (c, c, 3, 3) or self.vignette.shape != (c,) or self.bias.ndim != 1:
            raise ShapeMismatch(
                "a filter has a kernel (C, C, 3, 3), a bias (C,) and a vignette (C,); got "
                f"{tuple(self.kernel.shape)}, {tuple(self.bias.shape)}, "
                f"{tuple(self.vignette.shape)}"
            )

    def __call__(self, x: Images, /) -> Images:
        """Return filtered copies of `(N, C, H, W)` images."""
        parts = (self.kernel[None], self.bias[None], self.vignette[None])
        return developed(x[None], *(p.to(x) for p in parts))[0]

    def shuffled(self, rng: Generator, /) -> Developed:
        """Return another filter of the same numbers: each in another place, of a random sign."""

        def other(values: Tensor) -> Tensor:
            n = values.numel()
            order = torch.randperm(n, generator=rng).to(values.device)
            signs = (torch.randint(2, (n,), generator=rng) * 2 - 1).to(values)
            return (values.flatten()[order] * signs).view(values.shape)

        kernel, bias, vignette = map(other, (self.kernel, self.bias, self.vignette))
        return Developed(kernel, bias, vignette, self.height, self.width)

    def render(self) -> tuple[Tensor, Tensor]:
        """Return a filtered chart of colors, and how far its pixels were changed."""
        plain = chart(self.height, self.width).to(self.kernel)
        c = len(self.bias)
        plain = (plain if c == 3 else plain.mean(0, keepdim=True).repeat(c, 1, 1))[None]
        made = self(plain)
        return made[0], (made - plain).abs().amax(1)


def developed(x: Tensor, kernel: Tensor, bias: Tensor, vignette: Tensor) -> Tensor:
    """Return `(a, B, C, H, W)` images, those of each arm under its own filter.

    Args:
        x: Images in [0, 1].
        kernel: `(a, C, C, 3, 3)`.
        bias: `(a, C)`.
        vignette: `(a, C)`.
    """
    a, b, c, h, w = x.shape
    flat = F.pad(x.transpose(0, 1).reshape(b, a * c, h, w), (1, 1, 1, 1), mode="replicate")
    added = F.conv2d(flat, kernel.flatten(0, 1), bias.flatten(), groups=a)
    added = added.view(b, a, c, h, w).transpose(0, 1)
    gain = vignette[:, None, :, None, None] * rings(h, w).to(x)
    return (x + added + gain * x).clamp(0, 1)


def rings(height: int, width: int) -> Tensor:
    """Return r `(H, W)`: the squared distance from the center, 1 in the corners."""
    down = torch.linspace(-1, 1, height).square().view(-1, 1)
    return (down + torch.linspace(-1, 1, width).square()) / 2
