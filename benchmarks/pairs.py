"""PixelBackdoor's Figs. 5 and 6 on pairs of CIFAR-10 classes, and Table 5's protocol on some.

Every method inverts a trigger for each pair on 100 images of the source class of a clean model.
Then triggers are compared at equal size (the baseline's strongest pixels, as many as PixelBackdoor
needs) and by the pixels they need to reach Neural Cleanse's success, all on 1000 unseen images.
With `--turning`, triggers are made under the transformations of appendix J and tested under those
of Table 5.

    python benchmarks/pairs.py MODEL.safetensors --pairs 12 --out pairs.json
    python benchmarks/pairs.py MODEL.safetensors --turning --pairs 2 --out turning.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gifthorse.analysis import align_asr, align_size, pixels, robustness
from gifthorse.core.types import Goal, Inverter, Subject
from gifthorse.data.samples import InMemory
from gifthorse.inversion import INVERTERS
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.search import Exhaustive, RandomAffine
from gifthorse.workflows.make import divide
from setting import GENERATION, UNSEEN, keep, machine, unseen_success

# Twelve pairs in which every class is a source and a target at least once.
PAIRS = [(0, 5), (1, 3), (2, 8), (3, 6), (4, 7), (5, 1), (6, 0), (7, 9), (8, 4), (9, 2)]
PAIRS += [(0, 2), (7, 5)]
METHODS = ("pixel_clip", "neural_cleanse_baseline", "uap")


def only(samples: InMemory, sources: list[int], count: int) -> InMemory:
    """Return the first images of some classes."""
    rows = [(samples.labels == s).nonzero().flatten()[:count] for s in sorted(set(sources))]
    chosen = torch.cat(rows)
    return InMemory(samples.images[chosen], samples.labels[chosen], samples.classes)


def paced(name: str, rounds: int, turning: RandomAffine | None, *, fast: bool) -> Inverter:
    """Return a method on the schedule of the comparison, converged arms stopping early."""
    method = INVERTERS[name]
    config = replace(method.config, rounds=rounds, bf16=True)  # type: ignore[attr-defined]
    if name != "uap":
        config = replace(config, min_rounds=200, patience=100)
    changed: dict[str, Any] = {"config": config} | ({"turning": turning} if turning else {})
    if fast and name != "uap":
        changed |= {"initial": 0.05, "patience": 3}
    return replace(method, **changed)  # type: ignore[type-var]


def invert(
    name: str, subject: Subject, clean: InMemory, goals: list[Goal], a: argparse.Namespace
) -> dict[str, Any]:
    """Invert all pairs in one batch; return triggers and cost."""
    started = time.monotonic()
    turning = RandomAffine() if a.turning and name != "uap" else None
    method = paced(name, a.rounds, turning, fast=a.fast)
    inversion = method(subject, clean, goals, torch.Generator().manual_seed(a.seed))
    for _ in Exhaustive()(inversion):
        pass
    return {
        "best": inversion.best,
        "seconds": time.monotonic() - started,
        "image_steps": inversion.image_steps,
    }


def main() -> None:  # noqa: PLR0915  (one script, top to bottom)
    """Run the comparison and write JSON and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--fast", action="store_true", help="weight of size 0.05, moved every 3")
    parser.add_argument("--align", action="store_true", help="also prune to equal success (slow)")
    parser.add_argument("--turning", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    splits, opened = divide(a.data), load(a.model)
    net = Classifier(opened.net, splits.normalization, opened.channels).eval()
    subject = Subject(net, splits.train.shape, opened.classes, opened.origin)
    goals = [Goal(target, source) for source, target in PAIRS[: a.pairs]]
    sources = [g.source for g in goals if g.source is not None]
    clean = only(splits.validation, sources, GENERATION)
    made = {name: invert(name, subject, clean, goals, a) for name in a.methods}
    rows = []
    for i, goal in enumerate(goals):
        assert goal.source is not None
        unseen = only(splits.test, [goal.source], UNSEEN)
        row: dict[str, Any] = {"source": goal.source, "target": goal.target}
        ours = made["pixel_clip"]["best"][i] if "pixel_clip" in made else None
        for name, run in made.items():
            found = run["best"][i]
            own = unseen_success(subject, found.trigger, unseen, goal)
            cell = {"pixels": pixels(found.trigger), "size": found.size, "asr": own}
            cell["feasible"] = found.feasible
            if ours is not None and name != "pixel_clip":
                cell["asr_at_our_size"] = align_size(
                    subject, found.trigger, goal, unseen, max(1, int(ours.size))
                ).value
            if ours is not None and name != "pixel_clip" and a.align:
                cell["pixels_to_own_asr"] = align_asr(subject, found.trigger, goal, unseen, own)
                cell["our_pixels_to_its_asr"] = align_asr(subject, ours.trigger, goal, unseen, own)
            if a.turning:
                table = robustness(subject, found.trigger, goal, unseen)
                cell["robustness"] = {k: r.value for k, r in table.items()}
            row[name] = cell
        rows.append(row)
        print(json.dumps(row), flush=True)
    cost = {n: {k: v for k, v in run.items() if k != "best"} for n, run in made.items()}
    means = {
        name: {
            key: statistics.mean(float(r[name][key]) for r in rows if r[name].get(key) is not None)
            for key in ("pixels", "asr", "asr_at_our_size")
            if any(r[name].get(key) is not None for r in rows)
        }
        for name in made
    }
    result = {"machine": machine(), "rows": rows, "means": means, "cost": cost}
    result["settings"] = {k: str(v) for k, v in vars(a).items()}
    keep(a.out, result)
    print(json.dumps({"means": means, "cost": cost}, indent=1))


if __name__ == "__main__":
    main()
