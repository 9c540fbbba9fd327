"""What a plan will do and cost, said before it is run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Task


@dataclass(frozen=True)
class Outlook:
    """The work that is left.

    Attributes:
        train: Benign nets to train.
        implant: Backdoored nets to make.
        judge: Cells to judge.
        seconds: Processor time of one worker for what is known, from records of the same kind.
        unknown: Tasks of which there is no record to go by.
    """

    train: int
    implant: int
    judge: int
    seconds: float
    unknown: int

    @property
    def tasks(self) -> int:
        """All tasks."""
        return self.train + self.implant + self.judge


def outlook(todo: Sequence[Task], stores: Iterable[Store]) -> Outlook:
    """Return what some tasks will cost, judged by what is recorded in stores.

    A task costs what those of the same method, net and data took on average; failing that, those
    of the same method.
    """
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for store in stores:
        for record in store.records():
            if record["status"] == "ok":
                _count(known, _method(record["cell"], "defense"), record)
        for key in store.models():
            spec = store.spec(key) or {}
            if spec.get("times"):
                _count(known, _method(spec["cell"], "attack"), spec)
    seconds, unknown = 0.0, 0
    for task in todo:
        choice = task.cell.defense if task.kind == "judge" else task.cell.attack
        name = choice.name if choice else "none"
        what = "defense" if task.kind == "judge" else "attack"
        names = (what, name, task.cell.net, task.cell.data)
        times = known.get(names) or known.get(names[:2])
        seconds += mean(times) if times else 0.0
        unknown += not times
    count = {kind: sum(t.kind == kind for t in todo) for kind in ("train", "implant", "judge")}
    return Outlook(count["train"], count["implant"], count["judge"], seconds, unknown)


def _method(cell: dict[str, Any], what: str) -> tuple[str, ...]:
    return (what, cell[what]["name"] if cell[what] else "none", cell["net"], cell["data"])


def _count(
    known: dict[tuple[str, ...], list[float]], names: tuple[str, ...], record: dict[str, Any]
) -> None:
    for key in (names, names[:2]):
        known[key].append(record["times"]["seconds"])
