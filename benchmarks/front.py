"""Size, success and cost of inverters of natural triggers: is there a better front?

Every method inverts a trigger for some pairs of classes of a clean model on 100 images of the
source class; success is counted on 1000 unseen images. `plain` is the published PixelBackdoor loop
(`reference_pixel.py`), one pair after another; the others run all pairs in one batch, and their
cost is divided by the number of pairs. Written after every method, and continued from there.

    python benchmarks/front.py MODEL.safetensors --pairs 0:5 4:7 --out front.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gifthorse.core.types import Goal, Inverter, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.inversion import Carve, PixelBackdoor
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.report.figures.comparison import curves
from gifthorse.search import Exhaustive
from gifthorse.triggers import Additive
from gifthorse.workflows.make import divide
from inversion import QUICK
from reference_pixel import invert
from setting import GENERATION, UNSEEN, keep, kept, machine, unseen_success

CLIP = PixelBackdoor(mode="clip")
METHODS: dict[str, Inverter | None] = {
    "plain": None,
    "pixel_clip": CLIP,
    "pixel_clip_first": replace(CLIP, ties="first"),
    "pixel_fast": QUICK,
    "pixel_fast_first": replace(QUICK, ties="first"),
    "carve": Carve(),
    "carve_mirror": Carve(mirror=True),
    "carve_prune": Carve(turn=0.0),  # pixels leave, none joins
}


def only(samples: InMemory, sources: set[int], count: int) -> InMemory:
    """Return the first images of some classes."""
    rows = [(samples.labels == s).nonzero().flatten()[:count] for s in sorted(sources)]
    chosen = torch.cat(rows)
    return InMemory(samples.images[chosen], samples.labels[chosen], samples.classes)


def plain(subject: Subject, validation: InMemory, goals: list[Goal], seed: int) -> dict[str, Any]:
    """Run the published loop, one pair after another."""
    started, triggers, tracks, steps = time.perf_counter(), [], [], 0
    for goal in goals:
        assert goal.source is not None
        x, _ = whole(only(validation, {goal.source}, GENERATION))
        found = invert(subject.net, x, goal.target, seed=seed)
        triggers.append(Additive(found.delta))
        tracks.append(found.curve)
        steps += found.image_steps
    seconds = time.perf_counter() - started
    sizes = [int((t.delta.abs() >= 1 / 255 - 1e-6).any(0).sum()) for t in triggers]
    return {"triggers": triggers, "sizes": sizes, "seconds": seconds, "image_steps": steps}


def batched(
    method: Inverter, subject: Subject, validation: InMemory, goals: list[Goal], seed: int
) -> dict[str, Any]:
    """Run a method on all pairs at once, with its curve of sizes over image-steps."""
    clean = only(validation, {g.source for g in goals if g.source is not None}, GENERATION)
    started = time.perf_counter()
    inversion = method(subject, clean, goals, torch.Generator().manual_seed(seed))
    track: list[list[Any]] = []
    for progress in Exhaustive()(inversion):
        sizes = progress.size.tolist()
        if not track or sizes != track[-1][2]:
            now = time.perf_counter() - started
            track.append([inversion.image_steps / len(goals), now / len(goals), sizes])
    return {
        "triggers": [c.trigger for c in inversion.best],
        "sizes": [c.size for c in inversion.best],
        "seconds": time.perf_counter() - started,
        "image_steps": inversion.image_steps,
        "curve": track,
    }


def say_when(title: str, track: list[Any], arm: int, base: dict[str, Any]) -> None:
    """Print when an arm was first a fifth smaller than what the plain loop ends with."""
    small = (moment for moment in track if moment[2][arm] <= 0.8 * base["sizes"][arm])
    steps, seconds, _ = next(small, (None, None, None))
    if steps is not None and seconds is not None:
        print(
            f"{title}: 0.8 of plain's size after {seconds:.1f} s and {steps:,.0f} image-steps, "
            f"{base['seconds'] / seconds:.1f} x as fast as plain's whole run"
        )


def show(methods: dict[str, Any], goals: list[Goal]) -> None:
    """Print a line a method: size, success and cost, beside the plain loop's."""
    base = methods.get("plain")
    for name, m in methods.items():
        size, rate = sum(m["sizes"]) / len(goals), 100 * sum(m["asr"]) / len(goals)
        line = f"{name:17} {size:6.1f} px {rate:5.1f} %  {m['seconds']:6.1f} s a pair"
        line += f"  {m['image_steps']:8,.0f} image-steps a pair  {m['sizes']}"
        if base is not None:
            line += f"  size {size / (sum(base['sizes']) / len(goals)):.2f} of plain"
            line += f", {base['seconds'] / m['seconds']:.1f} x as fast"
        print(line, flush=True)
        for i, goal in enumerate(goals if base is not None and "curve" in m else ()):
            say_when(f"{name}, {goal.source} to {goal.target}", m["curve"], i, base or {})


def main() -> None:  # noqa: PLR0915  (one script, top to bottom)
    """Run the methods that are not in the JSON yet; print a line each and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--pairs", nargs="+", default=["0:5", "4:7"], help="source:target")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    splits, opened = divide(a.data), load(a.model)
    net = Classifier(opened.net, splits.normalization, opened.channels).eval()
    subject = Subject(net, splits.train.shape, opened.classes, opened.origin)
    pairs = [tuple(map(int, text.split(":"))) for text in a.pairs]
    goals = [Goal(target, source) for source, target in pairs]
    result = kept(a.out, {"methods": {}})
    for name in a.methods:
        if name in result["methods"]:
            continue
        method = METHODS[name]
        made = (
            plain(subject, splits.validation, goals, a.seed)
            if method is None
            else batched(method, subject, splits.validation, goals, a.seed)
        )
        rates = []
        for goal, trigger in zip(goals, made.pop("triggers"), strict=True):
            assert goal.source is not None
            unseen = only(splits.test, {goal.source}, UNSEEN)
            rates.append(unseen_success(subject, trigger, unseen, goal))
        made |= {"asr": rates, "seconds": made["seconds"] / len(goals)}
        made["image_steps"] /= len(goals)
        result["methods"][name] = made
        result |= {"machine": machine(), "settings": {k: str(v) for k, v in vars(a).items()}}
        keep(a.out, result)
    show(result["methods"], goals)
    tracks = {
        name: [[(steps, sizes[i]) for steps, _, sizes in m["curve"]] for i in range(len(goals))]
        for name, m in result["methods"].items()
        if "curve" in m
    }
    if tracks:
        curves(a.out.with_suffix(".png"), tracks, title="Size of natural triggers over work")


if __name__ == "__main__":
    main()
