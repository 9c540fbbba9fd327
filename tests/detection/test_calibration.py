"""Platt scaling against its defining equations, and what it must not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from gifthorse.detection import DETECTORS
from gifthorse.detection.calibration import fit, shipped

CLEAN = (0.1, 0.8, 1.2, 1.9, 2.5, 3.4, 0.4, 1.1)
BAD = (2.2, 4.0, 5.5, 6.1, 8.3, 9.0)
BAG = fit("toy", CLEAN, BAD, resamples=40)


def test_the_fit_maximizes_the_likelihood_of_platts_targets() -> None:
    def loss(line: np.ndarray) -> float:
        def part(scores: tuple[float, ...], target: float) -> float:
            p = 1 / (1 + np.exp(-(line[0] * np.asarray(scores) + line[1])))
            return float(-np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))

        return part(CLEAN, 1 / (len(CLEAN) + 2)) + part(BAD, (len(BAD) + 1) / (len(BAD) + 2))

    best = minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    assert BAG.lines[0] == pytest.approx(tuple(best.x), abs=1e-3)


@settings(max_examples=25)
@given(st.floats(-10, 60), st.floats(0, 20))
def test_a_higher_score_never_means_less(score: float, more: float) -> None:
    low, high = BAG.confidence(score), BAG.confidence(score + more)
    assert low.value <= high.value
    assert 0 <= low.low <= low.value <= low.high <= 1
    assert low == BAG.confidence(score)


def test_a_small_bag_carries_little_confidence() -> None:
    few, many = (fit("toy", (0.0,) * n, (9.0,) * n, resamples=0) for n in (4, 400))
    assert few.confidence(9.0).value == pytest.approx(5 / 6, abs=0.01)
    assert many.confidence(9.0).value == pytest.approx(401 / 402, abs=0.01)
    assert few.confidence(1e6).value == pytest.approx(5 / 6)  # no extrapolation beyond the bag
    assert few.confidence(1e6).low < many.confidence(1e6).low


def test_scores_that_say_nothing_give_even_odds() -> None:
    same = tuple(map(float, range(50)))
    assert fit("toy", same, same, resamples=0).confidence(10.0).value == pytest.approx(
        0.5, abs=0.02
    )


def test_numbers_of_models_are_no_prior() -> None:
    few = fit("toy", CLEAN, BAD, resamples=0)
    many = fit("toy", CLEAN * 20, BAD, resamples=0)
    middle = -few.lines[0][1] / few.lines[0][0]
    assert math.isclose(many.confidence(middle).value, 0.5, abs_tol=0.12)


def test_shipped_calibrations_name_detectors_and_hold_enough_models() -> None:
    assert shipped()
    for name, bag in shipped().items():
        assert name in DETECTORS
        assert len(bag.clean) >= 12
        assert len(bag.backdoored) >= 12
        assert len(bag.lines) == 201
        again = fit(bag.name, bag.clean, bag.backdoored, resamples=0)
        assert again.lines[0] == pytest.approx(bag.lines[0], abs=1e-3)
