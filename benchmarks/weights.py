r"""What one look at the last layer says: `weight_signature` on models whose truth is known.

Reads what a model is from its own metadata: clean, or which attack made it, for which class, and
how often its trigger works. No image is needed. Models whose backdoor did not get in are counted
apart: what is odd about them is not a backdoor.

    python benchmarks/weights.py runs/bag/*.safetensors runs/attacks/*.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch

from gifthorse.data.samples import InMemory
from gifthorse.detection import DETECTORS
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.types import Normalization, Subject
from setting import machine

IN, OUT = 0.9, 0.5  # success from which a backdoor counts, and up to which there is none


def group(facts: dict[str, object], rate: float | None) -> str:
    """Return which row of the table a model belongs to."""
    if facts["kind"] == "clean":
        return "clean"
    if rate is None or OUT < rate < IN:
        return "backdoored, between"
    return f"backdoored, ASR {IN:.0%} or more" if rate >= IN else f"poisoned, ASR {OUT:.0%} or less"


def main() -> None:
    """Judge every model; print a line each and a line a group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    a = parser.parse_args()
    detector = DETECTORS["weight_signature"]
    rows = defaultdict(list)
    for path in a.models:
        if path.name.endswith(".trigger.safetensors"):
            continue
        opened = load(str(path))
        facts = json.loads(opened.origin.metadata["gifthorse"])
        rate, shape = facts["figures"].get("asr"), tuple(facts["shape"])
        net = Classifier(opened.net, Normalization(**facts["normalization"]), opened.channels)
        subject = Subject(net.eval(), shape, opened.classes, opened.origin)
        none = InMemory(torch.zeros(0, *shape, dtype=torch.uint8), torch.zeros(0).long(), 1)
        verdict = detector(subject, none, torch.Generator())
        goal = verdict.findings[0].goal if verdict.label == "SUSPICIOUS" else None
        right = goal is not None and "goal" in facts and goal.target == facts["goal"]["target"]
        shown = "" if rate is None else f"{100 * rate:6.1f} %"
        said = "nothing" if goal is None else f"class {goal.target}"
        print(f"{path.stem:24} {facts['kind']:18} {shown:9} {verdict.score:6.2f} {said}")
        rows[group(facts, rate)].append((verdict.score, goal is not None, right))
    for name in sorted(rows):
        scores, flagged, right = zip(*rows[name], strict=True)
        print(
            f"{name}: {sum(flagged)} of {len(flagged)} suspicious, {sum(right)} of the right class;"
            f" scores {min(scores):.2f} to {max(scores):.2f}, median {median(scores):.2f}"
        )
    print(f"threshold {verdict.threshold:.2f}; {json.dumps(machine())}")


if __name__ == "__main__":
    main()
