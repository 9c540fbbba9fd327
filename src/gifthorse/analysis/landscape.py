"""The loss around a trigger's variables, along two random directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption

Variables: TypeAlias = tuple[Tensor, ...]
LossMap: TypeAlias = Callable[[Variables], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Landscape:
    """Three surfaces over the same plane; row i, column j is `axis[i]` along the first direction.

    Attributes:
        axis: Steps along either direction, `(points,)`, 0 in the middle.
        loss: The full objective, `(points, points)`.
        cross_entropy: Its first part, same shape.
        penalty: Its size penalty before weighting, same shape.
    """

    axis: Tensor
    loss: Tensor
    cross_entropy: Tensor
    penalty: Tensor

    @property
    def gap(self) -> float:
        """How far the loss at the origin lies above the least of the grid, relative to that."""
        middle, least = len(self.axis) // 2, float(self.loss.min())
        here = float(self.loss[middle, middle])
        return 0.0 if here == least else (here - least) / max(abs(least), 1e-12)


def landscape(
    objective: LossMap,
    variables: Variables,
    rng: Generator,
    *,
    extent: float = 1.0,
    points: int = 51,
    chunk: int = 8,
) -> Landscape:
    """Return the objective on a square grid around the variables.

    Args:
        objective: Maps variables `(g, ...)` to loss, cross entropy and penalty, `(g,)` each; no
            gradient is taken.
        variables: The raw variables of one trigger, without a leading dimension. Clip those of
            PixelBackdoor's clip mode to [-1, 1] first: sunken ones would make up most of the norm.
        rng: Source of the directions.
        extent: The grid spans `[-extent, extent]` in units of each tensor's own norm.
        points: Grid points a side; odd, so that the origin is one of them.
        chunk: Grid points in one call of the objective.

    Raises:
        BadOption: If `points` is even or below 3, or `extent` is not positive.

    Source: Tao et al., PixelBackdoor, CVPR 2022, Fig. 1, which leaves directions and extent open;
    the scale is that of Li et al., Visualizing the Loss Landscape, NeurIPS 2018, with a tensor in
    the place of a filter.
    """
    if points < 3 or points % 2 == 0 or extent <= 0:
        raise BadOption(
            "a landscape needs an odd number of points from 3 on, and an extent above 0; "
            f"got points={points}, extent={extent}"
        )
    half = points // 2
    axis = torch.arange(-half, half + 1) / half * extent  # exactly 0 in the middle
    first, second = directions(variables, rng)
    rows = []
    with torch.no_grad():
        for at in torch.cartesian_prod(axis, axis).split(max(1, chunk)):
            moved = tuple(
                v + _along(at[:, 0], d) + _along(at[:, 1], e)
                for v, d, e in zip(variables, first, second, strict=True)
            )
            rows.append(torch.stack(objective(moved)).cpu().double())
    # Cloned outside, so that the surfaces are ordinary tensors.
    loss, entropy, penalty = torch.cat(rows, 1).view(3, points, points).clone()
    return Landscape(axis, loss, entropy, penalty)


def directions(variables: Variables, rng: Generator) -> tuple[Variables, Variables]:
    """Return two Gaussian directions, orthogonal within each tensor, each of that tensor's norm."""
    first, second = [], []
    for v in variables:
        norm = v.cpu().double().norm()
        d, e = torch.randn(2, *v.shape, generator=rng, dtype=torch.float64)
        e = e - d * (d * e).sum() / d.square().sum()  # Gram-Schmidt
        first.append((d * norm / d.norm()).to(v))
        # A tensor of one element has no second direction; then e is rounding noise.
        second.append((e * norm / e.norm()).to(v) if v.numel() > 1 else torch.zeros_like(v))
    return tuple(first), tuple(second)


def minima(grid: Tensor) -> Tensor:
    """Return which points of a grid `(h, w)` lie strictly below all eight neighbors, bool.

    Points on the border have unknown neighbors and do not count.
    """
    h, w = grid.shape
    neighbors = F.unfold(grid[None, None].double(), 3).view(9, h - 2, w - 2)
    center, around = neighbors[4], torch.cat([neighbors[:4], neighbors[5:]])
    return F.pad(center < around.amin(0), (1, 1, 1, 1))


def local_minima(grid: Tensor) -> int:
    """Return the number of strict local minima inside a grid `(h, w)`, as `minima` counts them.

    Example:
        >>> local_minima(torch.tensor([[2.0, 2, 2], [2, 1, 2], [2, 2, 2]]))
        1
    """
    return int(minima(grid).sum())


def _along(steps: Tensor, direction: Tensor) -> Tensor:
    return steps.to(direction).view(-1, *[1] * direction.ndim) * direction
