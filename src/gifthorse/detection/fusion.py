"""From what all detectors say to one probability: of any backdoor, and of each family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gifthorse.core.stats import wilson
from gifthorse.core.types import Confidence, Verdict
from gifthorse.detection.calibration import scaled

Floats = NDArray[np.float64]
ANY = "any"
STRENGTH = 1.0  # of the penalty on squared weights, beside as many log losses as there are models
ITERATIONS = 500
TELLS = 0.8  # area under the ROC curve from which a family is told from clean models


@dataclass(frozen=True)
class Evidence:
    """What of a detector's verdict compares between nets.

    Attributes:
        score: Its statistic for the whole model.
        target: The class that it leads with; None if it names none.
        transfer: How much more often than its control the trigger turns unseen images, in [0, 1].
    """

    score: float
    target: int | None = None
    transfer: float = 0.0


@dataclass(frozen=True)
class KnownEvidence:
    """The evidence on a model whose truth is known.

    Attributes:
        evidence: By detector.
        family: What was planted, in words; None for nothing.
    """

    evidence: Mapping[str, Evidence]
    family: str | None


@dataclass(frozen=True)
class FamilyModel:
    """A logistic regression between clean models and those of one family.

    Attributes:
        clean: How many clean models it was fitted on.
        backdoored: How many of the family.
        lines: Weights of all features, and last the intercept; the first row is the fit, the
            others are fits on bootstrap resamples of the models.
        auc: Area under the ROC curve of each model's probability by a fit without it.
        entropy: Cross-entropy of those, in nats, both kinds weighing the same; 0.693 knows nothing.
        alarms: Clean models with a probability of a half or more, by the same fits.
        found: Backdoored models with one.
    """

    clean: int
    backdoored: int
    lines: tuple[tuple[float, ...], ...]
    auc: float
    entropy: float
    alarms: int
    found: int

    @property
    def tells(self) -> bool:
        """Whether the family can be told from clean models."""
        return self.auc >= TELLS

    @property
    def quality(self) -> tuple[float, float, int, int]:
        """What fits without each model come to: AUC, cross-entropy, false alarms, found."""
        return self.auc, self.entropy, self.alarms, self.found


@dataclass(frozen=True)
class Fusion:
    """One answer from several detectors: a logistic regression for each family, and for any.

    Attributes:
        name: What the models are that it was fitted on, in words.
        detectors: Whose verdicts it reads; all of them have to be there.
        classes: Least and most classes of those models.
        sides: Least and most pixels along a side of their images.
        families: The regressions, by what was planted; `any` is that of all backdoored ones.
    """

    name: str
    detectors: tuple[str, ...]
    classes: tuple[int, int]
    sides: tuple[int, int]
    families: Mapping[str, FamilyModel]

    def confidence(self, said: Mapping[str, Evidence], family: str = ANY) -> Confidence:
        """Return the probability that a model has a backdoor of a family, for even prior odds.

        As with `Calibration`, the value stays within Platt's targets, and the interval is the
        central 95 % of the resampled fits, widened to what the numbers of models allow.
        """
        model = self.families[family]
        x = np.append(features(said, self.detectors), 1.0)
        odds = np.clip(np.asarray(model.lines) @ x, -700, 700)
        values = 1 / (1 + np.exp(-odds))
        low, high = np.quantile(values, [0.025, 0.975]).tolist()
        good, bad = model.clean, model.backdoored
        value = min(max(float(values[0]), 1 / (good + 2)), (bad + 1) / (bad + 2))
        low = min(low, value, wilson(bad, bad)[0])
        high = max(high, value, wilson(0, good)[1])
        return Confidence(value, low, high, self.name)

    def covers(self, classes: int, sides: tuple[int, int]) -> bool:
        """Return whether a net is within what the models were: classes, and sides of images."""
        least, most = self.sides
        kept = self.classes[0] <= classes <= self.classes[1]
        return kept and least <= min(sides) and max(sides) <= most


def evidence(verdict: Verdict) -> Evidence:
    """Return what of a verdict compares between nets."""
    lead = next((f for f in verdict.findings if f.goal is not None), None)
    seen = lead.confirmation if lead is not None else None
    return Evidence(
        verdict.score,
        lead.goal.target if lead is not None and lead.goal is not None else None,
        max(0.0, seen.asr.value - seen.control.value) if seen is not None else 0.0,
    )


def features(said: Mapping[str, Evidence], detectors: Sequence[str]) -> Floats:
    """Return what a regression reads: each score, each trigger's transfer, and the agreement.

    The agreement is how many detectors lead with the class that most lead with, but for the first
    of them, as a share of all the others.

    Args:
        said: The evidence, by detector.
        detectors: Which, in order.

    Returns:
        Shape `(2 D + 1,)`; none falls as a model looks more backdoored.
    """
    each = [said[name] for name in detectors]
    named = Counter(e.target for e in each if e.target is not None)
    most = max(named.values(), default=1)
    agreement = (most - 1) / max(len(each) - 1, 1)
    scores = scaled([e.score for e in each]).tolist()
    return np.asarray([*scores, *(e.transfer for e in each), agreement])


def fuse(
    name: str,
    detectors: Sequence[str],
    models: Sequence[KnownEvidence],
    *,
    classes: tuple[int, int],
    sides: tuple[int, int],
    least: int = 5,
    resamples: int = 50,
) -> Fusion:
    """Fit a regression for any backdoor, and for each family with enough models.

    Args:
        name: What the models are, in words.
        detectors: Whose verdicts to read.
        models: Evidence of models whose truth is known.
        classes: Least and most classes of those.
        sides: Least and most pixels along a side of their images.
        least: How many models a family needs for a regression of its own.
        resamples: Bootstrap fits for the interval, drawn with a fixed seed.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999, for the targets.

    Differs: several features, whose weights are not negative, since none of them is less the more a
    model looks backdoored; half their sum of squares, over standard deviations, is added to the
    loss.
    """
    x = np.stack([features(m.evidence, detectors) for m in models])
    kinds = np.asarray([m.family or "" for m in models])
    good = x[kinds == ""]
    counts = Counter(m.family for m in models if m.family is not None)
    parts = {ANY: x[kinds != ""]}
    parts |= {f: x[kinds == f] for f, count in sorted(counts.items()) if count >= least}
    families = {f: _fitted(good, bad, resamples) for f, bad in parts.items()}
    return Fusion(name, tuple(detectors), classes, sides, families)


def _fitted(good: Floats, bad: Floats, resamples: int) -> FamilyModel:
    rng = np.random.default_rng(0)
    lines = [regression(good, bad)]
    for _ in range(resamples):
        lines.append(regression(rng.choice(good, len(good)), rng.choice(bad, len(bad))))
    kept = tuple(tuple(round(float(v), 4) for v in line) for line in lines)
    p, q = left_out(good, bad)
    entropy = -float(np.log(1 - p).mean() + np.log(q).mean()) / 2
    alarms, found = (int((chances >= 0.5).sum()) for chances in (p, q))
    quality = (round(area(p, q), 4), round(entropy, 4), alarms, found)
    return FamilyModel(len(good), len(bad), kept, *quality)


def area(good: Floats, bad: Floats) -> float:
    """Return the area under the ROC curve of two kinds of scores."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(good), len(bad)])
    return float(roc_auc_score(truth, np.concatenate([good, bad])))


def left_out(good: Floats, bad: Floats) -> tuple[Floats, Floats]:
    """Return the probability of each model by a fit on all others, clean ones and backdoored."""
    return (
        np.asarray(
            [probability(regression(_but(good, i), bad), row) for i, row in enumerate(good)]
        ),
        np.asarray([probability(regression(good, _but(bad, i)), row) for i, row in enumerate(bad)]),
    )


def _but(rows: Floats, i: int) -> Floats:
    return np.delete(rows, i, axis=0)


def probability(line: Floats, row: Floats) -> float:
    """Return the probability of a backdoor at features, by weights and an intercept."""
    odds = float(np.clip(row @ line[:-1] + line[-1], -700, 700))
    return 1 / (1 + float(np.exp(-odds)))


def regression(good: Floats, bad: Floats, strength: float = STRENGTH) -> Floats:
    """Return the weights and the intercept of the log odds between two kinds of models.

    Minimizes the mean over both kinds of the log loss to Platt's targets, times the number of
    models, plus `strength / 2` times the sum of squared weights of standardized features; no weight
    is negative. A feature that never differs has none.

    Args:
        good: Features of clean models `(G, F)`.
        bad: Features of backdoored ones `(B, F)`.
        strength: Of the penalty.

    Returns:
        Shape `(F + 1,)`, for features as they are.
    """
    from scipy.optimize import minimize

    x = np.concatenate([good, bad])
    low, high = 1 / (len(good) + 2), (len(bad) + 1) / (len(bad) + 2)
    share = np.repeat([low, high], [len(good), len(bad)])
    weight = np.repeat([len(x) / 2 / len(good), len(x) / 2 / len(bad)], [len(good), len(bad)])
    middle, spread = x.mean(0), x.std(0)
    z = np.divide(x - middle, spread, out=np.zeros_like(x), where=spread > 0)

    def loss(line: Floats) -> tuple[float, Floats]:
        odds = z @ line[:-1] + line[-1]
        value = weight @ (np.logaddexp(0, odds) - share * odds)
        slope = weight * (1 / (1 + np.exp(-odds)) - share)
        push = strength * line[:-1]
        return value + push @ line[:-1] / 2, np.append(slope @ z + push, slope.sum())

    bounds = [(0.0, None)] * x.shape[1] + [(None, None)]
    options = {"maxiter": ITERATIONS}
    found = minimize(loss, np.zeros(len(bounds)), jac=True, bounds=bounds, options=options).x
    weights = np.divide(found[:-1], spread, out=np.zeros_like(spread), where=spread > 0)
    return np.append(weights, found[-1] - weights @ middle)
