"""The command `compare-triggers`: what several methods make of the same model and goals."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gifthorse.cli.support import bar, err, pairs
from gifthorse.core.errors import BadOption, Incomplete
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.models import load
from gifthorse.workflows.prepare import Received, parse

if TYPE_CHECKING:
    from gifthorse.workflows.scan import Request

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from


@commands.command("compare-triggers")
def compare_triggers(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file.")],
    images: Annotated[str, typer.Option(help="Clean images: folder, .npz, NAME[:SPLIT].")],
    arch: Annotated[
        str | None, typer.Option(help="Net, timm:NAME, torchvision:NAME, module:f, file.py:f.")
    ] = None,
    normalize: Annotated[str, typer.Option(help="auto, none, cifar10 ... or MEAN/STD.")] = "auto",
    input_size: Annotated[str | None, typer.Option(help="HxW to resize images to.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many images.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Target classes, such as 0,3,7-9; default all.")
    ] = None,
    class_pairs: Annotated[
        str | None, typer.Option("--pairs", help="SOURCE:TARGET,... such as 0:5,3:1.")
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Every pair of classes, or of --classes.")
    ] = False,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="One of `gifthorse list inverters`; repeatable, default pixel_clip, "
            "neural_cleanse_baseline and uap."
        ),
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="sizes, success, robustness, landscape, histogram or curves; repeatable, "
            "default all."
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change an option; METHOD.NAME for one."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds of any method.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result on the same machine.")] = 0,
    time_limit: Annotated[
        str | None, typer.Option(help="Stop searching after 90, 90s, 10m or 1h.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Write record and figures.")
    ] = None,
) -> None:
    """Search triggers by several methods and compare their size, success and robustness."""
    from gifthorse.workflows import compare as comparing
    from gifthorse.workflows import scan as examine  # late: they load every method

    comparison = comparing.Comparison(
        methods=tuple(dict.fromkeys(method or comparing.METHODS)),
        figures=tuple(dict.fromkeys(figure or comparing.FIGURES)),
        options=pairs(options),
        rounds=rounds,
        seed=seed,
    )
    comparing.inverters(comparison)  # what is wrong is said before anything is opened
    goals = partial(read_goals, targets=classes, pairs_of=class_pairs, every=all_pairs)
    goals(0)
    seconds = examine.parse_time(time_limit)
    if out is not None:
        comparing.make(out)
    received = opened(model, examine.Request(images, arch, normalize, input_size, limit))
    comparison = replace(comparison, goals=goals(received.subject.classes))
    with bar(Path(model).name) as progress:
        compared = comparing.compare(
            received.subject,
            received.samples,
            comparison,
            run=Run(progress, seconds),
            names=received.intake.class_names,
        )
    typer.echo(comparing.table(compared.record), nl=False)
    for path in comparing.write(compared, out) if out is not None else ():
        err.print(f"wrote {path}", markup=False)


def opened(model: str, request: Request) -> Received:
    """Open a model and its images, and make sure that it does its job on them.

    Raises:
        UnreadableModel: If the file cannot be opened.
        BadImages: If the images cannot be used.
        Incomplete: If the model fails the checks that a scan begins with.
    """
    from gifthorse.workflows import scan as examine

    named, size = parse(request.normalize), examine.parse_size(request.input_size)
    received = examine.take_in(load(model, request.arch), request, named, size)
    for check in received.checks:
        if check.severity in ("HIGH", "CRITICAL"):
            raise Incomplete(f"nothing was compared: {check.message}", rule=check.rule)
    return received


def read_goals(
    count: int, targets: str | None, pairs_of: str | None, every: bool
) -> tuple[Goal, ...]:
    """Read what triggers are searched for.

    Args:
        count: How many classes the model has.
        targets: `--classes`, such as `0,3,7-9`; None takes all.
        pairs_of: `--pairs`, such as `0:5,3:1`.
        every: `--all-pairs`: all ordered pairs of the classes.

    Raises:
        BadOption: If a text is something else, or two flags contradict each other.

    Example:
        >>> read_goals(10, None, "0:5,3:1", False)
        (Goal(target=5, source=0), Goal(target=1, source=3))
    """
    if pairs_of is not None and (every or targets is not None):
        raise BadOption("--pairs names all goals: leave --classes and --all-pairs away")
    if pairs_of is not None:
        found = [
            re.fullmatch(r"(\d{1,6}):(\d{1,6})", p.strip(), re.ASCII) for p in pairs_of.split(",")
        ]
        if not all(found):
            raise BadOption(f"--pairs takes SOURCE:TARGET,... such as 0:5,3:1; got {pairs_of!r}")
        return tuple(dict.fromkeys(Goal(int(f[2]), int(f[1])) for f in found if f))
    from gifthorse.workflows.scan import parse_classes

    classes = range(count) if targets is None else parse_classes(targets)
    if every:
        return tuple(Goal(t, s) for s, t in permutations(classes, 2))
    return tuple(Goal(k) for k in classes)
