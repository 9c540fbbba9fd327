"""Roadsides to put signs on, and the weather: batches of images, made from random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.types import Images

Color: TypeAlias = tuple[float, float, float]

RAYS = 200  # most strokes of rain


@dataclass(frozen=True)
class Place:
    """What stands in the scenes of one place.

    Attributes:
        sky: Its color at the top; it fades towards the horizon.
        ground: Color of what lies below the horizon.
        road: Whether a road leads there.
        houses: How many there are.
        trees: Share of the strip around the horizon that is foliage.
    """

    sky: Color
    ground: Color
    road: bool
    houses: int
    trees: float


PLACES = {
    "city": Place((0.55, 0.66, 0.82), (0.46, 0.45, 0.44), True, 5, 0.1),
    "suburb": Place((0.50, 0.68, 0.90), (0.40, 0.50, 0.32), True, 2, 0.5),
    "highway": Place((0.60, 0.74, 0.92), (0.55, 0.52, 0.40), True, 0, 0.3),
    "park": Place((0.64, 0.76, 0.84), (0.34, 0.48, 0.26), False, 0, 0.8),
    "country": Place((0.70, 0.72, 0.76), (0.58, 0.54, 0.34), False, 1, 0.4),
}


def backgrounds(place: Place, count: int, side: int, rng: Generator) -> Images:
    """Return `count` scenes of a place, `(count, 3, side, side)` in [0, 1].

    Horizon, road, houses, foliage, cast of color, contrast and sharpness differ.

    Source: the backgrounds of TrojAI's data, crops of photographs of roads. Differs: no
    photographs; a scene is put together from gradients, figures and value noise.
    """
    line = (torch.arange(side) + 0.5) / side
    down, right = line.view(1, 1, side, 1), line.view(1, 1, 1, side)
    horizon = _between(0.35, 0.6, count, rng)
    noise = value_noise(count, side, rng)
    sky = torch.lerp(_paint(place.sky), torch.ones(1), 0.6 * down / horizon.clamp(min=0.1))
    ground = _paint(place.ground) * (0.6 + 0.8 * noise)
    x = torch.where(down < horizon, sky + 0.15 * (noise - 0.5), ground)
    for _ in range(place.houses):
        x = _house(x, down, right, horizon, rng)
    near = (down > horizon - 0.35) & (down < horizon + 0.1)
    leaves = near & (value_noise(count, side, rng) < 0.2 + 0.6 * place.trees)
    green = _paint((0.25, 0.45, 0.15)) * (0.4 + 1.2 * value_noise(count, side, rng))
    x = torch.where(leaves, green, x)
    if place.road:
        x = _road(x, down, right, horizon, rng)
    cast = 0.85 + 0.3 * torch.rand(count, 3, 1, 1, generator=rng)
    x = (x * cast - 0.5) * _between(0.7, 1.2, count, rng) + 0.5
    return blurred(x.clamp(0, 1), _between(0, 1.5, count, rng), radius=3).clamp(0, 1)


def value_noise(count: int, side: int, rng: Generator) -> Tensor:
    """Return smooth noise in three octaves, `(count, 1, side, side)` in [0, 1], mean about 0.5."""
    total = torch.zeros(count, 1, side, side)
    for cells, weight in ((4, 0.5), (9, 0.3), (19, 0.2)):
        coarse = torch.rand(count, 1, cells, cells, generator=rng)
        total += weight * F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    return total


def blurred(x: Images, sigma: Tensor, radius: int) -> Images:
    """Return images blurred by a Gaussian each of its own; edges are repeated.

    Args:
        x: `(N, C, H, W)`.
        sigma: Standard deviations in pixels, `(N, 1, 1, 1)`; 0 leaves the image as it is.
        radius: Pixels to each side that the Gaussian is cut off at.
    """
    steps = range(-radius, radius + 1)
    weight = torch.stack([torch.exp(-(s**2) / (2 * sigma.clamp(min=1e-3) ** 2)) for s in steps])
    weight = weight / weight.sum(0)
    for axis in (2, 3):
        pad = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        wide = F.pad(x, pad, mode="replicate")
        size = x.shape[axis]
        x = weight[0] * wide.narrow(axis, 0, size)
        for i in range(1, len(weight)):
            x.addcmul_(weight[i], wide.narrow(axis, i, size))
    return x


def fog(x: Images, rng: Generator) -> Images:
    """Return `(N, C, H, W)` images blended towards gray, more so above: at most 0.1 to 0.5."""
    n, _, H, _ = x.shape
    ramp = torch.linspace(1, 0.4, H).view(1, 1, H, 1)
    return torch.lerp(x, torch.full((1,), 0.75), _between(0.1, 0.5, n, rng) * ramp)


def rain(x: Images, rng: Generator) -> Images:
    """Return `(N, C, H, W)` images, a little darker, with 50 to 200 slanted strokes, 1 pixel wide.

    Strokes have opacity 0.3 and, on each image, one slant.
    """
    n, _, H, W = x.shape
    length = max(2, H // 10)
    count = torch.randint(50, RAYS + 1, (n, 1, 1), generator=rng)
    slant = torch.rand(n, 1, 1, generator=rng) * 1.2 - 0.6
    along = torch.arange(length)
    top = torch.randint(H, (n, RAYS, 1), generator=rng) + along
    left = torch.randint(W, (n, RAYS, 1), generator=rng) + (slant * along).round().long()
    falls = (torch.arange(RAYS)[:, None] < count).expand(n, RAYS, length)
    wet = torch.zeros(n, H * W).scatter_reduce(
        1, (top % H * W + left % W).flatten(1), falls.float().flatten(1), "amax"
    )
    return torch.lerp(x, torch.full((1,), 0.9), 0.3 * wet.view(n, 1, H, W)) * 0.9


def _house(x: Images, down: Tensor, right: Tensor, horizon: Tensor, rng: Generator) -> Images:
    """Put a front with rows of windows on the horizon of each image."""
    n = len(x)
    left, wide = _between(-0.1, 0.9, n, rng), _between(0.12, 0.4, n, rng)
    roof = horizon - _between(0.1, 0.5, n, rng)
    front = (right > left) & (right < left + wide) & (down > roof) & (down < horizon + 0.03)
    pane = _between(0.05, 0.12, n, rng)
    window = ((right - left) % pane > 0.45 * pane) & ((down - roof) % pane > 0.45 * pane)
    wall = 0.25 + 0.5 * torch.rand(n, 3, 1, 1, generator=rng)
    glass = _between(0.1, 0.9, n, rng)
    return torch.where(front, torch.where(window, glass, wall), x)


def _road(x: Images, down: Tensor, right: Tensor, horizon: Tensor, rng: Generator) -> Images:
    """Put a road with a dashed line from below to the horizon of each image."""
    n = len(x)
    near = (down - horizon) / (1 - horizon)  # 0 at the horizon, 1 at the lower edge
    center = torch.lerp(_between(0.2, 0.8, n, rng), _between(0.2, 0.8, n, rng), near)
    off = (right - center).abs()
    tar = _between(0.2, 0.45, n, rng) * torch.ones(1, 3, 1, 1)
    x = torch.where((near > 0) & (off < 0.03 + _between(0.25, 0.6, n, rng) * near), tar, x)
    dash = (1.5 / (near.clamp(min=0) + 0.15) + _between(0, 1, n, rng)) % 1 < 0.5
    return torch.where((near > 0) & dash & (off < 0.005 + 0.02 * near), 0.9, x)


def _between(low: float, high: float, count: int, rng: Generator) -> Tensor:
    """Return one number for each image, `(count, 1, 1, 1)`."""
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)


def _paint(color: Color) -> Tensor:
    return torch.tensor(color).view(1, 3, 1, 1)
