"""The smooth change against the one that a linear net has in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.data import InMemory
from gifthorse.inversion.blend import Blend
from gifthorse.search import finish
from gifthorse.search.parametrizations.low_frequency import LowFrequency
from gifthorse.search.schedulers import Exhaustive

SIDE, CELL, GAP = 12, 4, 1.5


def sloped(direction: Tensor) -> Subject:
    """Two classes: class 1 leads where `direction . x` exceeds GAP over what gray images have."""
    layer = nn.Linear(SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(direction), direction]).flatten(1))
        layer.bias.copy_(torch.tensor([0.0, -128 / 255 * float(direction.sum()) - GAP]))
    return Subject(nn.Sequential(nn.Flatten(), layer).eval(), (1, SIDE, SIDE), 2)


def basis() -> Tensor:
    """What every number of the grid adds to the image, `(9, 144)`."""
    grid = torch.eye(9).view(9, 1, 3, 3)
    return F.interpolate(grid, (SIDE, SIDE), mode="bilinear", align_corners=False).flatten(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_faintest_change_of_a_linear_net_is_the_projected_slope(seed: int) -> None:
    rng = Generator().manual_seed(seed)
    direction = torch.randn(SIDE, SIDE, generator=rng)
    b = basis()
    within = b.T @ torch.linalg.solve(b @ b.T, b @ direction.flatten())
    least = GAP / float(within.norm())  # |d| of the shortest change that the grid can make
    expected = SIDE * SIDE * least / SIDE  # H W rms
    subject = sloped(direction)
    gray = torch.full((8, 1, SIDE, SIDE), 128.0).byte()
    clean = InMemory(gray, torch.zeros(8, dtype=torch.int64), 2)
    slow = {"config.rounds": 300, "config.lr": 0.003, "config.patience": 300}
    method = vary(Blend(cell=CELL), {**slow, "initial": 1.0, "up": 1.2})
    search = method(subject, clean, [Goal(1)], rng)
    assert not finish(search, Exhaustive(), Run())
    (best,) = search.best
    assert best.feasible
    assert best.size == pytest.approx(expected, rel=0.02)


def test_what_is_stamped_is_what_the_grid_makes() -> None:
    form = LowFrequency(cell=CELL, shape=(SIDE, SIDE))
    grid = torch.randn(2, 1, 3, 3, generator=Generator().manual_seed(0)) * 0.1
    (change,) = form.decode((grid,))
    assert torch.allclose(change.flatten(1), grid.flatten(1) @ basis(), atol=1e-6)
    x = torch.full((2, 4, 1, SIDE, SIDE), 0.5)
    assert torch.allclose(form.stamp((change,), x)[1, 2], 0.5 + change[1])
    rms = change.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(form.size((change,)), SIDE * SIDE * rms, atol=1e-3)
