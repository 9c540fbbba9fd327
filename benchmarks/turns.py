"""Whose turn it is: image-steps and verdicts of exhaustive search, halving and K-Arm.

`k_arm` screens the classes on clean images first, as published; `k_arm_all` leaves that out and
lets the bandit choose among all classes; `k_arm_half` gives it half of its 1000 rounds.

The models are those of `calibrate.py`, made if they are not there; every scheduler steps the same
inverter on the same images from the same seed.

    python benchmarks/turns.py --bag runs/bag --out runs/turns.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from calibrate import FIRST, make, spec, usable
from gifthorse.core.run import Run
from gifthorse.core.types import Detector, Subject
from gifthorse.detection import DETECTORS, Inspector, KArmScan
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.search import SuccessiveHalving
from gifthorse.workflows.make import divide, draw
from setting import keep, kept, machine

# Pairs of a clean and a backdoored model on CIFAR-10, MNIST and GTSRB.
NUMBERS = [2, 3, 4, 5, 8, 9, 10, 11, 14, 15, 16, 17, 0, 1]


def schedulers() -> dict[str, Detector]:
    """Return the default detector with three ways of taking turns."""
    exhaustive = DETECTORS["pixel_quick"]
    assert isinstance(exhaustive, Inspector)
    karm = DETECTORS["k_arm_pixel"]
    assert isinstance(karm, KArmScan)
    karm = replace(karm, inverter=exhaustive.inverter, pairwise=exhaustive.inverter)
    return {
        "exhaustive": exhaustive,
        "halving": replace(exhaustive, scheduler=SuccessiveHalving(first=30, second=45)),
        "k_arm": karm,
        "k_arm_all": replace(karm, screening=False),
        "k_arm_half": replace(
            karm,
            screening=False,
            scheduler=replace(karm.scheduler, rounds=karm.scheduler.rounds // 2),
        ),
    }


def judge(number: int, bag: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Add verdict and image-steps of every scheduler that is not known yet on one model."""
    s, path = spec(number), bag / f"{number:03}.safetensors"
    data = divide(s.data)
    if not path.exists():
        make(s, data, path)
    opened = load(path)
    figures = json.loads(opened.origin.metadata["gifthorse"])["figures"]
    out: dict[str, Any] = {**known, "number": number, "data": s.data, "target": s.target}
    if not usable({"figures": figures, "spec": asdict(s)}):
        return out | {"left_out": figures}
    net = Classifier(opened.net, data.normalization, opened.channels).eval()
    subject = Subject(net, data.train.shape, opened.classes, opened.origin)
    clean = draw(data.validation, s.images, torch.Generator().manual_seed(FIRST + number))
    for name, detector in schedulers().items():
        if name in out:
            continue
        run = Run()
        rng = torch.Generator().manual_seed(FIRST + number)
        verdict = detector(subject, clean, rng, run)
        lead = verdict.findings[0].goal if verdict.findings else None
        out[name] = {
            "label": verdict.label,
            "class": None if lead is None else lead.target,
            "score": verdict.score,
            "image_steps": run.image_steps,
            "seconds": verdict.seconds,
        }
    return out


def main() -> None:
    """Judge the models that are not in the JSON yet; print a line each and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bag", type=Path, required=True)
    parser.add_argument("--numbers", nargs="+", type=int, default=NUMBERS)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    result = kept(a.out, {"models": []})
    done = {m["number"]: m for m in result["models"]}
    a.bag.mkdir(parents=True, exist_ok=True)
    for number in a.numbers:
        if number in done and (
            "left_out" in done[number] or set(schedulers()) <= set(done[number])
        ):
            continue
        done[number] = judge(number, a.bag, done.get(number, {}))
        result["models"] = list(done.values())
        result["machine"] = machine()
        keep(a.out, result)
    names = list(schedulers())
    models = [m for m in result["models"] if "left_out" not in m]
    print(f"left out (task or backdoor not learned): {len(result['models']) - len(models)}")
    for m in models:
        truth = "clean" if m["target"] is None else f"class {m['target']}"
        cells = [f"{m[n]['label']} {m[n]['class']} {m[n]['image_steps']:,.0f}" for n in names]
        print(f"{m['number']:3} {m['data']:8} {truth:9} " + " | ".join(cells))
    base = sum(m["exhaustive"]["image_steps"] for m in models)
    for n in names:
        steps = sum(m[n]["image_steps"] for m in models)
        same = sum(m[n]["label"] == m["exhaustive"]["label"] for m in models)
        right = sum((m[n]["label"] == "BACKDOORED") == (m["target"] is not None) for m in models)
        print(
            f"{n}: {steps:,.0f} image-steps ({steps / base:.2f} of exhaustive); same verdict as "
            f"exhaustive on {same} of {len(models)}, right on {right}"
        )


if __name__ == "__main__":
    main()
