"""The command `compare-triggers`: what several methods make of the same model and goals."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gifthorse.cli import options, parsing
from gifthorse.cli.terminal import bar, note, tell
from gifthorse.core.errors import BadOption, Incomplete
from gifthorse.core.run import Run
from gifthorse.core.types import Goal

if TYPE_CHECKING:
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.prepare import Prepared

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from


@commands.command("compare-triggers")
def compare_triggers(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    model: options.Model,
    images: options.Images,
    arch: options.Arch = None,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
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
            "default all. They are files: give --out."
        ),
    ] = None,
    points: Annotated[
        int,
        typer.Option(help="Grid points a side of a landscape, odd; 51 takes twelve times as long."),
    ] = 15,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change an option; METHOD.NAME for one."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds of any method.")] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    time_limit: options.TimeLimit = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Write record and figures.")
    ] = None,
) -> None:
    """Search triggers by several methods and compare their size, success and robustness."""
    from gifthorse.workflows import compare as comparing
    from gifthorse.workflows.opening import Inputs  # late: they load every method

    comparison = comparing.ComparisonConfig(
        methods=tuple(dict.fromkeys(method or comparing.METHODS)),
        figures=tuple(dict.fromkeys(figure or (comparing.FIGURES if out else ()))),
        points=points,
        options=parsing.pairs(changes),
        rounds=rounds,
        seed=seed,
    )
    if figure and out is None:
        raise BadOption("--figure draws files: say with --out DIR where to")
    comparing.inverters(comparison)  # what is wrong is said before anything is opened
    goals = partial(read_goals, targets=classes, pairs_of=class_pairs, every=all_pairs)
    goals(0)
    seconds = parsing.seconds(time_limit)
    size = parsing.size(input_size)
    inputs = Inputs(images, arch, normalize, size, limit, device, part, signer=signer_key)
    if out is not None:
        comparing.make(out)
    prepared = sane(model, inputs)
    comparison = replace(comparison, goals=goals(prepared.subject.classes))
    subject, names = prepared.subject, prepared.preparation.class_names
    run = Run(None, seconds, device=subject.device)
    with bar(Path(model).name) as run.progress:
        found = comparing.search(subject, prepared.samples, comparison, run, names=names)
    tell(comparing.table(found.record))
    if out is None:
        return
    for path in comparing.write(found, out):
        note(f"wrote {path}")
    if found.views:  # they take longer than all else together: what there is, is written by now
        with bar(f"landscapes of {Path(model).name}") as run.progress:
            around = comparing.survey(found, run)
        for path in comparing.write(around, out, ["landscape"]):
            note(f"wrote {path}")


def sane(model: str, inputs: Inputs) -> Prepared:
    """Open a model and its images, and make sure that it does its job on them.

    Raises:
        UnreadableModel: If the file cannot be opened.
        BadImages: If the images cannot be used.
        Incomplete: If the model fails the checks that a scan begins with.
    """
    from gifthorse.workflows.opening import opened

    prepared = opened(model, inputs)
    for check in prepared.checks:
        if check.severity in ("HIGH", "CRITICAL"):
            raise Incomplete(f"nothing was compared: {check.message}", rule=check.rule)
    return prepared


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
    classes = range(count) if targets is None else parsing.classes(targets)
    if every:
        return tuple(Goal(t, s) for s, t in permutations(classes, 2))
    return tuple(Goal(k) for k in classes)
