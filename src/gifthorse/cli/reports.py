"""The commands that read results of earlier scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gifthorse.cli import parsing
from gifthorse.cli.terminal import tell
from gifthorse.cli.writing import write
from gifthorse.core.atomic import check_writable
from gifthorse.core.errors import UnknownMethod

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
    """Put JSON results into another format, all into one document; nothing is scanned again."""
    from gifthorse.report import SUMMARIES
    from gifthorse.report.reading import read_result, result_files

    files, wanted = result_files(results), parsing.named_files(out or ())
    for name in (form or "md", *(name for name, _ in wanted)):
        if name not in SUMMARIES:
            raise UnknownMethod.among("format of many results", name, SUMMARIES)
    paths = [Path(path) for _, path in wanted]
    parsing.keep(paths, files)
    for path in paths:
        check_writable(path)
    read = [read_result(path) for path in files]
    if form or not wanted:
        tell(SUMMARIES[form or "md"](read))
    write([(name, Path(path)) for name, path in wanted], lambda name: SUMMARIES[name](read))
