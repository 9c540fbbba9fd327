"""Repair a model: a remedy, what it cost, what it achieved, and the file that comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Generator

from gifthorse import __version__
from gifthorse.data.samples import split, whole
from gifthorse.errors import BadOption, Incomplete, UsageError
from gifthorse.intake import Received
from gifthorse.metrics import accuracy, asr, clean_drop
from gifthorse.models.load import save
from gifthorse.models.normalize import Classifier
from gifthorse.options import describe
from gifthorse.tensors import spawn
from gifthorse.training import predict
from gifthorse.triggers.storage import open_trigger
from gifthorse.types import Goal, Rate, Remedy, Samples, Session, Subject, Trigger
from gifthorse.writing import atomic


@dataclass(frozen=True, eq=False)
class Truth:
    """The true trigger of a test model, to see how well a repair did."""

    trigger: Trigger
    goal: Goal


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired model beside the one it was made from.

    Attributes:
        subject: The repaired classifier.
        before: Figures of the model as it came, each with its interval.
        after: The same figures of the repaired one.
        drop: How much accuracy was lost, with an interval that knows that the images are the same.
        images: Clean images that the remedy used.
        judged: Clean images that it did not use, and that figures are from.
        seconds: Wall time of the remedy.
    """

    subject: Subject
    before: Mapping[str, Rate]
    after: Mapping[str, Rate]
    drop: Rate
    images: int
    judged: int
    seconds: float


def repair(
    received: Received,
    remedy: Remedy,
    rng: Generator,
    *,
    share: float = 0.5,
    truth: Truth | None = None,
    session: Session | None = None,
) -> Repaired:
    """Apply a remedy with some of the clean images and judge it on the others.

    Args:
        received: The model and its clean images, as a scan takes them in.
        remedy: What makes it safer; it never sees the images that it is judged on.
        rng: Source of all randomness.
        share: Share of the clean images that the remedy may use, in (0, 1).
        truth: The true trigger, if known; the remedy does not see it.
        session: Who watches.

    Raises:
        BadOption: If the share leaves no images to one side.
        Incomplete: If the model fails the checks that a scan begins with.
    """
    for check in received.checks:
        if check.severity in ("HIGH", "CRITICAL"):
            raise Incomplete(f"nothing was repaired: {check.message}", rule=check.rule)
    if not 0 < share < 1:
        raise BadOption(f"share must lie between 0 and 1, both excluded; got {share}")
    used, unseen = split(received.samples, share, spawn(rng))
    if not len(used) or not len(unseen):
        raise BadOption(f"share {share} leaves no images to repair with or to judge by: add images")
    started = time.monotonic()
    made = remedy(received.subject, used, rng, session=session)
    seconds = time.monotonic() - started
    x, y = whole(unseen)
    predictions = [predict(s, x).argmax(1) for s in (received.subject, made)]
    before, after = (_figures(s, unseen, truth) for s in (received.subject, made))
    drop = clean_drop(predictions[0], predictions[1], y)
    return Repaired(made, before, after, drop, len(used), len(unseen), seconds)


def _figures(subject: Subject, unseen: Samples, truth: Truth | None) -> dict[str, Rate]:
    x, y = whole(unseen)
    out = {"accuracy": accuracy(predict(subject, x).argmax(1), y)}
    if truth is not None:
        stamped = predict(subject, truth.trigger(x)).argmax(1)
        out["asr"] = asr(stamped, y, truth.goal)
    return out


def open_truth(path: Path) -> Truth:
    """Read the true trigger of a test model, and what it does.

    Raises:
        UsageError: If the file is no trigger that `gifthorse attack` wrote.
    """
    trigger = open_trigger(path)
    with safe_open(path, "pt") as file:
        claims = file.metadata() or {}
    try:
        goal = json.loads(claims["gifthorse"])["goal"]
        return Truth(trigger, Goal(int(goal["target"]), goal["source"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} does not say which class its trigger is for") from error


def record(name: str, remedy: Remedy, seed: int, received: Received, done: Repaired) -> Any:
    """Return everything about a repair that can be said in JSON."""
    origin = received.subject.origin
    return {
        "repaired": {"path": origin.path, "sha256": origin.sha256, "arch": origin.arch},
        "method": name,
        "options": {k: str(v) for k, v in describe(remedy).items()},
        "seed": seed,
        "images": {"used": done.images, "judged": done.judged, "source": received.intake.source},
        "before": {k: asdict(v) for k, v in done.before.items()},
        "after": {k: asdict(v) for k, v in done.after.items()},
        "drop": asdict(done.drop),
        "seconds": done.seconds,
        "versions": {"gifthorse": __version__, "torch": torch.__version__},
    }


def write(path: Path, done: Repaired, said: Any) -> list[Path]:
    """Write the repaired model, which says what was done to it, and the record beside it.

    Raises:
        BadOption: If the remedy reforms inputs, which no file of weights can hold.
    """
    if not isinstance(done.subject.net, Classifier):
        raise BadOption(
            f"{said['method']} reforms the inputs of a net, which cannot be saved as weights: "
            "use it in Python, or take a remedy that changes the net"
        )
    n = done.subject.net.normalize.normalization
    words = (
        f"Repaired by gifthorse with {said['method']}, from sha256 {said['repaired']['sha256']}. "
        "That is no proof that no backdoor is left: scan it."
    )
    known = {**said, "normalization": {"name": n.name, "mean": list(n.mean), "std": list(n.std)}}
    save(
        path,
        dict(done.subject.net.net.state_dict()),
        {"description": words, "gifthorse": json.dumps(known)},
    )
    beside = path.with_suffix(".json")
    with atomic(beside) as file:
        file.write(json.dumps(said, indent=1).encode())
    return [path, beside]
