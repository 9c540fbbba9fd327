"""Train, implant, judge: the stages that a test model goes through, each with its provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gifthorse import __version__
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadOption, ShapeMismatch, UnknownMethod, UsageError
from gifthorse.core.metrics import (
    accuracy,
    asr,
    asr_all,
    clean_drop,
    confidence,
    target_confidence,
)
from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded
from gifthorse.core.types import (
    Attack,
    Goal,
    Implant,
    Labels,
    Logits,
    Normalization,
    Origin,
    Rate,
    Samples,
    Subject,
    Trigger,
)
from gifthorse.data.gallery import Gallery, balanced
from gifthorse.data.packed import load_packed
from gifthorse.data.samples import InMemory, batches
from gifthorse.data.trojai import framed, make_signs
from gifthorse.models.load import Opened, load, save
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.zoo import NETS
from gifthorse.report.figures.contact_sheet import contact_sheet, write_sheet
from gifthorse.training import Recipe, fit, predict, still
from gifthorse.triggers.storage import open_trigger, pack

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
    normalization = NORMALIZATIONS.get(re.split("[_:]", name)[0], NORMALIZATIONS["imagenet"])
    return Divided(
        name,
        _pick(samples, ~held),
        _pick(samples, held),
        test.samples,
        training.class_names,
        normalization,
    )


def shorter(data: Divided, count: int | None) -> Divided:
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


def fewer_tests(data: Divided, count: int | None) -> Divided:
    """Return the same data with at most so many test images, spread over the classes."""
    if count is None or count >= len(data.test):
        return data
    chosen = torch.from_numpy(balanced(data.test.labels.numpy(), count))
    test = InMemory(data.test.images[chosen], data.test.labels[chosen], data.test.classes)
    return replace(data, test=test)


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


def train_clean(net: str, data: Divided, recipe: Recipe, rng: Generator, run: Run) -> Subject:
    """Train a net on clean data from scratch; the run keeps what an interruption would lose."""
    start = fresh(net, data, rng).to(run.device)
    return fit(start, data.train, recipe, rng, run.keyed(recipe, start, data.train, rng, most=64))


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


def implanted(path: Path, data: Divided) -> Implant:
    """Return a test model that `write` wrote, with its trigger and goal.

    Raises:
        UsageError: If the file does not say that it is one, or its trigger is not beside it.
    """
    opened = load(path)
    claims = json.loads(opened.origin.metadata.get("gifthorse", "{}"))
    if "goal" not in claims:
        raise UsageError(f"{path} is no backdoored test model of gifthorse: it names no goal")
    trigger = open_trigger(path.with_suffix(".trigger.safetensors"))
    goal = Goal(claims["goal"]["target"], claims["goal"]["source"])
    return Implant(benign(opened, data), trigger, goal)


def implant(
    attack: Attack,
    victim: Subject,
    data: Divided,
    goal: Goal,
    rng: Generator,
    run: Run,
) -> Implant:
    """Train a copy of a net, untrained or benign, under an attack."""
    return attack(victim, data.train, goal, rng, run)


def judge(
    subject: Subject,
    test: Samples,
    made: Implant | None = None,
    benign: Subject | None = None,
) -> dict[str, Rate]:
    """Return how a net does on test images, each figure with its interval.

    Args:
        subject: The net.
        test: Clean images that nothing was trained on.
        made: The implant, for the success of its trigger.
        benign: The net before the attack, for the drop in accuracy.

    Returns:
        `accuracy` and `ccc` (mean probability of the true class); of an implant `asr` (images of
        the target class left out), `asr_all` (as TrojanZoo counts) and, if it ever succeeds, `tmc`
        (mean probability of the target then); with a benign net `cad`, its accuracy minus this.
    """
    labels, logits = _asked(subject, test, None)
    predicted = logits.argmax(1)
    figures = {"accuracy": accuracy(predicted, labels), "ccc": confidence(logits, labels)}
    if benign is not None:
        before = _asked(benign, test, None)[1].argmax(1)
        figures["cad"] = clean_drop(before, predicted, labels)
    if made is not None:
        _, stamped = _asked(subject, test, made.trigger)
        figures["asr"] = asr(stamped.argmax(1), labels, made.goal)
        figures["asr_all"] = asr_all(stamped.argmax(1), made.goal)
        if (tmc := target_confidence(stamped, labels, made.goal)) is not None:
            figures["tmc"] = tmc
    return figures


def _asked(subject: Subject, test: Samples, trigger: Trigger | None) -> tuple[Labels, Logits]:
    labels, logits = [], []
    for x, y in batches(test, 512):
        labels.append(y)
        logits.append(predict(subject, trigger(x) if trigger else x))
    return torch.cat(labels), torch.cat(logits)


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


def write(path: Path, subject: Subject, made: Made) -> list[Path]:
    """Save a model with its provenance; beside it, of an implant, trigger, record and pictures.

    Returns:
        What was written: `NAME.safetensors`, and for an implant `NAME.trigger.safetensors`,
        `NAME.json` (options, seed, figures with intervals, machine) and `NAME.png` (a contact
        sheet of clean, stamped and difference images).

    Raises:
        BadOption: If the net is not behind a normalization layer.
    """
    metadata = provenance(made)
    save(path, tensors(subject), metadata)
    if made.implant is None:
        return [path]
    parts, kind = pack(made.implant.trigger)
    beside = [path.with_suffix(end) for end in (".trigger.safetensors", ".json", ".png")]
    save(beside[0], parts, metadata | kind)
    with atomic(beside[1]) as file:
        file.write(json.dumps(record(made), indent=1).encode())
    few = draw(made.data.test, 1, torch.Generator().manual_seed(made.seed))
    x, y = few[torch.arange(min(8, len(few)))]
    names = made.data.class_names
    with still(subject), torch.no_grad():
        z = deepcopy(made.implant.trigger)(x)  # one that wanders stays where it was
        said, says = (predict(subject, shown).argmax(1) for shown in (x, z))
    write_sheet(beside[2], contact_sheet((x, said), (z, says), y, names=names))
    return [path, *beside]


def record(made: Made) -> dict[str, Any]:
    """Return everything about a made model that can be said in JSON."""
    known = json.loads(provenance(made)["gifthorse"])
    figures = {k: asdict(figure) for k, figure in made.figures.items()}
    machine = {
        "torch": torch.__version__,
        "gifthorse": __version__,
        "threads": torch.get_num_threads(),
    }
    return {**known, "figures": figures, "versions": machine}


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
