"""How well a model does, clean and stamped: the same figures of every model, whoever asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from gifthorse.core.errors import BadImages
from gifthorse.core.metrics import (
    accuracy,
    asr,
    asr_all,
    clean_drop,
    confidence,
    confidence_correct,
    robust_accuracy,
    target_confidence,
)
from gifthorse.core.types import Goal, Images, Implant, Labels, Logits, Rate, Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.training import predict

Figure: TypeAlias = Rate | float | None


@dataclass(frozen=True, eq=False)
class EvalImages:
    """Test images, the same with the trigger, their labels, and what the backdoor is for.

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
    def applies_to(self) -> Tensor:
        """Which images the backdoor is meant for, `(N,)` bool; none without a backdoor."""
        if self.goal is None:
            return torch.zeros_like(self.y, dtype=torch.bool)
        return self.goal.applies_to(self.y)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits `(N, K)` of images without and with the trigger."""

    clean: Logits
    stamped: Logits | None


def stamp(made: Implant, x: Images) -> Images:
    """Return images with the trigger, a copy of it: the original keeps the places it would draw."""
    with torch.no_grad():
        return deepcopy(made.trigger)(x)


def eval_images(samples: Samples, made: Implant | None = None) -> EvalImages:
    """Return images as a model is tried with them, all at once.

    Raises:
        BadImages: If there are none.
    """
    x, y = whole(samples)
    if not len(x):
        raise BadImages("there are no test images to judge on")
    if made is None:
        return EvalImages(x, y)
    return EvalImages(x, y, stamp(made, x), made.goal)


def predictions(subject: Subject, images: EvalImages) -> Predictions:
    """Return what a model says of images."""
    stamped = None if images.stamped is None else predict(subject, images.stamped)
    return Predictions(predict(subject, images.x), stamped)


def figures_of(said: Predictions, images: EvalImages) -> dict[str, Rate | None]:
    """Return how well a model does, each figure with its interval, None where it has no trials.

    Returns:
        `accuracy`, `ccc` and `ccc_correct` (mean probability of the true class: of all images, and
        of those that are classified right); of a backdoored model `asr` (images of the target
        class left out), `asr_all` (as TrojanZoo counts), `ra` (stamped images that keep their
        class) and `tmc` (mean probability of the target where the trigger succeeds).
    """
    clean, y = said.clean, images.y
    out: dict[str, Rate | None] = {
        "accuracy": accuracy(clean.argmax(1), y),
        "ccc": confidence(clean, y),
        "ccc_correct": confidence_correct(clean, y),
    }
    if said.stamped is not None and images.goal is not None:
        hit, goal = said.stamped.argmax(1), images.goal
        out |= {"asr": asr(hit, y, goal), "asr_all": asr_all(hit, goal)}
        out |= {"ra": robust_accuracy(hit, y, goal)}
        out |= {"tmc": target_confidence(said.stamped, y, goal)}
    return {name: figure if figure and figure.trials else None for name, figure in out.items()}


def figures(
    subject: Subject, images: EvalImages, benign: Subject | None = None
) -> dict[str, Rate | None]:
    """Return how well a model does; see `figures_of`.

    Args:
        subject: The model.
        images: Images that nothing was trained on.
        benign: The net before the attack, for `cad`: its accuracy minus the model's.
    """
    said = predictions(subject, images)
    out = figures_of(said, images)
    if benign is not None:
        before = predictions(benign, EvalImages(images.x, images.y)).clean.argmax(1)
        out["cad"] = clean_drop(before, said.clean.argmax(1), images.y)
    return out


# What is a rate where it is known, so that it has companions where it is not.
_RATES = {"tpr", "fpr", "precision", "decided", "tpr_all", "fpr_all", "recovered_asr"}
_RATES |= {"accuracy", "ccc", "ccc_correct", "asr", "asr_all", "ra", "tmc"}


def flatten(known: Mapping[str, Figure]) -> dict[str, float | None]:
    """Return figures by flat names, ready for JSON: finite numbers, or None.

    A rate is its name with its value, and the same with `_low`, `_high` and `_n`: its interval and
    how many trials it is of. What is undefined is None, and of a rate then `_n` is 0.

    Example:
        >>> flatten({"asr": None, "nsr": 0.5})
        {'asr': None, 'asr_low': None, 'asr_high': None, 'asr_n': 0.0, 'nsr': 0.5}
    """
    out: dict[str, float | None] = {}
    for name, figure in known.items():
        if isinstance(figure, Rate) and figure.trials:
            out |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
            out[f"{name}_n"] = float(figure.trials)
        elif isinstance(figure, Rate) or (
            figure is None and name.removesuffix("_before") in _RATES
        ):
            out |= {name: None, f"{name}_low": None, f"{name}_high": None, f"{name}_n": 0.0}
        else:
            out[name] = None if figure is None or not math.isfinite(figure) else float(figure)
    return out
