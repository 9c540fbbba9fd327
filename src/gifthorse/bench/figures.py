"""Figures of a bench: what each is called, what it can be, how it is said; means over seeds."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Literal, NamedTuple, TypeAlias

from gifthorse.core.stats import t_half_width, wilson
from gifthorse.core.types import Rate
from gifthorse.report import words

Unit: TypeAlias = Literal["", "%", "count"]
STEPS = 8  # colors of a scale, without the first
VERDICT = "verdict"  # shown like a figure, though it is a word


class MetricKind(NamedTuple):
    """What a figure cannot leave, how tables show it, and whether pages say it in percent."""

    low: float
    high: float
    unit: Unit = ""
    percent: bool = False


KINDS = {  # a share and a shift are decimal numbers in tables, as the papers print them
    "percent": MetricKind(0.0, 1.0, "%", True),
    "change": MetricKind(-1.0, 1.0, "%", True),
    "share": MetricKind(0.0, 1.0, "", True),
    "shift": MetricKind(-1.0, 1.0, "", True),
    "count": MetricKind(0.0, 1.0, "count", True),
    "unit": MetricKind(0.0, 1.0),
    "amount": MetricKind(0.0, math.inf),
    "any": MetricKind(-math.inf, math.inf),
}
KNOWN: dict[str, dict[str, str]] = tomllib.loads(
    files(__package__).joinpath("figures.toml").read_text("utf-8")
)


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
    kind: MetricKind = KINDS["any"]
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

    def interval(self, of: Estimate) -> str:
        """Return a value in words with its interval, if it has one."""
        return f"{self.said(of.value or 0.0)} {self.range(of)}".strip()

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
    known = KNOWN.get(base, {})
    inferred = "any" if not shares else "share" if least >= 0 else "shift"
    kind, title = KINDS[known.get("kind", inferred)], known.get("title", base.replace("_", " "))
    end = max(abs(least), abs(most))
    if -1 <= kind.low < 0 or least < 0:  # a change: the scale is as wide as what is shown
        end = max(end, 0.1)
    elif kind.percent or end <= 1:
        end = 1.0
    bottom = -end if least < 0 else 0.0
    if base != name:
        return Metric(name, f"{title} before", "", kind, bottom, end)
    return Metric(name, title, known.get("better", ""), kind, bottom, end)


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
    std, low, high = known.std, known.low, known.high
    if known.n and of.kind.unit == "count":
        std, (low, high) = None, wilson(hits, known.n)
    elif known.value is not None and std is not None:
        half = t_half_width(std, known.n)
        low, high = max(of.kind.low, known.value - half), min(of.kind.high, known.value + half)
    return replace(known, std=std, low=low, high=high, unit=of.kind.unit)
