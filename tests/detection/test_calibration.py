"""Probabilities against numerical integration of the two Beta posteriors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from gifthorse.detection import DETECTORS
from gifthorse.detection.calibration import Calibration, shipped

BAG = Calibration(
    "toy", clean=tuple(map(float, range(20))), backdoored=tuple(map(float, range(10, 40)))
)


def below(q: float, bad: tuple[int, int], good: tuple[int, int]) -> float:
    """P(t / (t + f) <= q) for t ~ Beta(b + 1/2, B - b + 1/2), f likewise with c of C."""
    t = beta(bad[0] + 0.5, bad[1] - bad[0] + 0.5)
    f = beta(good[0] + 0.5, good[1] - good[0] + 0.5)
    odds = q / (1 - q)
    return float(quad(lambda v: t.cdf(v * odds) * f.pdf(v), 0, 1, limit=200)[0])


@pytest.mark.parametrize(
    ("score", "bad", "good"),
    [
        (25.0, (15, 30), (0, 20)),  # 25 to 39 of the bad, none of the clean
        (19.0, (21, 30), (1, 20)),
        (5.0, (0, 30), (6, 20)),  # below the middle of the medians: at most this high
        (12.0, (3, 30), (13, 20)),
    ],
)
def test_the_interval_has_its_mass(
    score: float, bad: tuple[int, int], good: tuple[int, int]
) -> None:
    got = BAG.confidence(score, draws=20_000)
    for value, mass in ((got.low, 0.025), (got.value, 0.5), (got.high, 0.975)):
        assert below(value, bad, good) == pytest.approx(mass, abs=0.015)
    assert got.calibration == "toy"


@settings(max_examples=25)
@given(st.floats(-10, 60))
def test_a_probability_lies_in_its_interval_and_repeats(score: float) -> None:
    got = BAG.confidence(score)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert got == BAG.confidence(score)


def test_more_models_make_the_interval_narrower() -> None:
    few, many = (Calibration("toy", (0.0,) * n, (9.0,) * n).confidence(5.0) for n in (5, 500))
    assert many.high - many.low < few.high - few.low
    assert few.low < many.low


def test_a_score_that_clean_models_reach_as_often_says_nothing() -> None:
    same = Calibration("toy", tuple(map(float, range(200))), tuple(map(float, range(200))))
    assert same.confidence(150.0).value == pytest.approx(0.5, abs=0.02)


def test_shipped_calibrations_name_detectors_and_hold_enough_models() -> None:
    for name, bag in shipped().items():
        assert name in DETECTORS
        assert len(bag.clean) >= 20
        assert len(bag.backdoored) >= 20
