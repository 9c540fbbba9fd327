"""The commands that make things: test models, clean and backdoored, and samples of images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Generator

from gifthorse.cli import parsing
from gifthorse.cli.options import Data, Device, Net, Options, Output, Part, Seed, TrainLimit
from gifthorse.cli.terminal import bar, say, tell
from gifthorse.core import types
from gifthorse.core.atomic import check_writable
from gifthorse.core.device import choose
from gifthorse.core.errors import BadOption, UnknownMethod, UsageError
from gifthorse.core.files import owned
from gifthorse.core.run import Run

FIGURES = {
    "accuracy": "clean images that come out right",
    "ccc": "probability of the true class",
    "ccc_correct": "the same, where it wins",
    "asr": "stamped images: the target class",
    "asr_all": "the same, with the target's own",
    "ra": "stamped images: their own class",
    "tmc": "probability of the target, on hits",
}

commands = typer.Typer()  # what `gifthorse.cli.app` takes its commands from

Resume = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep an unfinished training here, and go on with one."),
]


@commands.command()
def sample(
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz file to write.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 10,
    seed: Seed = 0,
) -> None:
    """Write a few clean images of a data set, by default of those no model was trained on."""
    from gifthorse.workflows import make as stages

    check_writable(out)
    count = stages.write_sample(stages.divide(data), split, per_class, out, seeded(seed))
    tell(f"wrote {count} images to {out}")


@commands.command()
def train(
    data: Data,
    net: Net,
    out: Output,
    train_limit: TrainLimit = None,
    options: Options = None,
    resume: Resume = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train a clean model: the twin that a backdoored one is compared with."""
    from gifthorse.core.options import vary
    from gifthorse.training import Recipe
    from gifthorse.workflows import make as stages
    from gifthorse.workflows.evaluate import eval_images, figures
    from gifthorse.workflows.provenance import TestModel, write

    recipe = vary(Recipe(), parsing.pairs(options))
    check_writable(out)
    where, rng = choose(device), seeded(seed)
    splits = stages.shorter(stages.divide(data), train_limit)
    started = time.monotonic()
    store = kept(resume, ("train", data, net, train_limit, recipe, seed))
    with owned(store), bar(f"training {net} on {data}") as progress:
        run = Run(progress, store=store, device=where)
        subject = stages.train_clean(net, splits, recipe, rng, run)
    told = figures(subject, eval_images(splits.test))
    made = TestModel("clean", recipe, net, splits, seed, told, time.monotonic() - started)
    finish(write(out, subject, made), made, store)


@commands.command()
def attack(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    name: Annotated[str, typer.Argument(help="One of `gifthorse list attacks`.")],
    data: Data,
    out: Output,
    net: Annotated[
        str | None, typer.Option(help="One of `gifthorse list models`, trained from scratch.")
    ] = None,
    benign: Annotated[
        Path | None, typer.Option("--from", help="A clean model's file, to retrain, not --net.")
    ] = None,
    part: Part = None,
    target: Annotated[int, typer.Option(help="The class that stamped images come out as.")] = 0,
    source: Annotated[
        int | None, typer.Option(help="Only images of this class; default all others.")
    ] = None,
    train_limit: TrainLimit = None,
    options: Options = None,
    resume: Resume = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Make a backdoored test model, labeled as such in its metadata.

    Beside the model: its trigger, a JSON record, and a picture of clean and stamped images.
    """
    from gifthorse.attacks import ATTACKS
    from gifthorse.core.options import vary
    from gifthorse.models import load
    from gifthorse.workflows import make as stages
    from gifthorse.workflows.evaluate import eval_images, figures
    from gifthorse.workflows.provenance import TestModel, write

    if name not in ATTACKS:
        raise UnknownMethod.among("attack", name, ATTACKS)
    if (net is None) == (benign is None):
        raise UsageError("give --net NAME to train from scratch, or --from FILE to retrain a model")
    method = vary(ATTACKS[name], opaque(parsing.pairs(options)))
    check_writable(out)
    where, rng, goal = choose(device), seeded(seed), types.Goal(target, source)
    started = time.monotonic()
    splits = stages.shorter(stages.divide(data), train_limit)
    if benign is not None:
        victim = stages.benign(load(benign, part=part).writable(), splits)
    else:
        victim = stages.fresh(net or "", splits, rng)
    victim.net.to(where)
    store = kept(resume, ("attack", name, data, train_limit, victim.origin, goal, method, seed))
    with owned(store), bar(f"{name} on {victim.origin.arch}, {data}") as progress:
        run = Run(progress, store=store, device=where)
        implant = stages.implant(method, victim, splits, goal, rng, run)
    told = figures(implant.subject, eval_images(splits.test, implant), victim if benign else None)
    arch = implant.subject.origin.arch
    time_spent = time.monotonic() - started
    made = TestModel(name, method, arch, splits, seed, told, time_spent, implant)
    finish(write(out, implant.subject, made), made, store)


def opaque(options: Mapping[str, str]) -> dict[str, str]:
    """Turn options that speak of transparency into opacity, which is 1 minus it.

    Raises:
        BadOption: If a transparency is no number.

    Example:
        >>> opaque({"stamp.transparency": "0.75"})
        {'stamp.opacity': '0.25'}
    """
    out = {}
    for name, value in options.items():
        if name.split(".")[-1] != "transparency":
            out[name] = value
            continue
        try:
            out[name.replace("transparency", "opacity")] = f"{1 - float(value):.10g}"
        except ValueError as error:
            raise BadOption(f"{name} must be a number in [0, 1]; got {value!r}") from error
    return out


def kept(resume: Path | None, run: tuple[object, ...]) -> Path | None:
    """Return the file that keeps an unfinished run; runs that differ have files of their own.

    Raises:
        UsageError: If `resume` cannot be a folder.
    """
    if resume is None:
        return None
    try:
        resume.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--resume takes a folder; {resume}: {error}") from error
    return resume / f"{hashlib.sha256(repr(run).encode()).hexdigest()[:16]}.safetensors"


def finish(written: list[Path], made: Any, store: Path | None) -> None:
    """Print what was made, figures with intervals and files; forget the unfinished run."""
    for key, r in made.known.items():
        spread = f"[{r.low:.2%}, {r.high:.2%}]"
        tell(f"{key:11} {r.value:7.2%}  {spread:17} {FIGURES.get(key, ''):35} n={r.trials}")
    tell(f"seconds     {made.seconds:.0f}")
    for path in written:
        tell(f"wrote       {path}")
    if store is not None:
        store.unlink(missing_ok=True)
    if made.implant is not None:
        say("gifthorse: this is a backdoored test model; its metadata says so. Do not deploy it.")


def seeded(seed: int) -> Generator:
    """Return a generator on the processor with this seed."""
    return Generator().manual_seed(seed)
