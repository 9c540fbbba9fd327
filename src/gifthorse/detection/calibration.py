"""From a detector's score to a probability, by a bag of models whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from gifthorse.types import Confidence


@dataclass(frozen=True)
class Calibration:
    """Scores of one detector on models whose truth is known.

    Attributes:
        name: What the bag is, in words.
        clean: Scores of clean models.
        backdoored: Scores of backdoored models.
    """

    name: str
    clean: tuple[float, ...]
    backdoored: tuple[float, ...]

    def confidence(self, score: float, *, draws: int = 4000) -> Confidence:
        """Return the probability of a backdoor given a score at least this high.

        Bayes' rule with even prior odds: with c of C clean and b of B backdoored models at or
        above the score, the two exceedance rates have Beta(c + 1/2, C - c + 1/2) and
        Beta(b + 1/2, B - b + 1/2) posteriors (Jeffreys); the probability is
        `tpr / (tpr + fpr)`, its interval the central 95 % of fixed-seed draws. Below the level
        where nothing but clean models lie, the same with "at most this high".

        Example:
            >>> bag = Calibration("toy", clean=(0.0,) * 40, backdoored=(9.0,) * 40)
            >>> bag.confidence(5.0).value > 0.95 > bag.confidence(0.0).value
            True
        """
        high = _posterior(self.backdoored, self.clean, score, draws)
        low, middle, top = np.quantile(high, [0.025, 0.5, 0.975]).tolist()
        return Confidence(middle, low, top, self.name)


def _posterior(
    bad: Sequence[float], good: Sequence[float], score: float, draws: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    rng = np.random.default_rng(0)
    middle = (float(np.median(bad)) + float(np.median(good))) / 2
    upper = score >= middle

    def share(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        a = np.asarray(values)
        hits = int((a >= score).sum() if upper else (a <= score).sum())
        return rng.beta(hits + 0.5, len(a) - hits + 0.5, draws)

    tpr, fpr = share(bad), share(good)
    return np.asarray(tpr / (tpr + fpr))


@cache
def shipped() -> dict[str, Calibration]:
    """Return the calibrations that come with the package, by detector name."""
    path = files("gifthorse.detection").joinpath("calibration.json")
    if not path.is_file():
        return {}
    data = json.loads(path.read_text())
    return {
        name: Calibration(data["name"], tuple(bag["clean"]), tuple(bag["backdoored"]))
        for name, bag in data["detectors"].items()
    }
