"""The command line: parse, call, print, exit."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from gifthorse import __version__
from gifthorse.cli import analyze, bench, compare, filter, make, options, records, repair, scan
from gifthorse.cli.terminal import describe_file, say, with_command
from gifthorse.core.errors import GifthorseError, UsageError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Look a downloaded image classifier in the mouth: find backdoors before you deploy it.",
)
console = Console(highlight=False)
INTERRUPTED = 130  # exit status


@app.command()
def inspect(models: options.Models, part: options.Part = None) -> None:
    """Say what is in model files, without running anything of them."""
    from gifthorse.models import inspect as look

    found = [look(model, part) for model in models]
    for one in found:
        console.print(describe_file(one), markup=False, emoji=False)
    raise typer.Exit(next((code for code in (1, 2) if code in {f.status for f in found}), 0))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="attacks, detectors, inverters, models ...")],
) -> None:
    """List what there is of a kind."""
    from gifthorse.cli import catalog

    for name, line in catalog.entries(kind).items():
        typer.echo(f"{name:24} {line}".rstrip())


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A name that `gifthorse list` prints, or a rule.")],
) -> None:
    """Say what a method does, what it assumes, its options and its source."""
    from gifthorse.cli import catalog

    typer.echo(catalog.explain(name))


for part in (scan, make, repair, filter, compare, analyze):
    app.registered_commands += part.commands.registered_commands
bench.commands.registered_commands += records.commands.registered_commands
app.add_typer(bench.commands, name="bench")


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        typer.echo(f"gifthorse {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options in front of any command."""


def main() -> None:
    """Run the command line; every expected error is one sentence and an exit code."""
    try:
        code = app(
            args=with_command(app, sys.argv[1:]), prog_name="gifthorse", standalone_mode=False
        )
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except GifthorseError as error:
        say(f"gifthorse: {error}")
        sys.exit(error.exit_code)
    except TyperException as error:  # an unknown flag, a missing argument
        describe = getattr(error, "format_message", error.__str__)
        words = describe()
        say(f"gifthorse: {words} Try gifthorse --help.")
        sys.exit(UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        say("gifthorse: interrupted; nothing was written for the file at hand")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
