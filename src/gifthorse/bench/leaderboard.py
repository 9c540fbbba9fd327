"""A leaderboard as a folder of pages: opened from disk, no server, nothing from outside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gifthorse.bench.figures import KNOWN, STEPS, VERDICT, metric
from gifthorse.bench.maps import (
    GROUPS,
    HEIGHT,
    WIDTH,
    HeatMap,
    ScatterPlot,
    heat_map,
    scatter,
)
from gifthorse.bench.results import (
    BARE,
    CLEAN,
    CellResult,
    MethodId,
    SeedRun,
    Setup,
    cells,
    groups,
    metrics,
    settings,
    text,
    titles,
)
from gifthorse.core.errors import UsageError
from gifthorse.report import words
from gifthorse.report.site import embedded, look, page, part, write_page

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CAUSES = 40  # reasons of failures that the first page lists
WRITERS = 16  # threads
COLUMNS = 5  # figures in the table, without the chosen one
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
        write_page(folder / "index.html", site.index(planned)),
        write_page(folder / "look.css", look()),
        write_page(folder / "board.js", part("gifthorse.bench", "board.js")),
    ]
    with ThreadPoolExecutor(WRITERS) as pool:  # a disk that confirms each file is waited for
        pages = ((folder / "cell" / f"{cell.run.key}.html", cell) for cell in site.cells)
        written += pool.map(lambda page: write_page(page[0], site.cell(page[1])), pages)
    return written


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
        self.drawn = sorted(drawn, key=lambda m: _rank(m.name))

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
        maps = (heat_map(same, figure, self.names) for figure in self.drawn)
        return [(found, scatter(found, same, self.names)) for found in maps if found]

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
                values[i] = known.value, figure.interval(known)
        run, (data, net, _) = cell.run, cell.setup
        spent = "" if run.seconds is None else words.span(run.seconds)
        names = self.names[cell.attack], self.names[cell.defense]
        kind = cell.defense.family
        return [run.key, *names, data, net, run.seed, run.status, run.seconds, spent, kind, values]

    # The page of a cell -----------------------------------------------------------------------

    def cell(self, cell: CellResult) -> str:
        """Return the page of a cell."""
        figures = sorted(cell.figures.values(), key=lambda f: _rank(f.name))
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
                parts.append(f"{figure.title} {figure.interval(known)}")
        return " · ".join(parts[:3])


def _rank(name: str) -> tuple[int, str]:
    """Return what puts well-known figures first, each followed by what it was before."""
    base = name.removesuffix("_before")
    return list(KNOWN).index(base) if base in KNOWN else len(KNOWN), name


def _time(name: str, value: float | str) -> tuple[str, str]:
    if isinstance(value, str):
        return name, value
    if name.startswith("peak"):
        return name, words.volume(int(value))
    return name, words.span(value) if "seconds" in name else words.figure(value)


def _page(template: str, **values: Any) -> str:
    return page("gifthorse.bench", template, **values)
