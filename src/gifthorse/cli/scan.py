"""The command `scan`: is this model backdoored?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import bar, err, going_on
from gifthorse.core.atomic import atomic

if TYPE_CHECKING:
    from gifthorse.core.types import Report
    from gifthorse.report import FailOn

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from
console = Console(highlight=False)


@commands.command()
def scan(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    models: options.Models,
    images: options.Images,
    arch: options.Arch = None,
    part: options.Part = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    limit: Annotated[int, typer.Option(help="Use at most so many images.")] = 1000,
    device: options.Device = "auto",
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
    changes: options.Options = None,
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
    seed: options.Seed = 0,
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
    from gifthorse.triggers.storage import open_trigger
    from gifthorse.workflows import scan as scanning
    from gifthorse.workflows.opening import Inputs

    inputs = Inputs(images, arch, normalize, parsing.size(input_size), limit, device, part)
    request = scanning.Request(
        detectors=tuple(detector or ()),
        options=parsing.pairs(changes),
        preset=preset,
        classes=parsing.classes(classes) if classes is not None else (),
        pairs=class_pairs,
        time_limit=parsing.seconds(time_limit),
        budget=budget,
        resume=resume,
        seed=seed,
        command=shlex.join(["gifthorse", *sys.argv[1:]]),
    )
    fail, writers = parsing.fail_on(fail_on), parsing.outputs(output_format, out or (), len(models))
    if truth is not None:
        open_trigger(truth)  # what is wrong with it is said before anything is scanned
    codes = []
    for model in models:
        with bar(Path(model).name) as progress, going_on(resume, request.command):
            report = scanning.scan(model, inputs, request, progress)
        for path in emit(report, writers, fail):
            err.print(f"wrote {path}", markup=False)
        if truth is not None:
            err.print(scanning.compared(report, truth), markup=False)
        codes.append(exit_code(report, fail))
    code = next((c for c in (1, 2, 3) if c in codes), 0)
    raise typer.Exit(0 if exit_zero and code == 1 else code)


def emit(
    report: Report,
    wanted: Sequence[tuple[str, Path | None]],
    fail: FailOn,
) -> list[Path]:
    """Write a report in every format; return the files written, each whole or not at all."""
    from gifthorse.report import WRITERS, render

    written = []
    for name, target in wanted:
        if target is None and name == "text":
            render(report, console, fail_on=fail)
        elif target is None:
            console.out(WRITERS[name](report), highlight=False)
        else:
            stem = Path(report.origin.path).stem
            path = Path(str(target).replace("{name}", stem))
            path.parent.mkdir(exist_ok=True)
            with atomic(path) as file:
                file.write(WRITERS[name](report).encode())
            written.append(path)
    return written
