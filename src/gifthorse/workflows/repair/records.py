"""What is left of a repair: the model, and a record of what was done to it and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gifthorse import __version__
from gifthorse.analysis.distance import Distances, increase
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadOption
from gifthorse.core.types import Remedy
from gifthorse.models.load import save
from gifthorse.models.normalize import Classifier
from gifthorse.workflows.prepare import Received
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
    received: Received,
    done: Repaired,
    far: tuple[Distances, Distances] | None = None,
) -> dict[str, Any]:
    """Return everything about a repair that can be said in JSON.

    Args:
        order: What was asked for.
        received: The model as it came, and its images.
        done: What came of it.
        far: What `spread` measured.
    """
    origin, intake, scan = received.subject.origin, received.intake, order.scan
    options = {k: str(v) for k, v in options_of(order.remedy).items()}
    flips = done.mirroring
    if flips is not None:
        options[FLIP] = str(flips.harmless)
    return {
        "repaired": {"path": origin.path, "sha256": origin.sha256, "arch": origin.arch},
        "method": order.method,
        "options": options,
        "seed": order.seed,
        "command": order.command,
        "scan": None if scan is None else {"path": str(scan.path), "label": scan.label},
        "images": {"used": done.images, "judged": done.judged, "source": intake.source},
        "class_names": list(intake.class_names),
        "mirroring": flips and {**asdict(flips), "harmless": flips.harmless},
        "unchanged": done.unchanged,
        "accuracy": {name: asdict(getattr(done, name)) for name in ("before", "after", "drop")},
        "triggers": [
            {"whose": t.whose, **{k: asdict(getattr(t, k)) for k in ("goal", "before", "after")}}
            for t in done.trials
        ],
        "distances": far and _apart(*far),
        "seconds": done.seconds,
        "versions": {"gifthorse": __version__, "torch": torch.__version__},
    }


def _apart(before: Distances, after: Distances) -> dict[str, Any]:
    """Return distances of pairs, and what they come to; no number is infinite."""
    gain = increase(before, after)
    return {
        "mean": {"before": before.mean, "after": after.mean},
        "failures": {"before": before.failures, "after": after.failures},
        "increase": gain if math.isfinite(gain) else None,
        "pairs": [
            {"source": g.source, "target": g.target, "before": b, "after": a}
            for g, b, a in zip(before.goals, before.size.tolist(), after.size.tolist(), strict=True)
        ],
    }


def write(path: Path, done: Repaired, said: Mapping[str, Any]) -> list[Path]:
    """Write the repaired model, which says what was done to it, and the record beside it.

    Raises:
        BadOption: If the remedy reforms inputs, which no file of weights can hold.
    """
    if not isinstance(done.subject.net, Classifier):
        raise BadOption(
            f"{said['method']} reforms the inputs of a net, which cannot be saved as weights: "
            "use it in Python, or take a remedy that changes the net"
        )
    n = done.subject.net.normalize.normalization
    words = (
        f"Repaired by gifthorse with {said['method']}, from sha256 {said['repaired']['sha256']}. "
        "That is no proof that no backdoor is left: scan it."
    )
    told = {k: v for k, v in said.items() if k not in PRIVATE}
    known = {**told, "normalization": {"name": n.name, "mean": list(n.mean), "std": list(n.std)}}
    save(
        path,
        dict(done.subject.net.net.state_dict()),
        {"description": words, "gifthorse": json.dumps(known)},
    )
    beside = path.with_suffix(".json")
    with atomic(beside) as file:
        file.write(json.dumps(said, indent=1).encode())
    return [path, beside]
