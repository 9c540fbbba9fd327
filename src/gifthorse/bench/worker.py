"""What a worker does with a task: train, implant or judge, and leave the result in the store."""

from __future__ import annotations

import platform
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from gifthorse import __version__
from gifthorse.bench import imports, making
from gifthorse.bench.judge import evaluate, evaluate_bare
from gifthorse.bench.making import draws
from gifthorse.bench.measures import digest, peak_bytes
from gifthorse.bench.outcome import DefenseOutcome
from gifthorse.bench.protocol import Splits, splits
from gifthorse.bench.runner import Done
from gifthorse.bench.store import SCHEMA, Store
from gifthorse.bench.tasks import IMPORTED, Task, spoken
from gifthorse.core.errors import GifthorseError, Incomplete, NotApplicable, UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Implant, Samples, Subject
from gifthorse.models.opening import load
from gifthorse.workflows import make
from gifthorse.workflows.evaluate import eval_images, figures, flatten
from gifthorse.workflows.make import DataSplits
from gifthorse.workflows.provenance import TestModel, implanted, write

MODEL = "model.safetensors"
COSTS = ("fit_seconds", "seconds_1", "seconds_128", "peak_bytes")  # differ from run to run


@dataclass(frozen=True)
class Judgment:
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
        """Do a task on its device; what a method does wrong in it is recorded, not raised.

        Raises:
            UsageError: If the store, the data or a model that should be there cannot be used: no
                method is to blame, and no other task would fare better.
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

    def failed(self, task: Task, done: Done) -> None:
        """Leave word of a task that was not finished."""
        store, started = Store(self.root), time.monotonic()
        if task.kind == "judge":
            store.keep(self._record(task, Judgment(done.status, done.error), started, store))
        else:
            _broken(task, store, done.status, done.error)

    def _judge(self, task: Task, store: Store) -> None:
        started = time.monotonic()
        store.keep(self._record(task, _judged(task, store), started, store))

    def _record(self, task: Task, judged: Judgment, started: float, store: Store) -> dict[str, Any]:
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
                "device": task.device.partition(":")[0],
                "threads": str(task.cell.setting.threads),
            },
            "command": f"gifthorse bench run {self.plan} --only {task.key}",
            "times": _times(started) | dict(judged.costs),
        }


def _there(task: Task, store: Store) -> bool:
    found = store.record(task.key) if task.kind == "judge" else store.spec(task.key)
    return found is not None


def _reason(error: Exception) -> tuple[str, str]:
    """Return what an error that a method raised makes of its cell, and in which words."""
    if isinstance(error, Incomplete):
        return "timeout", str(error)
    if isinstance(error, NotApplicable):
        return "unsupported", str(error)
    known = isinstance(error, GifthorseError)
    return "error", str(error) if known else f"{type(error).__name__}: {error}"


# Making models --------------------------------------------------------------------------------


def _build(task: Task, store: Store) -> None:
    """Train or implant, and keep the model, or word of why there is none."""
    started, cell = time.monotonic(), task.cell
    if cell.data.startswith(IMPORTED):
        return  # judging it says that it is not there
    if task.kind == "implant" and (lack := _lacking(store, task.benign)):
        _broken(task, store, lack.status, lack.error or "")
        return
    data = making.data_of(cell)
    try:
        subject, made = (_trained if task.kind == "train" else _implanted)(task, data, store)
    except Exception as error:  # every cell that needs the model will say so
        _broken(task, store, *_reason(error))
        return
    spec = {
        "key": task.key,
        "cell": spoken(cell),
        "error": None,
        "figures": {k: asdict(r) for k, r in made.known.items()},
        "times": _times(started),
    }
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / MODEL, subject, made)
        store.put(task.key, Path(folder), spec)


def _broken(task: Task, store: Store, status: str, error: str) -> None:
    spec = {"key": task.key, "cell": spoken(task.cell), "status": status, "error": error}
    with tempfile.TemporaryDirectory() as empty:
        store.put(task.key, Path(empty), spec)


def _trained(task: Task, data: DataSplits, _: Store) -> tuple[Subject, TestModel]:
    cell, started = task.cell, time.monotonic()
    file = cell.setting.benign
    subject = making.trained(cell, data, _run(task), load(file, cell.net) if file else None)
    told = figures(subject, eval_images(data.test))
    seconds = time.monotonic() - started
    recipe = cell.setting.recipe
    return subject, TestModel("clean", recipe, cell.net, data, cell.seed, told, seconds)


def _implanted(task: Task, data: DataSplits, store: Store) -> tuple[Subject, TestModel]:
    cell, started = task.cell, time.monotonic()
    assert cell.attack is not None
    benign = _opened(store, task.benign, data).to(task.device)
    made = making.implanted(cell, data, benign, _run(task))
    told = figures(made.subject, eval_images(data.test, made), benign)
    seconds = time.monotonic() - started
    attack = (cell.attack.name, cell.attack.method)
    known = TestModel(*attack, cell.net, data, cell.seed, told, seconds, made)
    return made.subject, known


def _opened(store: Store, key: str, data: DataSplits) -> Subject:
    with store.open(key) as folder:
        return make.benign(load(folder / MODEL), data)


def _lacking(store: Store, *keys: str) -> Judgment | None:
    """Return what is to be said of a cell if one of its models could not be made.

    Raises:
        UsageError: If nobody tried to make it.
    """
    for key in keys:
        spec = store.spec(key)
        if spec is None:
            raise UsageError(f"the model {key} is not in {store.root}: resume the bench")
        if spec["error"]:
            words = f"there is no model to judge: {spec['error']}"
            return Judgment(spec.get("status", "error"), words)
    return None


# Judging --------------------------------------------------------------------------------------


def _judged(task: Task, store: Store) -> Judgment:
    """Return what is to be said of a cell, whatever a method does in it."""
    cell = task.cell
    if cell.data.startswith(IMPORTED):
        imports.known(store, task.benign)
        return _caught(lambda: _foreign(task, store))
    models = (task.benign, task.implant) if task.implant else (task.benign,)
    if lack := _lacking(store, *models):
        return lack
    data = making.data_of(cell)
    given = splits(data, draws(cell, "splits"), cell.setting.sizes) if cell.defense else None

    def judged() -> Judgment:
        benign = _opened(store, task.benign, data)
        if not task.implant:
            return _answered(task, benign, None, data.test, given)
        with store.open(task.implant) as folder:
            made = implanted(folder / MODEL, data)
        return _answered(task, made, benign, data.test, given)

    return _caught(judged)


def _caught(judged: Callable[[], Judgment]) -> Judgment:
    try:
        return judged()
    except Exception as error:  # the one place that records whatever a method does
        return Judgment(*_reason(error))


def _foreign(task: Task, store: Store) -> Judgment:
    rng, setting = draws(task.cell, "splits"), task.cell.setting
    model, given = imports.imported(store, task.benign, rng, setting.sizes, setting.test)
    return _answered(task, model, None, given.test, given)


def _answered(
    task: Task,
    model: Implant | Subject,
    benign: Subject | None,
    test: Samples,
    given: Splits | None,
) -> Judgment:
    """Judge a model as it is, or with a defense, which needs `Splits`."""
    cell = task.cell
    subject = model.subject if isinstance(model, Implant) else model
    weights = digest(subject.to(task.device).net)
    if benign is not None:
        benign.to(task.device)
    if cell.defense is None:
        return Judgment("ok", None, flatten(evaluate_bare(model, test, benign)), weights=weights)
    assert given is not None
    assert cell.defense.family != "attack"
    found = evaluate(
        model,
        cell.defense.method,
        given,
        draws(cell, f"judge {cell.defense.name}"),
        _run(task, cell.setting.time_limit),
        kind=cell.defense.family,
        evaluation=cell.setting.evaluation,
    )
    return _said(found, weights)


def _run(task: Task, seconds: float | None = None) -> Run:
    return Run(seconds=seconds, device=torch.device(task.device))


def _said(found: DefenseOutcome, weights: str) -> Judgment:
    """Return an outcome as a record has it: what a second run would not repeat stands apart."""
    told = found.figures()
    costs = {name: told.pop(name) for name in COSTS if name in told}
    status: str = found.status
    error = "less than half of the accuracy is left" if status == "collapsed" else None
    if found.found is None:
        return Judgment(status, error, told, {}, weights, costs)
    flagged = ", ".join(map(str, sorted(found.found.flagged)))
    words = {"label": found.found.label, "flagged": flagged}
    if found.found.label == "INCONCLUSIVE":
        status, error = "timeout", "the detector came to no verdict"
    return Judgment(status, error, told, words, weights, costs)


def _times(started: float) -> dict[str, Any]:
    """Return what differs from run to run: time, place, memory."""
    seconds = time.monotonic() - started  # the other clock may be set back meanwhile
    return {
        "started": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_memory": peak_bytes(),  # of the process so far
        "host": socket.gethostname(),
    }
