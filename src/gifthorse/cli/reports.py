"""The commands that read results of earlier scans."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gifthorse.cli import parsing
from gifthorse.cli.terminal import note, say, tell
from gifthorse.core.atomic import check_writable
from gifthorse.core.errors import UnknownMethod, UsageError
from gifthorse.report.saving import save
from gifthorse.report.words import plural

if TYPE_CHECKING:
    from gifthorse.report.json import ScanResult

commands = typer.Typer()  # what `gifthorse.cli.app` takes its commands from

Results = Annotated[
    list[Path], typer.Argument(metavar="RESULT...", help="JSON results, or folders of them.")
]


@commands.command()
def report(
    results: Results,
    form: Annotated[
        str | None, typer.Option("-f", "--format", help="csv, cyclonedx, github, junit, md, sarif.")
    ] = None,
    out: Annotated[
        list[str] | None, typer.Option("-o", "--out", metavar="FORMAT=PATH", help="Write.")
    ] = None,
) -> None:
    """Put JSON results into another format, all into one document; nothing is scanned again.

    A file that is no result is named and left out; the exit status is then 2.
    """
    from gifthorse.report import SUMMARIES
    from gifthorse.report.reading import result_files

    files, wanted = result_files(results), parsing.named_files(out or ())
    for name in (form or "md", *(name for name, _ in wanted)):
        if name not in SUMMARIES:
            raise UnknownMethod.among("format of many results", name, SUMMARIES)
    paths = [Path(path) for _, path in wanted]
    parsing.keep(paths, files)
    for path in paths:
        check_writable(path)
    whole, unread = _read(files)
    read = [result for _, result in whole]
    if form or not wanted:
        tell(SUMMARIES[form or "md"](read))
    save([(name, Path(path)) for name, path in wanted], lambda name: SUMMARIES[name](read), note)
    if unread:
        raise typer.Exit(2)


@commands.command()
def index(
    results: Results,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where pages go.")],
    name: Annotated[str, typer.Option(help="Heading of the first page.")] = "Models",
) -> None:
    """Write JSON results as pages that need no server: a table of models, a page for each.

    A file that is no result is named and left out; the exit status is then 2.
    """
    from gifthorse.report.index import PAGES, write_index
    from gifthorse.report.reading import result_files

    files = result_files(results)
    parsing.keep([out / page for page in PAGES], files)
    read, unread = _read(files)
    command = shlex.join(["gifthorse", *sys.argv[1:]])
    pages = write_index(read, out, name, command)
    tell(f"wrote {len(pages)} files of {plural(len(read), 'result')}; open {pages[0]}")
    if unread:
        raise typer.Exit(2)


def _read(files: Iterable[Path]) -> tuple[list[tuple[Path, ScanResult]], int]:
    """Return the results in files, and in how many there were none; these are named.

    Raises:
        UsageError: If there was none in any.
    """
    from gifthorse.report.reading import read_results

    read: list[tuple[Path, ScanResult]] = []
    unread: list[UsageError] = []
    for path in files:
        try:
            read += [(path, result) for result in read_results(path)]
        except UsageError as error:
            unread.append(error)
    if not read and unread:
        raise unread[0]
    for fault in unread:
        say(f"gifthorse: {fault}")
    return read, len(unread)
