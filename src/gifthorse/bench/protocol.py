"""The terms of every judgment: who sees which images, and how defenses are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages
from gifthorse.core.fields import AtLeast, AtMost, Below, NotNegative, OpenShare, Positive, method
from gifthorse.core.types import Labels, Samples
from gifthorse.data.samples import Subset

if TYPE_CHECKING:
    from gifthorse.workflows.make import DataSplits


@method
class Sizes:
    """How many clean images a defender has, as shares of all training and validation images.

    They come from the validation images, which no training sees. There may be fewer of them than
    asked for; then both parts are cut alike.

    Attributes:
        fit: Share that defenses work with.
        calibration: Share that thresholds are set by.
        least: Images for thresholds at least, however small their share ...
        most: ... but no larger a share than this.
    """

    fit: Annotated[float, OpenShare] = 0.04
    calibration: Annotated[float, OpenShare] = 0.01
    least: Annotated[int, AtLeast(1)] = 500
    most: Annotated[float, OpenShare] = 0.1


@method
class EvalConfig:
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
class Splits:
    """Images that do not overlap.

    Attributes:
        train: What an attacker may train on.
        fit: Clean images of the defender.
        calibration: Clean images that thresholds are set by.
        test: What is judged on; nobody else sees it.
    """

    train: Samples
    fit: Samples
    calibration: Samples
    test: Samples


def splits(data: DataSplits, rng: Generator, sizes: Sizes = Sizes()) -> Splits:
    """Give the defender images that no training saw, as many of each class as there are.

    Raises:
        BadImages: If there are too few images for both parts.

    Source: BackdoorBench, which gives the defender 5 % of the training images. Differs: the victim
    never trains on them.
    """
    n, have = len(data.train) + len(data.validation), len(data.validation)
    few = min(max(sizes.calibration * n, sizes.least), sizes.most * n)
    want = [sizes.fit * n, few]
    count, more = (int(w * min(1.0, have / sum(want)) + 1e-9) for w in want)
    if not count or not more:
        raise BadImages(f"{have} images are too few to give the defender some: add images")
    order = _spread(data.validation.labels, rng)
    fit, calibration = order[:count], order[count : count + more]
    pool = data.validation
    return Splits(data.train, Subset(pool, fit), Subset(pool, calibration), data.test)


def _spread(labels: Labels, rng: Generator) -> Tensor:
    """Return all places in an order whose every stretch has about as many of each class."""
    shuffled = torch.randperm(len(labels), generator=rng)
    turn = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique().tolist():
        mine = shuffled[labels[shuffled] == label]
        turn[mine] = torch.arange(len(mine))
    return shuffled[turn[shuffled].argsort(stable=True)]
