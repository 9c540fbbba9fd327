"""Drawing reports: for terminals, for programs, for people, and for the tools of a trade."""

from __future__ import annotations

from typing import Protocol

from gifthorse.core.types import Report
from gifthorse.report import html, json, text
from gifthorse.report.formats import SUMMARIES, SummaryWriter
from gifthorse.report.status import FailOn, exit_code
from gifthorse.report.text import render

__all__ = ["SUMMARIES", "WRITERS", "FailOn", "ReportWriter", "exit_code", "render"]


class ReportWriter(Protocol):
    """Puts a report into one format."""

    def __call__(self, report: Report, /) -> str:
        """Return the whole document as text."""
        ...


def _alone(summary: SummaryWriter) -> ReportWriter:
    """Return the writer of a summary of one report."""

    def write(report: Report) -> str:
        return summary((json.collect(report),))

    write.__doc__ = summary.__doc__
    return write


WRITERS: dict[str, ReportWriter] = {
    "text": text.write,
    "json": json.write,
    "html": html.write,
    **{name: _alone(summary) for name, summary in SUMMARIES.items()},
}
