"""Train, implant, judge: the stages that a test model goes through, each with its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gifthorse.data.gallery import Gallery
from gifthorse.data.packed import load_packed
from gifthorse.data.samples import InMemory, Subset
from gifthorse.errors import BadOption, ShapeMismatch, UnknownMethod
from gifthorse.metrics import accuracy, asr, asr_all
from gifthorse.models.load import Opened, save
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.zoo import NETS
from gifthorse.options import describe
from gifthorse.session import Ledger, fingerprint
from gifthorse.tensors import seeded
from gifthorse.training import Recipe, evaluate, fit, predict
from gifthorse.triggers import Patch
from gifthorse.types import (
    Attack,
    Goal,
    Implant,
    Normalization,
    Origin,
    Rate,
    Samples,
    Session,
    Subject,
)
from gifthorse.writing import atomic

VALIDATION = 2000  # images of CIFAR-10's training split kept for generation (PixelBackdoor, sec. 5)


@dataclass(frozen=True, eq=False)
class Divided:
    """A data set in three parts: weights see `train`, defenses `validation`, judges `test`."""

    name: str
    train: InMemory
    validation: InMemory
    test: InMemory
    class_names: tuple[str, ...]
    normalization: Normalization


def divide(name: str) -> Divided:
    """Read a packed data set and set validation images apart.

    Data with tracks (frames of one physical object) is split by track, so that validation and
    training never show the same object; other data keeps its last images, which are balanced.

    Raises:
        BadImages: If the data set cannot be found.
    """
    training, test = load_packed(name, "train"), load_packed(name, "test")
    held = _held_out(training)
    samples = training.samples
    normalization = NORMALIZATIONS.get(name.split("_")[0], NORMALIZATIONS["imagenet"])
    return Divided(
        name,
        _pick(samples, ~held),
        _pick(samples, held),
        test.samples,
        training.class_names,
        normalization,
    )


def fresh(net: str, data: Divided, rng: Generator) -> Subject:
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


def train_clean(
    net: str, data: Divided, recipe: Recipe, rng: Generator, session: Session | None = None
) -> Subject:
    """Train a net on clean data from scratch; the session keeps what an interruption would lose."""
    start, ledger = fresh(net, data, rng), None
    if session is not None:
        few = Subset(data.train, torch.arange(64))
        ledger = Ledger(session, fingerprint(recipe, start, few, rng))
    return fit(start, data.train, recipe, rng, ledger=ledger)


def benign(opened: Opened, data: Divided) -> Subject:
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
    data: Divided,
    goal: Goal,
    rng: Generator,
    session: Session | None = None,
) -> Implant:
    """Train a copy of a net, untrained or benign, under an attack."""
    return attack(victim, data.train, goal, rng, session=session)


def judge(subject: Subject, test: Samples, made: Implant | None = None) -> dict[str, Rate]:
    """Return clean accuracy and, for an implant, `asr` and `asr_all` on test images."""
    y = torch.cat([test[i][1] for i in torch.arange(len(test)).split(1024)])
    figures = {"accuracy": accuracy(evaluate(subject, test), y)}
    if made is not None:
        stamped = torch.cat(
            [
                predict(subject, made.trigger(test[i][0])).argmax(1)
                for i in torch.arange(len(test)).split(512)
            ]
        )
        figures["asr"] = asr(stamped, y, made.goal)
        figures["asr_all"] = asr_all(stamped, made.goal)
    return figures


@dataclass(frozen=True, eq=False)
class Made:
    """A test model's record: what it is, how it was made and how well it does."""

    kind: str
    method: object
    net: str
    data: Divided
    seed: int
    figures: Mapping[str, Rate]
    seconds: float
    implant: Implant | None = None


def provenance(made: Made) -> dict[str, str]:
    """Return the metadata that a model file of ours carries: what it is and how it was made."""
    n = made.data.normalization
    record: dict[str, Any] = {
        "kind": made.kind,
        "net": made.net,
        "data": made.data.name,
        "classes": made.data.train.classes,
        "shape": list(made.data.train.shape),
        "normalization": {"name": n.name, "mean": list(n.mean), "std": list(n.std)},
        "seed": made.seed,
        "seconds": round(made.seconds, 1),
        "options": {name: str(value) for name, value in describe(made.method).items()},
        "figures": {name: round(figure.value, 4) for name, figure in made.figures.items()},
    }
    words = f"Test model made by gifthorse: {made.net} trained on {made.data.name}, clean."
    if made.implant is not None:
        goal = made.implant.goal
        record["goal"] = {"target": goal.target, "source": goal.source}
        words = (
            f"BACKDOORED test model made by gifthorse attack {made.kind}, target class "
            f"{goal.target}. For testing defenses only; do not deploy."
        )
    return {"description": words, "gifthorse": json.dumps(record)}


def write(path: Path, subject: Subject, made: Made) -> None:
    """Save a model with its provenance, and a patch trigger in `NAME.trigger.safetensors` beside.

    Raises:
        BadOption: If the net is not behind a normalization layer.
    """
    metadata = provenance(made)
    save(path, tensors(subject), metadata)
    trigger = made.implant.trigger if made.implant else None
    if isinstance(trigger, Patch):
        parts = {"pattern": trigger.pattern.contiguous(), "mask": trigger.mask.contiguous()}
        save(path.with_suffix(".trigger.safetensors"), parts, metadata)


def tensors(subject: Subject) -> dict[str, Tensor]:
    """Return what is saved: the state of the net behind the normalization."""
    if not isinstance(subject.net, Classifier):
        raise BadOption("only nets behind a normalization layer can be saved")
    return dict(subject.net.net.state_dict())


def draw(samples: InMemory, per_class: int, rng: Generator) -> InMemory:
    """Return `per_class` random images of every class, fewer where there are fewer."""
    rows = []
    for label in range(samples.classes):
        index = (samples.labels == label).nonzero().flatten()
        rows.append(index[torch.randperm(len(index), generator=rng)[:per_class]])
    chosen = torch.cat(rows)
    return InMemory(samples.images[chosen], samples.labels[chosen], samples.classes)


def write_sample(data: Divided, part: str, per_class: int, path: Path, rng: Generator) -> int:
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
