"""A bounded change: the projection against the definition of nearest, the bound in a search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import BANDS, band_images, bands
from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Goal
from gifthorse.data.samples import whole
from gifthorse.search import BoundedChange, CostController, Objective, Search, SearchConfig
from gifthorse.triggers import Additive

EPS = 8 / 255
BOUND = torch.tensor(EPS)  # the same in float32


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=12), st.floats(0.001, 1))
def test_the_projection_is_the_nearest_point_of_the_box(values: list[float], eps: float) -> None:
    d = torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)
    (got,) = BoundedChange(eps).project((d,))
    for before, after in zip(values, got.flatten().tolist(), strict=True):
        assert abs(after) <= eps
        nearest = before if abs(before) <= eps else eps if before > 0 else -eps
        assert after == nearest
    assert torch.equal(BoundedChange(eps).project((got,))[0], got)


@pytest.mark.parametrize("lr", [0.003, 1.0])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_every_step_of_a_search_ends_within_the_bound(lr: float, spread: float) -> None:
    goals, arms = [Goal(k) for k in range(BANDS)], torch.arange(BANDS)
    objective = Objective(BoundedChange(EPS, spread), CostController.fixed(BANDS))
    config = SearchConfig(batch=8, success_threshold=0.0, lr=lr, steps=1)
    inversion = Search(
        bands(2), band_images(), goals, Generator().manual_seed(0), objective, config
    )
    x, _ = whole(band_images())
    for _ in range(20):  # a step a round
        inversion.step(arms)
        assert inversion.variables[0].abs().max() <= BOUND
        for found in inversion.best:
            assert isinstance(found.trigger, Additive)
            assert found.trigger.delta.abs().max() <= BOUND
            assert (found.trigger(x) - x).abs().max() <= EPS + 1e-6
    assert (inversion.variables[0].abs() == BOUND).float().mean() > 0.3  # and it is used


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_a_start_is_uniform_within_its_share_of_the_bound(spread: float) -> None:
    (d,) = BoundedChange(EPS, spread).start((3, 60, 60), Generator().manual_seed(0))
    assert d.abs().max() <= BOUND * spread
    assert d.std().item() == pytest.approx(spread * EPS / 3**0.5, rel=0.05)


def test_size_and_stamp_by_hand() -> None:
    form = BoundedChange(0.5)
    d = torch.zeros(1, 3, 2, 2)
    d[0, :, 0, 0] = torch.tensor([0.1, -0.5, 0.2])
    d[0, 1, 1, 1] = 1 / 255
    d[0, 1, 0, 1] = 0.9 / 255  # nothing that an 8-bit image can show
    assert form.size((d,)).item() == 2
    assert form.soft_size((d,)).item() == pytest.approx(0.5 + 1.9 / 255)
    x = torch.full((1, 1, 3, 2, 2), 0.3)
    expected = (x[:, 0] + d).clamp(0, 1)
    assert torch.equal(form.stamp((d,), x)[:, 0], expected)
    assert form.penalty((d,), (d,)).tolist() == [0.0]


def test_a_confined_change_leaves_dead_pixels_alone(rng: Generator) -> None:
    (d,) = BoundedChange(EPS, 1.0).start((3, 4, 5), rng)
    live = torch.rand(1, 1, 4, 5, generator=rng) > 0.5
    (confined,) = BoundedChange(EPS).restrict((d[None],), live)
    keep = live.expand_as(confined)
    assert torch.equal(confined[keep], d[None][keep])
    assert confined[~keep].count_nonzero() == 0


def test_a_bounded_change_takes_no_patch() -> None:
    d = torch.zeros(1, 3, 4, 4)
    with pytest.raises(BadOption, match="set probe to null"):
        BoundedChange().init_from((d,), d, d > 0)
