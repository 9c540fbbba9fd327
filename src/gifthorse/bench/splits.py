"""Who sees which images: the attacker, the defender, the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages
from gifthorse.core.fields import AtLeast, OpenShare, method
from gifthorse.core.types import Labels, Samples
from gifthorse.data.samples import Subset
from gifthorse.workflows.make import Divided


@method
class Sizes:
    """How many clean images a defender has, as shares of all training and validation images.

    Attributes:
        fit: Share that defenses work with.
        calibration: Share that thresholds are set by.
        least: Images for thresholds at least, however small their share ...
        most: ... but no larger a share than this.
        held_out: Whether they come from the validation images, which no attack of this package
            sees, and not from training images, which are then missing from `Splits.train`: there
            may be fewer of them, and both parts are cut alike.
    """

    fit: Annotated[float, OpenShare] = 0.04
    calibration: Annotated[float, OpenShare] = 0.01
    least: Annotated[int, AtLeast(1)] = 500
    most: Annotated[float, OpenShare] = 0.1
    held_out: bool = False


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


def splits(data: Divided, rng: Generator, sizes: Sizes = Sizes()) -> Splits:
    """Set the defender's images apart, as many of each class as there are.

    To be done before the attack trains, on `Splits.train`; a model that was trained before on all
    of `data.train` needs `Sizes(held_out=True)`.

    Raises:
        BadImages: If there are too few images for both parts.

    Source: BackdoorBench, which gives the defender 5 % of the training images. Differs: the victim
    never trains on them.
    """
    pool, rest = (data.validation, data.train) if sizes.held_out else (data.train, None)
    n, have = len(data.train) + len(data.validation), len(pool)
    few = min(max(sizes.calibration * n, sizes.least), sizes.most * n)
    want = [sizes.fit * n, few]
    spare = have if sizes.held_out else have // 2  # an attack needs images, too
    count, more = (int(w * min(1.0, spare / sum(want)) + 1e-9) for w in want)
    if not count or not more:
        raise BadImages(f"{have} images are too few to give the defender some: add images")
    order = _spread(pool.labels, rng)
    fit, calibration, left = order.split([count, more, have - count - more])
    return Splits(
        rest if rest is not None else Subset(pool, left.sort().values),
        Subset(pool, fit),
        Subset(pool, calibration),
        data.test,
    )


def _spread(labels: Labels, rng: Generator) -> Tensor:
    """Return all places in an order whose every stretch has about as many of each class."""
    shuffled = torch.randperm(len(labels), generator=rng)
    turn = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique().tolist():
        mine = shuffled[labels[shuffled] == label]
        turn[mine] = torch.arange(len(mine))
    return shuffled[turn[shuffled].argsort(stable=True)]
