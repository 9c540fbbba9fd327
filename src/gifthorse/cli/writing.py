"""Where reports go: to standard output, to a file each, to one file for all models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gifthorse.cli.terminal import note, out, say
from gifthorse.core.errors import Unwritable
from gifthorse.report.saving import save

if TYPE_CHECKING:
    from gifthorse.core.types import Report
    from gifthorse.report import FailOn
    from gifthorse.report.json import ScanResult

UNWRITTEN = -1  # among statuses: a report that could not be written


def show(report: Report, form: str, fail: FailOn, *, alone: bool) -> None:
    """Print a report, unless it is one of several that are printed together."""
    from gifthorse.report import SUMMARIES, render

    if form == "text":
        render(report, out, fail_on=fail)
    elif alone or form not in SUMMARIES:
        out.out(drawn(report, form).removesuffix("\n"), highlight=False)


def drawn(report: Report, form: str) -> str:
    """Return a report in a format."""
    from gifthorse.report import WRITERS

    return WRITERS[form](report)


class Gathered:
    """What documents that hold all models of a run are drawn from."""

    def __init__(self, models: Sequence[str], wanted: bool) -> None:
        self._models, self._wanted = models, wanted
        self._found: dict[str, ScanResult] = {}

    def add(self, model: str, report: Report) -> None:
        """Take in the report of a model, without its pictures in full."""
        from gifthorse.report.json import collect

        if self._wanted:
            self._found[model] = collect(report)

    def drawn(self, form: str) -> str:
        """Return all models in a format; one that gave no report is in it as such."""
        from gifthorse.core.types import Origin, Report
        from gifthorse.report import SUMMARIES
        from gifthorse.report.json import collect

        words = "It was not scanned to its end: see the messages of the run."
        for model in {m: None for m in self._models if m not in self._found}:
            lost = Report("ERROR", words, Origin(path=model), None, (), (), (), (), None)
            self._found[model] = collect(lost)
        return SUMMARIES[form]([self._found[model] for model in dict.fromkeys(self._models)])


@contextmanager
def gathered(
    models: Sequence[str], form: str, together: Sequence[tuple[str, Path]], codes: set[int]
) -> Iterator[Gathered]:
    """Print and write what holds all models, at the end; also if the run is interrupted."""
    from gifthorse.report import SUMMARIES

    printed = form in SUMMARIES and len(models) > 1
    summary = Gathered(models, printed or bool(together))
    try:
        yield summary
    finally:
        if printed:
            out.out(summary.drawn(form).removesuffix("\n"), highlight=False)
        try:
            save(together, summary.drawn, note)
        except Unwritable as error:
            say(f"gifthorse: {error}")
            codes.add(UNWRITTEN)
