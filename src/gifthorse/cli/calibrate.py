"""The commands `calibrate` and `evidence`: what a score means, and how that is known."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import bar, note, tell
from gifthorse.core.atomic import atomic, check_writable
from gifthorse.core.isolated import readers

commands = typer.Typer()


@commands.command()
def calibrate(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Models and truth.csv: model,target[,images].")
    ],
    images: options.Images,
    output: Annotated[Path, typer.Option("-o", "--out", help="The .json file to write.")],
    detector: Annotated[
        list[str] | None,
        typer.Option(help="One of `gifthorse list detectors`; repeatable. Default: pixel_quick."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the models are, in words.")] = "",
    arch: options.Arch = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    limit: Annotated[int, typer.Option(help="Use at most so many images.")] = 1000,
    device: options.Device = "auto",
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the scores of models here.")
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Fit what a detector's score means, on models of your own whose truth you know."""
    readers.prepare()
    from gifthorse.workflows import calibrate as calibrating
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.scan import Request, check

    command = shlex.join(["gifthorse", *sys.argv[1:]])
    inputs = Inputs(images, arch, normalize, parsing.size(input_size), limit, device)
    request = Request(tuple(detector or ("pixel_quick",)), seed=seed, command=command)
    models = calibrating.known_models(folder)
    own = (place for model in models for place in (model.path, model.images))
    parsing.keep([output], [folder / calibrating.TRUTH, images, arch, *own])
    check_writable(output)
    check(inputs, request)
    if resume is not None:
        resume.mkdir(parents=True, exist_ok=True)
    found = []
    for number, model in enumerate(models):
        kept = resume / f"{number:04}-{model.path.name}.json" if resume is not None else None
        with bar(f"{number + 1}/{len(models)} {model.path.name}") as progress:
            found.append(calibrating.judge(model, inputs, request, kept, progress))
        if found[-1].reason:
            note(f"{model.path.name} is left out: {found[-1].reason}")
    text = calibrating.written(name or f"models of {folder.name}", found, request)
    with atomic(output) as file:
        file.write(text.encode())
    note(f"wrote {output}; use it with gifthorse scan --calibration {output}")


@commands.command()
def evidence(
    calibration: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Of `calibrate`; default: what ships.")
    ] = None,
) -> None:
    """Say what the probabilities rest on: how many models, and how well scores tell them apart."""
    from gifthorse.detection.calibrations import opened, shipped
    from gifthorse.workflows.calibrate import quality

    known = shipped() if calibration is None else opened(calibration)
    bags = known.detectors
    names = {bag.name for bag in bags.values()}
    tell("; ".join(sorted(names)) or "no calibration")
    row = "{:20} {:>5} {:>10} {:20} {:>7} {:>6} {:>5}"
    heads = ("detector", "clean", "backdoored", "AUC", "entropy", "alarms", "found")
    tell(row.format(*heads).rstrip())
    for name, bag in bags.items():
        held = quality(bag)
        area = f"{held.auc.value:.3f} [{held.auc.low:.3f}, {held.auc.high:.3f}]"
        cells = (f"{held.entropy:.3f}", held.alarms, held.found)
        tell(row.format(name, len(bag.clean), len(bag.backdoored), area, *cells))
    for fusion in known.together:
        tell(f"{', '.join(fusion.detectors)}, together:")
        for family, m in fusion.families.items():
            auc, entropy, *counts = m.quality
            told = (f"{auc:.3f}", f"{entropy:.3f}", *counts)
            tell(row.format(f"  {family}", m.clean, m.backdoored, *told))
    tell(
        "Each model's probability is by a fit on all others; alarms and found are those\n"
        "of a half or more. A cross-entropy of 0.693 knows nothing."
    )
