"""Outlier statistics against a transcription in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gifthorse.core.errors import ShapeMismatch
from gifthorse.detection.statistics import anomaly_index, log_anomaly_index

sizes = st.lists(st.floats(0.5, 1024, width=32), min_size=3, max_size=12)
STATISTICS = [anomaly_index, log_anomaly_index]


def naive(values: list[float], floor: float, *, logs: bool) -> list[float]:
    v = np.log(np.maximum(values, 0.1)) if logs else np.asarray(values)
    middle = np.median(v)
    spread = max(1.4826 * np.median(np.abs(v - middle)), floor if logs else floor * middle)
    return [max(0.0, float((middle - x) / spread)) for x in v]


@given(sizes, st.sampled_from([0.01, 0.05, 0.2]))
def test_anomaly_index_is_the_published_one_on_the_small_side(
    values: list[float], floor: float
) -> None:
    got = anomaly_index(torch.tensor(values, dtype=torch.float64), floor=floor)
    assert got.tolist() == pytest.approx(naive(values, floor, logs=False), abs=1e-9)


@given(sizes, st.sampled_from([0.05, 0.2, 0.5]))
def test_depth_is_the_same_on_a_log_scale(values: list[float], floor: float) -> None:
    got = log_anomaly_index(torch.tensor(values, dtype=torch.float64), floor=floor)
    assert got.tolist() == pytest.approx(naive(values, floor, logs=True), abs=1e-9)


def test_an_even_number_of_classes_has_its_median_between() -> None:
    # median 25, deviations 24 5 5 15: median 10
    values = torch.tensor([1.0, 20.0, 30.0, 40.0])
    assert anomaly_index(values)[0].item() == pytest.approx(24 / (1.4826 * 10))
    middle = (np.log(20) + np.log(30)) / 2
    spread = 1.4826 * np.median(np.abs(np.log([1.0, 20.0, 30.0, 40.0]) - middle))
    assert log_anomaly_index(values)[0].item() == pytest.approx(middle / spread, rel=1e-5)


def test_equal_sizes_are_no_anomaly() -> None:
    for statistic in STATISTICS:
        assert statistic(torch.full((6,), 30.0)).tolist() == [0.0] * 6


def test_ties_divide_by_the_floor() -> None:
    values = torch.tensor([7.0, 10.0, 10.0, 10.0, 10.0])
    assert anomaly_index(values)[0].item() == pytest.approx(0.3 / 0.05)
    assert log_anomaly_index(values)[0].item() == pytest.approx(np.log(10 / 7) / 0.2, rel=1e-5)


def test_near_equal_sizes_stay_below_every_threshold() -> None:
    values = torch.tensor([29.6, 30.0, 30.0, 30.1, 30.1, 30.2])
    assert anomaly_index(values).max() < 1
    assert log_anomaly_index(values).max() < 1


def test_large_sizes_are_not_suspicious() -> None:
    for statistic in STATISTICS:
        assert statistic(torch.tensor([10.0, 10.5, 11.0, 900.0]))[3].item() == 0.0


def test_one_pixel_among_a_hundred_stands_out_only_on_the_log_scale() -> None:
    values = torch.tensor([1.0, 60.0, 80.0, 100.0, 120.0, 140.0, 160.0])
    assert anomaly_index(values)[0] < 3  # bounded by median / MAD
    assert log_anomaly_index(values)[0] > 6


def test_zero_does_not_blow_up() -> None:
    for statistic in STATISTICS:
        assert statistic(torch.tensor([0.0, 0.0, 0.0])).tolist() == [0.0] * 3
        assert statistic(torch.tensor([0.0, 5.0, 9.0, 30.0])).isfinite().all()


@pytest.mark.parametrize("statistic", STATISTICS)
@given(data=st.data())
def test_classes_may_come_in_any_order(statistic, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    values = torch.tensor(data.draw(sizes), dtype=torch.float64)
    order = torch.tensor(data.draw(st.permutations(range(len(values)))))
    assert torch.allclose(statistic(values[order]), statistic(values)[order])


@given(sizes, st.floats(0.1, 10))
def test_the_unit_of_size_does_not_matter(values: list[float], unit: float) -> None:
    v = torch.tensor(values, dtype=torch.float64) + 10  # away from the clamp of `depth`
    for statistic in STATISTICS:
        assert torch.allclose(statistic(v * unit), statistic(v), atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(3, 3), torch.tensor(1.0)])
def test_other_shapes_are_refused(wrong: torch.Tensor) -> None:
    for statistic in STATISTICS:
        with pytest.raises(ShapeMismatch, match=r"shape \(K,\) with K >= 3"):
            statistic(wrong)
