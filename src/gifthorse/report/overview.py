"""Scans of many models side by side: one table, one JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rich.table import Table

from gifthorse.core.text import inert
from gifthorse.core.types import Label
from gifthorse.report.json import encoded
from gifthorse.report.text import in_columns
from gifthorse.report.words import plural

LABELS: tuple[str, ...] = get_args(Label)  # the gravest first
LONGEST = 200  # characters of a reason


def table(scans: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of results, the gravest first, and how many there are of each verdict.

    Args:
        scans: Results as the format `json` has them.
    """
    rows = Table(box=None, pad_edge=False, header_style="")
    rows.add_column("verdict", no_wrap=True)
    for name in ("model", "why"):
        rows.add_column(name, overflow="fold")
    rows.add_column("s", justify="right", no_wrap=True)
    for scan in sorted(scans, key=lambda scan: LABELS.index(_label(scan))):
        why = inert(str(_why(scan)))[:LONGEST]
        seconds = f"{scan['run']['seconds']:.0f}"
        rows.add_row(_label(scan), inert(str(scan["target"]["path"])), why, seconds)
    counts = Counter(map(_label, scans))
    told = ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label])
    return f"{in_columns(rows)}\n{plural(len(scans), 'model')}: {told}\n"


def _label(scan: Mapping[str, Any]) -> str:
    label = scan["verdict"]["label"]
    return label if label in LABELS else "ERROR"


def _why(scan: Mapping[str, Any]) -> str:
    """Return what leads to a verdict: the gravest finding, else its reason."""
    found = scan["findings"] if _label(scan) in LABELS[:2] else ()
    return str(found[0]["message"] if found else scan["verdict"]["reason"])


def document(scans: Sequence[Mapping[str, Any]], command: str, version: str) -> str:
    """Return one JSON text of all results, in the order in which they were asked for.

    Args:
        scans: Results as the format `json` has them.
        command: The command line.
        version: Of the program.
    """
    counts = Counter(map(_label, scans))
    told = {
        "tool": {"name": "gifthorse", "version": version},
        "command": command,
        "verdicts": {label: counts[label] for label in LABELS if counts[label]},
        "scans": list(scans),
    }
    return encoded(told)
