"""Tables of a bench, ready to be read: what is in them, and writers of text and files."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["", "%", "count"]
Spread: TypeAlias = Literal["std", "interval"]


@dataclass(frozen=True)
class Figure:
    """A figure of some models that differ in their seed alone.

    Attributes:
        name: As records call it.
        value: The mean; None if it is defined for none of them.
        std: Sample standard deviation (n - 1); None of fewer than two.
        low: Lower end of the 95 % interval; None if it is not known.
        high: Its upper end.
        n: How many models the mean is of.
        unit: How it is shown: a number, in percent, or `count` as how many of n.
    """

    name: str
    value: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: Unit = ""


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        figures: One or more, as the form of the table has it.
        failed: How many models have no figures, by status.
        note: What must be known about it, empty if nothing.
    """

    figures: tuple[Figure, ...]
    failed: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: one entry a column, None where there is no record.

    Attributes:
        label: The defense.
        entries: What stands in it.
        source: Whose figures these are; empty for the bench's own.
    """

    label: str
    entries: tuple[Entry | None, ...]
    source: str = ""


@dataclass(frozen=True)
class Sheet:
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
    rows: tuple[Row, ...]
    seeds: int
    how: str = ""
    notes: tuple[str, ...] = ()


# Writers --------------------------------------------------------------------------------------


def text(sheets: Sequence[Sheet], width: int = 80, spread: Spread = "std") -> str:
    """Return tables as plain text; where the columns do not fit, the rest follows below.

    Args:
        sheets: The tables.
        width: Columns of the terminal; names that are longer alone go beyond.
        spread: What stands under a mean: its sample standard deviation, or its 95 % interval.
    """
    return "\n".join(_text(sheet, width, spread) for sheet in sheets)


def markdown(sheets: Sequence[Sheet], spread: Spread = "std") -> str:
    """Return tables as Markdown."""
    parts = []
    for sheet in sheets:
        notes, lines = _Notes(), [f"### {_head(sheet)}", ""]
        head = [_barred(name) for name in ("", *sheet.columns)]
        lines += [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(sheet.columns)}"]
        for row in sheet.rows:
            cells = [[p for p in _cell(e, sheet, notes, spread) if p] for e in row.entries]
            label = f"*{_barred(row.source)}*" if row.source else _barred(row.label)
            lines.append(f"| {label} | {' | '.join('<br>'.join(c) for c in cells)} |")
        lines += ["", *(f"- {_barred(note)}" for note in _below(sheet, notes, spread)), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def comma_separated(sheets: Sequence[Sheet]) -> str:
    """Return tables as CSV: one line a figure, shares as shares, statuses counted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    where = ("table", "data", "net", "setting", "defense", "attack", "source")
    what = ("figure", "value", "std", "low", "high", "n", "failed", "note")
    writer.writerow((*where, *what))
    for sheet in sheets:
        place = (sheet.name, sheet.data, sheet.net, sheet.setting)
        for row in sheet.rows:
            for column, entry in zip(sheet.columns, row.entries, strict=True):
                for f in entry.figures if entry else ():
                    assert entry is not None
                    failed = " ".join(f"{k}:{v}" for k, v in sorted(entry.failed.items()))
                    known = (f.name, f.value, f.std, f.low, f.high, f.n)
                    line = (*place, row.label, column, row.source, *known, failed, entry.note)
                    writer.writerow(line)
    return out.getvalue()


def as_json(sheets: Sequence[Sheet]) -> str:
    """Return tables as JSON, everything that is known of them."""
    return json.dumps([asdict(sheet) for sheet in sheets], indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Sequence[Sheet]], str]] = {
    "csv": comma_separated,
    "json": as_json,
    "markdown": markdown,
    "text": text,
}


# One entry ------------------------------------------------------------------------------------


class _Notes:
    """Footnotes in order; the same words have the same number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def mark(self, words: str) -> str:
        """Return the mark for some words, nothing for none."""
        return f" [{self.known.setdefault(words, len(self.known) + 1)}]" if words else ""


def _cell(entry: Entry | None, sheet: Sheet, notes: _Notes, spread: Spread) -> tuple[str, str]:
    """Return the figures of an entry, and what stands under them."""
    if entry is None:
        return "", ""
    mark = notes.mark(entry.note)
    if all(f.value is None for f in entry.figures):
        return f"-{mark}", ""
    figures = entry.figures + (Figure("", None),) * (sheet.form.count("{}") - len(entry.figures))
    spreads = [_spread(f, spread) for f in figures]
    under = "" if figures[0].unit == "count" and figures[1:] else spreads[0]
    if under and any(spreads[1:]):
        under = sheet.form.format(*(words or "-" for words in spreads))
    return sheet.form.format(*map(_value, figures)) + mark, under


def _value(f: Figure) -> str:
    if f.value is None:
        return "-"
    if f.unit == "count":
        return f"{round(f.value * f.n)}/{f.n}"
    return _number(f.value, f.unit)


def _spread(f: Figure, spread: Spread) -> str:
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


def _head(sheet: Sheet) -> str:
    setting = f", {sheet.setting}" if sheet.setting else ""
    return f"{sheet.title} - {sheet.data}, {sheet.net}{setting}"


def _below(sheet: Sheet, notes: _Notes, spread: Spread) -> list[str]:
    """Return what stands below a table: how to read it, then its footnotes."""
    under = "± sample standard deviation" if spread == "std" else "[95 % interval]"
    entries = [e for row in sheet.rows if not row.source for e in row.entries]
    of = sheet.how or (f"mean over {sheet.seeds} seeds, {under}" if sheet.seeds > 1 else "one seed")
    if not sheet.how and any(f.n == 1 for e in entries if e for f in e.figures):
        of += ", of one model [its 95 % interval]"
    first = of + ("; blank: no such record or figure" if None in entries else "")
    return [first, *sheet.notes, *(f"[{n}] {words}" for words, n in notes.known.items())]


def _text(sheet: Sheet, width: int, spread: Spread) -> str:
    notes, lines = _Notes(), textwrap.wrap(_head(sheet), width)
    labels = ["", *(f"  {r.source}" if r.source else r.label for r in sheet.rows)]
    side = max(map(len, labels))
    columns = []
    for i, name in enumerate(sheet.columns):
        cells = [_cell(row.entries[i], sheet, notes, spread) for row in sheet.rows]
        columns.append([(name, ""), *cells])
    for block in _blocks(columns, width - side):
        widths = [max(len(part) for cell in column for part in cell) for column in block]
        lines.append("")
        for i, label in enumerate(labels):
            for part in (0, 1):
                shown = [c[i][part].rjust(w) for c, w in zip(block, widths, strict=True)]
                line = f"{'' if part else label:{side}}  {'  '.join(shown)}".rstrip()
                lines += [line] if line or not part else []
            lines += ["-" * (side + 2 * len(widths) + sum(widths))] if not i else []
    lines.append("")
    for note in _below(sheet, notes, spread):
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def _blocks(
    columns: Sequence[list[tuple[str, str]]], width: int
) -> list[list[list[tuple[str, str]]]]:
    """Return columns in runs that fit the width, each at least one."""
    out: list[list[list[tuple[str, str]]]] = []
    room = 0
    for column in columns:
        need = 2 + max(len(part) for cell in column for part in cell)
        if not out or need > room:
            out.append([])
            room = width
        out[-1].append(column)
        room -= need
    return out


def _barred(words: str) -> str:
    return words.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
