"""Records of a bench as tables in the shape of TrojanZoo's: defenses down, attacks across."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator

from gifthorse.bench.figures import Estimate, metric
from gifthorse.bench.results import (
    BARE,
    CLEAN,
    MethodId,
    SeedGroup,
    Setup,
    distinct,
    groups,
    settings,
    titles,
)
from gifthorse.core.metrics import auc_cad_over_asr, model_auc

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LEAST = 3  # models of either kind that an area under the curve is worth saying of
ALL = MethodId("all attacks", "", "attack")
RATE = "mixing.rate"  # the option that makes the points of one curve
MOST_LOST = 0.03  # accuracy that a point on it may lose: TrojanZoo, sec. 5.2.2


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Attributes:
        name: Short, the same in every bench.
        title: What is shown, in words.
        family: Whose rows it has; empty for all defenses, `none` for none.
        figures: What stands in an entry.
        form: How they are put together.
        base: What stands in the row of the model as it is; nothing if empty.
        twin: Whether there is a column for the clean twin.
        always: Whether it is drawn even if no model has such a figure, because all failed.
        how: How to read an entry, where it is no mean over seeds.
    """

    name: str
    title: str
    family: str
    figures: Sequence[str]
    form: str = "{}"
    base: Sequence[str] = ()
    twin: bool = False
    always: bool = False
    how: str = ""


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


def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(name).read_text("utf-8"))


LAYOUTS = tuple(Layout(**layout) for layout in _data("layouts.toml")["layout"])


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

    @cached_property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({run.seed for group in self.cells.values() for run in group.runs})

    @cached_property
    def registered(self) -> Mapping[MethodId, str]:
        """The registry's names of those methods that nothing else here goes by."""
        every = [*self.methods(0), *self.methods(1)]
        often = Counter(method.name for method in every)
        alone = [m for m in every if self.names[m] == m.name or often[m.name] == 1]
        return {BARE: "", **{method: method.name for method in alone}}


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
    attacks = _curves(of) if layout.name == "leverage" else of.methods(0)
    columns = [CLEAN] * twins + attacks + [ALL] * (layout.name == "auc" and len(attacks) > 1)
    rows: list[tuple[MethodId, TableRow]] = []
    for defense in [BARE, *of.methods(1)]:
        shown = layout.base if defense == BARE else layout.figures
        if not shown or (defense != BARE and layout.family not in ("", defense.family)):
            continue
        entries = tuple(_placed(of, layout, attack, defense) for attack in columns)
        if defense != BARE or any(entries):
            rows.append((defense, TableRow(of.names[defense], entries)))
    reasons = [row for defense, row in rows if (defense == BARE) == (layout.family == "none")]
    if not any(_drawn(entry, layout) for row in reasons for entry in row.entries):
        return None
    older = sum(group.older for group in of.cells.values())
    notes = (f"{older} older records of the same cells are left out",) if older else ()
    data, net, _ = of.setup
    titled = tuple(of.names.get(attack, attack.label) for attack in columns)
    about = (layout.name, layout.title, data, net, of.setting, layout.form, titled)
    table = ResultTable(*about, tuple(r for _, r in rows), of.seeds, layout.how, notes)
    return _referred(table, of, columns, rows) if reference else table


def _placed(
    of: _Crossing, layout: Layout, attack: MethodId, defense: MethodId
) -> TableEntry | None:
    """Return what stands in a place, a mean over seeds but for areas under curves."""
    if layout.name == "leverage":
        return _leverage(of, attack)
    if layout.name == "auc":
        return _area(of, attack, defense)
    return _entry(of, attack, defense, layout.base if defense == BARE else layout.figures)


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


def _poisoned(attack: MethodId) -> MethodId:
    """Return an attack at whatever share of poison."""
    options = tuple(option for option in attack.options if option[0] != RATE)
    return MethodId(attack.name, attack.name, attack.family, options)


def _curves(of: _Crossing) -> list[MethodId]:
    """Return the attacks that there are at several shares of poison."""
    shares = Counter(_poisoned(attack) for attack in of.methods(0))
    found = [attack for attack, count in shares.items() if count > 1]
    apart = distinct([attack.options for attack in found])
    often = Counter(attack.name for attack in found)
    return [
        a._replace(label=f"{a.name} ({words})") if words and often[a.name] > 1 else a
        for a, words in zip(found, apart, strict=True)
    ]


def _leverage(of: _Crossing, curve: MethodId) -> TableEntry | None:
    """Return the area under accuracy lost over success, of means over seeds."""
    same = [a for a in of.methods(0) if _poisoned(a) == curve._replace(label=curve.name)]
    known = (of.cells.get((attack, BARE)) for attack in [CLEAN, *same])
    clean, *each = [group.figures if group else {} for group in known]
    if "accuracy" not in clean:
        return None
    points = [
        (f["asr"].value or 0.0, (clean["accuracy"].value or 0.0) - (f["accuracy"].value or 0.0))
        for f in each
        if "asr" in f and "accuracy" in f
    ]
    lost = sum(cad > MOST_LOST for _, cad in points)
    note = f"{lost} of {len(points)} shares lose more than {MOST_LOST:.0%}" * bool(lost)
    area = auc_cad_over_asr(points, MOST_LOST)
    return TableEntry((Estimate("auc_cad_over_asr", area, n=len(points) - lost),), {}, note)


# 2. The papers' figures -----------------------------------------------------------------------


@cache
def references() -> list[dict[str, Any]]:
    """Return the papers' tables: what they show, on which data and net, and their rows."""
    known: list[dict[str, Any]] = _data("reference.toml")["table"]
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
            at = [_column(paper, of.names.get(a, ""), of.registered.get(a)) for a in columns]
            for line in paper["row"]:
                if line["defense"] != of.registered.get(defense):
                    continue
                given = tuple(_given(line, paper["models"], place) for place in at)
                if any(given):
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
