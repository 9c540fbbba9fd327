"""Runs what a plan still lacks: which task is next, who is told, what is left of the dead."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from gifthorse.bench.executors import Done, Executor
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Cell, Task, judging, tasks
from gifthorse.core.errors import UsageError

HEART = "run.json"  # of a run under way: who, how far, what now
STALE = 60.0  # seconds without a beat after which a run far away counts as dead


@dataclass
class Standing:
    """How far a run is; what `gifthorse bench status` shows.

    Attributes:
        total: Tasks of this run.
        done: Those that ended.
        failed: Those whose worker died.
        running: What is under way, in words.
        started: When the run began, seconds since 1970.
        beat: When this was written.
        pid: Of the driver.
        host: Of the driver.
        ended: Whether the run came to its end.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    running: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    beat: float = 0.0
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    ended: bool = False

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take if tasks go on as they did; None before the first."""
        if not self.done:
            return None
        return (self.beat - self.started) / self.done * (self.total - self.done)


Tell: TypeAlias = Callable[[Standing], None]


def missing(cells: Iterable[Cell], store: Store) -> list[Task]:
    """Return the tasks that a store lacks for some cells, parents first."""
    recorded, models = store.recorded(), store.models()
    lacking = [cell for cell in cells if judging(cell).key not in recorded]
    todo = [task for task in tasks(lacking) if task.kind == "judge" or task.key not in models]
    open_ = {task.key for task in todo}
    return [replace(t, after=tuple(key for key in t.after if key in open_)) for t in todo]


def drive(
    todo: Sequence[Task],
    executor: Executor,
    failed: Callable[[Task, str], None],
    tell: Tell,
) -> Standing:
    """Run tasks, each after those it needs, and return how that went.

    Args:
        todo: Tasks, with only those parents that are still to be run.
        executor: What runs them.
        failed: Called with a task whose worker died, and why, to leave a record of it.
        tell: Called after every change, and at least once a second.
    """
    by_key = {task.key: task for task in todo}
    waits = {task.key: len(task.after) for task in todo}
    children: dict[str, list[str]] = {}
    for task in todo:
        for parent in task.after:
            children.setdefault(parent, []).append(task.key)
    ready = deque(task for task in todo if not task.after)
    standing, running = Standing(total=len(todo)), dict[str, str]()
    while standing.done < standing.total:
        while ready and executor.room > 0:
            task = ready.popleft()
            running[task.key] = f"{task.kind} {task.cell.words}"
            executor.submit(task)
        _beat(standing, running, tell)
        for done in executor.wait(1.0):
            _note(done, by_key, standing, failed)
            running.pop(done.key, None)
            for child in children.pop(done.key, ()):
                waits[child] -= 1
                if not waits[child]:
                    ready.append(by_key[child])
    standing.ended = True
    _beat(standing, running, tell)
    return standing


def _note(
    done: Done, by_key: dict[str, Task], standing: Standing, failed: Callable[[Task, str], None]
) -> None:
    standing.done += 1
    if done.error:
        standing.failed += 1
        failed(by_key[done.key], done.error)


def _beat(standing: Standing, running: dict[str, str], tell: Tell) -> None:
    standing.beat, standing.running = time.time(), list(running.values())
    tell(standing)


@contextmanager
def heartbeat(store: Store) -> Iterator[Tell]:
    """Keep other drivers off a store as long as this one runs, and let them read how far it is.

    Raises:
        UsageError: If another driver is at work there.
    """
    with _locked(store):
        last = 0.0

        def tell(standing: Standing) -> None:
            nonlocal last
            if standing.ended or standing.beat - last >= 1:
                last = standing.beat
                store.write(HEART, json.dumps(asdict(standing), indent=1).encode())

        yield tell


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    from filelock import FileLock, Timeout

    other = status(store)
    if "://" in store.root:  # no locks there: who wrote a moment ago is at work
        if other and not other.ended and time.time() - other.beat < STALE:
            raise UsageError(f"another run is at work in {store.root}, on {other.host}")
        yield
        return
    Path(store.root).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(store.root) / ".lock", timeout=0):
            yield
    except Timeout as error:
        who = f", process {other.pid} on {other.host}" if other else ""
        raise UsageError(f"another run is at work in {store.root}{who}") from error


def status(store: Store) -> Standing | None:
    """Return how far the last run in a store is, or was when it ended; None if there was none."""
    content = store.read(HEART)
    return None if content is None else Standing(**json.loads(content))
