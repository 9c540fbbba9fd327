"""A trial: its terms, images with and without the trigger, what a model says of them, figures."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from gifthorse.bench.outcome import Figure
from gifthorse.core.errors import BadImages
from gifthorse.core.fields import AtLeast, AtMost, Below, NotNegative, Positive, method
from gifthorse.core.metrics import (
    accuracy,
    asr,
    asr_all,
    asr_drop,
    change,
    clean_drop,
    confidence,
    confidence_change,
    confidence_correct,
    der,
    rir,
    robust_accuracy,
    target_confidence,
)
from gifthorse.core.types import Goal, Images, Implant, Labels, Logits, Rate, Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.training import predict


@method
class Terms:
    """How defenses are judged.

    Attributes:
        pairs: Images, each clean and stamped, that filters are tried on.
        stamped: Share of stamped images among those that a filter is shown together; less than a
            half adds clean ones.
        fpr: Share of clean images that a filter may flag.
        timed: Whether to measure seconds an image.
        repeats: How often that is measured, at least 5; the median counts.
    """

    pairs: Annotated[int, AtLeast(1)] = 100
    stamped: Annotated[float, Positive, AtMost(0.5)] = 0.5
    fpr: Annotated[float, NotNegative, Below(1)] = 0.05
    timed: bool = False
    repeats: Annotated[int, AtLeast(5)] = 5


@dataclass(frozen=True, eq=False)
class Trial:
    """Test images, the same with the trigger, their labels, and what the backdoor is for.

    The trigger is copied first: one that draws its places draws the same ones in every judgment.

    Attributes:
        x: Images, `(N, C, H, W)`.
        y: Their labels, `(N,)`.
        stamped: The same images with the trigger; None for a clean model.
        goal: What the backdoor is for.
    """

    x: Images
    y: Labels
    stamped: Images | None = None
    goal: Goal | None = None

    @property
    def meant(self) -> Tensor:
        """Which images the backdoor is meant for, `(N,)` bool; none without a backdoor."""
        if self.goal is None:
            return torch.zeros_like(self.y, dtype=torch.bool)
        return self.goal.meant(self.y)


def stamp(made: Implant, x: Images) -> Images:
    """Return images with the trigger, a copy of it: the original keeps the places it would draw."""
    with torch.no_grad():
        return deepcopy(made.trigger)(x)


def tested(samples: Samples, made: Implant | None) -> Trial:
    """Return images as a model is tried with them.

    Raises:
        BadImages: If there are none.
    """
    x, y = whole(samples)
    if not len(x):
        raise BadImages("there are no test images to judge on")
    if made is None:
        return Trial(x, y)
    return Trial(x, y, stamp(made, x), made.goal)


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits `(N, K)` of the images of a trial, clean and stamped."""

    clean: Logits
    stamped: Logits | None


def asked(subject: Subject, trial: Trial) -> Answers:
    """Return what a model says of images."""
    stamped = None if trial.stamped is None else predict(subject, trial.stamped)
    return Answers(predict(subject, trial.x), stamped)


def measured(answers: Answers, trial: Trial) -> dict[str, Rate | None]:
    """Return the figures of a model; those of the backdoor where there is one."""
    clean, y = answers.clean, trial.y
    out: dict[str, Rate | None] = {
        "accuracy": accuracy(clean.argmax(1), y),
        "ccc": confidence(clean, y),
        "ccc_correct": confidence_correct(clean, y),
    }
    if answers.stamped is not None and trial.goal is not None:
        hit, goal = answers.stamped.argmax(1), trial.goal
        out |= {"asr": asr(hit, y, goal), "asr_all": asr_all(hit, goal)}
        out |= {"ra": robust_accuracy(hit, y, goal)}
        out |= {"tmc": target_confidence(answers.stamped, y, goal)}
    return out


def changed(before: Answers, after: Answers, trial: Trial) -> dict[str, Figure]:
    """Return what a repair changed."""
    y, first, last = trial.y, before.clean.argmax(1), after.clean.argmax(1)
    out: dict[str, Figure] = {
        "cad": clean_drop(first, last, y),
        "ccc_change": confidence_change(before.clean, after.clean, y),
    }
    if before.stamped is None or after.stamped is None or trial.goal is None:
        return out
    goal, own = trial.goal, (accuracy(first, y), accuracy(last, y))
    logits = (before.stamped, after.stamped)
    hits = tuple(v.argmax(1) for v in logits)
    return out | {
        "ard": asr_drop(hits[0], hits[1], y, goal),
        "tmc_change": change(*(target_confidence(v, y, goal) for v in logits)),
        "der": der((asr(hits[0], y, goal), asr(hits[1], y, goal)), own),
        "rir": rir((robust_accuracy(hits[0], y, goal), robust_accuracy(hits[1], y, goal)), own),
    }
