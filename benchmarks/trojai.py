"""How many traffic signs a second are made on one core; prints JSON.

python benchmarks/trojai.py --classes 10 --each 200
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from gifthorse.data.trojai import make_signs
from setting import machine


def main() -> None:
    """Time several data sets, each of another place and weather, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--each", type=int, default=200, help="training images a class")
    parser.add_argument("--sets", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    make_signs(0, classes=2, train=1, test=1)
    wall, cpu = [], []
    for seed in range(asked.sets):
        began, worked = time.perf_counter(), time.process_time()
        first, second = make_signs(seed, classes=asked.classes, train=asked.each, test=1)
        images = len(first.samples) + len(second.samples)
        wall.append(images / (time.perf_counter() - began))
        cpu.append(images / (time.process_time() - worked))
    figures = {
        "images_a_set": images,
        "images_a_second": statistics.median(wall),
        "images_a_processor_second": statistics.median(cpu),
        "slowest_set_a_processor_second": min(cpu),
    }
    print(json.dumps({"trojai": figures, "machine": machine()}, indent=2))


if __name__ == "__main__":
    main()
