"""Figures of a bench: what each is called, what it can be, how it is said; means over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from gifthorse.core.tensors import wilson
from gifthorse.core.types import Rate
from gifthorse.report import words

Unit: TypeAlias = Literal["", "%", "count"]
STEPS = 8  # colors of a scale, without the first
VERDICT = "verdict"  # shown like a figure, though it is a word


class _Kind(NamedTuple):
    """What a figure cannot leave, how tables show it, and whether pages say it in percent."""

    low: float
    high: float
    unit: Unit = ""
    percent: bool = False


_ANY = _Kind(-math.inf, math.inf)
_PERCENT, _CHANGE = _Kind(0.0, 1.0, "%", True), _Kind(-1.0, 1.0, "%", True)
# As the papers print them: in tables a decimal number.
_SHARE, _SHIFT = _Kind(0.0, 1.0, "", True), _Kind(-1.0, 1.0, "", True)
_COUNT, _UNIT = _Kind(0.0, 1.0, "count", True), _Kind(0.0, 1.0)
_AMOUNT = _Kind(0.0, math.inf)

# Kind, title, and which direction is good for the defender; in the order of lists.
KNOWN: dict[str, tuple[_Kind, str, str]] = {
    "asr": (_PERCENT, "Attack success", "low"),
    "ard": (_CHANGE, "Attack success removed", "high"),
    "accuracy": (_PERCENT, "Clean accuracy", "high"),
    "cad": (_CHANGE, "Clean accuracy lost", "low"),
    VERDICT: (_SHARE, "Verdict", ""),
    "tpr": (_SHARE, "Stamped images caught", "high"),
    "fpr": (_SHARE, "Clean images flagged", "low"),
    "auroc": (_UNIT, "Area under ROC", "high"),
    "f1": (_UNIT, "F1 of stamped images", "high"),
    "score": (_ANY, "Score of the model", ""),
    "aiv": (_AMOUNT, "Anomaly index", ""),
    "recovered_asr": (_SHARE, "Success of the recovered trigger", "high"),
    "mjs": (_UNIT, "Overlap with the true mask", "high"),
    "mln": (_AMOUNT, "L1 norm of the recovered mask", ""),
    "ra": (_PERCENT, "Stamped images classified right", "high"),
    "der": (_UNIT, "Defense effectiveness rating", "high"),
    "rir": (_UNIT, "Robustness improvement rating", "high"),
    "precision": (_SHARE, "Stamped share of the flagged", "high"),
    "auprc": (_UNIT, "Area under precision and recall", "high"),
    "asr_all": (_SHARE, "Attack success, target class counted", "low"),
    "tmc": (_SHARE, "Confidence in the target", "low"),
    "ccc": (_SHARE, "Confidence in the true class", "high"),
    "acc_sys": (_SHARE, "Accuracy with rejections", "high"),
    "asr_sys": (_SHARE, "Attack success with rejections", "low"),
}
_OTHERS: dict[str, _Kind] = {  # known, but without a title or a place in the order
    **dict.fromkeys(("recall", "decided", "tpr_roc", "tpr_zoo", "fpr_all"), _SHARE),
    **dict.fromkeys(("tmc_change", "ccc_change"), _SHIFT),
    **dict.fromkeys(("suspected", "confirmed", "flag_clean", "flag_correct"), _COUNT),
    **dict.fromkeys(("flag_correct_set", "flag_wrong"), _COUNT),
    **dict.fromkeys(("auc", "nsr", "map_original", "map_target"), _UNIT),
    "seconds": _AMOUNT,
}


@dataclass(frozen=True)
class Metric:
    """What a figure is.

    Attributes:
        name: As records have it.
        title: In words.
        better: `low` or `high`, where one is better for the defender.
        kind: What it can be, and how it is said.
        least: Lower end of the scale of what is drawn, 0 or less.
        most: Upper end of that scale.
    """

    name: str
    title: str
    better: str = ""
    kind: _Kind = _ANY
    least: float = 0.0
    most: float = 1.0

    def said(self, value: float) -> str:
        """Return a value in words."""
        return words.percent(value) if self.kind.percent else words.figure(value)

    def range(self, of: Estimate) -> str:
        """Return an interval in words, empty if there is none."""
        if of.low is None or of.high is None:
            return ""
        if self.kind.percent:
            return words.interval(Rate(0.0, of.low, of.high, 0))
        return f"[{words.figure(of.low)}, {words.figure(of.high)}]"

    def color(self, value: float) -> str:
        """Return the step on the scale: p0 to p8, below zero m1 to m8."""
        end = self.least if value < 0 else self.most
        step = round(STEPS * min(1.0, value / end)) if end else 0
        return f"{'m' if value < 0 and step else 'p'}{step}"


def metric(name: str, least: float = 0.0, most: float = 1.0, *, shares: bool = False) -> Metric:
    """Return what a figure is; of one that nobody knows, by its values.

    Args:
        name: As records have it; one that ends in `_before` is like the one it was before.
        least: The least value there is.
        most: The largest value there is.
        shares: Whether all values are at most 1 and counted over trials.
    """
    base = name.removesuffix("_before")
    kind, title, better = KNOWN.get(base, (_OTHERS.get(base), base.replace("_", " "), ""))
    if kind is None:
        kind = _ANY if not shares else _SHARE if least >= 0 else _SHIFT
    end = max(abs(least), abs(most))
    if -1 <= kind.low < 0 or least < 0:  # a change: the scale is as wide as what is shown
        end = max(end, 0.1)
    elif kind.percent or end <= 1:
        end = 1.0
    full = title if base == name else f"{title} before"
    return Metric(name, full, better * (base == name), kind, -end if least < 0 else 0.0, end)


@dataclass(frozen=True)
class Estimate:
    """A figure of one model, or its mean over models that differ in their seed alone.

    Attributes:
        name: As records call it.
        value: The mean; None if it is defined for none of them.
        std: Sample standard deviation (n - 1); None of fewer than two.
        low: Lower end of the 95 % interval; None if it is not known.
        high: Its upper end.
        n: How many models the mean is of.
        unit: How tables show it: a number, in percent, or `count` as how many of n.
        trials: How many images all models were tried on; None if that is not known.
    """

    name: str
    value: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: Unit = ""
    trials: float | None = None


def over_seeds(of: Metric, known: Estimate, hits: int) -> Estimate:
    """Return a mean with its 95 % interval, cut to what the figure can be.

    Of several models it is the t-interval over them, of counts Wilson's; of a single model it stays
    that of its record.

    Args:
        of: What the figure is.
        known: The mean with its sample standard deviation.
        hits: How many of the values are above a half, for counts.
    """
    low, high = known.low, known.high
    if known.n and of.kind.unit == "count":
        low, high = wilson(hits, known.n)
        return Estimate(of.name, known.value, None, low, high, known.n, "count", known.trials)
    if known.value is not None and known.std is not None:
        half = _student(known.n - 1) * known.std / math.sqrt(known.n)
        low = max(of.kind.low, known.value - half)
        high = min(of.kind.high, known.value + half)
    unit = of.kind.unit
    return Estimate(of.name, known.value, known.std, low, high, known.n, unit, known.trials)


@lru_cache
def _student(freedom: int) -> float:
    from scipy.special import stdtrit  # late: slow

    return float(stdtrit(freedom, 0.975))
