"""What is left of a repair: the model, and a record of what was done to it and what came of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gifthorse import __version__
from gifthorse.analysis.distance import ClassDistances, increase
from gifthorse.core.types import Remedy
from gifthorse.models.hub.build import weights_of
from gifthorse.models.load import save
from gifthorse.models.normalize import Classifier
from gifthorse.report.json import plain, write_json
from gifthorse.report.repairs import (
    AccuracyChange,
    ClassDistance,
    DistanceChange,
    ImageCounts,
    MirroringUsed,
    RepairRecord,
    RepairSource,
    ScanUsed,
)
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.repair.curing import FLIP, Repaired
from gifthorse.workflows.repair.known import Scanned, options_of

PRIVATE = ("command", "class_names", "scan")  # kept out of the model file


@dataclass(frozen=True)
class Order:
    """What was asked for: the name of the method, the method, seed, command and scan."""

    method: str
    remedy: Remedy
    seed: int
    command: str = ""
    scan: Scanned | None = None


def record(
    order: Order,
    prepared: Prepared,
    done: Repaired,
    far: tuple[ClassDistances, ClassDistances] | None = None,
) -> RepairRecord:
    """Return everything that is said of a repair.

    Args:
        order: What was asked for.
        prepared: The model as it came, and its images.
        done: What came of it.
        far: What `spread` measured.
    """
    origin, preparation, scan = prepared.subject.origin, prepared.preparation, order.scan
    options, m = {k: str(v) for k, v in options_of(order.remedy).items()}, done.mirroring
    if m is not None:
        options[FLIP] = str(m.harmless)
    return RepairRecord(
        repaired=RepairSource(origin.path, origin.sha256, origin.arch),
        method=order.method,
        options=options,
        seed=order.seed,
        command=order.command,
        scan=None if scan is None else ScanUsed(str(scan.path), scan.label),
        images=ImageCounts(done.images, done.judged, preparation.source),
        class_names=preparation.class_names,
        mirroring=MirroringUsed(m.plain, m.mirrored, m.points, m.harmless) if m else None,
        unchanged=done.unchanged,
        reforms=done.reforms,
        accuracy=AccuracyChange(done.before, done.after, done.drop),
        triggers=done.effects,
        distances=far and _apart(*far),
        seconds=done.seconds,
        versions={"gifthorse": __version__, "torch": torch.__version__},
    )


def _apart(before: ClassDistances, after: ClassDistances) -> DistanceChange:
    """Return distances of pairs, and what they come to; no number is infinite."""
    gain = increase(before, after)
    sizes = zip(before.goals, before.size.tolist(), after.size.tolist(), strict=True)
    return DistanceChange(
        mean={"before": before.mean, "after": after.mean},
        failures={"before": before.failures, "after": after.failures},
        increase=gain if math.isfinite(gain) else None,
        pairs=tuple(ClassDistance(g.source or 0, g.target, b, a) for g, b, a in sizes),
    )


def outputs(path: Path) -> tuple[Path, Path, Path]:
    """Return the files of a repair: model, record, and what a reformer learned, if it is one."""
    return path, path.with_suffix(".json"), path.with_suffix(".reformer.safetensors")


def write(path: Path, done: Repaired, said: RepairRecord) -> list[Path]:
    """Write the repaired model, which says what was done to it, and the record beside it.

    A remedy that reforms images makes no model that weights alone could hold: then what the
    reformer learned is written, if it learned anything, and the record.
    """
    model, beside, reformer = outputs(path)
    written = [beside]
    if isinstance(done.subject.net, Classifier):
        save(model, weights_of(done.subject.net.net), _metadata(done.subject.net, said))
        written.insert(0, model)
    elif learned := _learned(done.subject.net):
        told = {k: v for k, v in plain(said).items() if k not in PRIVATE}
        words = f"What {said.method} learned to do to images; no model."
        save(reformer, learned, {"description": words, "gifthorse": json.dumps(told)})
        written.insert(0, reformer)
    write_json(beside, said)
    return written


def _metadata(net: Classifier, said: RepairRecord) -> dict[str, str]:
    n = net.normalize.normalization
    words = (
        f"Repaired by gifthorse with {said.method}, from sha256 {said.repaired.sha256}. "
        "That is no proof that no backdoor is left: scan it."
    )
    told = {k: v for k, v in plain(said).items() if k not in PRIVATE}
    known = {**told, "normalization": {"name": n.name, "mean": list(n.mean), "std": list(n.std)}}
    return {"description": words, "gifthorse": json.dumps(known)}


def _learned(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of what stands before a net, by their names there."""
    states = (part.state_dict() for name, part in net.named_children() if name != "net")
    return {name: tensor for state in states for name, tensor in state.items()}
