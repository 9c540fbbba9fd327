"""A small net with a patch backdoor, and how far a remedy gets with it."""

from __future__ import annotations

from functools import cache

import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks import ATTACKS
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.training import evaluate, fit, predict

GOAL = Goal(2)
TRAIN, CLEAN, TEST = (blob_images(each=n, seed=s) for n, s in ((80, 0), (20, 2), (40, 1)))
TUNING: dict[str, object] = {
    "recipe.epochs": 5,
    "recipe.batch": 20,
    "recipe.pad": 1,
    "recipe.bf16": False,
}
TUNING |= {"recipe.lr": 0.02}


@cache
def planted() -> Implant:
    """A net that sends images with a patch in the corner to class 2."""
    return _badnet(0, {})


@cache
def dotted(seed: int) -> Implant:
    """The same with a patch of one pixel, which no other way to class 2 is as small as."""
    return _badnet(seed, {"stamp.size": 1, "recipe.epochs": 12})


def _badnet(seed: int, own: dict[str, object]) -> Implant:
    short = {f"recipe.{name}": value for name, value in describe(QUICK).items()}
    attack = vary(ATTACKS["badnet"], short | {"mixing.rate": 0.1} | own)
    return attack(blobs(seed), TRAIN, GOAL, Generator().manual_seed(seed), Run())


@cache
def benign() -> Subject:
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


def success(subject: Subject, trigger: Trigger | None = None) -> float:
    """How often a trigger, that of `planted` if none is given, works on test images."""
    x, y = whole(TEST)
    return asr(predict(subject, (trigger or planted().trigger)(x)).argmax(1), y, GOAL).value


def right(subject: Subject) -> float:
    """Accuracy on clean test images."""
    return accuracy(evaluate(subject, TEST), TEST.labels).value


def state(subject: Subject) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in subject.net.state_dict().items()}


def same(one: Subject, other: Subject) -> bool:
    """Whether two nets are bit for bit the same."""
    there = other.net.state_dict()
    return all(torch.equal(v, there[k]) for k, v in one.net.state_dict().items())
