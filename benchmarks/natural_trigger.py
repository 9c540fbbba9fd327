"""PixelBackdoor's Table 6, first row: natural triggers of one pair on a clean model.

Clip form, 100 generation images of the source class, 1000 epochs of full batches of 32, success bar
0.9; size and success on 1000 unseen images of the source class, over seeds. The paper has 38.70 +-
5.10 pixels and 80.07 +- 3.96 % on its ResNet-20 (airplane to dog).

    python benchmarks/natural_trigger.py MODEL.safetensors --seeds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from gifthorse.inversion import PixelBackdoor
from gifthorse.search import Exhaustive, Pace
from gifthorse.triggers import Additive
from gifthorse.types import Goal
from setting import machine, prepare, success


def main() -> None:
    """Run all seeds as arms of one search and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--source", type=int, default=0)
    parser.add_argument("--target", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--rule", default="size", choices=["size", "reference"])
    parser.add_argument("--float32", action="store_true", help="run the net in float32 too")
    a = parser.parse_args()
    subject, clean, unseen = prepare(a.model, a.data, a.source)
    goal = Goal(a.target, a.source)
    pace = Pace(batch=32, bar=0.9, rounds=a.rounds, rule=a.rule, bf16=not a.float32)
    method = replace(PixelBackdoor(mode="clip"), pace=pace)
    started = time.monotonic()
    # Arms have generators and state of their own, so one goal five times is five seeds.
    hunt = method(subject, clean, [goal] * a.seeds, torch.Generator().manual_seed(0))
    *_, best = Exhaustive()(hunt)
    sizes = [c.size for c in best]
    rates = []
    for c in best:
        assert isinstance(c.trigger, Additive)
        rates.append(100 * success(subject, c.trigger.delta, unseen, goal))
    print(
        json.dumps(
            {
                "machine": machine(),
                "settings": vars(a),
                "pixels": {
                    "each": sizes,
                    "mean": statistics.mean(sizes),
                    "deviation": statistics.stdev(sizes),
                },
                "asr_percent": {
                    "each": rates,
                    "mean": statistics.mean(rates),
                    "deviation": statistics.stdev(rates),
                },
                "seconds": time.monotonic() - started,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
