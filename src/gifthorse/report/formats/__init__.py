"""Formats in which other tools take results; each holds one model or many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gifthorse.report.formats import csv, cyclonedx, github, junit, markdown, sarif
from gifthorse.report.json import ScanResult

__all__ = ["SUMMARIES", "SummaryWriter"]


class SummaryWriter(Protocol):
    """Puts the results of scans into one document of one format."""

    def __call__(self, results: Sequence[ScanResult], /) -> str:
        """Return the whole document as text."""
        ...


SUMMARIES: dict[str, SummaryWriter] = {
    "csv": csv.write,
    "cyclonedx": cyclonedx.write,
    "github": github.write,
    "junit": junit.write,
    "md": markdown.write,
    "sarif": sarif.write,
}
