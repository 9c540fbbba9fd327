"""The profile `paper` against the tables that it stands for; every profile against all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gifthorse.bench.plan import PROFILES, BenchPlan, read
from gifthorse.bench.tasks import FAMILIES
from gifthorse.core.options import describe

PLANS = Path(__file__).parents[2] / "plans"
TRAINING = {
    "recipe.lr": 0.01,
    "recipe.epochs": 50,
    "recipe.momentum": 0.9,
    "recipe.decay": 2e-4,
    "recipe.schedule": "constant",
}
POISONED = TRAINING | {"mixing.rate": 0.01}
TNN: dict[str, Any] = {
    "shaping.rule": "rare",
    "shaping.count": 2,
    "shaping.optimizer": "pgd",
    "shaping.lr": 0.015,
    "shaping.steps": 20,
    "shaping.threshold": 5,
    "shaping.value": 10,
}
IMC = POISONED | {"inner.optimizer": "pgd", "inner.lr": 20 / 255, "inner.steps": 20}

# TrojanZoo, Table 20, in its order.
TABLE_20: dict[str, dict[str, Any]] = {
    "badnet": POISONED,
    "trojannn": POISONED | TNN,
    "reflection": POISONED
    | {name.replace("recipe", "search"): value for name, value in TRAINING.items()}
    | {"candidates": 50, "selected": 10, "rounds": 5, "search.epochs": 5},
    "latent": POISONED | {"lr": 0.1, "passes": 100, "samples": 1000, "weight": 0.5},
    "trojannet": {"influence": 0.7, "amplify": 100, "temperature": 0.1},
    "abe": POISONED | {"weight": 0.1, "lr": 1e-3},
    "imc": IMC,
    **dict.fromkeys(("imc_abs", "imc_ar", "imc_mp", "imc_nc", "imc_strip"), IMC),
    "imc_trojannn": IMC | TNN,
}

# TrojanZoo, Table 21, in its order; a share of 0.1 is that of CIFAR-10's 50,000 images.
TABLE_21: dict[str, dict[str, Any]] = {
    "smoothing": {"copies": 100, "sigma": 0.01},
    "down_up": {"antialias": True, "ratio": 0.95},
    "projection": {"noise": 0.1, "width": 32},
    "strip": {"weight": 0.5, "partners": 64},
    "neo": {"grid": "random", "places": 100, "clusters": 3},
    "adversarial_retraining": {
        "size": 2 / 255,
        "eps": 8 / 255,
        "steps": 7,
        "recipe.lr": 0.01,
        "recipe.epochs": 50,
    },
    "fine_pruning": {"ratio": 0.95},
    "neural_cleanse": {
        "inverter.initial": 1e-3,
        "inverter.config.lr": 0.1,
        "inverter.config.rounds": 10,
        "inverter.config.steps": 0,  # a round is an epoch
    },
    "detector:deep_inspect": {
        "inverter.config.max_images": 5000,
        "inverter.config.lr": 0.01,
        "inverter.config.rounds": 20,
        "inverter.config.steps": 0,
    },
    "detector:tabor": {
        "inverter.mask_norm": 1e-6,
        "inverter.outside_norm": 1e-5,
        "inverter.mask_rough": 1e-7,
        "inverter.outside_rough": 1e-8,
        "inverter.blocking": 0,
        "inverter.alone": 1e-2,
    },
    "neuron_inspect": {
        "sparse": 1e-5,
        "smooth": 1e-5,
        "persist": 1,
        "cut": 0,
        "images": 5000,
    },
    "detector:abs": {
        "inverter.reach": 1,
        "inverter.samples": 5,
        "inverter.limit": 16,
        "inverter.config.lr": 0.1,
        "inverter.weights": (0.1, 10, 100),
    },
}


def planned(folder: Path, profile: str, attacks: list[str], defenses: list[str]) -> BenchPlan:
    """A plan of everything, on one net."""
    plan = folder / "plan.toml"
    plan.write_text(
        f'profile = "{profile}"\n[[grid]]\ndata = ["cifar10"]\nnets = ["resnet18_cifar"]\n'
        f"attacks = {attacks}\ndefenses = {defenses}\n"
    )
    return read(plan)


def options(plan: BenchPlan) -> dict[str, dict[str, Any]]:
    """All options of every method of a plan, by label."""
    chosen = [c for cell in plan.cells for c in (cell.attack, cell.defense) if c is not None]
    return {c.label: describe(c.method) for c in chosen}


def test_paper_sets_every_row_of_tables_20_and_21(tmp_path: Path) -> None:
    plan = planned(tmp_path, "paper", list(TABLE_20), list(TABLE_21))
    made, tables = options(plan), TABLE_20 | TABLE_21
    assert made.keys() == tables.keys()
    for name, rows in tables.items():
        for key, value in rows.items():
            assert made[name][key] == pytest.approx(value), (name, key)


def test_paper_reads_the_weight_of_abs_as_the_table_does(tmp_path: Path) -> None:
    """0.1 below a norm of 16, 10 from there to 100, 100 above."""
    made = options(planned(tmp_path, "paper", [], ["detector:abs"]))["detector:abs"]
    assert made["inverter.limit"] * made["inverter.factor"] == 100
    assert made["inverter.config.rounds"] * made["inverter.config.steps"] == 1000


def test_every_plan_that_is_shipped_can_be_run() -> None:
    for path in sorted(PLANS.glob("*.toml")):
        assert read(path).cells, path.name


@pytest.mark.parametrize("profile", PROFILES)
def test_every_option_of_a_profile_is_one_of_its_method(profile: str, tmp_path: Path) -> None:
    attacks = [name for name in FAMILIES["attack"] if name != "blind"]
    defenses = [
        f"{kind}:{name}" for kind in FAMILIES for name in FAMILIES[kind] if kind != "attack"
    ]
    assert planned(tmp_path, profile, attacks, defenses).cells
