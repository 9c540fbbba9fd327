"""PixelBackdoor's Table 6: natural triggers of one pair on a clean model, and its four ablations.

Clip form, 100 generation images of the source class, 1000 epochs of full batches of 32, success bar
0.9; size and success on 1000 unseen images of the source class, over seeds.

    python benchmarks/natural_trigger.py MODEL.safetensors --seeds 5 --out table6.json
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

from gifthorse.core.types import Goal, Subject
from gifthorse.inversion import PixelBackdoor
from gifthorse.search import Exhaustive, SearchConfig
from setting import keep, kept, machine, prepare, unseen_success

# What the paper prints: pixels and success in percent, means and deviations of ten runs.
PAPER = {
    "full": "38.70 +- 5.10, 80.07 +- 3.96",
    "plain": "46.40 +- 10.07, 79.73 +- 2.11",
    "positive": "84.50 +- 12.24, 72.64 +- 3.82",
    "signed": "1024.00 +- 0.00, 90.99 +- 4.40",
    "signed_plain": "1023.10 +- 0.88, 88.39 +- 4.85",
}
CLIP = PixelBackdoor(mode="clip")
ROWS = {
    "full": CLIP,
    "plain": replace(CLIP, spread="plain"),
    "positive": replace(CLIP, variables="positive"),
    "signed": replace(CLIP, variables="signed"),
    "signed_plain": replace(CLIP, variables="signed", spread="plain"),
}


def spread(values: list[float]) -> dict[str, Any]:
    """Return values with mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"each": values, "mean": statistics.mean(values), "deviation": deviation}


def row(method: PixelBackdoor, where: tuple[Any, ...], goal: Goal, seeds: int) -> dict[str, Any]:
    """Run all seeds of a row as arms of one search."""
    subject, clean, unseen = where
    assert isinstance(subject, Subject)
    started = time.monotonic()
    # Arms have generators and state of their own, so one goal five times is five seeds.
    inversion = method(subject, clean, [goal] * seeds, torch.Generator().manual_seed(0))
    for _ in Exhaustive()(inversion):
        pass
    return {
        "pixels": spread([c.size for c in inversion.best]),
        "asr_percent": spread(
            [100 * unseen_success(subject, c.trigger, unseen, goal) for c in inversion.best]
        ),
        "found": sum(c.feasible for c in inversion.best),
        "rounds": [c.rounds for c in inversion.best],
        "image_steps": inversion.image_steps / seeds,
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    """Run the rows that are not in the JSON yet; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--source", type=int, default=0)
    parser.add_argument("--target", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--patience", type=int, default=0, help="stop 100, say, after a gain")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rule", default="size", choices=["size", "reference"])
    parser.add_argument("--ties", default="share", choices=["share", "first"])
    parser.add_argument("--float32", action="store_true", help="run the net in float32 too")
    parser.add_argument("--out", type=Path, help="JSON file, continued if it is there")
    a = parser.parse_args()
    where, goal = prepare(a.model, a.data, a.source), Goal(a.target, a.source)
    config = SearchConfig(
        batch=32, success_threshold=0.9, rounds=a.rounds, rule=a.rule, bf16=not a.float32
    )
    config = replace(config, patience=a.patience, min_rounds=2 * a.patience)
    result: dict[str, Any] = kept(a.out, {"rows": {}}) if a.out else {"rows": {}}
    for name in a.rows:
        if name not in result["rows"]:
            method = replace(ROWS[name], config=config, ties=a.ties)
            result["rows"][name] = row(method, where, goal, a.seeds)
            result |= {"machine": machine(), "settings": {k: str(v) for k, v in vars(a).items()}}
            if a.out:
                keep(a.out, result)
        r = result["rows"][name]
        px, rate = r["pixels"], r["asr_percent"]
        print(
            f"{name:13} {px['mean']:7.2f} +- {px['deviation']:5.2f} px  "
            f"{rate['mean']:6.2f} +- {rate['deviation']:5.2f} %  {r['seconds']:5.0f} s   "
            f"paper {PAPER[name]}",
            flush=True,
        )
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}))


if __name__ == "__main__":
    main()
