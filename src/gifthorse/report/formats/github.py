"""Results as commands of a GitHub workflow: annotations on the model files."""

from __future__ import annotations

from collections.abc import Sequence

from gifthorse.core.types import Severity
from gifthorse.report.formats.issues import (
    LEVELS,
    PATH_LIMIT,
    doubts,
    issues,
    likely,
    model_name,
    place,
)
from gifthorse.report.json import ScanResult
from gifthorse.report.words import HEADLINES, printable, trust_in

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def write(results: Sequence[ScanResult]) -> str:
    """Return annotations: a line for each thing to be told, and one for a model without any."""
    return "".join(line for result in results for line in _lines(result))


def _lines(r: ScanResult) -> list[str]:
    label = r.verdict.label
    told = [(i.severity, f"{label}: {i.title}", i.message) for i in (*issues(r), *doubts(r))]
    if not told:
        told = [("INFO", label, f"{HEADLINES[label]}{_sure(r)}")]
    return [_line(r, *one) for one in told]


def _sure(r: ScanResult) -> str:
    sure = likely(r)
    trust = trust_in(r.verdict)
    return f" {trust[:1].upper()}{trust[1:]}: {sure}." if sure else ""


def _line(r: ScanResult, severity: Severity, title: str, message: str) -> str:
    kind, where = COMMANDS[LEVELS[severity]], f"{model_name(r)}: {message}"
    file, title = printable(place(r), PATH_LIMIT), title.removesuffix(": ")
    return f"::{kind} file={_property(file)},title={_property(title)}::{_data(where)}\n"


def _data(text: str) -> str:
    """Return text as it stands behind the second `::`."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Return text as it stands before the second `::`."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
