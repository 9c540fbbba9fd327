"""The box map and seeds against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from gifthorse.core.tensors import EPSILON, from_box, spawn, to_box


@given(st.floats(-20, 20))
def test_from_box_is_the_published_formula(u: float) -> None:
    got = from_box(torch.tensor(u, dtype=torch.float64)).item()
    assert got == pytest.approx(math.tanh(u) / (2 - 1e-7) + 0.5, abs=1e-12)
    assert EPSILON == 1e-7


@given(st.floats(1e-4, 1 - 1e-4))
def test_to_box_inverts_from_box_inside_the_margin(q: float) -> None:
    assert from_box(to_box(torch.tensor(q))).item() == pytest.approx(q, abs=2e-6)


@pytest.mark.parametrize(("q", "margin"), [(0.0, 1e-4), (1.0, 1e-4), (0.0, 1e-3), (1.0, 1e-3)])
def test_to_box_clips_so_that_a_black_or_white_pixel_can_still_move(
    q: float, margin: float
) -> None:
    u = to_box(torch.tensor(q), margin).requires_grad_()
    value = from_box(u)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(abs(q - margin), abs=1e-6)
    assert u.grad is not None
    assert u.grad.item() == pytest.approx(
        2 * margin * (1 - margin), rel=0.02
    )  # d tanh = 1 - tanh^2


def test_spawned_streams_differ_from_each_other_and_repeat_with_the_seed() -> None:
    def draws() -> list[list[float]]:
        rng = Generator().manual_seed(7)
        return [torch.rand(4, generator=spawn(rng)).tolist() for _ in range(3)]

    first = draws()
    assert first == draws()
    assert len({tuple(row) for row in first}) == 3


def test_a_spawned_stream_leaves_its_parent_alone(rng: Generator) -> None:
    child = spawn(rng)
    before = rng.get_state()
    torch.rand(100, generator=child)
    assert torch.equal(rng.get_state(), before)
