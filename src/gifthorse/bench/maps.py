"""What a leaderboard draws of a figure: defenses against attacks in colors, and against time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from gifthorse.bench.figures import VERDICT, Metric
from gifthorse.bench.results import BARE, CLEAN, MethodId, SeedGroup, SeedRun, text
from gifthorse.report import words

WIDTH, HEIGHT = 540.0, 260.0  # of a chart in SVG units, without its axes
NONE = "\N{EN DASH}"
GROUPS = {"none": "no defense", "detector": "detectors", "filter": "filters", "remedy": "remedies"}
ALARMS = ("BACKDOORED", "SUSPICIOUS")
LABELS = {"BACKDOORED": "backdoored", "SUSPICIOUS": "suspicious", "NO BACKDOOR FOUND": "nothing"}

# Seconds at the axis of a chart.
ROUND = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800]
ROUND += [3600, 7200, 18_000, 36_000, 86_400, 172_800, 432_000]


class HeatSquare(NamedTuple):
    """One square: whose page it opens, its color, what is printed, and a sentence about it."""

    key: str
    tone: str
    value: str
    note: str
    said: str
    center: float | None = None


@dataclass(frozen=True)
class HeatMap:
    """Defenses against attacks on one net and data, by one figure.

    Attributes:
        figure: What is shown.
        columns: Attacks, the clean twin first.
        rows: Family, defense and its squares; None where no cell was judged.
    """

    figure: Metric
    columns: tuple[MethodId, ...]
    rows: tuple[tuple[str, MethodId, tuple[HeatSquare | None, ...]], ...]


class ScatterMark(NamedTuple):
    """A defense in a chart: its mark, its name, and what the legend says of it."""

    x: float
    y: float
    name: str
    said: str


@dataclass(frozen=True)
class ScatterPlot:
    """Time against a figure: marks from left to right, single attacks as SVG path, both axes.

    A tick of an axis is where it is and what is written at it; `bare` is the undefended model's.
    """

    marks: tuple[ScatterMark, ...]
    cloud: str
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    bare: tuple[float, str] | None


# Heat maps ------------------------------------------------------------------------------------

_Groups = Mapping[tuple[MethodId, MethodId], SeedGroup]  # by defense and attack


def heat_map(same: _Groups, figure: Metric, names: Mapping[MethodId, str]) -> HeatMap | None:
    """Return the heat map of a figure, None if no cell that is ok has it.

    A defense of which no cell is ok is shown beside those of its family, since it failed.
    """
    having = {pair for pair, group in same.items() if _has(group, figure.name)}
    showing = {defense for defense, _ in having}
    families = {defense.family for defense in showing}
    alive = {defense for (defense, _), group in same.items() if group.good}
    rows = [
        d
        for d in dict.fromkeys(d for d, _ in same)
        if d in showing or (d not in alive and d.family in families)
    ]
    order = list(GROUPS)
    rows.sort(key=lambda d: order.index(d.family) if d.family in order else len(order))
    kept = {a for _, a in having} | {a for (d, a), g in same.items() if d in rows and not g.good}
    columns = [a for a in dict.fromkeys(a for _, a in same) if a in kept]
    columns.sort(key=lambda a: a != CLEAN)
    lines = (
        (d.family, d, tuple(_square(same.get((d, a)), figure, names) for a in columns))
        for d in rows
    )
    return HeatMap(figure, tuple(columns), tuple(lines)) if having else None


def _has(group: SeedGroup, name: str) -> bool:
    if name == VERDICT:
        return any(run.label for run in group.good)
    return name in group.figures and group.figures[name].n > 0


def _square(
    group: SeedGroup | None, figure: Metric, names: Mapping[MethodId, str]
) -> HeatSquare | None:
    if group is None:
        return None
    good, every, key = group.good, len(group.runs), group.runs[0].key
    head = f"{names[group.defense]}, {names[group.attack]}: "
    failed = Counter(run.status for run in group.runs if not run.ok)
    lost = ", ".join(f"{status} {count} of {every}" for status, count in failed.items())
    if not good:
        error = next((run.error for run in group.runs if run.error), "")
        word = failed.most_common(1)[0][0]
        return HeatSquare(key, "failed", word, "", text(f"{head}{lost}. {error}", 300))
    part, rest = (f"{len(good)} of {every} ok", f"; {lost}") if lost else ("", "")
    if figure.name == VERDICT:
        return _verdict(good, key, head, rest)
    known = group.figures.get(figure.name)
    if known is None or known.value is None:
        return HeatSquare(key, "void", NONE, part, f"{head}undefined here{rest}")
    trials = f", {known.trials:,.0f} trials" if known.trials else ""
    said = f"{figure.title.lower()} {figure.interval(known)}"
    said = f"{head}{said} over {words.plural(known.n, 'seed')}{trials}{rest}"
    tone, value = figure.color(known.value), figure.said(known.value)
    return HeatSquare(key, tone, value, part, said, known.value)


def _verdict(good: Sequence[SeedRun], key: str, head: str, rest: str) -> HeatSquare:
    """Return the most frequent verdict, and of how many seeds it is."""
    labels = Counter(run.label for run in good)
    label, count = labels.most_common(1)[0]
    said = ", ".join(f"{word or 'no verdict'} {n} of {len(good)}" for word, n in labels.items())
    tone = label.lower().replace(" ", "-") if label in LABELS else "inconclusive"
    word = LABELS.get(label, label.lower()) or NONE
    note = f"{count} of {len(good)}" if len(good) > 1 else ""
    share = fmean(run.label in ALARMS for run in good)
    return HeatSquare(key, f"word {tone}", word, note, f"{head}{said}{rest}", share)


# Charts ---------------------------------------------------------------------------------------


def scatter(drawn: HeatMap, same: _Groups, names: Mapping[MethodId, str]) -> ScatterPlot | None:
    """Return the chart of a heat map: mean seconds and mean figure of each defense over attacks.

    Clean twins count only where there is nothing else. None if no defense has both.
    """
    figure = drawn.figure
    clouds = {d: c for _, d, squares in drawn.rows if (c := _cloud(drawn, same, d, squares))}
    bare = fmean(v for _, v in clouds[BARE]) if BARE in clouds else None
    values = [v for cloud in clouds.values() for _, v in cloud]
    clouds.pop(BARE, None)
    if not clouds:
        return None
    spent = [math.log10(s) for cloud in clouds.values() for s, _ in cloud]
    pad = max(0.08, (0.7 - (max(spent) - min(spent))) / 2)  # a factor of 5 has a round number
    low, high = min(spent) - pad, max(spent) + pad
    up = _levels(figure, values)

    def x(seconds: float) -> float:
        return (math.log10(seconds) - low) / (high - low) * WIDTH

    def y(value: float) -> float:
        return (up[-1] - value) / (up[-1] - up[0]) * HEIGHT

    marks = []
    for defense, cloud in clouds.items():
        seconds, value = (fmean(part) for part in zip(*cloud, strict=True))
        said = f"{words.span(seconds)}, {figure.said(value)}"
        marks.append(ScatterMark(x(seconds), y(value), names[defense], said))
    within = [t for t in ROUND if low <= math.log10(t) <= high]
    return ScatterPlot(
        tuple(sorted(marks)),
        "".join(f"M{x(s):.1f} {y(v):.1f}h0" for cloud in clouds.values() for s, v in cloud),
        tuple((x(t), _short(t)) for t in within[:: 1 + len(within) // 8]),
        tuple((y(v), figure.said(v)) for v in up),
        None if bare is None else (y(bare), figure.said(bare)),
    )


def _cloud(
    drawn: HeatMap, same: _Groups, defense: MethodId, squares: Iterable[HeatSquare | None]
) -> list[tuple[float, float]]:
    """Return the seconds and the figure of a defense, one pair an attack."""
    out = []
    for attack, square in zip(drawn.columns, squares, strict=True):
        good = same[defense, attack].good if square else ()
        known = [run.seconds for run in good if run.seconds and run.seconds > 0]
        if square and square.center is not None and known:
            out.append((attack, fmean(known), square.center))
    return [(s, v) for attack, s, v in out if attack != CLEAN] or [(s, v) for _, s, v in out]


def _levels(figure: Metric, values: Sequence[float]) -> list[float]:
    """Return round values for the other axis, about five of them, around all that is drawn."""
    from matplotlib.ticker import MaxNLocator  # late: slow

    if (figure.least, figure.most) == (0.0, 1.0):
        return [i / 4 for i in range(5)]
    low, high = min(0.0, *values), max(0.0, *values)
    return [float(v) for v in MaxNLocator(5).tick_values(low, high if high > low else low + 1.0)]


def _short(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"
