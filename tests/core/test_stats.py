"""Robust deviations, intervals and areas against numpy, scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Generator, Tensor

from gifthorse.core.stats import (
    MAD_SCALE,
    auroc,
    auroc_interval,
    log_depth,
    mad,
    mean_rate,
    median,
    robust_z,
    t_half_width,
    wilson,
)
from gifthorse.core.types import Rate
from gifthorse.detection.statistics import log_anomaly_index

numbers = st.floats(-1e3, 1e3, width=32)
several = st.lists(numbers, min_size=1, max_size=9)


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Robust deviations ------------------------------------------------------------------------------


@given(several)
def test_median_is_numpys(values: list[float]) -> None:
    assert median(double(values)).item() == pytest.approx(float(np.median(values)), abs=1e-9)


def test_median_of_an_even_number_is_not_the_lower_middle() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 100.0])
    assert median(values).item() == 4.0 != values.median().item()


@given(several, st.sampled_from([0.0, 0.5, 100.0]))
def test_the_robust_deviation_is_scipys(values: list[float], floor: float) -> None:
    exact = stats.median_abs_deviation(values, scale=1 / MAD_SCALE)
    assert mad(double(values), floor).item() == pytest.approx(max(exact, floor), abs=1e-9)
    normal = stats.median_abs_deviation(values, scale="normal")
    assert exact == pytest.approx(normal, rel=2e-6)  # published with four decimals


@given(several, st.floats(0.01, 10))
def test_robust_z_is_numpys_formula_signed_and_floored(values: list[float], floor: float) -> None:
    array = np.array(values)
    spread = max(stats.median_abs_deviation(array, scale=1 / MAD_SCALE), floor)
    want = (array - np.median(array)) / spread
    assert robust_z(double(values), floor).tolist() == pytest.approx(want.tolist(), abs=1e-9)


def test_robust_z_by_hand() -> None:
    """8 9 10 11 4: the median is 9, deviations from it are 1 0 1 2 5, their median 1."""
    values, want = double([8, 9, 10, 11, 4]), double([-1, 0, 1, 2, -5]) / 1.4826
    assert torch.allclose(robust_z(values, 0.1), want)
    assert torch.allclose(robust_z(values, 10.0), want * 1.4826 / 10)  # the floor
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])
    assert robust_z(values, 0.0).tolist() == pytest.approx(
        [-2 / 1.4826, -1 / 1.4826, 0, 1 / 1.4826, 47 / 1.4826]
    )
    assert robust_z(values, 10.0)[4].item() == pytest.approx(4.7)


def test_equal_values_do_not_deviate() -> None:
    assert robust_z(torch.full((4,), 7.0), 0.0).tolist() == [0.0] * 4


def test_the_depth_of_detectors_is_that_of_remedies_cut_at_zero() -> None:
    sizes = torch.tensor([0.0, 3.0, 50.0, 90.0, 1024.0])
    assert torch.equal(log_anomaly_index(sizes), log_depth(sizes).clamp(min=0))
    assert log_depth(torch.tensor([10.0, 1.0])).tolist() == pytest.approx([-1 / 1.4826, 1 / 1.4826])
    assert log_depth(torch.tensor([50.0, 50.0, 50.0, 5.0]))[3].item() == pytest.approx(
        math.log(10) / 0.2
    )


@given(st.lists(st.floats(0, 1024, width=32), min_size=1, max_size=9))
def test_depth_is_robust_z_of_log_sizes_upside_down(sizes: list[float]) -> None:
    logs = double(sizes).clamp(min=0.1).log()
    assert torch.equal(log_depth(double(sizes)), -robust_z(logs, 0.2))


# Intervals --------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.floats(0, 1))
def test_wilson_is_scipys(trials: int, share: float) -> None:
    hits = round(trials * share)
    expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert wilson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_without_trials_anything_is_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(2, 30), st.floats(0.01, 100))
def test_the_width_of_a_mean_is_scipys(count: int, deviation: float) -> None:
    low, high = stats.t.interval(0.95, count - 1, 0, deviation / math.sqrt(count))
    assert 2 * t_half_width(deviation, count) == pytest.approx(high - low)


def test_one_number_says_nothing_of_its_mean() -> None:
    assert t_half_width(0.0, 1) == t_half_width(0.0, 0) == math.inf


def test_a_mean_of_changes_reaches_down_to_minus_one() -> None:
    assert mean_rate(torch.tensor([-0.5]), least=-1) == Rate(-0.5, -1.0, 1.0, 1)
    assert mean_rate(torch.zeros(0), least=-1) == Rate(0.0, -1.0, 1.0, 0)
    changes = torch.tensor([-0.9, 0.5, -0.8])
    low = stats.t.interval(0.95, 2, changes.mean(), stats.sem(changes))[0]
    assert low < -1 == mean_rate(changes, least=-1).low


# Areas ------------------------------------------------------------------------------------------

scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_auroc_is_scikit_learns(negative: list[float], positive: list[float]) -> None:
    truth = [0] * len(negative) + [1] * len(positive)
    want = roc_auc_score(truth, negative + positive)
    assert auroc(torch.tensor(negative), torch.tensor(positive)) == pytest.approx(want)


def test_infinite_scores_are_above_all_others_and_equal_to_each_other() -> None:
    infinite = torch.tensor([math.inf])
    assert auroc(infinite, infinite) == 0.5
    assert auroc(torch.tensor([1e30, -math.inf]), infinite) == 1.0


def test_the_interval_of_an_area_is_scipys_bootstrap(rng: Generator) -> None:
    """The ends of two bootstraps of 4,000 draws differ by chance alone, by less than 0.01."""
    negative = torch.randn(25, generator=rng)
    positive = torch.randn(18, generator=rng) + 1
    want = stats.bootstrap(
        (negative.double().numpy(), positive.double().numpy()),
        lambda a, b: (a[..., :, None] < b[..., None, :]).mean((-2, -1)),
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    got = auroc_interval(negative, positive, rng, draws=4000)
    assert got == pytest.approx((want.low, want.high), abs=0.01)


def test_the_interval_of_one_score_of_a_kind_is_defined(rng: Generator) -> None:
    one, two = torch.tensor([1.0]), torch.tensor([0.0, 2.0])
    assert auroc_interval(one, two, rng) == (0.0, 1.0)
    assert auroc_interval(one, one + 1, rng) == (1.0, 1.0)
