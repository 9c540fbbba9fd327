"""What poisoning costs a step of training: poisoned against clean epochs, in turns on one thread.

    python benchmarks/poisoning.py --net resnet20 --images 1280 --repeats 5

The goal is at most 1.1 for attacks without an optimization of their own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from gifthorse.attacks import ATTACKS
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.training import Recipe, fit
from gifthorse.workflows.make import divide, fresh, shorter
from setting import machine

ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "badnet batch": ("badnet", {}),
    "badnet dataset": ("badnet", {"mixing.mode": "dataset"}),
    "badnet wandering": ("badnet", {"stamp.form": "wandering"}),
    "blended": ("blended", {"mixing.rate": 0.01}),
    "instagram": ("instagram", {"mixing.rate": 0.01}),
    "lsb": ("lsb", {"mixing.rate": 0.01}),
    "polygon": ("polygon", {"mixing.rate": 0.01}),
}


def main() -> None:
    """Time clean and poisoned epochs in turns; print the median ratio of neighbors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    data = shorter(divide(a.data), a.images)
    recipe = Recipe(epochs=1, batch=128, lr=0.01, schedule="constant", bf16=False)
    start = fresh(a.net, data, torch.Generator().manual_seed(0))
    fit(start, data.train, recipe, torch.Generator().manual_seed(0), Run())  # warm
    out = {}
    for name, (attack, options) in ROWS.items():
        method = vary(
            ATTACKS[attack], {f"recipe.{k}": v for k, v in vars(recipe).items()} | options
        )
        ratios, clean = [], []
        for seed in range(a.repeats):
            marks = [time.perf_counter()]
            fit(start, data.train, recipe, torch.Generator().manual_seed(seed), Run())
            marks.append(time.perf_counter())
            method(start, data.train, Goal(0), torch.Generator().manual_seed(seed), Run())
            marks.append(time.perf_counter())
            clean.append(marks[1] - marks[0])
            ratios.append((marks[2] - marks[1]) / clean[-1])
        out[name] = {"ratio": statistics.median(ratios), "clean_epoch_s": statistics.median(clean)}
        print(f"{name:18} {out[name]['ratio']:.2f}", flush=True)
    print(json.dumps({"rows": out, "net": a.net, "images": a.images, "machine": machine()}))


if __name__ == "__main__":
    main()
