r"""What detectors that need no image say of models whose truth is known.

Reads what a model is from its own metadata: clean, or which attack made it, for which class, and
how often its trigger works. Models whose backdoor did not get in are counted apart: what is odd
about them is not a backdoor. Written after every model, and continued from there.

    python benchmarks/data_free.py runs/bag/*.safetensors runs/attacks/*.safetensors --out free.json
    python benchmarks/data_free.py runs/bag/*.safetensors --detector mm_bd --out free.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gifthorse.core.run import Run
from gifthorse.core.stats import wilson
from gifthorse.core.types import Normalization, Subject
from gifthorse.data.samples import InMemory
from gifthorse.detection import DETECTORS
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from setting import keep, kept, machine

IN, OUT = 0.9, 0.5  # success from which a backdoor counts, and up to which there is none


def judge(path: Path, name: str) -> dict[str, Any]:
    """Return what a model is and what a detector says of it."""
    opened = load(str(path))
    facts = json.loads(opened.origin.metadata["gifthorse"])
    shape = tuple(facts["shape"])
    net = Classifier(opened.net, Normalization(**facts["normalization"]), opened.channels)
    subject = Subject(net.eval(), shape, opened.classes, opened.origin)
    none = InMemory(torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0).long(), 1)
    verdict = DETECTORS[name](subject, none, torch.Generator().manual_seed(0), Run())
    goal = verdict.findings[0].goal if verdict.label == "SUSPICIOUS" else None
    return {
        "kind": facts["kind"],
        "asr": facts["figures"].get("asr"),
        "target": facts["goal"]["target"] if "goal" in facts else None,
        "score": verdict.score,
        "class": None if goal is None else goal.target,
        "seconds": verdict.seconds,
    }


def group(row: dict[str, Any]) -> str:
    """Return which line of the summary a model belongs to."""
    if row["kind"] == "clean":
        return "clean"
    if OUT < row["asr"] < IN:
        return "backdoored, ASR between"
    return f"backdoored, ASR {IN:.0%} or more" if row["asr"] >= IN else f"ASR {OUT:.0%} or less"


def show(rows: dict[str, Any]) -> None:
    """Print a line a model and a line a group."""
    groups = defaultdict(list)
    for name, row in rows.items():
        rate = "" if row["asr"] is None else f"{100 * row['asr']:6.1f} %"
        said = "nothing" if row["class"] is None else f"class {row['class']}"
        print(f"{name:24} {row['kind']:18} {rate:9} {row['score']:6.2f} {said}")
        groups[group(row)].append(row)
    for name in sorted(groups):
        scores = [row["score"] for row in groups[name]]
        flagged = [row for row in groups[name] if row["class"] is not None]
        right = sum(row["class"] == row["target"] for row in flagged)
        low, high = (100 * bound for bound in wilson(len(flagged), len(scores)))
        print(
            f"{name}: {len(flagged)} of {len(scores)} suspicious ({low:.0f} to {high:.0f} %), "
            f"{right} of the right class; "
            f"scores {min(scores):.2f} to {max(scores):.2f}, median {median(scores):.2f}"
        )


def main() -> None:
    """Judge the models that are not in the JSON yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--detector", default="weight_signature")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    result = kept(a.out, {})
    rows = result.setdefault(a.detector, {})
    for path in a.models:
        if path.stem in rows or path.name.endswith(".trigger.safetensors"):
            continue
        rows[path.stem] = judge(path, a.detector)
        result["machine"] = machine()
        keep(a.out, result)
    show(rows)
    threshold = getattr(DETECTORS[a.detector], "threshold", None)
    print(f"{a.detector}, threshold {threshold:.2f}; {json.dumps(result['machine'])}")


if __name__ == "__main__":
    main()
