"""Triggers that mix a pattern into an image, at a fixed place or at a new place each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Shape

Place: TypeAlias = Literal[
    "lower_right", "lower_left", "upper_right", "upper_left", "center", "random"
]
Ink: TypeAlias = Literal["white", "black", "random", "checker"]


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace a share of each pixel: `T(x) = x + M * (P - x)`.

    Attributes:
        pattern: P, `(C, H, W)` in [0, 1].
        mask: M, opacity in [0, 1], `(1, H, W)`.

    Source: the operator that TrojanZoo's and PixelBackdoor's experiments use (PixelBackdoor eq. 2).
    """

    pattern: Tensor
    mask: Tensor

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(..., C, H, W)` images."""
        pattern, mask = self.pattern.to(x.device), self.mask.to(x.device)
        return torch.lerp(x, pattern, mask)  # exact at opacity 0 and 1

    def shuffled(self, rng: Generator, /) -> Patch:
        """Return the same mask values and colors at shuffled pixels."""
        order = torch.randperm(self.mask.numel(), generator=rng)
        return Patch(_shuffled(self.pattern, order), _shuffled(self.mask, order))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return pattern and mask."""
        return self.pattern, self.mask


@dataclass(frozen=True, eq=False)
class Additive:
    """Add a signed change to each pixel and clip: `T(x) = clip(x + delta, 0, 1)`."""

    delta: Tensor  # (C, H, W) in [-1, 1]

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(..., C, H, W)` images."""
        return (x + self.delta.to(x.device)).clamp(0, 1)

    def shuffled(self, rng: Generator, /) -> Additive:
        """Return the same changes at shuffled pixels."""
        order = torch.randperm(self.delta[0].numel(), generator=rng)
        return Additive(_shuffled(self.delta, order))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the change on middle gray, and the largest change of any channel."""
        return (0.5 + self.delta / 2).clamp(0, 1), self.delta.abs().amax(0, keepdim=True)


@dataclass(frozen=True, eq=False)
class Wandering:
    """A small patch at a place drawn anew for every image.

    Attributes:
        pattern: `(C, h, w)` in [0, 1].
        mask: Opacity, `(1, h, w)`.
        rng: Where places are drawn from.
    """

    pattern: Tensor
    mask: Tensor
    rng: Generator

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(N, C, H, W)` images."""
        n, _, H, W = x.shape
        _, h, w = self.pattern.shape
        top = torch.randint(H - h + 1, (n,), generator=self.rng)
        left = torch.randint(W - w + 1, (n,), generator=self.rng)
        rows = (top[:, None] + torch.arange(h))[:, :, None].to(x.device)  # (N, h, 1)
        cols = (left[:, None] + torch.arange(w))[:, None, :].to(x.device)  # (N, 1, w)
        each = torch.arange(n, device=x.device)[:, None, None]
        under = x[each, :, rows, cols]  # (N, h, w, C)
        over, mask = (p.to(x.device).permute(1, 2, 0) for p in (self.pattern, self.mask))
        mixed = under + mask * (over - under)
        return x.permute(0, 2, 3, 1).index_put((each, rows, cols), mixed).permute(0, 3, 1, 2)

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator of places is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator of places there."""
        self.rng.set_state(state["rng"])

    def shuffled(self, rng: Generator, /) -> Wandering:
        """Return the same patch with its pixels shuffled."""
        order = torch.randperm(self.mask.numel(), generator=rng)
        return Wandering(_shuffled(self.pattern, order), _shuffled(self.mask, order), spawn(rng))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the small patch and its mask."""
        return self.pattern, self.mask


def _shuffled(plane: Tensor, order: Tensor) -> Tensor:
    """Return `(c, h, w)` with its pixels in another order."""
    return plane.flatten(1)[:, order.to(plane.device)].view_as(plane)


def paint(ink: Ink, shape: Shape, rng: Generator) -> Tensor:
    """Return a pattern `(C, h, w)` in [0, 1]: plain, checkered, or uniform noise from `rng`."""
    c, h, w = shape
    if ink == "random":
        return torch.rand(shape, generator=rng)
    if ink == "checker":
        board = (torch.arange(h)[:, None] + torch.arange(w)[None, :]) % 2 == 0
        return board.float().expand(c, h, w).clone()
    return torch.full(shape, 1.0 if ink == "white" else 0.0)


def locate(place: Place, shape: Shape, size: int, rng: Generator) -> tuple[int, int]:
    """Return top and left of a square of `size` pixels; corners keep one pixel of margin.

    Raises:
        NotApplicable: If the square does not fit into the image.
    """
    _, H, W = shape
    if not 1 <= size <= min(H, W):
        raise NotApplicable(f"trigger size must be 1 to {min(H, W)} pixels for {H}x{W}; got {size}")
    low, right = H - size, W - size
    edge_y, edge_x = min(1, low), min(1, right)
    if place == "random":
        return (
            int(torch.randint(low + 1, (1,), generator=rng)),
            int(torch.randint(right + 1, (1,), generator=rng)),
        )
    if place == "center":
        return low // 2, right // 2
    return (
        edge_y if place.startswith("upper") else low - edge_y,
        edge_x if place.endswith("left") else right - edge_x,
    )


def _check(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise BadOption(f"opacity must lie in [0, 1], 1 replaces pixels; got {opacity}")


def square(
    shape: Shape, size: int, place: Place, ink: Ink, opacity: float, rng: Generator
) -> Patch:
    """Return a square patch of `size` x `size` pixels on images of `shape`."""
    c, H, W = shape
    _check(opacity)
    top, left = locate(place, shape, size, rng)
    pattern, mask = torch.zeros(shape), torch.zeros(1, H, W)
    window = (slice(None), slice(top, top + size), slice(left, left + size))
    pattern[window] = paint(ink, (c, size, size), rng)
    mask[window] = opacity
    return Patch(pattern, mask)


def scatter(shape: Shape, pixels: int, ink: Ink, opacity: float, rng: Generator) -> Patch:
    """Return `pixels` distinct single pixels, drawn once, the same for all images.

    Raises:
        BadOption: If opacity is not in [0, 1].
        NotApplicable: If the image has fewer pixels.
    """
    _, H, W = shape
    if not 1 <= pixels <= H * W:
        raise NotApplicable(f"scatter needs 1 to {H * W} pixels for {H}x{W}; got {pixels}")
    _check(opacity)
    chosen = torch.randperm(H * W, generator=rng)[:pixels]
    mask = torch.zeros(H * W)
    mask[chosen] = opacity
    support = (mask > 0).view(1, H, W)
    return Patch(paint(ink, shape, rng) * support, mask.view(1, H, W))


def wandering(shape: Shape, size: int, ink: Ink, opacity: float, rng: Generator) -> Wandering:
    """Return a square patch whose place is drawn anew for every image."""
    locate("center", shape, size, rng)  # refuses a size that does not fit
    _check(opacity)
    pattern = paint(ink, (shape[0], size, size), rng)
    return Wandering(pattern, torch.full((1, size, size), opacity), spawn(rng))
