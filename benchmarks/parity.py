r"""Do faster ways find what the published schedule finds?

The search of the detector `pixel` for all classes from the same seed and images: as published (1000
rounds in float32, none stopped early); the same in bfloat16, where the processor has it; and that
with arms that stop after 100 rounds without a gain, at the earliest after 200. Sizes of all
triggers, their success on 1000 unseen images, and the class that is reported, by the detector's
thresholds. Written after every search, and continued from there.

    python benchmarks/parity.py runs/bag/{002,003,008,009,014}.safetensors --out runs/parity.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from gifthorse.core.types import Goal, Subject
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.detection.statistics import log_anomaly_index
from gifthorse.inversion import PixelBackdoor
from gifthorse.models import load
from gifthorse.search import Exhaustive
from gifthorse.workflows.make import DataSplits, benign, divide, draw
from setting import UNSEEN, keep, kept, machine, unseen_success

EACH = 5  # images of a class


def ways(detector: Inspector) -> dict[str, PixelBackdoor]:
    """Return the published search and two faster ones."""
    published = detector.inverter
    assert isinstance(published, PixelBackdoor)
    fast = replace(published.config, bf16=True)
    stopped = replace(fast, patience=100, min_rounds=200)
    return {
        "published": published,
        "bf16": replace(published, config=fast),
        "stopped": replace(published, config=stopped),
    }


def scan(
    detector: Inspector, inverter: PixelBackdoor, subject: Subject, data: DataSplits, seed: int
) -> dict[str, Any]:
    """Return sizes, success on unseen images, and the class that is reported, if any."""
    started = time.perf_counter()
    clean = draw(data.validation, EACH, torch.Generator().manual_seed(seed))
    goals = [Goal(k) for k in range(subject.classes)]
    inversion = inverter(subject, clean, goals, torch.Generator().manual_seed(seed))
    for _ in Exhaustive()(inversion):
        pass
    seconds = time.perf_counter() - started
    unseen = draw(data.test, UNSEEN // subject.classes, torch.Generator().manual_seed(seed))
    sizes = [c.size for c in inversion.best]
    rates = [unseen_success(subject, c.trigger, unseen, c.goal) for c in inversion.best]
    depths = log_anomaly_index(torch.tensor(sizes))
    k = int(depths.argmax())
    reported = depths[k].item() >= detector.threshold and rates[k] >= detector.proof.success
    return {
        "class": k if reported else None,
        "depth": depths[k].item(),
        "sizes": sizes,
        "asr": rates,
        "image_steps": inversion.image_steps,
        "seconds": seconds,
    }


def show(models: dict[str, Any]) -> None:
    """Print a line a model and the ratios over all of them."""
    for name, m in models.items():
        for way, r in m.items():
            print(
                f"{name} {way:9}: {mean(r['sizes']):6.1f} px, {100 * mean(r['asr']):5.1f} %, "
                f"{'nothing' if r['class'] is None else r['class']} stands out ({r['depth']:.1f}), "
                f"{r['image_steps']:,.0f} image-steps, {r['seconds']:.0f} s",
            )
    for way in ("bf16", "stopped"):
        both = [(m["published"], m[way]) for m in models.values()]
        size = sum(sum(f["sizes"]) for _, f in both) / sum(sum(p["sizes"]) for p, _ in both)
        rate = mean(mean(f["asr"]) - mean(p["asr"]) for p, f in both)
        same = sum(p["class"] == f["class"] for p, f in both)
        steps = sum(f["image_steps"] for _, f in both) / sum(p["image_steps"] for p, _ in both)
        quick = sum(p["seconds"] for p, _ in both) / sum(f["seconds"] for _, f in both)
        print(
            f"{way}: size {size:.3f} of published, success {100 * rate:+.1f} points, same verdict "
            f"on {same} of {len(both)}; {steps:.2f} of the image-steps, {quick:.1f} x as fast"
        )


def main() -> None:
    """Scan the models that are not in the JSON yet; print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    data, detector = divide(a.data), DETECTORS["pixel"]
    assert isinstance(detector, Inspector)
    result = kept(a.out, {"models": {}})
    for path in a.models:
        subject, known = benign(load(path), data), result["models"].setdefault(path.stem, {})
        for way, inverter in ways(detector).items():
            if way in known:
                continue
            known[way] = scan(detector, inverter, subject, data, a.seed)
            result["machine"] = machine()
            keep(a.out, result)
    show(result["models"])


if __name__ == "__main__":
    main()
