"""Make a bag of clean and backdoored models, scan each, and write the shipped calibration.

    python benchmarks/calibrate.py run --out runs/bag --part 0/2    # resumable, a JSON a model
    python benchmarks/calibrate.py collect --out runs/bag           # table, calibration.json
    python benchmarks/calibrate.py refit                            # calibration.json, same scores

The bag is drawn from seeds of its own (10,000 up); no model of it is used for any other figure, and
no threshold was chosen on it. Every model is trained from scratch: net, data, trigger and target
vary. A model whose clean accuracy is poor, or whose attack did not take, is kept out by the rule
printed beside the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gifthorse.attacks import BadNet
from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.metrics import mask_jaccard
from gifthorse.core.run import Run
from gifthorse.core.stats import wilson
from gifthorse.core.types import Goal, Subject, Verdict
from gifthorse.detection import DETECTORS
from gifthorse.detection.calibration import Calibration, fit
from gifthorse.detection.calibrations import dumped
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.training import Recipe
from gifthorse.triggers import Stamp
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.evaluate import eval_images, figures
from gifthorse.workflows.make import DataSplits, divide, draw, fresh, implant, train_clean
from gifthorse.workflows.provenance import TestModel, write
from setting import keep

SHIPPED = Path(__file__).parents[1] / "src/gifthorse/detection/calibration.json"
FIRST = 10_000
# Data, net, passes over the data, clean images a class for the scan, least clean accuracy.
TASKS = (
    ("gtsrb", "tiny", 12, 2, 0.85),
    ("cifar10", "tiny", 5, 10, 0.60),
    ("mnist", "basic", 2, 10, 0.95),
)
DETECTOR_NAMES = ("pixel_quick", "neural_cleanse_quick")


@dataclass(frozen=True)
class Spec:
    """One model of the bag."""

    number: int
    data: str
    net: str
    epochs: int
    images: int
    least: float
    target: int | None
    size: int
    ink: str
    place: str
    rate: float


def spec(number: int) -> Spec:
    """Return the model with this number: even ones are clean, odd ones backdoored."""
    rng = torch.Generator().manual_seed(FIRST + number)

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=rng))

    data, net, epochs, images, least = TASKS[(number // 2) % len(TASKS)]
    classes = 43 if data == "gtsrb" else 10
    return Spec(
        number,
        data,
        net,
        epochs,
        images,
        least,
        target=pick(classes) if number % 2 else None,
        size=2 + pick(3),
        ink=("white", "checker", "random")[pick(3)],
        place=("lower_right", "upper_left", "random", "center")[pick(4)],
        rate=(0.01, 0.03, 0.1)[pick(3)],
    )


def make(s: Spec, data: DataSplits, path: Path) -> None:
    """Train the model of a spec and write it, with its figures in its metadata."""
    signs, started = s.data != "cifar10", time.monotonic()
    recipe = Recipe(epochs=s.epochs, batch=64, lr=0.1, flip=not signs, pad=2 if signs else 4)
    rng = torch.Generator().manual_seed(FIRST + s.number)
    made, method, kind = None, recipe, "clean"
    if s.target is None:
        subject = train_clean(s.net, data, recipe, rng, Run())
    else:
        attack = BadNet(
            Stamp(size=s.size, ink=s.ink, place=s.place),  # type: ignore[arg-type]
            mixing=Mixing(rate=s.rate),
            recipe=recipe,
        )
        made = implant(attack, fresh(s.net, data, rng), data, Goal(s.target), rng, Run())
        subject, method, kind = made.subject, attack, "badnet"  # type: ignore[assignment]
    told, seconds = figures(subject, eval_images(data.test, made)), time.monotonic() - started
    record = TestModel(kind, method, s.net, data, FIRST + s.number, told, seconds, made)
    write(path, subject, record)


def overlap(verdict: Verdict, path: Path) -> float | None:
    """Return the mask Jaccard index of the leading finding with the true trigger."""
    truth = path.with_suffix(".trigger.safetensors")
    if not truth.exists() or not verdict.findings:
        return None
    mask = verdict.findings[0].evidence["mask"]
    assert isinstance(mask, torch.Tensor)
    return mask_jaccard(mask[0], open_trigger(truth).render()[1][0])


def run_one(number: int, out: Path) -> None:
    """Make, judge and scan one model; write its record."""
    path = out / f"{number:03}.json"
    if path.exists():
        return
    s, model = spec(number), out / f"{number:03}.safetensors"
    data = divide(s.data)
    if not model.exists():
        make(s, data, model)
    opened = load(model)
    net = Classifier(opened.net, data.normalization, opened.channels).eval()
    subject = Subject(net, data.train.shape, opened.classes, opened.origin)
    figures = json.loads(opened.origin.metadata["gifthorse"])["figures"]
    record: dict[str, Any] = {"spec": asdict(s), "figures": figures}
    clean = draw(data.validation, s.images, torch.Generator().manual_seed(FIRST + number))
    for name in DETECTOR_NAMES:
        rng = torch.Generator().manual_seed(FIRST + number)
        verdict = DETECTORS[name](subject, clean, rng, Run())
        lead = verdict.findings[0]
        record[name] = {
            "label": verdict.label,
            "score": verdict.score,
            "class": lead.goal.target if lead.goal else None,
            "asr": lead.confirmation.asr.value if lead.confirmation else None,
            "mjs": overlap(verdict, model),
            "statistics": dict(verdict.statistics),
            "seconds": verdict.seconds,
        }
    keep(path, record)


def usable(record: dict[str, Any]) -> bool:
    """Whether a model learned its task and, if attacked, its backdoor (ASR 0.9 or more)."""
    figures = record["figures"]
    return bool(figures["accuracy"] >= record["spec"]["least"] and figures.get("asr", 1.0) >= 0.9)


def share(count: int, of: int) -> str:
    """Return the 95 % Wilson interval of a share, in percent."""
    low, high = wilson(count, of)
    return f"[{low:.0%}, {high:.0%}]"


def collect(out: Path) -> None:
    """Print the table of the bag and write calibration.json."""
    records = [json.loads(p.read_text()) for p in sorted(out.glob("*.json"))]
    kept = [r for r in records if usable(r)]
    bags: dict[str, Calibration] = {}
    for name in DETECTOR_NAMES:
        clean = [r for r in kept if r["spec"]["target"] is None]
        bad = [r for r in kept if r["spec"]["target"] is not None]
        alarms = sum(r[name]["label"] != "NO BACKDOOR FOUND" for r in clean)
        caught = sum(r[name]["label"] == "BACKDOORED" for r in bad)
        right = sum(
            r[name]["label"] == "BACKDOORED" and r[name]["class"] == r["spec"]["target"]
            for r in bad
        )
        print(
            f"{name}: {alarms} of {len(clean)} clean models alarmed; {caught} of {len(bad)} "
            f"backdoored found, {right} with the right class"
        )
        highest = max(r[name]["score"] for r in clean)
        lowest = min(r[name]["score"] for r in bad)
        print(
            f"  false alarms {share(alarms, len(clean))}, "
            f"misses {share(len(bad) - caught, len(bad))}; "
            f"highest clean score {highest:.2f}, lowest backdoored {lowest:.2f}"
        )
        for r in kept:
            s, v = r["spec"], r[name]
            truth = "clean" if s["target"] is None else f"class {s['target']}"
            mjs = "" if v["mjs"] is None else f" mjs {v['mjs']:.2f}"
            print(
                f"  {s['number']:3} {s['data']:8} {truth:9} acc {r['figures']['accuracy']:.3f} "
                f"score {v['score']:6.2f} aiv {v['statistics']['anomaly_index']:5.2f} ratio "
                f"{v['statistics']['ratio']:.2f} {v['label']} {v['class']}{mjs}"
            )
        scores = [sorted(round(r[name]["score"], 3) for r in part) for part in (clean, bad)]
        bags[name] = fit(name, *scores)
    print(f"left out (task or backdoor not learned): {len(records) - len(kept)}")
    ship(bags)


def ship(bags: Mapping[str, Calibration]) -> None:
    """Write the calibration that comes with the package."""
    bag = bags["pixel_quick"]
    counts = f"{len(bag.clean)} clean, {len(bag.backdoored)} BadNet models"
    name = f"small nets on GTSRB, CIFAR-10 and MNIST: {counts}"
    SHIPPED.write_text(dumped(name, bags, {}))


def refit() -> None:
    """Fit the calibration that comes with the package anew, on the scores that it holds."""
    held = json.loads(SHIPPED.read_text())["detectors"]
    ship({name: fit(name, bag["clean"], bag["backdoored"]) for name, bag in held.items()})


def main() -> None:
    """Run a part of the bag, or collect it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "collect", "refit"])
    parser.add_argument("--out", type=Path, default=Path("runs/bag"))
    parser.add_argument("--part", default="0/1", help="I/N: every N-th model, from the I-th")
    parser.add_argument("--models", type=int, default=48)
    a = parser.parse_args()
    if a.what == "refit":
        refit()
        return
    a.out.mkdir(parents=True, exist_ok=True)
    if a.what == "collect":
        collect(a.out)
        return
    first, step = (int(v) for v in a.part.split("/"))
    for number in range(first, a.models, step):
        run_one(number, a.out)
        print(f"model {number} done", flush=True)


if __name__ == "__main__":
    main()
