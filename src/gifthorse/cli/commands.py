"""The commands: parse, call, print, exit."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gifthorse import __version__
from gifthorse.cli import (
    analyze,
    bench,
    calibrate,
    compare,
    doctor,
    filter,
    make,
    options,
    records,
    repair,
    reports,
    scan,
)
from gifthorse.cli.described import describe_difference, describe_file
from gifthorse.cli.examples import exemplify
from gifthorse.cli.panels import group
from gifthorse.cli.terminal import (
    PROGRESS,
    log_to,
    logged,
    manner,
    note,
    plain,
    say,
    tell,
    with_command,
)
from gifthorse.core.errors import GifthorseError, UnknownMethod, UsageError

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look a downloaded image classifier in the mouth: find backdoors before you deploy it.",
)
INTERRUPTED = 130  # exit status


@app.command()
def inspect(
    models: options.Models,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Say what training changed of this one: file or hf:."),
    ] = None,
) -> None:
    """Say what is in model files, without running anything of them."""
    from gifthorse.models import inspect as look
    from gifthorse.models.difference import difference
    from gifthorse.models.hub.fetching import check_fetched, fetch, is_hub_name

    codes: set[int] = set()
    fetched = cache(lambda name: fetch(name, note))  # one base serves all models
    for model in models:
        with scan.contained(model, codes, alone=len(models) == 1):
            check_fetched(model, signer_key)
            place = fetched(model) if is_hub_name(model) else None
            found = look(str(place.path) if place else model, part, signer=signer_key)
            if place is not None:
                found = replace(found, path=place.name, notes=(*place.notes, *found.notes))
            tell(describe_file(found))
            if base is not None:
                other = str(fetched(base).path) if is_hub_name(base) else base
                mine = str(place.path) if place else model
                tell(describe_difference(difference(mine, other, signer_key)))
            sys.stdout.flush()
            codes.add(found.status)
    raise typer.Exit(scan.gravest(codes))


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="attacks, detectors, inverters, models ...")
    ] = None,
) -> None:
    """List what there is of a kind; the kinds, if none is named."""
    from gifthorse.cli import catalog

    tell(catalog.kinds() if kind is None else catalog.table(kind))


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A name that `gifthorse list` prints, or a rule.")],
) -> None:
    """Say what a method does, what it assumes, its options and its source."""
    from gifthorse.cli import catalog

    tell(catalog.explain(name))


for part in (scan, reports, calibrate, make, repair, filter, compare, analyze, doctor):
    app.registered_commands += part.commands.registered_commands
bench.commands.registered_commands += records.commands.registered_commands
app.add_typer(bench.commands, name="bench")
exemplify(app.registered_commands)
exemplify(bench.commands.registered_commands, "bench")
group([*app.registered_commands, *bench.commands.registered_commands])


@app.callback(invoke_without_command=True)
def options_of_all(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: libraries and devices, too.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No notes and no progress; errors are said.")
    ] = False,
    progress: Annotated[
        str, typer.Option(help="How it shows that it goes on: auto, none, plain or rich.")
    ] = "auto",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add what is said to a file, with the time.")
    ] = None,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colors; so does the variable NO_COLOR.")
    ] = False,
) -> None:
    """Options in front of any command, or behind it."""
    if progress not in PROGRESS:
        raise UnknownMethod.among("way to show progress", progress, PROGRESS)
    manner.quiet, manner.progress = quiet, progress
    if no_color:
        plain()
    if log is not None:
        log_to(log)
    if version:
        tell(f"gifthorse {__version__}" + (f"\n{doctor.here()}" if verbose else ""))
        raise typer.Exit
    if context.invoked_subcommand is None:
        tell(context.get_help())
        raise typer.Exit(UsageError.exit_code)  # so that a gate called without words is not green


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit status. Every expected error is one sentence."""
    with logged():
        try:
            code = app(
                args=with_command(app, arguments), prog_name="gifthorse", standalone_mode=False
            )
        except GifthorseError as error:
            say(f"gifthorse: {error}")
            return error.exit_code
        except TyperException as error:  # an unknown flag, a missing argument
            describe = getattr(error, "format_message", error.__str__)
            say(f"gifthorse: {describe()} Try gifthorse --help.")
            return UsageError.exit_code
        except typer.Abort:
            raise KeyboardInterrupt from None
        except SystemExit as done:
            if not _completes(arguments):
                raise
            return int(done.code or 0)
    if code == INTERRUPTED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(code or 0)


def _completes(arguments: list[str]) -> bool:
    """Whether a shell asks what may come next, or how to ask: typer answers and exits itself."""
    asked = {"--install-completion", "--show-completion"} & set(arguments)
    return bool(asked or os.environ.get("_GIFTHORSE_COMPLETE"))
