"""Records of a bench as tables in the shape of TrojanZoo's: defenses down, attacks across."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Generator

from gifthorse.bench.figures import Estimate, Unit, metric
from gifthorse.bench.results import (
    BARE,
    CLEAN,
    MethodId,
    SeedGroup,
    Setup,
    groups,
    settings,
    titles,
)
from gifthorse.core.metrics import model_auc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from rich.table import Table

LEAST = 3  # models of either kind that an area under the curve is worth saying of
ALL = MethodId("all attacks", "", "attack")

Spread: TypeAlias = Literal["std", "interval"]


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Attributes:
        name: Short, the same in every bench.
        title: What is shown, in words.
        family: Whose rows it has; empty for all defenses, None for none.
        figures: What stands in an entry.
        form: How they are put together.
        base: What stands in the row of the model as it is; nothing if empty.
        twin: Whether there is a column for the clean twin.
        always: Whether it is drawn even if no model has such a figure, because all failed.
        how: How to read an entry, where it is no mean over seeds.
    """

    name: str
    title: str
    family: str | None
    figures: tuple[str, ...]
    form: str = "{}"
    base: tuple[str, ...] = ()
    twin: bool = False
    always: bool = False
    how: str = ""


_ALL = ("asr", "accuracy", "tmc")
_KINDS = ("flag_correct", "flag_correct_set", "flag_wrong", "flag_clean")
LAYOUTS = (
    Layout("models", "Success % / accuracy % / confidence, undefended", None, _ALL, "{} / {} / {}",
           base=_ALL, twin=True, always=True),
    Layout("ard", "Success taken away, % (target confidence left)", "remedy", ("ard", "tmc"),
           "{} ({})", base=("asr", "tmc"), always=True),
    Layout("cad", "Accuracy lost, %", "remedy", ("cad",), base=("accuracy",), twin=True,
           always=True),
    Layout("after", "Accuracy % / success % / robust accuracy % after repair", "remedy",
           ("accuracy", "asr", "ra"), "{} / {} / {}"),
    Layout("nsr", "Neurons that triggers and clean images do not share", "remedy", ("nsr",),
           base=("nsr",), twin=True),
    Layout("maps", "Shift of attribution maps, original / target class", None,
           ("map_original", "map_target"), "{} / {}", base=("map_original", "map_target"),
           twin=True),
    Layout("tpr", "Stamped images flagged (clean ones flagged)", "filter", ("tpr", "fpr"),
           "{} ({})", always=True),
    Layout("filtering", "F1 / precision / share of right decisions", "filter",
           ("f1", "precision", "decided"), "{} / {} / {}"),
    Layout("auroc", "Area under the ROC curve over images", "filter", ("auroc",)),
    Layout("alarms", "Clean images flagged, whatever the net makes of them", "filter",
           ("fpr_all",), twin=True),
    Layout("verdicts", "Models called backdoored or suspicious (clean: false alarms)", "detector",
           ("suspected",), twin=True, always=True,
           how="how many of the models [95 % interval of the share]"),
    Layout("targets", "Target alone / among others / others alone / nothing flagged", "detector",
           _KINDS, "{} / {} / {} / {}", how="how many of the models"),
    Layout("aiv", "Anomaly index of the target (clean: the largest)", "detector", ("aiv",),
           twin=True),
    Layout("triggers", "Recovered trigger: size in pixels / overlap with the true one", "detector",
           ("mln", "mjs"), "{} / {}"),
    Layout("auc", "Area under the ROC curve over models, against clean twins", "detector",
           ("auc",),
           how="[95 % interval by bootstrap over models; of no width if no scores overlap]"),
    Layout("seconds", "Seconds for a model", "", ("seconds",), twin=True),
)  # fmt: skip


@dataclass(frozen=True)
class TableEntry:
    """What stands in one place of a table.

    Attributes:
        figures: One or more, as the form of the table has it.
        failed: How many models have no figures, by status.
        note: What must be known about it, empty if nothing.
    """

    figures: tuple[Estimate, ...]
    failed: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    """A line of a table: one entry a column, None where there is no record.

    Attributes:
        label: The defense.
        entries: What stands in it.
        source: Whose figures these are; empty for the bench's own.
    """

    label: str
    entries: tuple[TableEntry | None, ...]
    source: str = ""


@dataclass(frozen=True)
class ResultTable:
    """A table: defenses down, attacks across.

    Attributes:
        name: Short, the same in every bench: `ard`, `cad`, `tpr` ...
        title: What is shown.
        data: Name of the data set.
        net: Name of the net.
        setting: What sets it apart from other tables of the same data and net; may be empty.
        form: How the figures of an entry are put together.
        columns: The attacks.
        rows: The defenses.
        seeds: How many seeds there are.
        how: How to read an entry, where it is no mean over seeds; else empty.
        notes: What holds for the whole table.
    """

    name: str
    title: str
    data: str
    net: str
    setting: str
    form: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    seeds: int
    how: str = ""
    notes: tuple[str, ...] = ()


# 1. Making ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crossing:
    """All cells of one data set, net and setting, by attack and defense."""

    setup: Setup
    setting: str
    cells: Mapping[tuple[MethodId, MethodId], SeedGroup]
    names: Mapping[MethodId, str]

    def methods(self, which: int) -> list[MethodId]:
        """Return the attacks (0) or the defenses (1) by their names, the missing one left out."""
        known = {pair[which] for pair in self.cells} - {CLEAN, BARE}
        return sorted(known, key=lambda method: (self.names[method], method))

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({run.seed for group in self.cells.values() for run in group.runs})

    def registered(self, method: MethodId) -> str | None:
        """Return the registry's name of a method, if nothing else here goes by it."""
        if method == BARE:
            return ""
        often = sum(m.name == method.name for pair in (0, 1) for m in self.methods(pair))
        return method.name if self.names.get(method) == method.name or often == 1 else None


def tables(con: DuckDBPyConnection, *, reference: bool = False) -> list[ResultTable]:
    """Return tables of a frame of records, for each data set, net and setting apart.

    An entry is the mean over the seeds whose status is ok, with its sample standard deviation and
    95 % interval: of a share, or whatever has bounds, by t and cut to them; of counts, Wilson's;
    of a single model, the interval in its record. Failures are counted and said. Of records of the
    same cell by several versions of the code the newest counts.

    Args:
        con: What `relation.frame` lends.
        reference: Whether to put the papers' figures below, where they have the same method on the
            same data.
    """
    found = groups(con)
    names, apart, out = titles(found), settings(group.setup for group in found), []
    for setup in sorted(apart):
        cells = {(g.attack, g.defense): g for g in found if g.setup == setup}
        crossing = _Crossing(setup, apart[setup], cells, names)
        made = (_table(crossing, layout, reference) for layout in LAYOUTS)
        out += [table for table in made if table is not None]
    return out


def _table(of: _Crossing, layout: Layout, reference: bool) -> ResultTable | None:
    """Return a table, or None if there is nothing to put in it."""
    twins = layout.twin and any(attack == CLEAN for attack, _ in of.cells)
    attacks, area = of.methods(0), layout.name == "auc"
    columns = [CLEAN] * twins + attacks + [ALL] * (area and len(attacks) > 1)
    rows: list[tuple[MethodId, TableRow]] = []
    for defense in [BARE, *of.methods(1)]:
        shown = layout.base if defense == BARE else layout.figures
        if not shown or (defense != BARE and layout.family not in ("", defense.family)):
            continue
        entries = tuple(
            _area(of, a, defense) if area else _entry(of, a, defense, shown) for a in columns
        )
        if defense != BARE or any(entries):
            rows.append((defense, TableRow(of.names[defense], entries)))
    reasons = [row for defense, row in rows if (defense == BARE) == (layout.family is None)]
    if not any(_drawn(entry, layout) for row in reasons for entry in row.entries):
        return None
    older = sum(group.older for group in of.cells.values())
    notes = (f"{older} older records of the same cells are left out",) if older else ()
    data, net, _ = of.setup
    titled = tuple(ALL.label if attack == ALL else of.names[attack] for attack in columns)
    about = (layout.name, layout.title, data, net, of.setting, layout.form, titled)
    table = ResultTable(*about, tuple(r for _, r in rows), of.seeds, layout.how, notes)
    return _referred(table, of, columns, rows) if reference else table


def _drawn(entry: TableEntry | None, layout: Layout) -> bool:
    """Return whether an entry is a reason to draw its table."""
    if entry is None:
        return False
    return layout.always or any(f.n or f.value is not None for f in entry.figures)


def _entry(
    of: _Crossing, attack: MethodId, defense: MethodId, names: Sequence[str]
) -> TableEntry | None:
    """Return an entry of a table, or None if there is no such record or figure."""
    group = of.cells.get((attack, defense))
    if group is None:
        return None
    good, known = len(group.good), group.figures
    failed = Counter(run.status for run in group.runs if not run.ok)
    if not failed and not any(name in known for name in names):
        return None
    figures = tuple(known.get(n, Estimate(n, unit=metric(n).kind.unit)) for n in names)
    said = []
    for status, count in sorted(failed.items()):
        first = next(run.error for run in group.runs if run.status == status)
        words = f": {' '.join(first.split())[:120]}" if first else ""
        said.append(f"{count} of {len(group.runs)} {status}{words}")
    said += [
        f"{f.name} undefined in {good - f.n} of {good}"
        for f in figures
        if f.name in known and f.n < good
    ]
    if len(group.runs) < of.seeds:
        said.append(f"{len(group.runs)} of {of.seeds} seeds recorded")
    return TableEntry(figures, dict(failed), "; ".join(said))


def _area(of: _Crossing, attack: MethodId, defense: MethodId) -> TableEntry | None:
    """Return how well a detector's score tells backdoored models from clean ones."""
    wanted = of.methods(0) if attack == ALL else [attack]
    kinds = [[g for a in some if (g := of.cells.get((a, defense)))] for some in ([CLEAN], wanted)]
    scores = [
        torch.tensor([v for g in same for v in g.scores], dtype=torch.float64) for same in kinds
    ]
    if min(map(len, scores)) < LEAST:
        return None
    # Each draw costs a product over all pairs of models: of very many, fewer draws say enough.
    draws = max(200, min(2000, 10**8 // (len(scores[0]) * len(scores[1]))))
    area = model_auc(scores[0], scores[1], Generator().manual_seed(0), draws=draws)
    assert area is not None  # there are models of both kinds
    figure = Estimate("auc", area.value, None, area.low, area.high, area.trials)
    lost = sum(len(g.runs) - len(g.scores) for same in kinds for g in same)
    return TableEntry((figure,), {}, f"{lost} models without a score are left out" * bool(lost))


# 2. The papers' figures -----------------------------------------------------------------------


def references() -> list[dict[str, Any]]:
    """Return the papers' tables: what they show, on which data and net, and their rows."""
    text = files(__package__).joinpath("reference.toml").read_text("utf-8")
    known: list[dict[str, Any]] = tomllib.loads(text)["table"]
    return known


def _referred(
    table: ResultTable,
    of: _Crossing,
    columns: Sequence[MethodId],
    own: Iterable[tuple[MethodId, TableRow]],
) -> ResultTable:
    """Return a table with the papers' rows below those of the same method."""
    rows, notes = [], list(table.notes)
    papers = [p for p in references() if (p["sheet"], p["data"]) == (table.name, table.data)]
    for defense, row in own:
        rows.append(row)
        for paper in papers:
            at = [_column(paper, of.names.get(a, ""), of.registered(a)) for a in columns]
            for line in paper["row"]:
                given = tuple(_given(line, paper["models"], place) for place in at)
                if line["defense"] == of.registered(defense) and any(given):
                    rows.append(TableRow(row.label, given, paper["source"]))
                    notes.append(f"{paper['source']}: {paper['net']}, {paper['about']}")
    return replace(table, rows=tuple(rows), notes=tuple(dict.fromkeys(notes)))


def _column(paper: Mapping[str, Any], label: str, name: str | None) -> int | None:
    """Return where a paper's table has an attack, by its name or the paper's own short one."""
    short, names = [column.casefold() for column in paper["columns"]], paper["attacks"]
    if label.casefold() in short:
        return short.index(label.casefold())
    return next((names.index(word) for word in (name, label) if word in names), None)


def _given(row: Mapping[str, Any], models: int, at: int | None) -> TableEntry | None:
    """Return a paper's figures of one attack; None where it has none."""
    figures = []
    for name in row:
        if at is None or name == "defense" or name.endswith("_std"):
            continue
        value, stds, unit = row[name][at], row.get(f"{name}_std"), metric(name).kind.unit
        known = Estimate(name, value, stds[at] if stds else None, n=models, unit=unit)
        figures.append(known if math.isfinite(value) else Estimate(name, unit=unit))
    return TableEntry(tuple(figures)) if any(f.value is not None for f in figures) else None


# 3. Writers ----------------------------------------------------------------------------------


def text(found: Sequence[ResultTable], width: int = 80, spread: Spread = "std") -> str:
    """Return tables as plain text; where the columns do not fit, the rest follows below.

    Args:
        found: The tables.
        width: Columns of the terminal; names that are longer alone go beyond.
        spread: What stands under a mean: its sample standard deviation, or its 95 % interval.
    """
    return "\n".join(_text(table, width, spread) for table in found)


def markdown(found: Sequence[ResultTable], spread: Spread = "std") -> str:
    """Return tables as Markdown."""
    parts = []
    for table in found:
        notes, lines = _Notes(), [f"### {_head(table)}", ""]
        head = [_barred(name) for name in ("", *table.columns)]
        lines += [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(table.columns)}"]
        for row in table.rows:
            cells = [[p for p in _cell(e, table, notes, spread) if p] for e in row.entries]
            label = f"*{_barred(row.source)}*" if row.source else _barred(row.label)
            lines.append(f"| {label} | {' | '.join('<br>'.join(c) for c in cells)} |")
        lines += ["", *(f"- {_barred(note)}" for note in _below(table, notes, spread)), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def comma_separated(found: Sequence[ResultTable]) -> str:
    """Return tables as CSV: one line a figure, shares as shares, statuses counted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    where = ("table", "data", "net", "setting", "defense", "attack", "source")
    what = ("figure", "value", "std", "low", "high", "n", "failed", "note")
    writer.writerow((*where, *what))
    for table in found:
        place = (table.name, table.data, table.net, table.setting)
        for row in table.rows:
            for column, entry in zip(table.columns, row.entries, strict=True):
                for f in entry.figures if entry else ():
                    assert entry is not None
                    failed = " ".join(f"{k}:{v}" for k, v in sorted(entry.failed.items()))
                    known = (f.name, f.value, f.std, f.low, f.high, f.n)
                    line = (*place, row.label, column, row.source, *known, failed, entry.note)
                    writer.writerow(line)
    return out.getvalue()


def as_json(found: Sequence[ResultTable]) -> str:
    """Return tables as JSON, everything that is known of them."""
    return json.dumps([asdict(table) for table in found], indent=1, allow_nan=False) + "\n"


# One entry ------------------------------------------------------------------------------------


class _Notes:
    """Footnotes in order; the same words have the same number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def mark(self, words: str) -> str:
        """Return the mark for some words, nothing for none."""
        return f" [{self.known.setdefault(words, len(self.known) + 1)}]" if words else ""


def _cell(
    entry: TableEntry | None, table: ResultTable, notes: _Notes, spread: Spread
) -> tuple[str, str]:
    """Return the figures of an entry, and what stands under them."""
    if entry is None:
        return "", ""
    mark = notes.mark(entry.note)
    if all(f.value is None for f in entry.figures):
        return f"-{mark}", ""
    figures = entry.figures + (Estimate("", None),) * (table.form.count("{}") - len(entry.figures))
    spreads = [_spread(f, spread) for f in figures]
    under = "" if figures[0].unit == "count" and figures[1:] else spreads[0]
    if under and any(spreads[1:]):
        under = table.form.format(*(words or "-" for words in spreads))
    return table.form.format(*map(_value, figures)) + mark, under


def _value(f: Estimate) -> str:
    if f.value is None:
        return "-"
    if f.unit == "count":
        return f"{round(f.value * f.n)}/{f.n}"
    return _number(f.value, f.unit)


def _spread(f: Estimate, spread: Spread) -> str:
    if f.std is not None and spread == "std" and f.unit != "count":
        return f"±{_number(f.std, f.unit)}"
    if f.low is None or f.high is None:
        return ""
    return f"[{_number(f.low, f.unit)}, {_number(f.high, f.unit)}]"


def _number(value: float, unit: Unit) -> str:
    if unit == "%":
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


# One table ------------------------------------------------------------------------------------


def _head(table: ResultTable) -> str:
    setting = f", {table.setting}" if table.setting else ""
    return f"{table.title} - {table.data}, {table.net}{setting}"


def _below(table: ResultTable, notes: _Notes, spread: Spread) -> list[str]:
    """Return what stands below a table: how to read it, then its footnotes."""
    under = "± sample standard deviation" if spread == "std" else "[95 % interval]"
    entries = [e for row in table.rows if not row.source for e in row.entries]
    of = table.how or (f"mean over {table.seeds} seeds, {under}" if table.seeds > 1 else "one seed")
    if not table.how and any(f.n == 1 for e in entries if e for f in e.figures):
        of += ", of one model [its 95 % interval]"
    first = of + ("; blank: no such record or figure" if None in entries else "")
    return [first, *table.notes, *(f"[{n}] {words}" for words, n in notes.known.items())]


def _text(table: ResultTable, width: int, spread: Spread) -> str:
    from rich.text import Text

    notes, lines = _Notes(), textwrap.wrap(_head(table), width)
    labels = [f"  {row.source}" if row.source else row.label for row in table.rows]
    columns = [
        (
            name,
            [
                "\n".join(filter(None, _cell(r.entries[i], table, notes, spread)))
                for r in table.rows
            ],
        )
        for i, name in enumerate(table.columns)
    ]
    while columns:
        grid, room = ruled(), width - max(map(len, labels), default=0)
        grid.add_column(no_wrap=True)
        block, columns = _block(columns, room)
        for name, _ in block:
            grid.add_column(Text(name), justify="right", no_wrap=True)
        for label, *cells in zip(labels, *(cells for _, cells in block), strict=True):
            grid.add_row(Text(label), *map(Text, cells))
        lines += ["", *drawn(grid)]
    lines.append("")
    for note in _below(table, notes, spread):
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


_Columns: TypeAlias = list[tuple[str, list[str]]]


def _block(columns: _Columns, width: int) -> tuple[_Columns, _Columns]:
    """Return as many columns as fit the width, at least one, and the others."""
    for i, (name, cells) in enumerate(columns):
        lines = "\n".join([name, *cells]).split("\n")
        width -= 2 + max(map(len, lines))
        if i and width < 0:
            return columns[:i], columns[i:]
    return columns, []


def ruled() -> Table:
    """Return an empty table with a line under its head and two spaces between columns."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def drawn(table: Table, width: int = 10_000) -> list[str]:
    """Return the lines of a table, without spaces at their ends."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _barred(words: str) -> str:
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
