"""A leaderboard as a folder of pages: opened from disk, no server, nothing from outside."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gifthorse.bench.figures import KNOWN, STEPS, VERDICT, Estimate, Metric, metric
from gifthorse.bench.results import (
    BARE,
    CLEAN,
    CellResult,
    MethodId,
    SeedGroup,
    SeedRun,
    Setup,
    cells,
    groups,
    metrics,
    settings,
    text,
    titles,
)
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.report import words

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CAUSES = 40  # reasons of failures that the first page lists
WRITERS = 16  # threads
COLUMNS = 5  # figures in the table, without the chosen one
WIDTH, HEIGHT = 540.0, 260.0  # of a chart in SVG units, without its axes
NONE = "\N{EN DASH}"
GROUPS = {"none": "no defense", "detector": "detectors", "filter": "filters", "remedy": "remedies"}
TONES = {"ok": "plain", "timeout": "medium", "collapsed": "medium", "unsupported": "inconclusive"}
MAIN: Mapping[str, tuple[str, ...]] = {  # columns of the table, as far as they exist
    "": (VERDICT, "asr", "accuracy", "tpr", "fpr"),
    "none": ("asr", "accuracy", "cad", "tmc"),
    "detector": (VERDICT, "score", "aiv", "recovered_asr"),
    "filter": ("tpr", "fpr", "auroc", "f1"),
    "remedy": ("asr", "ard", "accuracy", "cad"),
}
UNDRAWN = re.compile(
    r"n_\w+|\w+_before|collapsed|reloaded|pairs|aiv_degenerate|seconds(_\d+)?|verdict"
)
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


def write_leaderboard(
    con: DuckDBPyConnection,
    folder: Path,
    name: str,
    *,
    planned: int | None = None,
    command: str = "",
) -> list[Path]:
    """Write a leaderboard: `index.html`, its style and script, and `cell/KEY.html` for each cell.

    Records are not trusted: what they say is shown as text. Heat maps list methods in the order in
    which they first come, and show the mean over the seeds whose status is ok; of several seeds
    with a t-interval over seeds, of one with the interval that its record has. Files that are
    there with the same content are left alone; pages of other cells stay.

    Args:
        con: What `relation.frame` lends.
        folder: Where to write; made if it is not there.
        name: Heading of the first page.
        planned: How many cells there are to be, if some may not be judged yet.
        command: What made the pages, shown in their foot.

    Returns:
        Every file of the site, the first page first.

    Raises:
        UsageError: If the folder cannot be written to.
    """
    site = _Site(con, text(name), text(command))
    try:
        (folder / "cell").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    written = [
        _write(folder / "index.html", site.index(planned)),
        _write(folder / "look.css", _look() + _part("board.css")),
        _write(folder / "board.js", _part("board.js")),
    ]
    with ThreadPoolExecutor(WRITERS) as pool:  # a disk that confirms each file is waited for
        pages = ((folder / "cell" / f"{cell.run.key}.html", cell) for cell in site.cells)
        written += pool.map(lambda page: _write(page[0], site.cell(page[1])), pages)
    return written


def _write(path: Path, content: str) -> Path:
    raw = content.encode()
    if not path.is_file() or path.read_bytes() != raw:
        with atomic(path) as file:
            file.write(raw)
    return path


class _Site:
    """The pages of a frame of records."""

    def __init__(self, con: DuckDBPyConnection, name: str, command: str) -> None:
        self.cells, found, self.name, self.command = cells(con), groups(con), name, command
        self.names, self.settings = titles(found), settings(group.setup for group in found)
        self.groups = {(g.setup, g.defense, g.attack): g for g in found}
        self.metrics = metrics(con)
        drawn = [m for name, m in self.metrics.items() if not UNDRAWN.fullmatch(name)]
        if any(cell.run.label for cell in self.cells):
            drawn.append(metric(VERDICT))
        order = {name: i for i, name in enumerate(KNOWN)}
        self.drawn = sorted(drawn, key=lambda m: (order.get(m.name, 99), m.name))

    # The first page ---------------------------------------------------------------------------

    def index(self, planned: int | None) -> str:
        """Return the first page."""
        runs = [cell.run for cell in self.cells]
        status = Counter(run.status for run in runs)
        return _page(
            "index.html.j2",
            name=self.name,
            sentence=self._sentence(),
            cells=len(runs),
            planned=planned,
            ok=status["ok"],
            failed=[s for s in status.most_common() if s[0] != "ok"],
            causes=self._causes(),
            spent=words.span(sum(run.seconds or 0.0 for run in runs)),
            figures=self.drawn,
            default=self.drawn[0].name if self.drawn else "",
            panels=[(*at[:2], about, self._panel(at)) for at, about in self.settings.items()],
            families=[f for f in MAIN if f and any(c.defense.family == f for c in self.cells)],
            statuses=sorted(status),
            rows=Markup(embedded(self._table())),  # noqa: S704 - every "<" is escaped in it
            command=self.command,
            steps=range(STEPS + 1),
            title=self._title,
            names=self.names,
            tones=TONES,
            groups=GROUPS,
            plot={"width": WIDTH, "height": HEIGHT},
        )

    def _sentence(self) -> str:
        """Return what was crossed with what, in words."""
        attacks = {cell.attack for cell in self.cells}
        twins = " and the clean twins" if CLEAN in attacks else ""
        defenses = {cell.defense for cell in self.cells} - {BARE}
        parts = (
            ({cell.setup.data for cell in self.cells}, "data set"),
            ({cell.setup.net for cell in self.cells}, "net"),
            ({cell.run.seed for cell in self.cells}, "seed"),
        )
        return (
            f"{words.plural(len(attacks - {CLEAN}), 'attack')}{twins} against "
            f"{words.plural(len(defenses), 'defense')}; "
            f"{', '.join(words.plural(len(some), noun) for some, noun in parts)}."
        )

    def _causes(self) -> list[tuple[str, str, list[CellResult]]]:
        """Return why cells failed, the most frequent reason first."""
        out: dict[tuple[str, str], list[CellResult]] = {}
        for cell in self.cells:
            if not cell.run.ok:
                out.setdefault((cell.run.status, cell.run.error), []).append(cell)
        most = sorted(out.items(), key=lambda item: -len(item[1]))[:CAUSES]
        return [(status, error, same) for (status, error), same in most]

    def _title(self, cell: CellResult) -> str:
        where = f" on {cell.setup.data} {cell.setup.net}" if len(self.settings) > 1 else ""
        return f"{self.names[cell.attack]} · {self.names[cell.defense]}{where}"

    def _panel(self, setup: Setup) -> list[tuple[HeatMap, ScatterPlot | None]]:
        """Return the heat maps of one net on one data set, with their charts."""
        same = {(d, a): g for (at, d, a), g in self.groups.items() if at == setup}
        maps = (_heat_map(same, figure, self.names) for figure in self.drawn)
        return [(found, _scatter(found, same, self.names)) for found in maps if found]

    def _table(self) -> dict[str, Any]:
        """Return the table for the script, numbers already put into words."""
        return {
            "figures": [{"name": f.name, "title": f.title} for f in self.drawn],
            "columns": {family: self._columns(family) for family in MAIN},
            "tones": TONES,
            "rows": [self._row(cell) for cell in self.cells],
        }

    def _columns(self, family: str) -> list[int]:
        """Return which figures the table shows of a family, its usual ones first."""
        same = [c for c in self.cells if not family or c.defense.family == family]
        found = {name for c in same for name, v in c.figures.items() if v.value is not None}
        found |= {VERDICT for c in same if c.run.label}
        usual = [name for name in MAIN[family] if name in found]
        names = (usual or [f.name for f in self.drawn if f.name in found])[:COLUMNS]
        return [i for i, figure in enumerate(self.drawn) if figure.name in names]

    def _row(self, cell: CellResult) -> list[Any]:
        values: dict[int, tuple[float | str, str]] = {}
        for i, figure in enumerate(self.drawn):
            if figure.name == VERDICT and cell.run.label:
                values[i] = cell.run.label, cell.run.label
            elif (known := cell.figures.get(figure.name)) and known.value is not None:
                values[i] = known.value, _with_range(figure, known)
        run, (data, net, _) = cell.run, cell.setup
        spent = "" if run.seconds is None else words.span(run.seconds)
        names = self.names[cell.attack], self.names[cell.defense]
        kind = cell.defense.family
        return [run.key, *names, data, net, run.seed, run.status, run.seconds, spent, kind, values]

    # The page of a cell -----------------------------------------------------------------------

    def cell(self, cell: CellResult) -> str:
        """Return the page of a cell."""
        order = {name: i for i, name in enumerate(KNOWN)}
        figures = sorted(
            cell.figures.values(),
            key=lambda f: (order.get(f.name.removesuffix("_before"), len(order)), f.name),
        )
        own = self.groups[cell.setup, cell.defense, cell.attack]
        return _page(
            "cell.html.j2",
            e=cell,
            run=cell.run,
            name=self.name,
            attack=self.names[cell.attack],
            defense=self.names[cell.defense],
            tone=TONES.get(cell.run.status, "error"),
            headline=self._headline(cell),
            rows=[(self.metrics[f.name], f) for f in figures],
            seeds=[run for run in own.runs if run.key != cell.run.key],
            twin=self._beside(cell, cell.defense, CLEAN),
            bare=self._beside(cell, BARE, cell.attack),
            times=[_time(*item) for item in cell.times.items()],
        )

    def _beside(self, cell: CellResult, defense: MethodId, attack: MethodId) -> SeedRun | None:
        """Return the cell of the same seed with another attack or defense, if it is another."""
        group = self.groups.get((cell.setup, defense, attack))
        runs = group.runs if group else ()
        return next((r for r in runs if r.seed == cell.run.seed and r.key != cell.run.key), None)

    def _headline(self, cell: CellResult) -> str:
        if not cell.run.ok:
            return cell.run.error or "No reason was recorded."
        parts = [cell.run.label] if cell.run.label else []
        for name in MAIN.get(cell.defense.family, MAIN[""]):
            if (known := cell.figures.get(name)) and known.value is not None:
                figure = self.metrics[name]
                parts.append(f"{figure.title} {_with_range(figure, known)}")
        return " · ".join(parts[:3])


def _with_range(figure: Metric, known: Estimate) -> str:
    return f"{figure.said(known.value or 0.0)} {figure.range(known)}".strip()


def _time(name: str, value: float | str) -> tuple[str, str]:
    if isinstance(value, str):
        return name, value
    if name.startswith("peak"):
        return name, words.volume(int(value))
    return name, words.span(value) if "seconds" in name else words.figure(value)


# Heat maps ------------------------------------------------------------------------------------

_Groups = Mapping[tuple[MethodId, MethodId], SeedGroup]  # by defense and attack


def _heat_map(same: _Groups, figure: Metric, names: Mapping[MethodId, str]) -> HeatMap | None:
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
    said = f"{figure.title.lower()} {_with_range(figure, known)}"
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


def _scatter(drawn: HeatMap, same: _Groups, names: Mapping[MethodId, str]) -> ScatterPlot | None:
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
        known = [run.seconds for run in good if run.seconds]
        if square and square.center is not None and known:
            out.append((attack, fmean(known), square.center))
    return [(s, v) for attack, s, v in out if attack != CLEAN] or [(s, v) for _, s, v in out]


def _levels(figure: Metric, values: Sequence[float]) -> list[float]:
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


# Templates ------------------------------------------------------------------------------------


def embedded(data: object) -> str:
    """Return data as JSON that may stand in a script element: no character of it ends one."""
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _part(name: str) -> str:
    return files(__package__).joinpath("pages", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_part),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = _soft
    return environment


def _soft(name: str) -> Markup:
    """Return a name that may be broken where its parts meet."""
    return Markup("<wbr>").join(re.split(r"(?<=[_.:-])", str(name)))


def _page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _look() -> str:
    """Return the style that reports have, too."""
    source = files("gifthorse.report").joinpath("look.html").read_text(encoding="utf-8")
    module: Any = (
        _environment().from_string(source.partition("{% endset %}")[0] + "{% endset %}").module
    )
    return str(module.css)
