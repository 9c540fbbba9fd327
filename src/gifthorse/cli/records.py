"""The commands of `gifthorse bench` that read records, and the one that takes models over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gifthorse.cli.options import PlanFile, PlanStore
from gifthorse.cli.terminal import tell
from gifthorse.core.errors import UnknownMethod, UsageError

commands = typer.Typer()  # what `gifthorse.cli.app` takes its commands from

Source = Annotated[str, typer.Argument(metavar="PLAN|STORE", help="A plan, or where records lie.")]


@commands.command()
def leaderboard(
    file: PlanFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where pages go.")],
    store: PlanStore = None,
) -> None:
    """Write what is recorded as pages that need no server: heat maps, tables, a page a cell."""
    from gifthorse.bench.leaderboard import write_leaderboard
    from gifthorse.bench.relation import frame
    from gifthorse.bench.results import opened
    from gifthorse.bench.tasks import judging

    made, place = opened(file, store)
    keys = [judging(cell).key for cell in made.cells]
    if place.recorded().isdisjoint(keys):
        raise UsageError(f"nothing is recorded in {place.root}: gifthorse bench run {file}")
    command = f"gifthorse bench leaderboard {file} -o {out}"
    with frame(place, keys) as con:
        pages = write_leaderboard(con, out, made.name, planned=len(keys), command=command)
    tell(f"wrote {len(pages)} files; open {pages[0]}")


@commands.command()
def report(
    source: Source,
    store: PlanStore = None,
    form: Annotated[
        str, typer.Option("-f", "--format", help="text, markdown, csv or json.")
    ] = "text",
    papers: Annotated[
        bool, typer.Option("--papers", help="Print the papers' numbers beside ours.")
    ] = False,
    interval: Annotated[
        bool, typer.Option("--interval", help="Intervals in place of deviations.")
    ] = False,
    width: Annotated[int, typer.Option(help="Columns of text.")] = 80,
) -> None:
    """Print what is recorded as tables: defenses by attacks, means over seeds, failures."""
    from gifthorse.bench import printing, tables
    from gifthorse.bench.relation import frame
    from gifthorse.bench.results import recorded

    place, keys = recorded(source, store)
    with frame(place, keys) as con:
        found = tables.tables(con, reference=papers)
    if not found:
        raise UsageError(f"there is nothing to report in {place.root} yet")
    spread: printing.Spread = "interval" if interval else "std"
    writers = {
        "text": lambda: printing.text(found, width, spread),
        "markdown": lambda: printing.markdown(found, spread),
        "csv": lambda: printing.comma_separated(found),
        "json": lambda: printing.as_json(found),
    }
    if form not in writers:
        raise UnknownMethod.among("format", form, writers)
    tell(writers[form]())


@commands.command()
def query(
    source: Source,
    sql: Annotated[str, typer.Argument(help="A SELECT over the table `records`.")],
    store: PlanStore = None,
) -> None:
    """Ask a question about records in SQL; needs DuckDB: pip install 'gifthorse[bench]'."""
    from gifthorse.bench import query
    from gifthorse.bench.results import recorded

    place, keys = recorded(source, store)
    tell(query.text(query.query(place, sql, keys), width=80))


@commands.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .parquet or .csv file.")],
    store: PlanStore = None,
) -> None:
    """Write all records as one table, a column for every figure."""
    from gifthorse.bench import query
    from gifthorse.bench.results import recorded

    place, keys = recorded(source, store)
    tell(f"wrote {query.export(place, out, keys=keys)} records to {out}")


@commands.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A model's file or folder, or a folder of many.")],
    store: Annotated[str, typer.Option("--store", help="Folder or URL to put them in.")],
    kind: Annotated[str, typer.Option(help="auto, backdoorbench, trojanzoo or trojai.")] = "auto",
    data: Annotated[
        str, typer.Option(help="Clean images, as scan takes them; default those that come along.")
    ] = "",
    arch: Annotated[str | None, typer.Option(help="A net, if it is not guessed.")] = None,
    normalize: Annotated[str, typer.Option(help="A name of gifthorse list normalizations.")] = "",
    place: Annotated[str, typer.Option(help="TOP,LEFT of TrojanZoo's mark.")] = "0,0",
) -> None:
    """Take over models of BackdoorBench, TrojanZoo or TrojAI, as cells for a plan to judge.

    Nothing of them is run; what cannot be read so is refused, and its cells say why.
    """
    from gifthorse.bench.imports import KINDS, adopt
    from gifthorse.bench.store import Store

    if kind not in KINDS:
        raise UnknownMethod.among("kind of benchmark", kind, KINDS)
    found = adopt(
        path,
        KINDS[kind],
        Store(store),
        data=data,
        arch=arch,
        normalize=normalize,
        place=_place(place),
    )
    for one in found:
        words = one.label or ("poisoned" if one.poisoned else "clean")
        tell(f"{one.key}  {one.status:12} {words} {one.net} {one.data}".rstrip())
        for note in (one.error, *one.notes):
            if note:
                tell(f"  {note}")
    good = [one.key for one in found if not one.error]
    if good:
        tell("In a plan:  [[imported]]")
        tell(f"            models = {json.dumps(good)}")


def _place(text: str) -> tuple[int, int]:
    top, _, left = text.partition(",")
    if not (top.strip().isdecimal() and left.strip().isdecimal()):
        raise UsageError(f"--place takes TOP,LEFT in pixels, as in 0,0; got {text!r}")
    return int(top), int(left)
