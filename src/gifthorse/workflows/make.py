"""Divide a data set, train on it, implant a backdoor: what a test model goes through."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Generator, Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadOption, ShapeMismatch, UnknownMethod
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded
from gifthorse.core.types import (
    Attack,
    Goal,
    Implant,
    Normalization,
    Origin,
    Subject,
)
from gifthorse.data.gallery import Gallery, balanced
from gifthorse.data.packed import load_packed
from gifthorse.data.samples import InMemory
from gifthorse.data.trojai import framed, make_signs
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.zoo import NETS
from gifthorse.training import Recipe, fit

if TYPE_CHECKING:
    from gifthorse.models.load import Opened

VALIDATION = 2000  # images of CIFAR-10's training split kept for generation (PixelBackdoor, sec. 5)


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set in three parts: weights see `train`, defenses `validation`, judges `test`."""

    name: str
    train: InMemory
    validation: InMemory
    test: InMemory
    class_names: tuple[str, ...]
    normalization: Normalization


def divide(name: str) -> DataSplits:
    """Read a packed data set, or draw `trojai:SEED` or `trojai:SEED@SIDE`; set validation apart.

    Data with tracks (frames of one physical object) is split by track, so that validation and
    training never show the same object; other data keeps its last images, which are balanced.

    Raises:
        BadImages: If the data set cannot be found.
        BadOption: If seed or side of drawn signs are no numbers that they can have.
    """
    training, test = _galleries(name)
    held = _held_out(training)
    samples = training.samples
    return DataSplits(
        name,
        _pick(samples, ~held),
        _pick(samples, held),
        test.samples,
        training.class_names,
        usual(name, samples.shape[0]),
    )


def usual(name: str, channels: int = 3) -> Normalization:
    """Return how pixels of a data set are usually normalized.

    Example:
        >>> usual("cifar10_lossless").name, usual("mine.npz").name, usual("mine.npz", 1).name
        ('cifar10', 'imagenet', 'half')
    """
    found = NORMALIZATIONS.get(re.split("[_:]", name)[0], NORMALIZATIONS["imagenet"])
    return found if len(found.mean) in (1, channels) else NORMALIZATIONS["half"]


def shorter(data: DataSplits, count: int | None) -> DataSplits:
    """Return the same data with at most so many training images, spread over the classes.

    Raises:
        BadOption: If that is less than one a class.
    """
    if count is None:
        return data
    if count < data.train.classes:
        raise BadOption(
            f"{count} training images are less than one of {data.train.classes} classes"
        )
    chosen = torch.from_numpy(balanced(data.train.labels.numpy(), count))
    train = InMemory(data.train.images[chosen], data.train.labels[chosen], data.train.classes)
    return replace(data, train=train)


def fewer_tests(data: DataSplits, count: int | None) -> DataSplits:
    """Return the same data with at most so many test images, spread over the classes."""
    if count is None or count >= len(data.test):
        return data
    chosen = torch.from_numpy(balanced(data.test.labels.numpy(), count))
    test = InMemory(data.test.images[chosen], data.test.labels[chosen], data.test.classes)
    return replace(data, test=test)


def fresh(net: str, data: DataSplits, rng: Generator) -> Subject:
    """Return an untrained subject with the data's normalization as first layer.

    Raises:
        UnknownMethod: If there is no such net.
    """
    if net not in NETS:
        raise UnknownMethod.among("net", net, NETS)
    shape, classes = data.train.shape, data.train.classes
    with seeded(rng):
        inner = NETS[net](classes, shape[0])
    model = Classifier(inner, data.normalization, shape[0]).eval()
    return Subject(model, shape, classes, Origin(arch=net))


def train_clean(net: str, data: DataSplits, recipe: Recipe, rng: Generator, run: Run) -> Subject:
    """Train a net on clean data from scratch; the run keeps what an interruption would lose."""
    start = fresh(net, data, rng).to(run.device)
    return fit(start, data.train, recipe, rng, run.keyed(recipe, start, data.train, rng, most=64))


def benign(opened: Opened, data: DataSplits) -> Subject:
    """Return a clean model that was opened from a file, to be retrained under an attack.

    Raises:
        ShapeMismatch: If it is not for the data set's classes or channels.
    """
    channels, classes = data.train.shape[0], data.train.classes
    if (opened.channels, opened.classes) != (channels, classes):
        raise ShapeMismatch(
            f"{opened.origin.path} has {opened.classes} classes and {opened.channels} channels, "
            f"{data.name} has {classes} and {channels}: name a model of this data set"
        )
    net = Classifier(opened.net, data.normalization, channels).eval()
    return Subject(net, data.train.shape, classes, opened.origin)


def implant(
    attack: Attack,
    victim: Subject,
    data: DataSplits,
    goal: Goal,
    rng: Generator,
    run: Run,
) -> Implant:
    """Train a copy of a net, untrained or benign, under an attack."""
    return attack(victim, data.train, goal, rng, run)


def draw(samples: InMemory, per_class: int, rng: Generator) -> InMemory:
    """Return `per_class` random images of every class, fewer where there are fewer."""
    rows = []
    for label in range(samples.classes):
        index = (samples.labels == label).nonzero().flatten()
        rows.append(index[torch.randperm(len(index), generator=rng)[:per_class]])
    chosen = torch.cat(rows)
    return InMemory(samples.images[chosen], samples.labels[chosen], samples.classes)


def write_sample(data: DataSplits, part: str, per_class: int, path: Path, rng: Generator) -> int:
    """Write a few images of a part of a data set as `.npz`; return how many.

    Raises:
        UnknownMethod: If there is no such part.
    """
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    if part not in parts:
        raise UnknownMethod.among("split", part, parts)
    chosen = draw(parts[part], per_class, rng)
    images = chosen.images.permute(0, 2, 3, 1).contiguous().numpy()
    names = np.array(data.class_names)
    with atomic(path) as temporary:
        np.savez_compressed(
            temporary, images=images, labels=chosen.labels.numpy(), class_names=names
        )
    return len(chosen)


def _galleries(name: str) -> tuple[Gallery, Gallery]:
    source, colon, rest = name.partition(":")
    if source != "trojai" or not colon:
        return load_packed(name, "train"), load_packed(name, "test")
    asked = re.fullmatch(r"(\d+)(?:@(\d+))?", rest, re.ASCII)
    if asked is None:
        raise BadOption(
            f"trojai takes a seed, and may take a side, as in trojai:7 or trojai:7@32; got {name!r}"
        )
    seed, side = asked.groups()
    return make_signs(int(seed), **framed(int(side or 56)))


def _held_out(training: Gallery) -> Tensor:
    n = len(training.samples)
    track = training.extras.get("track")
    if track is None:
        held = torch.zeros(n, dtype=torch.bool)
        held[-min(VALIDATION, n // 5) :] = True
        return held
    # One track in ten of every class (at least one), the last ones by number.
    held = torch.zeros(n, dtype=torch.bool)
    labels = training.samples.labels
    for label in labels.unique().tolist():
        mine = labels == label
        tracks = track[mine].unique()
        last = tracks[-max(1, len(tracks) // 10) :]
        held |= mine & torch.isin(track, last)
    return held


def _pick(samples: InMemory, keep: Tensor) -> InMemory:
    return InMemory(samples.images[keep], samples.labels[keep], samples.classes)
