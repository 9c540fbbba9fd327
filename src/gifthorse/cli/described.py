"""What `gifthorse inspect` prints of a file, and of a model beside its base."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gifthorse.report.text import in_columns
from gifthorse.report.words import CLAIM_LIMIT, NAME_LIMIT, RULES, plural, printable, volume

if TYPE_CHECKING:
    from gifthorse.models import Inspection
    from gifthorse.models.difference import Difference

RATINGS = (
    "dangerous",
    "unknown",
    "class",
    "object",
    "harmless",
)  # of a pickle's imports, worst first


def describe_file(found: Inspection) -> str:
    """Return what `gifthorse inspect` prints of one file: plain text of at most 80 columns."""
    listed = f"{found.tensors:,} with {found.params:,} numbers ({', '.join(found.dtypes)})"
    records = f", {plural(len(found.records), 'zip record')}" if found.records else ""
    worst_first = sorted(found.imports, key=lambda i: RATINGS.index(i.safety))
    rows = [
        ("safety", [found.safety]),
        ("format", [found.format + records]),
        ("size", [f"{volume(found.bytes)} ({found.bytes:,} bytes)"]),
        ("sha256", [found.sha256]),
        ("tensors", [listed if found.tensors else "none listed"]),
        ("wrapped in", [" > ".join(found.wrappers)] if found.wrappers else []),
        ("network", [f"{found.arch}, {found.how}" if found.arch else found.how]),
        ("notes", _first(found.notes)),
        ("asks for", _first([f"{i.safety}: {i} (in {i.record})" for i in worst_first])),
        ("file claims", _first([f"{k[:NAME_LIMIT]}: {v}" for k, v in found.metadata.items()])),
        *(
            (f.rule, [f"{f.severity}, {RULES.get(f.rule, '')}: {f.message}"])
            for f in found.findings
        ),
        ("next", [_advice(found)]),
    ]
    return in_columns(Text(printable(found.path)), named(rows))


def describe_difference(found: Difference) -> str:
    """Return what `gifthorse inspect --base` prints of a model beside its base."""
    same, other = len(found.equal), len(found.changed)
    counts = f"{same} equal, {other} changed, {len(found.reshaped)} of another shape, "
    counts += f"{len(found.added)} new, {len(found.removed)} gone"
    changed = [f"{name}: {share:.2g} of its norm" for name, share in found.changed]
    if found.turned is None:
        classes = ["its last layer is none that can be compared with that of the base"]
    else:
        turned = [f"class {k}: 1 - cosine {share:.2f}" for k, share in found.turned]
        classes = turned or ["no class has a new direction in the last layer"]
    rows = [
        ("base", [found.base]),
        ("sha256", [found.sha256]),
        ("tensors", [counts]),
        ("changed", _first(changed)),
        ("other shape", _first(found.reshaped)),
        ("new", _first(found.added)),
        ("gone", _first(found.removed)),
        ("classes", _first(classes)),
    ]
    return in_columns(Text("beside its base"), named(rows))


def named(rows: Iterable[tuple[str, Sequence[str]]]) -> Padding:
    """Return lines behind their names, free of control characters, two columns in."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, lines in rows:
        for number, line in enumerate(lines):
            grid.add_row("" if number else Text(printable(name)), Text(printable(line)))
    return Padding(grid, (0, 0, 0, 2))


def _first(lines: Sequence[str], most: int = 8) -> list[str]:
    """Return the first lines, cut to a length that a hostile file cannot choose."""
    first = [printable(line, CLAIM_LIMIT) for line in lines[:most]]
    return first + [f"and {len(lines) - most:,} more"] * (len(lines) > most)


def _advice(found: Inspection) -> str:
    if found.advice:
        return found.advice
    command = f"gifthorse scan {shlex.quote(found.path)} --images DIR"
    if not found.arch:
        command += " --arch NAME (see gifthorse list models, or give file.py:function)"
    return f"No code is no proof of good weights. Look for a backdoor: {command}"
