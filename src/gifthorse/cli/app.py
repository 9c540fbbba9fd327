"""The command line: parse, call, print, exit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import TyperException

from gifthorse import __version__
from gifthorse.cli import analyze as cli_analyze
from gifthorse.cli import bench as cli_bench
from gifthorse.cli import compare as cli_compare
from gifthorse.cli import filter as cli_filter
from gifthorse.cli import make as cli_make
from gifthorse.cli import records as cli_records
from gifthorse.cli import repair as cli_repair
from gifthorse.cli.support import bar, describe_file, err, going_on, pairs, say, with_command
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

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Model files.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change an option; repeat as needed."),
]
Data = Annotated[str, typer.Option(help="Packed data set: a name (with GIFTHORSE_DATA) or path.")]
Net = Annotated[str, typer.Option(help="One of `gifthorse list models`.")]
Seed = Annotated[int, typer.Option(help="Same seed, same model on the same machine.")]
Output = Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")]


@app.command()
def scan(
    models: Models,
    images: Annotated[str, typer.Option(help="Clean images: folder, .npz, NAME[:SPLIT].")],
    arch: Annotated[
        str | None, typer.Option(help="Net, timm:NAME, torchvision:NAME, module:f, file.py:f.")
    ] = None,
    normalize: Annotated[str, typer.Option(help="auto, none, cifar10 ... or MEAN/STD.")] = "auto",
    input_size: Annotated[str | None, typer.Option(help="HxW to resize images to.")] = None,
    limit: Annotated[int, typer.Option(help="Use at most so many images.")] = 1000,
    preset: Annotated[
        str, typer.Option(help="What runs, one of `gifthorse list presets`.")
    ] = "standard",
    detector: Annotated[
        list[str] | None,
        typer.Option(help="One of `gifthorse list detectors`, in place of --preset; repeatable."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Search these target classes only: 0,3,7-9.")
    ] = None,
    class_pairs: Annotated[
        bool, typer.Option("--pairs", help="Search every pair of classes (slow).")
    ] = False,
    options: Options = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Stop the search of a model after 90, 90s, 10m or 1h.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Stop it after so many image-steps (forward and back).")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep a stopped search here, and go on with one."),
    ] = None,
    seed: Seed = 0,
    output_format: Annotated[str, typer.Option("-f", "--format", help="text or json.")] = "text",
    out: Annotated[
        list[str] | None, typer.Option("-o", "--out", metavar="FORMAT=PATH", help="Also write.")
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="backdoored, suspicious or inconclusive.")
    ] = "suspicious",
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 on findings.")] = False,
    truth: Annotated[
        Path | None, typer.Option(help="The true trigger, if known: say how well it was found.")
    ] = None,
) -> None:
    """Say whether model files are backdoored, for which class, and how sure that is."""
    from gifthorse.report import exit_code
    from gifthorse.workflows import scan as examine

    request = examine.Request(
        images=images,
        arch=arch,
        normalize=normalize,
        input_size=input_size,
        limit=limit,
        detectors=tuple(detector or ()),
        options=pairs(options),
        preset=preset,
        classes=classes,
        pairs=class_pairs,
        time_limit=time_limit,
        budget=budget,
        resume=resume,
        seed=seed,
        command=shlex.join(["gifthorse", *sys.argv[1:]]),
    )
    fail = examine.fail_on(fail_on)
    writers = examine.outputs(output_format, out or (), len(models))
    codes = []
    for model in models:
        with bar(Path(model).name) as progress, going_on(resume, request.command):
            report = examine.examine(model, request, progress)
        for path in examine.emit(report, writers, console, fail):
            err.print(f"wrote {path}", markup=False)
        if truth is not None:
            err.print(examine.compared(report, truth), markup=False)
        codes.append(exit_code(report, fail))
    code = next((c for c in (1, 2, 3) if c in codes), 0)
    raise typer.Exit(0 if exit_zero and code == 1 else code)


@app.command()
def inspect(models: Models) -> None:
    """Say what is in model files, without running anything of them."""
    from gifthorse.models import inspect as look

    found = [look(model) for model in models]
    for one in found:
        console.print(describe_file(one), markup=False, emoji=False)
    if any(f.severity in ("CRITICAL", "HIGH") for one in found for f in one.findings):
        raise typer.Exit(1)


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


app.registered_commands += cli_make.commands.registered_commands
app.registered_commands += cli_repair.commands.registered_commands
app.registered_commands += cli_filter.commands.registered_commands
cli_bench.commands.registered_commands += cli_records.commands.registered_commands
app.add_typer(cli_bench.commands, name="bench")
app.registered_commands += cli_compare.commands.registered_commands
app.registered_commands += cli_analyze.commands.registered_commands


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
