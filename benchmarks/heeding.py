r"""What it changes that quick searches heed failed tests: how many triggers end far too large.

The search of `pixel_quick` on some models, with and without `config.failed_test_patience`, on the
same images, from the same starts. Prints the sizes of all classes, and how many are more than twice
their median.

    python benchmarks/heeding.py clean20.safetensors runs/attacks/badnet-{0,1,2}.safetensors
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

import torch

from gifthorse.core.types import Goal
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.inversion import PixelBackdoor
from gifthorse.models import load
from gifthorse.search import Exhaustive
from gifthorse.workflows.make import benign, divide, draw
from setting import machine


def main() -> None:
    """Search twice on every model and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--each", type=int, default=10, help="clean images of a class")
    parser.add_argument("--seeds", type=int, default=1)
    a = parser.parse_args()
    data = divide(a.data)
    detector = DETECTORS["pixel_quick"]
    assert isinstance(detector, Inspector)
    assert isinstance(detector.inverter, PixelBackdoor)
    large, arms = {0: 0, detector.inverter.config.failed_test_patience: 0}, 0
    for path in a.models:
        subject = benign(load(path), data)
        for seed in range(a.seeds):
            clean = draw(data.validation, a.each, torch.Generator().manual_seed(seed))
            arms += subject.classes
            for heed in large:
                config = replace(detector.inverter.config, failed_test_patience=heed)
                inverter = replace(detector.inverter, config=config)
                goals = [Goal(k) for k in range(subject.classes)]
                inversion = inverter(subject, clean, goals, torch.Generator().manual_seed(seed))
                for _ in Exhaustive()(inversion):
                    pass
                sizes = [c.size for c in inversion.best]
                large[heed] += sum(s > 2 * statistics.median(sizes) for s in sizes)
                shown = " ".join(f"{s:.0f}" for s in sizes)
                print(
                    f"{path} seed {seed} heed {heed}: {shown}; {inversion.image_steps:,.0f}",
                    flush=True,
                )
    for heed, count in large.items():
        print(f"heed {heed}: {count} of {arms} triggers are over twice the median of their model")
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
