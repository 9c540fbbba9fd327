"""A leaderboard as a folder of pages: opened from disk, no server, nothing from outside."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gifthorse.bench.board import (
    KNOWN,
    MAIN,
    STEPS,
    VERDICT,
    Cells,
    Figure,
    Map,
    drawn,
    figures,
    gathered,
    is_percent,
    title,
)
from gifthorse.bench.entries import BARE, CLEAN, Entry, Method, Value, distinct, read, text, titles
from gifthorse.bench.scatter import HEIGHT, WIDTH, Scatter, scatter
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.report import words

CAUSES = 40  # reasons of failures that the first page lists
WRITERS = 16  # threads
COLUMNS = 5  # figures in the table, without the chosen one
GROUPS = {"none": "no defense", "detector": "detectors", "filter": "filters", "remedy": "remedies"}
TONES = {"ok": "plain", "timeout": "medium", "collapsed": "medium", "unsupported": "inconclusive"}


@dataclass(frozen=True)
class Panel:
    """One net on one data set: its heat maps with their charts, by figure."""

    name: str
    about: str
    maps: tuple[tuple[Map, Scatter | None], ...]


@dataclass(frozen=True)
class Line:
    """A figure on the page of a cell; `drawn` are the ends and the middle of its whisker."""

    name: str
    title: str
    said: str
    range: str = ""
    trials: str = ""
    drawn: tuple[float, float, float] | None = None


def write_site(
    records: Iterable[Mapping[str, Any]],
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
        records: Records of cells, as a store yields them; of two with the same key the last counts.
        folder: Where to write; made if it is not there.
        name: Heading of the first page.
        planned: How many cells there are to be, if some may not be judged yet.
        command: What made the pages, shown in their foot.

    Returns:
        Every file of the site, the first page first.

    Raises:
        UsageError: If a record is none, or the folder cannot be written to.
    """
    entries = list({entry.key: entry for entry in map(read, records)}.values())
    site = _Site(entries, text(name), text(command), planned)
    try:
        (folder / "cell").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error
    written = [
        _write(folder / "index.html", site.index()),
        _write(folder / "look.css", _look() + _part("board.css")),
        _write(folder / "board.js", _part("board.js")),
    ]
    with ThreadPoolExecutor(WRITERS) as pool:  # a disk that confirms each file is waited for
        pages = ((folder / "cell" / f"{e.key}.html", e) for e in entries)
        written += pool.map(lambda page: _write(page[0], site.cell(page[1])), pages)
    return written


def _write(path: Path, content: str) -> Path:
    raw = content.encode()
    if not path.is_file() or path.read_bytes() != raw:
        with atomic(path) as file:
            file.write(raw)
    return path


class _Site:
    """The pages of a set of entries."""

    def __init__(
        self, entries: Sequence[Entry], name: str, command: str, planned: int | None
    ) -> None:
        self.entries, self.name, self.command, self.planned = entries, name, command, planned
        self.attacks = titles([CLEAN, *(e.attack for e in entries)])
        self.defenses = titles([BARE, *(e.defense for e in entries)])
        self.names = self.attacks | self.defenses
        self.groups = gathered(entries)
        self.drawn = figures(entries)
        self.by_name = {figure.name: figure for figure in self.drawn}

    # The first page ---------------------------------------------------------------------------

    def index(self) -> str:
        """Return the first page."""
        status = Counter(e.status for e in self.entries)
        seconds = sum(e.seconds or 0.0 for e in self.entries)
        return _page(
            "index.html.j2",
            name=self.name,
            sentence=self._sentence(),
            cells=len(self.entries),
            planned=self.planned,
            ok=status.pop("ok", 0),
            failed=status.most_common(),
            causes=self._causes(),
            spent=words.span(seconds),
            figures=self.drawn,
            default=self._default(),
            panels=[self._panel(*group) for group in self.groups.items()],
            families=[f for f in MAIN if f and any(e.defense.family == f for e in self.entries)],
            statuses=sorted({e.status for e in self.entries}),
            data=Markup(embedded(self._rows())),  # noqa: S704 - every "<" is escaped in it
            command=self.command,
            steps=range(STEPS + 1),
            title=self._heading,
            names=self.names,
            tones=TONES,
            groups=GROUPS,
            plot={"width": WIDTH, "height": HEIGHT},
            w=words,
        )

    def _sentence(self) -> str:
        """Return what was crossed with what, in words."""
        attacks = len({e.attack for e in self.entries} - {CLEAN})
        defenses = len({e.defense for e in self.entries} - {BARE})
        twins = " and the clean twins" if any(e.attack == CLEAN for e in self.entries) else ""
        data, nets, seeds = (
            words.plural(len({getattr(e, part) for e in self.entries}), noun)
            for part, noun in (("data", "data set"), ("net", "net"), ("seed", "seed"))
        )
        against = words.plural(defenses, "defense")
        return (
            f"{words.plural(attacks, 'attack')}{twins} against {against}; {data}, {nets}, {seeds}."
        )

    def _default(self) -> str:
        return next((n for n in KNOWN if n in self.by_name), next(iter(self.by_name), ""))

    def _causes(self) -> list[tuple[str, str, list[Entry]]]:
        """Return why cells failed, the most frequent reason first."""
        out: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            if not entry.ok:
                out.setdefault((entry.status, entry.error), []).append(entry)
        most = sorted(out.items(), key=lambda item: -len(item[1]))[:CAUSES]
        return [(status, error, same) for (status, error), same in most]

    def _heading(self, entry: Entry) -> str:
        where = f" on {entry.data} {entry.net}" if len(self.groups) > 1 else ""
        return f"{self.attacks[entry.attack]} · {self.defenses[entry.defense]}{where}"

    def _panel(self, place: tuple[Any, ...], cells: Cells) -> Panel:
        data, net, _ = place
        same = [other for other in self.groups if other[:2] == place[:2]]
        about = distinct([dict(other[2]) for other in same])[same.index(place)]
        maps = []
        for figure in self.drawn:
            if found := drawn(cells, figure, self.names):
                maps.append((found, scatter(found, cells, self.names)))
        return Panel(f"{data} · {net}", about, tuple(maps))

    def _rows(self) -> dict[str, Any]:
        """Return the table for the script, numbers already put into words."""
        have = {f: self._columns(f) for f in MAIN}
        place = {figure.name: i for i, figure in enumerate(self.drawn)}
        return {
            "figures": [{"name": f.name, "title": f.title} for f in self.drawn],
            "columns": have,
            "tones": TONES,
            "rows": [self._row(entry, place) for entry in self.entries],
        }

    def _columns(self, family: str) -> list[int]:
        """Return which figures the table shows of a family, its usual ones first."""
        same = [e for e in self.entries if not family or e.defense.family == family]
        found = {n for e in same for n, v in e.figures.items() if v is not None}
        found |= {VERDICT for e in same if "label" in e.words}
        usual = [n for n in MAIN[family] if n in found]
        rest = [f.name for f in self.drawn if f.name in found and f.name not in usual]
        names = (usual or rest)[:COLUMNS]
        return [i for i, figure in enumerate(self.drawn) if figure.name in names]

    def _row(self, e: Entry, place: Mapping[str, int]) -> list[Any]:
        values: dict[int, tuple[float | str, str]] = {}
        for name, value in e.figures.items():
            if value is not None and name in place and name != VERDICT:
                figure = self.by_name[name]
                said = f"{figure.said(value.value)} {figure.range(value)}".strip()
                values[place[name]] = (value.value, said)
        if VERDICT in place and "label" in e.words:
            values[place[VERDICT]] = (e.words["label"], e.words["label"])
        spent = "" if e.seconds is None else words.span(e.seconds)
        names = self.attacks[e.attack], self.defenses[e.defense]
        kind = e.defense.family
        return [e.key, *names, e.data, e.net, e.seed, e.status, e.seconds, spent, kind, values]

    # The page of a cell -----------------------------------------------------------------------

    def cell(self, e: Entry) -> str:
        """Return the page of a cell."""
        cells = self.groups[e.place]
        same = [o for o in cells[e.defense, e.attack] if o is not e]
        twin = self._beside(e, e.defense, CLEAN)
        bare = self._beside(e, BARE, e.attack)
        return _page(
            "cell.html.j2",
            e=e,
            name=self.name,
            attack=self.attacks[e.attack],
            defense=self.defenses[e.defense],
            tone=TONES.get(e.status, "error"),
            headline=self._headline(e),
            rows=[_line(name, value) for name, value in _sorted(e)],
            seeds=sorted(same, key=lambda o: o.seed),
            twin=twin,
            bare=bare,
            times=[_time(*item) for item in e.times.items()],
            command=self.command,
            w=words,
        )

    def _beside(self, e: Entry, defense: Method, attack: Method) -> Entry | None:
        """Return the cell of the same seed with another attack or defense, if it is another."""
        found = self.groups[e.place].get((defense, attack), ())
        return next((o for o in found if o.seed == e.seed and o is not e), None)

    def _headline(self, e: Entry) -> str:
        if not e.ok:
            return e.error or "No reason was recorded."
        parts = [e.words["label"]] if "label" in e.words else []
        for name in MAIN.get(e.defense.family, MAIN[""]):
            if (value := e.figures.get(name)) and (figure := self.by_name.get(name)):
                parts.append(f"{figure.title} {figure.said(value.value)} {figure.range(value)}")
        return " · ".join(part.strip() for part in parts[:3])


def _line(name: str, value: Value | None) -> Line:
    """Return a row of the table of figures."""
    if value is None:
        return Line(name, title(name), "undefined")
    figure = Figure(name, title(name), percent=is_percent(name, [value]))
    span, drawn = figure.range(value), None
    if figure.percent and span and 0 <= value.value <= 1:
        drawn = max(0.0, value.low or 0.0), value.value, min(1.0, value.high or 0.0)
    trials = f"{value.n:,.0f}" if value.n else ""
    return Line(name, figure.title, figure.said(value.value), span, trials, drawn)


def _sorted(e: Entry) -> list[tuple[str, Value | None]]:
    """Return figures, well-known ones first, each followed by what it was before."""
    order = {name: i for i, name in enumerate(KNOWN)}

    def rank(name: str) -> tuple[int, str]:
        base = name.removesuffix("_before")
        return order.get(base, len(order)), name

    return sorted(e.figures.items(), key=lambda item: rank(item[0]))


def _time(name: str, value: float | str) -> tuple[str, str]:
    if isinstance(value, str):
        return name, value
    if name.startswith("peak"):
        return name, words.volume(int(value))
    return name, words.span(value) if "seconds" in name else words.figure(value)


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
