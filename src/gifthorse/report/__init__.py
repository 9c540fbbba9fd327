"""Drawing reports: as text for terminals, as JSON for programs, as HTML for people."""

from __future__ import annotations

from typing import Protocol

from gifthorse.core.types import Report
from gifthorse.report import html, json, text
from gifthorse.report.status import FailOn, exit_code
from gifthorse.report.text import render

__all__ = ["WRITERS", "FailOn", "ReportWriter", "exit_code", "render"]


class ReportWriter(Protocol):
    """Puts a report into one format."""

    def __call__(self, report: Report, /) -> str:
        """Return the whole document as text."""
        ...


WRITERS: dict[str, ReportWriter] = {"text": text.write, "json": json.write, "html": html.write}
