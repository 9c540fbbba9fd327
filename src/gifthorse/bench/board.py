"""What a leaderboard shows of records: cells side by side, means over seeds, colors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from gifthorse.bench.entries import CLEAN, Entry, Method, Value, text
from gifthorse.core.types import Rate
from gifthorse.report import words

VERDICT = "verdict"  # shown like a figure, though it is a word
STEPS = 8  # colors of a scale, without the first
NONE = "\N{EN DASH}"
FAMILIES = ("none", "detector", "filter", "remedy")

# Titles, and which direction is good for the defender.
KNOWN: Mapping[str, tuple[str, str]] = {
    "asr": ("Attack success", "low"),
    "ard": ("Attack success removed", "high"),
    "accuracy": ("Clean accuracy", "high"),
    "cad": ("Clean accuracy lost", "low"),
    VERDICT: ("Verdict", ""),
    "tpr": ("Stamped images caught", "high"),
    "fpr": ("Clean images flagged", "low"),
    "auroc": ("Area under ROC", "high"),
    "f1": ("F1 of stamped images", "high"),
    "score": ("Score of the model", ""),
    "aiv": ("Anomaly index", ""),
    "recovered_asr": ("Success of the recovered trigger", "high"),
    "mjs": ("Overlap with the true mask", "high"),
    "mln": ("L1 norm of the recovered mask", ""),
    "ra": ("Stamped images classified right", "high"),
    "der": ("Defense effectiveness rating", "high"),
    "rir": ("Robustness improvement rating", "high"),
    "precision": ("Stamped share of the flagged", "high"),
    "auprc": ("Area under precision and recall", "high"),
    "asr_all": ("Attack success, target class counted", "low"),
    "tmc": ("Confidence in the target", "low"),
    "ccc": ("Confidence in the true class", "high"),
    "acc_sys": ("Accuracy with rejections", "high"),
    "asr_sys": ("Attack success with rejections", "low"),
}
MAIN: Mapping[str, tuple[str, ...]] = {  # columns of the table, as far as they exist
    "": (VERDICT, "asr", "accuracy", "tpr", "fpr"),
    "none": ("asr", "accuracy", "cad", "tmc"),
    "detector": (VERDICT, "score", "aiv", "recovered_asr"),
    "filter": ("tpr", "fpr", "auroc", "f1"),
    "remedy": ("asr", "ard", "accuracy", "cad"),
}
PERCENT = {"asr", "asr_all", "asr_sys", "ard", "accuracy", "acc_sys", "cad", "ra", "tmc", "ccc"}
PERCENT |= {"tpr", "fpr", "precision", "recall", "decided", "recovered_asr", "suspected"}
PERCENT |= {VERDICT, "confirmed", "tmc_change", "ccc_change", "tpr_roc", "tpr_zoo"}
PERCENT |= {f"flag_{word}" for word in ("clean", "correct", "correct_set", "wrong")}
PLAIN = {"auroc", "auprc", "f1", "der", "rir"}  # in [0, 1], though not said in percent
CHANGES = {"cad", "ard", "tmc_change", "ccc_change"}  # whose scale is as wide as what is shown
UNDRAWN = re.compile(r"n_\w+|\w+_before|collapsed|reloaded|pairs|aiv_degenerate|seconds_\d+")
ALARMS = ("BACKDOORED", "SUSPICIOUS")
LABELS = {"BACKDOORED": "backdoored", "SUSPICIOUS": "suspicious", "NO BACKDOOR FOUND": "nothing"}


# 1. Figures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn.

    Attributes:
        name: As records have it.
        title: In words.
        better: `low` or `high`, where one is better for the defender.
        percent: Whether it is a share.
        least: Lower end of the scale, 0 or less.
        most: Upper end of the scale.
    """

    name: str
    title: str
    better: str = ""
    percent: bool = False
    least: float = 0.0
    most: float = 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        """What the figure cannot leave."""
        if not self.percent:
            return -math.inf, math.inf
        return (-1.0 if self.name in CHANGES or self.least < 0 else 0.0), 1.0

    def said(self, value: float) -> str:
        """Return a value in words."""
        return words.percent(value) if self.percent else words.figure(value)

    def range(self, value: Value) -> str:
        """Return an interval in words, empty if there is none."""
        if value.low is None or value.high is None:
            return ""
        if self.percent:
            return words.interval(Rate(value.value, value.low, value.high, 0))
        return f"[{words.figure(value.low)}, {words.figure(value.high)}]"

    def color(self, value: float) -> str:
        """Return the step on the scale: p0 to p8, below zero m1 to m8."""
        end = self.least if value < 0 else self.most
        step = round(STEPS * min(1.0, value / end)) if end else 0
        return f"{'m' if value < 0 and step else 'p'}{step}"


def title(name: str) -> str:
    """Return what a figure is called in words; its own name if nobody gave it one."""
    base = name.removesuffix("_before")
    known = KNOWN[base][0] if base in KNOWN else base.replace("_", " ")
    return f"{known} before" if base != name else known


def is_percent(name: str, values: Iterable[Value]) -> bool:
    """Whether a figure is a share: known as one, or of so many trials."""
    base = name.removesuffix("_before")
    return base in PERCENT or (
        base not in PLAIN and all(v.n is not None and abs(v.value) <= 1 for v in values)
    )


def figures(entries: Iterable[Entry]) -> list[Figure]:
    """Return the figures that entries have and that are worth drawing, well-known ones first."""
    found: dict[str, list[Value]] = {}
    for entry in entries:
        for name, value in shown(entry):
            found.setdefault(name, []).append(value)
    order = {name: i for i, name in enumerate(KNOWN)}
    return [
        _figure(name, found[name]) for name in sorted(found, key=lambda n: (order.get(n, 99), n))
    ]


def shown(entry: Entry) -> Iterator[tuple[str, Value]]:
    """Yield the figures of an entry that are drawn."""
    for name, value in entry.figures.items():
        if value is not None and name != VERDICT and not UNDRAWN.fullmatch(name):
            yield name, value
    if "label" in entry.words:
        yield VERDICT, Value(float(entry.words["label"] in ALARMS))


def _figure(name: str, values: Sequence[Value]) -> Figure:
    percent = is_percent(name, values)
    top, bottom = max(v.value for v in values), min(v.value for v in values)
    most = max(abs(top), abs(bottom))
    if name in CHANGES or bottom < 0:
        most = max(most, 0.1)
    elif percent or most <= 1:
        most = 1.0
    better = KNOWN[name][1] if name in KNOWN else ""
    return Figure(name, title(name), better, percent, -most if bottom < 0 else 0.0, most)


def mean(values: Sequence[Value], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Value:
    """Return one value as it is, of several their mean with its 95 % t-interval over seeds.

    Args:
        values: One a seed, at least one.
        bounds: What the interval is cut to.
    """
    if len(values) == 1:
        return values[0]
    known = [v.value for v in values]
    center, freedom = fmean(known), len(known) - 1
    spread = math.sqrt(math.fsum((v - center) ** 2 for v in known) / freedom)
    half = _t(freedom) * spread / math.sqrt(len(known))
    trials = [v.n for v in values if v.n is not None]
    low, high = max(bounds[0], center - half), min(bounds[1], center + half)
    return Value(center, low, high, sum(trials) if trials else None)


@lru_cache
def _t(freedom: int) -> float:
    from scipy.special import stdtrit  # late: slow

    return float(stdtrit(freedom, 0.975))


# 2. Heat maps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Square:
    """One square: whose page it opens, its color, what is printed, and a sentence about it."""

    key: str
    tone: str
    value: str
    note: str
    said: str
    center: Value | None = None


@dataclass(frozen=True)
class Map:
    """Defenses against attacks on one net and data, by one figure.

    Attributes:
        figure: What is shown.
        columns: Attacks, the clean twin first.
        rows: Family, defense and its squares; None where no cell was judged.
    """

    figure: Figure
    columns: tuple[Method, ...]
    rows: tuple[tuple[str, Method, tuple[Square | None, ...]], ...]


Cells = Mapping[tuple[Method, Method], Sequence[Entry]]  # by defense and attack, one entry a seed


def gathered(
    entries: Iterable[Entry],
) -> dict[tuple[Any, ...], dict[tuple[Method, Method], list[Entry]]]:
    """Return entries by heat map, then by defense and attack."""
    out: dict[tuple[Any, ...], dict[tuple[Method, Method], list[Entry]]] = {}
    for entry in entries:
        cells = out.setdefault(entry.place, {})
        cells.setdefault((entry.defense, entry.attack), []).append(entry)
    return out


def drawn(cells: Cells, figure: Figure, names: Mapping[Method, str]) -> Map | None:
    """Return the heat map of a figure, None if no cell has it.

    A defense that has no figure at all is shown beside those of its family, since it failed.
    """
    having = {pair for pair, same in cells.items() if any(_has(e, figure.name) for e in same)}
    families = {defense.family for defense, _ in having}
    alive = {d for (d, _), same in cells.items() if any(e.figures or e.ok for e in same)}
    rows = [
        defense
        for defense in dict.fromkeys(d for d, _ in cells)
        if any(d == defense for d, _ in having)
        or (defense not in alive and defense.family in families)
    ]
    rows.sort(key=lambda d: FAMILIES.index(d.family) if d.family in FAMILIES else len(FAMILIES))
    kept = {a for d, a in having} | {
        a for (d, a), same in cells.items() if d in rows and not any(e.ok for e in same)
    }
    columns = [a for a in dict.fromkeys(a for _, a in cells) if a in kept]
    columns.sort(key=lambda a: a != CLEAN)
    lines = tuple(
        (d.family, d, tuple(_square(cells.get((d, a), ()), figure, names) for a in columns))
        for d in rows
    )
    return Map(figure, tuple(columns), lines) if having else None


def _has(entry: Entry, name: str) -> bool:
    if name == VERDICT:
        return bool(entry.words.get("label"))
    return entry.figures.get(name) is not None


def _square(same: Sequence[Entry], figure: Figure, names: Mapping[Method, str]) -> Square | None:
    if not same:
        return None
    key = same[0].key
    head = f"{names[same[0].defense]}, {names[same[0].attack]}: "
    good = [e for e in same if e.ok]
    failed = Counter(e.status for e in same if not e.ok)
    lost = ", ".join(f"{status} {count} of {len(same)}" for status, count in failed.items())
    if not good:
        word = failed.most_common(1)[0][0]
        error = next((e.error for e in same if e.error), "")
        return Square(key, "failed", word, "", text(f"{head}{lost}. {error}", 300))
    part = f"{len(good)} of {len(same)} ok" if lost else ""
    rest = f"; {lost}" if lost else ""
    if figure.name == VERDICT:
        return _verdict(good, key, head, rest)
    values = [v for e in good if (v := e.figures.get(figure.name))]
    if not values:
        return Square(key, "void", NONE, part, f"{head}undefined here{rest}")
    center = mean(values, figure.bounds)
    said = head + sentence(figure, center, len(values)) + rest
    return Square(key, figure.color(center.value), figure.said(center.value), part, said, center)


def sentence(figure: Figure, center: Value, seeds: int) -> str:
    """Return a mean, its interval and what it is of, in words."""
    span = figure.range(center)
    trials = f", {center.n:,.0f} trials" if center.n else ""
    said = f"{figure.title.lower()} {figure.said(center.value)}{f' {span}' if span else ''}"
    return f"{said} over {words.plural(seeds, 'seed')}{trials}"


def _verdict(good: Sequence[Entry], key: str, head: str, rest: str) -> Square:
    """Return the most frequent verdict, and of how many seeds it is."""
    labels = Counter(e.words.get("label", "") for e in good)
    label, count = labels.most_common(1)[0]
    said = ", ".join(f"{word or 'no verdict'} {n} of {len(good)}" for word, n in labels.items())
    tone = label.lower().replace(" ", "-") if label in LABELS else "inconclusive"
    word = LABELS.get(label, label.lower()) or NONE
    note = f"{count} of {len(good)}" if len(good) > 1 else ""
    share = fmean(label in ALARMS for label in labels.elements())
    return Square(key, f"word {tone}", word, note, f"{head}{said}{rest}", Value(share))
