"""One variable instead of two, by the formulas of Table 6 written out in numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from tests.toys import BANDS, SIDE, band_images, bands
from torch import Generator

from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.search import (
    CostController,
    Objective,
    OneVariable,
    Parametrization,
    Search,
    SearchConfig,
    SignedPixels,
)
from gifthorse.triggers import Additive

ARMS, SHAPE, GAMMA = 3, (3, 4, 5), 10.0
Sign = Literal["positive", "signed"]
Spread = Literal["tanh", "plain"]
signs = pytest.mark.parametrize("sign", ["positive", "signed"])


def change(b: np.ndarray, sign: Sign) -> np.ndarray:
    """The change `(C, H, W)` that a variable stands for."""
    return b.clip(0 if sign == "positive" else -1, 1)


def weight(b: np.ndarray, sign: Sign, spread: Spread) -> float:
    """R of one arm: the largest channel of every pixel, summed."""
    if spread == "plain":
        return float(np.abs(change(b, sign)).max(0).sum())
    if sign == "positive":
        return float((np.tanh(b / GAMMA) / (2 - 1e-7) + 0.5).max(0).sum())
    return float(np.abs(np.tanh(b / GAMMA)).max(0).sum())


def drawn(rng: Generator) -> torch.Tensor:
    return torch.randn(ARMS, *SHAPE, generator=rng, dtype=torch.float64) * 2


@signs
def test_the_change_is_the_variable_clipped(sign: Sign, rng: Generator) -> None:
    form, b = OneVariable(sign), drawn(rng)
    parts = form.decode((b,))
    expected = torch.from_numpy(change(b.numpy(), sign))
    assert torch.equal(parts[0] - parts[1], expected)
    assert all(0 <= p.min() <= p.max() <= 1 for p in parts)
    assert ((parts[0] == 0) | (parts[1] == 0)).all()
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng, dtype=torch.float64)
    assert torch.equal(form.stamp(parts, x), (x + expected[:, None]).clamp(0, 1))
    trigger = form.to_trigger(tuple(p[0] for p in parts))
    assert isinstance(trigger, Additive)
    assert torch.equal(trigger.delta, expected[0])


@signs
@pytest.mark.parametrize("spread", ["tanh", "plain"])
def test_the_penalty_is_that_of_table_6(sign: Sign, spread: Spread, rng: Generator) -> None:
    form, b = OneVariable(sign, GAMMA, spread), drawn(rng)
    got = form.penalty((b,), form.decode((b,)))
    for arm in range(ARMS):
        assert got[arm].item() == pytest.approx(weight(b[arm].numpy(), sign, spread), rel=1e-9)


@signs
@pytest.mark.parametrize("spread", ["tanh", "plain"])
def test_the_penalty_has_the_slope_of_its_formula(
    sign: Sign, spread: Spread, rng: Generator
) -> None:
    form = OneVariable(sign, GAMMA, spread)
    b = drawn(rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: form.penalty((v,), form.decode((v,))), (b,))


def test_only_brighter_is_the_half_of_two_variables(rng: Generator) -> None:
    b, none = drawn(rng), torch.full((ARMS, *SHAPE), -30.0, dtype=torch.float64)
    one, two = OneVariable(), SignedPixels("clip")
    mine, theirs = one.decode((b,)), two.decode((b, none))
    assert all(map(torch.equal, mine, theirs))
    both = two.penalty((b, none), theirs) - two.penalty((none, none), theirs)
    alone = one.penalty((b,), mine) - one.penalty((none,), mine)
    assert torch.allclose(both, alone, atol=1e-9)


@signs
def test_a_patch_pushes_pixels_to_its_bright_parts(sign: Sign, rng: Generator) -> None:
    form = OneVariable(sign)
    before = form.start((1, 2, 2), rng)[0][None]
    pattern = torch.tensor([[1.0, 0.0], [0.5, 1.0]]).view(1, 1, 2, 2)
    support = torch.tensor([[True, True], [True, False]]).view(1, 1, 2, 2)
    (after,) = form.init_from((before,), pattern, support)
    expected = [1.0, 0.0, 0.5] if sign == "positive" else [1.0, -1.0, 0.0]
    assert after.flatten()[:3].tolist() == expected
    assert after[0, 0, 1, 1] == before[0, 0, 1, 1]
    assert 0 <= before.min() <= before.max() < 1


@signs
def test_a_snapped_pixel_feels_the_net_again(sign: Sign) -> None:
    # clamp passes gradients at its bounds; with relu a pixel at 0 would never come back
    form = OneVariable(sign)
    stored = torch.tensor([0.0, 0.5]).view(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    (b,) = form.restart(stored, (torch.full((1, 1, 1, 2), -3.0),), Generator())
    assert b.flatten().tolist() == [0.0, 0.5]
    b = b.clone().requires_grad_()
    x = torch.full((1, 1, 1, 1, 2), 0.25)
    (slope,) = torch.autograd.grad(form.stamp(form.decode((b,)), x).sum(), b)
    assert slope.flatten().tolist() == [1.0, 1.0]


def ended(form: Parametrization) -> list[float]:
    """Sizes for three classes of the planted bands in color, class 2 first."""
    goals = [Goal(k) for k in (2, 0, 5)]
    objective, config = (
        Objective(form, CostController.start(3, patience=5)),
        SearchConfig(batch=15, success_threshold=0.9),
    )
    gray = band_images()
    clean = InMemory(gray.images.repeat(1, 3, 1, 1), gray.labels, BANDS)
    subject = Subject(bands(2).net, (3, SIDE, SIDE), BANDS)
    inversion = Search(subject, clean, goals, Generator().manual_seed(0), objective, config)
    for _ in range(150):
        inversion.step(torch.arange(3))
    assert bool(inversion.feasible.all())
    return [c.size for c in inversion.best]


@pytest.mark.parametrize("spread", ["tanh", "plain"])
def test_a_signed_variable_stays_dense_where_two_are_sparse(spread: Spread) -> None:
    # Adam's step of 0.1 swings across zero and never lands within 1/255 of it.
    dense = ended(OneVariable("signed", spread=spread))
    assert min(dense) > 0.9 * SIDE * SIDE
    assert max(ended(SignedPixels("clip", spread=spread))) < 0.3 * SIDE * SIDE


def test_a_positive_variable_finds_the_planted_pixel() -> None:
    planted, *others = ended(OneVariable())
    assert planted == 1
    assert min(others) > 10
