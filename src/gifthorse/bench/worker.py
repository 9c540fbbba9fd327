"""What a worker does with a task: train, implant or judge, and leave the result in the store."""

from __future__ import annotations

import platform
import resource
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch

from gifthorse import __version__
from gifthorse.analysis.separation import separation
from gifthorse.bench import imports
from gifthorse.bench.evaluator import Splits, evaluate, evaluate_clean, splits
from gifthorse.bench.measures import digest
from gifthorse.bench.outcome import Outcome
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import IMPORTED, SCHEMA, Cell, Task, draws, spoken
from gifthorse.core.errors import GifthorseError, Incomplete, UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Rate, Subject
from gifthorse.models.load import load
from gifthorse.workflows import make as stages

MODEL = "model.safetensors"
COSTS = ("fit_seconds", "seconds_1", "seconds_128", "peak_bytes")  # differ from run to run

Built: TypeAlias = tuple[stages.Made, Subject]


@dataclass(frozen=True)
class Judged:
    """What is to be said of a cell, apart from what it is.

    Attributes:
        status: `ok`, `collapsed`, `timeout`, `unsupported` or `error`.
        error: One sentence, where it is not ok.
        figures: Numbers by name; null where something is undefined.
        words: Text by name, such as a verdict.
        weights: Digest of the judged model's weights.
        costs: What differs from run to run.
    """

    status: str
    error: str | None = None
    figures: Mapping[str, float | None] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    costs: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """Does tasks; itself a value, so that it can be sent to other processes and machines.

    Attributes:
        root: Path or URL of the store.
        plan: The plan's file, for the command that a record names.
    """

    root: str
    plan: str = "PLAN"

    def __call__(self, task: Task) -> None:
        """Do a task; what fails in it is recorded, not raised.

        Raises:
            UsageError: If the store cannot be written to.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(task.cell.setting.threads)
        store = Store(self.root)
        try:
            if _there(task, store):
                return  # its worker died after it was done
            if task.kind == "judge":
                self._judge(task, store)
            else:
                _build(task, store)
        finally:
            torch.set_num_threads(threads)

    def failed(self, task: Task, error: str) -> None:
        """Leave word of a task whose worker died."""
        store, started = Store(self.root), time.time()
        if task.kind == "judge":
            store.keep(self._record(task, Judged("error", error), started, store))
        else:
            _broken(task, store, error)

    def _judge(self, task: Task, store: Store) -> None:
        started = time.time()
        try:
            judged = _judged(task, store)
        except Incomplete as error:
            judged = Judged("timeout", str(error))
        except GifthorseError as error:
            judged = Judged("unsupported", str(error))
        except Exception as error:  # the one place that records whatever a method does
            judged = Judged("error", f"{type(error).__name__}: {error}")
        store.keep(self._record(task, judged, started, store))

    def _record(self, task: Task, judged: Judged, started: float, store: Store) -> dict[str, Any]:
        foreign = task.cell.data.startswith(IMPORTED)
        cell = imports.spoken(store, task.cell) if foreign else spoken(task.cell)
        bad = foreign and cell["attack"] is not None
        return {
            "schema": SCHEMA,
            "key": task.key,
            "cell": cell,
            "status": judged.status,
            "error": judged.error,
            "figures": dict(judged.figures),
            "words": dict(judged.words),
            "models": {
                "benign": "" if bad else task.benign,
                "implant": task.benign if bad else task.implant or None,
                "weights": judged.weights,
            },
            "versions": {"gifthorse": __version__, "torch": torch.__version__},
            "machine": {
                "processor": platform.machine(),
                "device": "cpu",
                "threads": str(task.cell.setting.threads),
            },
            "command": f"gifthorse bench run {self.plan} --only {task.key}",
            "times": _times(started) | dict(judged.costs),
        }


def _there(task: Task, store: Store) -> bool:
    found = store.record(task.key) if task.kind == "judge" else store.spec(task.key)
    return found is not None


# Making models --------------------------------------------------------------------------------


def _build(task: Task, store: Store) -> None:
    """Train or implant, and keep the model, or word of why there is none."""
    started = time.time()
    if task.cell.data.startswith(IMPORTED):
        return  # judging it says that it is not there
    try:
        made, subject = _trained(task) if task.kind == "train" else _implanted(task, store)
    except Exception as error:  # every cell that needs the model will say so
        _broken(task, store, f"{type(error).__name__}: {error}")
        return
    spec = {
        "key": task.key,
        "cell": spoken(task.cell),
        "error": None,
        "figures": {k: asdict(r) for k, r in made.figures.items()},
        "times": _times(started),
    }
    with tempfile.TemporaryDirectory() as folder:
        stages.write(Path(folder) / MODEL, subject, made)
        store.put(task.key, Path(folder), spec)


def _broken(task: Task, store: Store, error: str) -> None:
    spec = {"key": task.key, "cell": spoken(task.cell), "error": error}
    with tempfile.TemporaryDirectory() as empty:
        store.put(task.key, Path(empty), spec)


def _trained(task: Task) -> Built:
    cell, data, started = task.cell, _data(task.cell), time.monotonic()
    recipe = cell.setting.recipe
    if cell.setting.benign:
        subject = stages.benign(load(cell.setting.benign, cell.net), data)
    else:
        subject = stages.train_clean(cell.net, data, recipe, draws(cell, "train"), Run())
    figures = stages.judge(subject, data.test)
    seconds = time.monotonic() - started
    return stages.Made("clean", recipe, cell.net, data, cell.seed, figures, seconds), subject


def _implanted(task: Task, store: Store) -> Built:
    cell, data, started = task.cell, _data(task.cell), time.monotonic()
    assert cell.attack is not None
    name, method = cell.attack.name, cell.attack.method
    benign = start = _model(store, task.benign, data)
    if cell.setting.start == "scratch":
        start = stages.fresh(cell.net, data, draws(cell, f"start {name}"))
    goal, rng = Goal(cell.setting.target), draws(cell, f"implant {name}")
    made = stages.implant(method, start, data, goal, rng, Run())
    figures = stages.judge(made.subject, data.test, made, benign)
    seconds = time.monotonic() - started
    known = stages.Made(name, method, cell.net, data, cell.seed, figures, seconds, made)
    return known, made.subject


# Judging --------------------------------------------------------------------------------------


def _judged(task: Task, store: Store) -> Judged:
    if task.cell.data.startswith(IMPORTED):
        rng, setting = draws(task.cell, "splits"), task.cell.setting
        found, apart = imports.imported(store, task.benign, rng, setting.sizes, setting.test)
        made = found if isinstance(found, Implant) else None
        subject = made.subject if made else found
        assert isinstance(subject, Subject)
        return _answered(task.cell, subject, made, None, apart)
    cell, data = task.cell, _data(task.cell)
    benign = _model(store, task.benign, data)
    made = None
    if task.implant:
        _whole(store, task.implant)
        with store.open(task.implant) as folder:
            made = stages.implanted(folder / MODEL, data)
    subject = made.subject if made else benign
    given = splits(data, draws(cell, "splits"), cell.setting.sizes) if cell.defense else data
    return _answered(cell, subject, made, benign, given)


def _answered(
    cell: Cell,
    subject: Subject,
    made: Implant | None,
    benign: Subject | None,
    data: Splits | stages.Divided,
) -> Judged:
    """Judge a model as it is, or with a defense, which needs `Splits`."""
    weights = digest(subject.net)
    if cell.defense is None:
        figures = flat(stages.judge(subject, data.test, made, benign if made else None))
        if made is not None:
            apart = separation(subject, data.test, made.trigger, goal=made.goal)
            figures |= {"nsr": apart.value, "nsr_chance": apart.chance}
        return Judged("ok", figures=figures, weights=weights)
    setting, (kind, method) = cell.setting, (cell.defense.family, cell.defense.method)
    assert kind != "attack"
    assert isinstance(data, Splits)
    rng = draws(cell, f"judge {cell.defense.name}")
    run = Run(seconds=setting.time_limit)
    if made is None:
        found = evaluate_clean(subject, method, data, rng, kind=kind, terms=setting.terms, run=run)
    else:
        found = evaluate(made, method, data, rng, kind=kind, terms=setting.terms, run=run)
    return _said(found, weights)


def _said(found: Outcome, weights: str) -> Judged:
    """Return an outcome as a record has it: what a second run would not repeat stands apart."""
    figures = found.figures()
    costs = {name: figures.pop(name) for name in COSTS if name in figures}
    words = {}
    if found.found is not None:
        flagged = ", ".join(map(str, sorted(found.found.flagged)))
        words = {"label": found.found.label, "flagged": flagged}
    status: str = found.status
    error = None
    if status == "collapsed":
        error = "less than half of the accuracy is left"
    if words.get("label") == "INCONCLUSIVE":
        status, error = "timeout", "the detector came to no verdict"
    return Judged(status, error, figures, words, weights, costs)


def _model(store: Store, key: str, data: stages.Divided) -> Subject:
    _whole(store, key)
    with store.open(key) as folder:
        return stages.benign(load(folder / MODEL), data)


def _whole(store: Store, key: str) -> None:
    """Raise if a model is not there.

    Raises:
        UsageError: If it failed, or was never made.
    """
    spec = store.spec(key)
    if spec is None:
        raise UsageError(f"the model {key} is not in {store.root}: resume the bench")
    if spec["error"]:
        raise RuntimeError(f"there is no model to judge: {spec['error']}")


@lru_cache(2)
def _whole_data(name: str) -> stages.Divided:
    return stages.divide(name)


def _data(cell: Cell) -> stages.Divided:
    """Return a cell's data, cut to what the plan's setting says."""
    data = stages.shorter(_whole_data(cell.data), cell.setting.images)
    return stages.fewer_tests(data, cell.setting.test)


def flat(rates: Mapping[str, Rate]) -> dict[str, float | None]:
    """Return rates as numbers by name, intervals beside them: `asr`, `asr_low`, `asr_high`."""
    out: dict[str, float | None] = {}
    for name, rate in rates.items():
        out |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        out[f"{name}_n"] = rate.trials
    return out


def _times(started: float) -> dict[str, Any]:
    """Return what differs from run to run: time, place, memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the process so far
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        "peak_memory": peak,
        "host": socket.gethostname(),
    }
