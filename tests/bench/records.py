"""Synthetic records of bench cells: what readers of a store are tried on."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from gifthorse.bench.relation import frame
from gifthorse.bench.store import SCHEMA, Store

FAMILY = {
    "neural_cleanse": "detector",
    "tabor": "detector",
    "mm_bd": "detector",
    "strip": "filter",
    "neo": "filter",
    "fine_pruning": "remedy",
    "smoothing": "remedy",
    "adversarial_retraining": "remedy",
}
SETTING = {"images": 1000, "test": 400, "fit": 150, "calibration": 100, "pairs": 40, "target": 0}


def method(
    name: str, family: str, label: str = "", options: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a record says of an attack or a defense."""
    return {
        "family": family,
        "name": name,
        "label": label or name,
        "options": dict(options or {}),
    }


def record(
    attack: str | dict[str, Any] | None = "badnet",
    defense: str | dict[str, Any] | None = None,
    seed: int = 0,
    figures: Mapping[str, float | None] | None = None,
    status: str = "ok",
    **rest: Any,
) -> dict[str, Any]:
    """Return a record; a method is a name, or a `method(...)`; `rest` replaces other entries.

    Of `rest`, `data`, `net` and `setting` are entries of the cell, `seconds`, `started` and
    `peak_memory` of the times; anything else (`words`, `machine`, `error` ...) of the record.
    """
    if isinstance(attack, str):
        attack = method(attack, "attack")
    if isinstance(defense, str):
        defense = method(defense, FAMILY.get(defense, "remedy"))
    cell = {
        "data": rest.pop("data", "cifar10"),
        "net": rest.pop("net", "resnet20"),
        "seed": seed,
        "attack": attack,
        "defense": defense,
        "setting": SETTING | rest.pop("setting", {}),
    }
    times = {
        "seconds": rest.pop("seconds", 1.5),
        "started": rest.pop("started", "2026-11-21T15:00:00+00:00"),
        "peak_memory": rest.pop("peak_memory", 100_000_000),
    }
    key = rest.pop("key", hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:24])
    return {
        "schema": SCHEMA,
        "key": key,
        "cell": cell,
        "status": status,
        "error": None if status == "ok" else f"it came to {status}",
        "figures": dict(figures or {}),
        "words": {},
        "models": {
            "benign": hashlib.sha256(f"b{seed}".encode()).hexdigest()[:24],
            "implant": attack and hashlib.sha256(f"{attack}{seed}".encode()).hexdigest()[:24],
            "weights": hashlib.sha256(key.encode()).hexdigest(),
        },
        "versions": {"gifthorse": "0.1.0", "torch": "2.10.0"},
        "machine": {"processor": "toy", "cores": "2"},
        "command": f"gifthorse bench run plans/smoke.toml --only {key}",
        "times": times,
        **rest,
    }


def spread(name: str, value: float, half: float = 0.05, n: int = 400) -> dict[str, float | None]:
    """Return a figure with its interval, as a record has it."""
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half, f"{name}_n": n}


def fill(store: Store, records: Iterable[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Keep records in a store (without any: a small bench, see `bench`), and return them."""
    kept = [dict(r) for r in (bench() if records is None else records)]
    for one in kept:
        store.keep(one)
    return kept


def framed(records: Iterable[Mapping[str, Any]]) -> AbstractContextManager[Any]:
    """Lend a frame of records in their order, whatever their keys are."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    for n, one in enumerate(records):
        store.write(f"records/00/{n:06}.json", json.dumps(one, sort_keys=True).encode())
    return frame(store)


def bench(
    attacks: Iterable[str | None] = (None, "badnet", "blended"),
    defenses: Iterable[str | None] = (None, "fine_pruning", "strip", "neural_cleanse"),
    seeds: int = 3,
) -> list[dict[str, Any]]:
    """Return records of a small bench: every family, clean twins, all cells ok."""
    methods = list(defenses)
    return [
        record(a, d, seed, figures(a, d, seed), words=words(a, d))
        for seed in range(seeds)
        for a in attacks
        for d in methods
    ]


def figures(attack: str | None, defense: str | None, seed: int) -> dict[str, float | None]:
    """Return plausible figures of a cell, different for every seed."""
    bad, wobble = attack is not None, seed / 100
    out: dict[str, float | None] = spread("accuracy", 0.90 + wobble)
    if defense is None:
        return out | (spread("asr", 0.95 + wobble) | {"tmc": 0.99, "cad": 0.01} if bad else {})
    family = FAMILY.get(defense, "remedy")
    if family == "remedy":
        out |= {"accuracy_before": 0.92 + wobble} | spread("cad", 0.02 + wobble) | {"der": 0.9}
        gone = spread("ard", 0.8 + wobble) | {"tmc": 0.6, "asr": 0.15, "asr_before": 0.95 + wobble}
        return out | (gone if bad else {})
    if family == "filter":
        both = spread("tpr", 0.7 + wobble) | {"precision": 0.9, "f1": 0.79, "auroc": 0.93}
        both |= {"decided": 0.82} | spread("fpr", 0.04 + wobble)
        return {"fpr_all": 0.05 + wobble} | (both if bad else {})
    said = {"suspected": float(bad), "confirmed": float(bad), "flagged": float(bad)}
    return said | {
        "score": 3.0 + wobble if bad else 1.0 + wobble,
        "threshold": 2.0,
        "aiv": 3.0 + wobble if bad else 1.0 + wobble,
        "mln": 9.0 + wobble,
        "mjs": 0.55 if bad else None,
        "flag_clean": float(not bad),
        "flag_correct": float(bad),
        "flag_correct_set": 0.0,
        "flag_wrong": 0.0,
    }


def words(attack: str | None, defense: str | None) -> dict[str, str]:
    """Return what a record says in words: of a detector, its verdict."""
    if FAMILY.get(defense or "", "") != "detector":
        return {}
    bad = attack is not None
    return {"label": "BACKDOORED" if bad else "NO BACKDOOR FOUND", "flagged": "0" if bad else ""}
