"""Tables of a bench as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, TypeAlias

from gifthorse.bench.figures import Estimate, Unit
from gifthorse.bench.tables import ResultTable, TableEntry
from gifthorse.core.text import cell

if TYPE_CHECKING:
    from rich.table import Table

Spread: TypeAlias = Literal["std", "interval"]


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
                    writer.writerow(map(cell, line))
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
