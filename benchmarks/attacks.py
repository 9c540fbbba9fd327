r"""Every attack on one benign CIFAR-10 model: accuracy, its drop, success, confidence, separation.

Each row retrains the benign model under one attack on some training images and judges it on test
images. One JSON a row, so that a run goes on where it stopped; several processes may share the
work. Attacks that need more steps than the profile has are run again with more (`--longer`), and
`--set` goes over both.

    python benchmarks/attacks.py clean20.safetensors --out runs/attacks
    python benchmarks/attacks.py clean20.safetensors --out runs/longer --longer
    python benchmarks/attacks.py tiny.safetensors --out runs/tiny --images 20000 \
      --set recipe.epochs=5 recipe.lr=0.1
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gifthorse.analysis.separation import separation
from gifthorse.attacks import ATTACKS
from gifthorse.core.errors import GifthorseError
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import Subset
from gifthorse.models import load
from gifthorse.workflows.evaluate import eval_images, figures
from gifthorse.workflows.make import DataSplits, benign, divide, fresh, shorter
from gifthorse.workflows.provenance import TestModel, write
from setting import keep, machine

# The small profile, cut to what two cores can do: a ResNet-20, 5,000 images, 10 epochs. That is a
# fiftieth of TrojanZoo's steps, so ten times its share of stamped images makes up for some of it.
PROFILE = {
    "mixing.rate": 0.1,
    "recipe.epochs": 10,
    "recipe.batch": 128,
    "recipe.lr": 0.01,
    "recipe.schedule": "cosine",
    "recipe.decay": 2e-4,
}
# Reduced: searches that retrain the net many times, and shaping that costs more than training.
SEARCH = {
    "candidates": 10,
    "selected": 3,
    "rounds": 2,
    "search.epochs": 1,
    "search.lr": 0.01,
    "search.schedule": "constant",
}
REDUCED: dict[str, dict[str, object]] = {
    "blind": {"wait": 39},  # an epoch
    "input_aware": {"masking.epochs": 2},  # of 25: the net that places triggers is slow here
    # Three inner steps of twice the length for seven; a quarter of the stimulated images.
    "imc_ar": {"ar.steps": 3, "ar.size": 4 / 255},
    "imc_abs": {"abs.each": 2, "abs.samples": 3},
    "latent": {"samples": 200, "passes": 20},
    "refool": SEARCH,
    "reflection": SEARCH,
    # What trains is a perceptron on a few pixels, by its own recipe.
    "trojannet": {"recipe.lr": 0.1, "recipe.schedule": "onecycle", "recipe.decay": 0.0},
}
# Twice the images and a larger step; where that is not enough, twice the epochs as well, and a
# trigger that is easier to see. With clean labels some images of the target class must stay as they
# are, or accuracy on it is lost.
LARGER: dict[str, object] = {"recipe.lr": 0.05}
LONGER: dict[str, dict[str, object]] = {
    "badnet": LARGER,
    "badnet_wandering": LARGER | {"stamp.form": "wandering"},
    "imc_ar": REDUCED["imc_ar"] | {"recipe.lr": 0.1, "recipe.epochs": 20},
    "input_aware": LARGER
    | {"recipe.epochs": 20, "mixing.rate": 0.25, "masking.epochs": 3, "lr": 0.003},
    "instagram": LARGER | {"mixing.rate": 0.25},
    "label_consistent": LARGER | {"mixing.rate": 0.08},
    "lsb": LARGER | {"planes": 3},
    "sig": LARGER | {"mixing.rate": 0.09, "recipe.epochs": 20, "strength": 30 / 255},
    "wanet": LARGER | {"recipe.epochs": 20, "mixing.rate": 0.2, "strength": 2.0},
}
LEFT_OUT = {"natural"}  # no training; its numbers are those of the inverter

# ASR in percent, target class included: TrojanZoo Table 8 (3x3, opaque), other papers as named.
PAPER = {
    "badnet": "93.3 (Zoo)",
    "trojannn": "99.9 (Zoo)",
    "reflection": "99.8 (Zoo)",
    "badnet_wandering": "96.7 (Zoo, TB)",
    "latent": "100 (Zoo)",
    "trojannet": "100 (Zoo, ESB)",
    "abe": "95.3 (Zoo)",
    "imc": "100 (Zoo)",
    "input_aware": "99.32 (its authors; 600 epochs)",
    "wanet": "99.55 (its authors; 1000 epochs)",
    "invisible": "99.63 (PixelBackdoor L.2)",
}


Rows = dict[str, tuple[str, dict[str, object]]]


def table(longer: bool) -> Rows:
    """Return the rows: registry name and options by row name."""
    if longer:
        return {n: (n.removesuffix("_wandering"), options) for n, options in LONGER.items()}
    rows: Rows = {n: (n, REDUCED.get(n, {})) for n in ATTACKS if n not in LEFT_OUT}
    return rows | {"badnet_wandering": ("badnet", {"stamp.form": "wandering"})}


def had(attack: str, options: dict[str, object]) -> dict[str, object]:
    """Return those of the options that an attack has."""
    known = describe(ATTACKS[attack])
    return {k: v for k, v in options.items() if k in known}


def run(
    attack: str,
    shared: dict[str, object],
    own: dict[str, object],
    seed: int,
    at: Place,
    path: Path,
) -> dict[str, Any]:
    """Make one implant, judge it and write it beside its record; `own` goes over `shared`."""
    method = vary(ATTACKS[attack], had(attack, shared) | own)
    started = time.monotonic()
    rng = torch.Generator().manual_seed(seed)
    made = method(at.start(seed), at.data.train, at.goal, rng, Run())
    seconds = time.monotonic() - started
    told = figures(made.subject, eval_images(at.test, made), at.victim)
    record = TestModel(attack, method, made.subject.origin.arch, at.data, seed, told, seconds, made)
    write(path.with_suffix(".safetensors"), made.subject, record)
    apart = separation(made.subject, at.test, made.trigger, goal=at.goal)
    return {
        "attack": attack,
        "options": {k: str(v) for k, v in describe(method).items()},
        "seed": seed,
        "figures": {k: asdict(r) for k, r in record.known.items()},
        "nsr": asdict(apart),
        "seconds": seconds,
        "machine": machine(),
    }


class Place:
    """What all rows share."""

    def __init__(self, a: argparse.Namespace, scratch: bool = False) -> None:
        self.data: DataSplits = shorter(divide(a.data), a.images)
        self.test = Subset(self.data.test, torch.arange(min(a.test, len(self.data.test))))
        self.victim: Subject = benign(load(a.model), self.data)
        self.goal = Goal(a.target)
        self.scratch = scratch

    def start(self, seed: int) -> Subject:
        """Return what an attack begins with: the benign net, or an untrained one of its kind."""
        if not self.scratch:
            return self.victim
        return fresh(self.victim.origin.arch, self.data, torch.Generator().manual_seed(seed))


def show(name: str, records: list[dict[str, Any]]) -> str:
    """Return a row of the table: means over seeds, intervals of one seed in brackets."""
    if "error" in records[0]:
        return f"| {name} | {records[0]['error']} |"

    def cell(key: str) -> str:
        values = [r["figures"][key]["value"] for r in records if key in r["figures"]]
        if not values:
            return "-"
        text = f"{100 * sum(values) / len(values):.1f}"
        if len(records) == 1:
            one = records[0]["figures"][key]
            return f"{text} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
        return f"{text} ({', '.join(f'{100 * v:.1f}' for v in values)})"

    nsr = sum(r["nsr"]["value"] for r in records) / len(records)
    seconds = sum(r["seconds"] for r in records) / len(records)
    cells = [cell(k) for k in ("accuracy", "cad", "asr", "asr_all", "tmc")]
    paper = PAPER.get(name, "")
    return f"| {name} | {' | '.join(cells)} | {nsr:.2f} | {seconds:.0f} | {paper} |"


def main() -> None:  # noqa: PLR0915  (one script, top to bottom)
    """Run the rows that have no JSON yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--longer", action="store_true", help="rows that need it, with more steps")
    parser.add_argument("--images", type=int, help="5000, or 10000 with --longer")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="for all rows")
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    a.set = dict(text.split("=", 1) for text in a.set)
    if unknown := set(a.set) - {k for method in ATTACKS.values() for k in describe(method)}:
        parser.error(f"no attack has an option {', '.join(sorted(unknown))}")
    a.images = a.images or (10000 if a.longer else 5000)
    a.out.mkdir(parents=True, exist_ok=True)
    every = table(a.longer)
    rows = {k: every[k] for k in a.rows or every}
    at = None if a.show else Place(a)
    print("| row | accuracy | CAD | ASR | ASR, all | TMC | NSR | s | paper: ASR, all |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (attack, options) in rows.items():
        for seed in range(a.seeds):
            path = a.out / f"{name}-{seed}.json"
            if at is None or path.exists():
                continue
            try:
                record = run(attack, PROFILE, options | had(attack, a.set), seed, at, path)
            except GifthorseError as error:
                record = {"attack": attack, "seed": seed, "error": str(error)}
            keep(path, record)
        found = [a.out / f"{name}-{seed}.json" for seed in range(a.seeds)]
        if all(path.exists() for path in found):
            print(show(name, [json.loads(path.read_text()) for path in found]), flush=True)


if __name__ == "__main__":
    main()
