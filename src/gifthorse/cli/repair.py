"""The command `repair`: a safer model from one that is not trusted, with before and after."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from torch import Generator

from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import bar, note, tell
from gifthorse.core.atomic import atomic, check_writable
from gifthorse.core.errors import BadOption, UnknownMethod
from gifthorse.core.run import Run
from gifthorse.core.types import Inverter, Remedy
from gifthorse.report import repairs

if TYPE_CHECKING:
    from gifthorse.models import Opened
    from gifthorse.report.repairs import RepairRecord
    from gifthorse.workflows.repair import Repaired, Scanned

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from


@commands.command()
def repair(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    model: options.Model,
    images: options.Images,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")],
    method: Annotated[
        str, typer.Option(help="One of `gifthorse list remedies`.")
    ] = "unlearning_quick",
    scan: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULT.json", help="What scan -o json=PATH wrote: use the triggers it found."
        ),
    ] = None,
    arch: options.Arch = None,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    share: Annotated[float, typer.Option(help="Share of the images that may be used.")] = 0.5,
    truth: Annotated[
        Path | None, typer.Option(help="The true trigger, if known: say what is left of it.")
    ] = None,
    distances: Annotated[
        bool, typer.Option("--distances", help="Also measure class distances (two searches).")
    ] = False,
    report: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT=PATH", help="Also write html or text; repeat as needed."),
    ] = None,
    changes: options.Options = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Write a safer copy of a model, and say what that cost and what it achieved.

    The remedy uses one part of the clean images; all figures are from the other. Images are
    mirrored in training only if the model is as right about mirrored ones, unless
    --set recipe.flip says what to do. Remedies that reform images, such as smoothing, are judged
    alike; they leave the weights as they are, so there is no copy, only the record and what the
    reformer learned.
    """
    from gifthorse.core.options import vary
    from gifthorse.models import load
    from gifthorse.remedies import REMEDIES
    from gifthorse.workflows import repair as repairing
    from gifthorse.workflows.opening import Inputs, take_in

    if method not in REMEDIES:
        raise UnknownMethod.among("remedy", method, REMEDIES)
    drawn, named = _reports(report or ()), parsing.pairs(changes)
    outputs = [*repairing.outputs(out), *(path for _, path in drawn)]
    _check_outputs(outputs, (model, scan, images, arch, truth, signer_key))
    remedy = vary(REMEDIES[method], named)
    inputs = Inputs(
        images, arch, normalize, parsing.size(input_size), device=device, part=part,
        signer=signer_key,
    )  # fmt: skip
    known = repairing.open_truth(truth) if truth is not None else None
    found = repairing.open_scan(scan) if scan is not None else None
    opened = load(model, arch, part, signer=signer_key).writable()
    informed = remedy if found is None else _informed(remedy, found, opened, method)
    prepared = take_in(opened, inputs)
    rng, far = Generator().manual_seed(seed), None
    with bar(f"{method} on {Path(model).name}") as progress:
        run = Run(progress, device=prepared.subject.device)
        done = repairing.repair(
            prepared, informed, rng, run, share=share, truth=known,
            known=found.recovered if found else (), mirror=repairing.FLIP not in named,
        )  # fmt: skip
        if distances:
            far = repairing.spread(prepared.subject, done, inverter(remedy), rng, run)
    command = shlex.join(["gifthorse", *sys.argv[1:]])
    order = repairing.Order(method, remedy, seed, command, found)
    said = repairing.record(order, prepared, done, far)
    written = [*repairing.write(out, done, said), *_draw(drawn, done, said)]
    tell(repairs.WRITERS["text"](said))
    _tell_written(written, in_folder=Path(model).is_dir() and not done.reforms)


def _tell_written(paths: Sequence[Path], in_folder: bool) -> None:
    for path in paths:
        tell(f"  {'wrote':11}  {path}")
    if in_folder:
        tell(f"  {'to use it':11}  put it into a copy of the model's folder as model.safetensors")


def _check_outputs(outputs: Sequence[Path], sources: Sequence[str | Path | None]) -> None:
    """Say before anything is repaired what cannot be written, or would replace what is read.

    Raises:
        BadOption: If a file would replace one that is read, or another one.
        Unwritable: If one cannot be written.
    """
    parsing.keep(outputs, sources)
    taken: dict[str, Path] = {}
    for path in outputs:
        place = parsing.real(path)
        if place in taken:
            raise BadOption(f"{path} would replace {taken[place]}: give it another name")
        check_writable(path)
        taken[place] = path


def _informed(remedy: Remedy, found: Scanned, opened: Opened, method: str) -> Remedy:
    """Return a remedy that knows what a scan of the same file found."""
    from gifthorse.workflows.repair import needs_triggers

    found.check(opened.origin, opened.classes)
    if not (found.classes or needs_triggers(remedy)):
        note(f"{found.path} says {found.label}; {method} needs no trigger")
    return found.inform(remedy)


def _draw(wanted: Sequence[tuple[str, Path]], done: Repaired, said: RepairRecord) -> list[Path]:
    """Write the further reports, each whole or not at all; return their files."""
    for kind, path in wanted:
        with atomic(path) as file:
            file.write(repairs.WRITERS[kind](said, done.exhibits).encode())
    return [path for _, path in wanted]


def _reports(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Read `--report FORMAT=PATH`.

    Raises:
        BadOption: If one is something else, or its folder does not exist.
        UnknownMethod: If there is no such format.
    """
    wanted = []
    for text in texts:
        kind, equals, path = text.partition("=")
        if not equals or not path:
            raise BadOption(f"--report takes FORMAT=PATH such as html=repair.html; got {text!r}")
        if kind not in repairs.WRITERS:
            raise UnknownMethod.among("format", kind, repairs.WRITERS)
        if not Path(path).resolve().parent.is_dir():
            raise BadOption(f"cannot write {path}: its folder does not exist")
        wanted.append((kind, Path(path)))
    return wanted


def inverter(remedy: Remedy) -> Inverter:
    """Return what measures distances: the search of the remedy, or else the quick one."""
    from gifthorse.remedies import REMEDIES, Unlearning

    for one in (remedy, REMEDIES["unlearning_quick"]):
        if isinstance(one, Unlearning):
            return one.inverter
    raise AssertionError("unreachable: the quick remedy searches")
