r"""One row a detector: what it says of a backdoored and a clean model, of CIFAR-10 and of GTSRB.

Every detector gets the same clean images; the trigger that a test model was made with is only used
afterwards, for the mask Jaccard index. One JSON a detector and model, so that a run goes on where
it stopped.

    python benchmarks/detectors.py bad20.safetensors clean20.safetensors \
      --images cifar200.npz --out runs/detectors
    python benchmarks/detectors.py examples/gift/gift.safetensors examples/gift/twin.safetensors \
      --images examples/gift/clean.npz --out runs/detectors

With --grid, nothing runs: one row a detector of what is there, one column a model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from gifthorse.core.metrics import mask_jaccard
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Verdict
from gifthorse.detection import DETECTORS
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.opening import Inputs, opened
from setting import keep, machine

# What the papers print for a 3x3 BadNet on CIFAR-10: TrojanZoo, Tables 11 (AIV) and 12 (MLN, MJS),
# ResNet-18; USB, Table 1 (MLN of the target, and of clean models' classes).
PAPER = {
    "neural_cleanse": "AIV 3.08, MLN 4.98, MJS 0.55 (Zoo); MLN 8.89 vs 51.59 (USB)",
    "tabor": "AIV 3.26, MLN 5.63, MJS 0.70 (Zoo); MLN 10.06 vs 55.09 (USB)",
    "usb": "MLN 12.02 vs 48.99 (USB)",
    "abs": "AIV 3.02, MLN 17.74, MJS 0.42 (Zoo)",
    "deep_inspect": "AIV 0.54, MLN 9.65, MJS 0.25 (Zoo)",
    "neuron_inspect": "AIV 1.28 (Zoo)",
}


ACCUSED = ("BACKDOORED", "SUSPICIOUS")


def overlap(verdict: Verdict, model: Path) -> float | None:
    """Return the mask Jaccard index of the leading finding with the true trigger."""
    truth = model.with_suffix(".trigger.safetensors")
    if not truth.exists() or not verdict.findings:
        return None
    mask = verdict.findings[0].evidence.get("mask")
    if not isinstance(mask, torch.Tensor):
        return None
    return mask_jaccard(mask.amax(0), open_trigger(truth).render()[1][0])


def run(name: str, model: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Run one detector on one model."""
    prepared = opened(str(model), Inputs(a.images))
    known = describe(DETECTORS[name])
    options = dict(text.split("=", 1) for text in a.set)
    detector = vary(DETECTORS[name], {k: v for k, v in options.items() if k in known})
    run, started = Run(seconds=a.seconds), time.monotonic()
    rng = torch.Generator().manual_seed(a.seed)
    verdict = detector(prepared.subject, prepared.samples, rng, run)
    lead = verdict.findings[0] if verdict.findings else None
    target = lead.goal.target if lead and lead.goal else None
    sizes = {arm.goal.target: arm.size for arm in verdict.arms if arm.goal.source is None}
    others = [size for k, size in sizes.items() if k != target]
    return {
        "detector": name,
        "model": model.name,
        "label": verdict.label,
        "class": target,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "size": sizes.get(target) if target is not None else None,
        "median": float(torch.tensor(others).quantile(0.5)) if others else None,
        "aiv": verdict.statistics.get("anomaly_index"),
        "mjs": overlap(verdict, model),
        "asr": lead.confirmation.asr.value if lead and lead.confirmation else None,
        "seconds": time.monotonic() - started,
        "image_steps": run.image_steps,
        "arms": [
            [a.goal.source, a.goal.target, a.size, a.asr, a.index, a.feasible] for a in verdict.arms
        ],
        "statistics": dict(verdict.statistics),
        "message": lead.message if lead else "",
        "options": {k: str(v) for k, v in options.items() if k in known},
        "machine": machine(),
    }


def number(value: float | None, digits: int = 1) -> str:
    """Return a figure, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def show(r: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = [
        r["detector"],
        r["model"].split(".")[0],
        r["label"] + ("" if r["class"] is None else f" {r['class']}"),
        number(r["size"]),
        number(r["median"]),
        number(r["aiv"]),
        number(r["score"]),
        number(r["mjs"], 2),
        number(None if r["asr"] is None else 100 * r["asr"], 0),
        number(r["seconds"], 0),
        number(r["image_steps"], 0),
    ]
    return "| " + " | ".join(cells) + " |"


def grid(names: Iterable[str], models: Iterable[Path], out: Path) -> Iterator[str]:
    """Yield a table of verdicts and seconds, one row a detector and one column a model."""
    columns = list(models)
    yield f"| detector | {' | '.join(model.stem for model in columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name in names:
        paths = [out / f"{name}-{model.stem}.json" for model in columns]
        found = [json.loads(path.read_text()) if path.exists() else None for path in paths]
        if any(found):
            yield f"| {name} | {' | '.join('not run' if r is None else brief(r) for r in found)} |"


def brief(r: dict[str, Any]) -> str:
    """Return label, class if it is accused, and seconds of a record."""
    accused = "" if r["class"] is None or r["label"] not in ACCUSED else f" {r['class']}"
    return f"{r['label'].lower()}{accused}, {number(r['seconds'], 0)} s"


def arguments() -> argparse.Namespace:
    """Return what was asked for, checked before anything runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", help="clean images; not needed with --show or --grid")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seconds", type=float, help="time limit of a detector on a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--grid", action="store_true", help="one column a model, run nothing")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    if not a.images and not (a.show or a.grid):
        parser.error("--images is needed to run anything")
    known = {option for name in a.detectors for option in describe(DETECTORS[name])}
    for text in a.set:
        if text.partition("=")[0] not in known:
            parser.error(f"no detector named here has an option {text!r}")
    return a


def main() -> None:
    """Run the rows that have no JSON yet and print the table."""
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    if a.grid:
        print("\n".join(grid(a.detectors, a.models, a.out)))
        return
    print("| detector | model | verdict | size | median | AIV | score | MJS | ASR | s | steps |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in a.detectors:
        for model in a.models:
            path = a.out / f"{name}-{model.stem}.json"
            if not path.exists():
                if a.show:
                    continue
                record = run(name, model, a)
                keep(path, record)
            print(show(json.loads(path.read_text())), flush=True)
    for name in a.detectors:
        if name in PAPER:
            print(f"{name}, papers: {PAPER[name]}")


if __name__ == "__main__":
    main()
