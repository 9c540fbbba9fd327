"""What defenses cost against what they do: the geometry of a chart that a template draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from gifthorse.bench.board import Cells, Figure, Map
from gifthorse.bench.entries import BARE, CLEAN, Entry, Method
from gifthorse.report.words import span

WIDTH, HEIGHT = 540.0, 260.0  # of the plot in SVG units, without its axes
LETTER, LINE = 6.6, 14.0  # size of a character of a label, at most

# Seconds at the axis.
ROUND = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800]
ROUND += [3600, 7200, 18_000, 36_000, 86_400, 172_800, 432_000]

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Tick:
    """A line of the grid: where, and what is written at it."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A defense: the place of its mark and its label, and a sentence about it."""

    x: float
    y: float
    name: str
    said: str
    label_x: float
    label_y: float
    anchor: str
    far: bool


@dataclass(frozen=True)
class Scatter:
    """The chart: defenses, every attack against each of them as SVG path, axes, the bare model."""

    dots: tuple[Dot, ...]
    cloud: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    bare: Tick | None


@dataclass(frozen=True)
class _Point:
    method: Method
    seconds: float
    value: float
    cloud: tuple[tuple[float, float], ...]


def scatter(drawn: Map, cells: Cells, names: Mapping[Method, str]) -> Scatter | None:
    """Return the chart of a heat map: mean seconds and mean figure of each defense over attacks.

    Clean twins count only where there is nothing else. None if no defense has both.
    """
    points = [
        p for _, method, squares in drawn.rows if (p := _point(drawn, cells, method, squares))
    ]
    bare = next((p.value for p in points if p.method == BARE), None)
    bared, points = points, [p for p in points if p.method != BARE]
    if not points:
        return None
    seconds = [s for p in points for s, _ in p.cloud]
    low, high = math.log10(min(seconds)), math.log10(max(seconds))
    pad = max(0.08, (0.7 - (high - low)) / 2)  # a factor of 5 at least, which has a round number
    low, high = low - pad, high + pad
    figure = drawn.figure
    up = _levels(figure, [v for p in bared for _, v in p.cloud])

    def place(s: float, v: float) -> tuple[float, float]:
        x = (math.log10(s) - low) / (high - low) * WIDTH
        return x, (up[-1] - v) / (up[-1] - up[0]) * HEIGHT

    cloud = "".join(f"M{x:.1f} {y:.1f}h0" for p in points for x, y in (place(*c) for c in p.cloud))
    said = [
        f"{names[p.method]}: {span(p.seconds)}, {figure.title.lower()} {figure.said(p.value)}"
        for p in points
    ]
    dots = _labeled(
        [place(p.seconds, p.value) for p in points], [names[p.method] for p in points], said
    )
    across = tuple(Tick(place(t, 0.0)[0], _short(t)) for t in _times(low, high))
    along = tuple(Tick(place(1.0, v)[1], figure.said(v)) for v in up)
    at = Tick(place(1.0, bare)[1], figure.said(bare)) if bare is not None else None
    return Scatter(dots, cloud, across, along, at)


def _point(drawn: Map, cells: Cells, method: Method, squares: Sequence[object]) -> _Point | None:
    known: list[tuple[Method, float, float]] = []
    for attack, square in zip(drawn.columns, squares, strict=True):
        center = getattr(square, "center", None)
        seconds = _seconds(cells.get((method, attack), ()))
        if center is not None and seconds is not None:
            known.append((attack, seconds, center.value))
    attacked = [k for k in known if k[0] != CLEAN] or known
    if not attacked:
        return None
    cloud = tuple((s, v) for _, s, v in attacked)
    return _Point(method, fmean(s for s, _ in cloud), fmean(v for _, v in cloud), cloud)


def _seconds(same: Sequence[Entry]) -> float | None:
    known = [e.seconds for e in same if e.ok and e.seconds is not None and e.seconds > 0]
    return fmean(known) if known else None


def _times(low: float, high: float) -> list[float]:
    """Return seconds to write at the axis, at most seven, all of them round."""
    within = [t for t in ROUND if low <= math.log10(t) <= high]
    return within[:: 1 + len(within) // 8]


def _levels(figure: Figure, values: Sequence[float]) -> list[float]:
    """Return round values for the other axis, about five of them, around all that is drawn."""
    if (figure.least, figure.most) == (0.0, 1.0):
        return [i / 4 for i in range(5)]
    low, high = min(0.0, *values), max(0.0, *values)
    rough = (high - low or 1.0) / 5
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(ten * n for n in (1, 2, 5, 10) if ten * n >= rough)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _short(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _labeled(
    places: Sequence[tuple[float, float]], names: Sequence[str], said: Sequence[str]
) -> tuple[Dot, ...]:
    """Put a label to each mark where no other mark or label is."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    dots = []
    for (x, y), name, words in sorted(zip(places, names, said, strict=True), key=lambda p: p[0][1]):
        short = name if len(name) <= 30 else name[:29] + "…"
        left, base, anchor = _free(x, y, LETTER * len(short), taken)
        taken.append(_box(left, base, anchor, LETTER * len(short)))
        far = abs(base - 4 - y) > LINE
        dots.append(Dot(x, y, short, words, left, base, anchor, far))
    return tuple(dots)


def _free(x: float, y: float, width: float, taken: Sequence[Box]) -> tuple[float, float, str]:
    sides = ((10.0, "start"), (-10.0, "end"))
    shifts = (0.0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE, -4 * LINE, 4 * LINE)
    spots = [(x + dx, y + 4 + dy, anchor) for dy in shifts for dx, anchor in sides]
    for spot in spots:
        box = _box(*spot, width)
        inside = box[0] >= -4 and box[2] <= WIDTH + 60 and box[1] >= -10 and box[3] <= HEIGHT + 2
        if inside and not any(_meet(box, other) for other in taken):
            return spot
    return spots[0]


def _box(x: float, base: float, anchor: str, width: float) -> Box:
    left = x if anchor == "start" else x - width
    return left, base - 11, left + width, base + 3


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
