"""A test model's files: weights with their provenance, trigger, record and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gifthorse import __version__
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadOption, UsageError
from gifthorse.core.files import parse_json
from gifthorse.core.options import describe
from gifthorse.core.types import Goal, Implant, Rate, Subject
from gifthorse.models.load import save
from gifthorse.models.normalize import Classifier
from gifthorse.models.opening import load
from gifthorse.report.figures.contact_sheet import contact_sheet, write_sheet
from gifthorse.training import frozen_eval, predict
from gifthorse.triggers.storage import open_trigger, pack
from gifthorse.workflows.evaluate import stamp
from gifthorse.workflows.make import DataSplits, benign, draw


@dataclass(frozen=True, eq=False)
class TestModel:
    """A test model's record: what it is, how it was made and how well it does."""

    kind: str
    method: object
    net: str
    data: DataSplits
    seed: int
    figures: Mapping[str, Rate | None]
    seconds: float
    implant: Implant | None = None

    @property
    def known(self) -> dict[str, Rate]:
        """The figures that have trials."""
        return {name: figure for name, figure in self.figures.items() if figure is not None}


def provenance(made: TestModel) -> dict[str, str]:
    """Return the metadata that a model file of ours carries: what it is and how it was made."""
    n = made.data.normalization
    record: dict[str, Any] = {
        "kind": made.kind,
        "net": made.net,
        "data": made.data.name,
        "images": len(made.data.train),
        "classes": made.data.train.classes,
        "shape": list(made.data.train.shape),
        "normalization": {"name": n.name, "mean": list(n.mean), "std": list(n.std)},
        "seed": made.seed,
        "seconds": round(made.seconds, 1),
        "options": {name: str(value) for name, value in describe(made.method).items()},
        "figures": {name: round(figure.value, 4) for name, figure in made.known.items()},
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


def write(path: Path, subject: Subject, made: TestModel) -> list[Path]:
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
    with frozen_eval(subject):
        z = stamp(made.implant, x)
        said, says = (predict(subject, shown).argmax(1) for shown in (x, z))
    write_sheet(beside[2], contact_sheet((x, said), (z, says), y, names=names))
    return [path, *beside]


def implanted(path: Path, data: DataSplits) -> Implant:
    """Return a test model that `write` wrote, with its trigger and goal.

    Raises:
        UsageError: If the file does not say that it is one, or its trigger is not beside it.
    """
    opened = load(path)
    try:
        claims = parse_json(opened.origin.metadata.get("gifthorse", "{}"))
    except ValueError:
        claims = None
    if not isinstance(claims, dict) or "goal" not in claims:
        raise UsageError(f"{path} is no backdoored test model of gifthorse: it names no goal")
    trigger = open_trigger(path.with_suffix(".trigger.safetensors"))
    goal = Goal(claims["goal"]["target"], claims["goal"]["source"])
    return Implant(benign(opened, data), trigger, goal)


def record(made: TestModel) -> dict[str, Any]:
    """Return everything about a made model that can be said in JSON."""
    known = json.loads(provenance(made)["gifthorse"])
    figures = {k: asdict(figure) for k, figure in made.known.items()}
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
