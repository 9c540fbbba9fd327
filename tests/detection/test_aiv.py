"""The anomaly index value of the published tables, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gifthorse.core.errors import ShapeMismatch
from gifthorse.detection.statistics import aiv, degenerate

EXAMPLE = torch.tensor([9.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0])


def test_the_example_of_the_specification_with_both_medians() -> None:
    assert aiv(EXAMPLE)[0].item() == pytest.approx(44.5 / (1.4826 * 2.5))
    assert aiv(EXAMPLE)[0].item() == pytest.approx(12.01, abs=5e-3)
    lower = aiv(EXAMPLE, middle="lower")[0].item()
    assert lower == pytest.approx(44 / (1.4826 * 2))
    assert lower == pytest.approx(14.84, abs=5e-3)


def test_sides_are_parts_of_the_whole() -> None:
    low, high, both = (aiv(EXAMPLE, side=side) for side in ("low", "high", "both"))
    assert torch.equal(low + high, both)
    assert low[5:].tolist() == [0] * 5
    assert high[:5].tolist() == [0] * 5
    assert both[9].item() == pytest.approx(4.5 / (1.4826 * 2.5))
    assert torch.equal(aiv(-EXAMPLE, side="high"), low)


@given(st.lists(st.integers(0, 30).map(float), min_size=3, max_size=12))
def test_it_is_numpys_formula(values: list[float]) -> None:
    array = np.array(values)
    apart = np.abs(array - np.median(array))
    deviation = np.median(apart)
    got = aiv(torch.tensor(values), side="both").numpy()
    if deviation:
        assert got == pytest.approx(apart / (1.4826 * deviation + 1e-8))
    else:
        assert got.tolist() == [math.inf if a else 0 for a in apart]
    assert degenerate(torch.tensor(values)) == (deviation == 0)


def test_half_equal_sizes_are_degenerate() -> None:
    sizes = torch.tensor([1.0, 7.0, 7.0, 7.0, 9.0])
    assert degenerate(sizes)
    assert aiv(sizes).tolist() == [math.inf, 0, 0, 0, 0]
    assert aiv(sizes, side="high").tolist() == [0, 0, 0, 0, math.inf]
    assert not degenerate(EXAMPLE)


def test_two_classes_have_no_index() -> None:
    with pytest.raises(ShapeMismatch, match="K >= 3"):
        aiv(torch.tensor([1.0, 2.0]))
