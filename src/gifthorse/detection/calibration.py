"""From a detector's score to a probability, by a bag of models whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gifthorse.core.stats import wilson
from gifthorse.core.types import Confidence

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of one detector's scores on a log scale, with the bag it was fitted on.

    Attributes:
        name: What the bag is, in words.
        clean: Scores of clean models.
        backdoored: Scores of backdoored models.
        lines: Slope and intercept of the log odds over `scaled(score)`; the first pair is the fit,
            the others are fits on bootstrap resamples of the bag.
    """

    name: str
    clean: tuple[float, ...]
    backdoored: tuple[float, ...]
    lines: tuple[tuple[float, float], ...]

    def confidence(self, score: float) -> Confidence:
        """Return the probability of a backdoor at a score, for even prior odds.

        The value stays within Platt's targets, `1 / (C + 2)` to `(B + 1) / (B + 2)`. The interval
        is the central 95 % of the resampled fits, widened to what the numbers of models allow:
        down to the Wilson bound of B found of B, up to that of no alarm among C.

        Example:
            >>> bag = fit("toy", clean=(0.0, 1.0, 2.0) * 10, backdoored=(8.0, 9.0, 10.0) * 10)
            >>> bag.confidence(9.0).value > 0.9 > 0.1 > bag.confidence(1.0).value
            True
        """
        slopes, intercepts = np.asarray(self.lines).T
        odds = np.clip(slopes * scaled(score) + intercepts, -700, 700)
        values = 1 / (1 + np.exp(-odds))
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        # A line goes on for ever; what the bag can carry does not.
        good, bad = len(self.clean), len(self.backdoored)
        value = min(max(float(values[0]), 1 / (good + 2)), (bad + 1) / (bad + 2))
        low = min(low, value, wilson(bad, bad)[0])
        high = max(high, value, wilson(0, good)[1])
        return Confidence(value, low, high, self.name)


def scaled(scores: ArrayLike) -> Floats:
    """Return scores on the scale on which the log odds are a line: `sign(s) log(1 + |s|)`.

    Scores of found backdoors spread over an order of magnitude; on their own scale the largest of
    them flatten the line, until the smallest come out as likely clean.
    """
    s: Floats = np.asarray(scores, float)
    return np.copysign(np.log1p(np.abs(s)), s)


def fit(
    name: str, clean: Sequence[float], backdoored: Sequence[float], *, resamples: int = 200
) -> Calibration:
    """Fit the log odds of a backdoor as a line in the logarithm of the score; see `scaled`.

    Platt's targets, `(B + 1) / (B + 2)` for backdoored and `1 / (C + 2)` for clean models, keep the
    probability away from 0 and 1 by what the size of the bag can carry, also where the two kinds
    are perfectly apart. Both kinds weigh the same, whatever their numbers.

    Args:
        name: What the bag is, in words.
        clean: Scores of clean models.
        backdoored: Scores of backdoored models.
        resamples: Bootstrap fits for the interval, drawn with a fixed seed.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999.

    Differs: the line is in the logarithm of the score.
    """
    rng = np.random.default_rng(0)
    good, bad = np.asarray(clean, float), np.asarray(backdoored, float)
    lines = [_line(good, bad)]
    for _ in range(resamples):
        lines.append(_line(rng.choice(good, len(good)), rng.choice(bad, len(bad))))
    return Calibration(name, tuple(clean), tuple(backdoored), tuple(lines))


def _line(good: Floats, bad: Floats) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    scores = scaled(np.concatenate([good, bad]))
    low, high = 1 / (len(good) + 2), (len(bad) + 1) / (len(bad) + 2)
    share = np.concatenate([np.full(len(good), low), np.full(len(bad), high)])
    weight = np.concatenate([np.full(len(good), 1 / len(good)), np.full(len(bad), 1 / len(bad))])
    # A soft target is a hard one twice: as a 1 with its share, as a 0 with the rest.
    model = LogisticRegression(C=np.inf, max_iter=1000)
    model.fit(
        np.concatenate([scores, scores])[:, None],
        np.concatenate([np.ones(len(scores)), np.zeros(len(scores))]),
        np.concatenate([weight * share, weight * (1 - share)]) * len(scores),
    )
    return round(float(model.coef_[0, 0]), 6), round(float(model.intercept_[0]), 6)
