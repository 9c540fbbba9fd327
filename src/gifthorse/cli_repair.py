"""The command `repair`: a safer model from one that is not trusted, with before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import Generator

from gifthorse.cli_support import bar, pairs
from gifthorse.errors import UnknownMethod
from gifthorse.session import LocalSession
from gifthorse.types import Rate

commands = typer.Typer()  # what `gifthorse.cli` takes its command from


@commands.command()
def repair(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file.")],
    images: Annotated[str, typer.Option(help="Clean images: folder, .npz, NAME[:SPLIT].")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The .safetensors file to write.")],
    method: Annotated[
        str, typer.Option(help="One of `gifthorse list remedies`.")
    ] = "unlearning_quick",
    arch: Annotated[
        str | None, typer.Option(help="Net, timm:NAME, torchvision:NAME, module:f, file.py:f.")
    ] = None,
    normalize: Annotated[str, typer.Option(help="auto, none, cifar10 ... or MEAN/STD.")] = "auto",
    share: Annotated[float, typer.Option(help="Share of the images that may be used.")] = 0.5,
    truth: Annotated[
        Path | None, typer.Option(help="The true trigger, if known: say what is left of it.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change an option; repeat as needed."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same model on the same machine.")] = 0,
) -> None:
    """Write a safer copy of a model, and say what that cost and what it achieved.

    The remedy uses one part of the clean images; all figures are from the other.
    """
    from gifthorse import examine, repairing
    from gifthorse.intake import parse
    from gifthorse.models import load
    from gifthorse.options import vary
    from gifthorse.remedies import REMEDIES

    if method not in REMEDIES:
        raise UnknownMethod.among("remedy", method, REMEDIES)
    remedy = vary(REMEDIES[method], pairs(options))
    known = repairing.open_truth(truth) if truth is not None else None
    request = examine.Request(images, arch, normalize)
    received = examine.take_in(load(model, arch), request, parse(normalize), None)
    rng = Generator().manual_seed(seed)
    with bar(f"{method} on {Path(model).name}") as progress:
        done = repairing.repair(
            received, remedy, rng, share=share, truth=known, session=LocalSession(progress)
        )
    said = repairing.record(method, remedy, seed, received, done)
    written = repairing.write(out, done, said)
    for key, before in done.before.items():
        typer.echo(f"{key:10} {spoken(before)}  ->  {spoken(done.after[key])}")
    typer.echo(f"{'lost':10} {spoken(done.drop)} of accuracy, on {done.judged} images not used")
    typer.echo(f"{'seconds':10} {done.seconds:.0f}")
    for path in written:
        typer.echo(f"{'wrote':10} {path}")
    typer.echo("A repair is no proof: scan the new file, too.")


def spoken(r: Rate) -> str:
    """Return a figure with its interval."""
    return f"{r.value:7.2%} [{r.low:.2%}, {r.high:.2%}]"
