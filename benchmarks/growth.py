"""How the cost of a scan grows with the number of classes and the size of images.

An untrained net of the zoo and random images: what a round costs does not depend on what the net
has learned. Image-steps are counted, seconds measured over a few rounds of the default inverter.

    python benchmarks/growth.py
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch

from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.zoo import NETS
from setting import machine

CLASSES = ((2, 32), (10, 32), (43, 32), (100, 32), (1000, 32))
SIZES = ((10, 64), (10, 128), (10, 224))
IMAGES = 96


def measure(net: str, classes: int, side: int, rounds: int) -> dict[str, Any]:
    """Return image-steps and seconds of a round, start apart."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Classifier(NETS[net](classes, 3), NORMALIZATIONS["cifar10"], 3).eval()
    images = torch.randint(256, (IMAGES, 3, side, side), generator=rng, dtype=torch.uint8)
    labels = torch.arange(IMAGES) % classes
    subject = Subject(model, (3, side, side), classes)
    detector = DETECTORS["pixel_quick"]
    assert isinstance(detector, Inspector)
    method = replace(detector.inverter, probe=None)  # type: ignore[type-var]
    goals = [Goal(k) for k in range(classes)]
    started = time.perf_counter()
    inversion = method(subject, InMemory(images, labels, classes), goals, rng)
    begun, before = time.perf_counter(), inversion.image_steps
    for _ in range(rounds):
        inversion.step(torch.arange(classes))
    seconds = (time.perf_counter() - begun) / rounds
    steps = (inversion.image_steps - before) / rounds
    return {
        "classes": classes,
        "side": side,
        "image_steps_a_round": steps,
        "seconds_a_round": seconds,
        "image_steps_a_second": steps / seconds,
        "start_seconds": begun - started,
    }


def main() -> None:
    """Print a row a case, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="tiny")
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args()
    rows = []
    for classes, side in (*CLASSES, *SIZES):
        rows.append(measure(a.net, classes, side, a.rounds))
        r = rows[-1]
        print(
            f"{classes:5} classes {side:4} px  {r['image_steps_a_round']:8,.0f} image-steps a "
            f"round  {r['seconds_a_round']:7.3f} s  {r['image_steps_a_second']:7,.0f} a second",
            flush=True,
        )
    print(json.dumps({"machine": machine(), "net": a.net, "rows": rows}))


if __name__ == "__main__":
    main()
