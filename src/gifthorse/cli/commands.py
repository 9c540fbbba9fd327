"""The commands: parse, call, print, exit."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gifthorse import __version__
from gifthorse.cli import (
    analyze,
    bench,
    calibrate,
    compare,
    filter,
    make,
    options,
    records,
    repair,
    scan,
)
from gifthorse.cli.terminal import describe_file, logged, say, tell, with_command
from gifthorse.core.errors import GifthorseError, UsageError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look a downloaded image classifier in the mouth: find backdoors before you deploy it.",
)
INTERRUPTED = 130  # exit status


@app.command()
def inspect(models: options.Models, part: options.Part = None) -> None:
    """Say what is in model files, without running anything of them."""
    from gifthorse.models import inspect as look

    codes: set[int] = set()
    for model in models:
        with scan.contained(model, codes, alone=len(models) == 1):
            found = look(model, part)
            tell(describe_file(found))
            sys.stdout.flush()
            codes.add(found.status)
    raise typer.Exit(scan.gravest(codes))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="attacks, detectors, inverters, models ...")],
) -> None:
    """List what there is of a kind."""
    from gifthorse.cli import catalog

    for name, line in catalog.entries(kind).items():
        tell(f"{name:24} {line}".rstrip())


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A name that `gifthorse list` prints, or a rule.")],
) -> None:
    """Say what a method does, what it assumes, its options and its source."""
    from gifthorse.cli import catalog

    tell(catalog.explain(name))


for part in (scan, calibrate, make, repair, filter, compare, analyze):
    app.registered_commands += part.commands.registered_commands
bench.commands.registered_commands += records.commands.registered_commands
app.add_typer(bench.commands, name="bench")


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        tell(f"gifthorse {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options in front of any command."""


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit status. Every expected error is one sentence."""
    try:
        with logged():
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
    if code == INTERRUPTED:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return int(code or 0)
