"""Runs what a plan still lacks: one task after another, or each in a process of its own."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Cell, Task, judging, tasks
from gifthorse.core.errors import BadOption, GifthorseError, UsageError
from gifthorse.core.heap import keep_freed

Work: TypeAlias = Callable[[Any], None]  # does one job, of the kind that the run consists of

DIED = "the process that worked on it died: killed, or out of memory"
OVERRAN = "it did not end in time, and did not stop when it was asked to"
ALONE = 3  # times that a task may take its worker down with it
TIDY = 3.0  # seconds that a worker has to end by itself
HEART = "run.json"  # of a run under way: who, how far, what now
STALE = 60.0  # seconds without a beat after which a run far away counts as dead


# 1. Where tasks run ---------------------------------------------------------------------------


class WorkItem(Protocol):
    """A piece of work, as executors see it: a frozen dataclass; `Task` is one, `ScanJob` another.

    Attributes:
        key: What it is known by.
        after: Keys of others that must be done before.
        device: Where it is done; executors put another in its place.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def after(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def limit(self) -> float:
        """Seconds after which it is given up."""
        ...

    @property
    def words(self) -> str:
        """What it is, in a few words, for people."""
        ...


@dataclass(frozen=True)
class Done:
    """A task that came to its end; `error` says why its worker could not finish it."""

    key: str
    error: str = ""
    status: Literal["error", "timeout"] = "error"


class Executor(Protocol):
    """Runs tasks, in whatever order and wherever it likes; the results are in the store."""

    @property
    def room(self) -> int:
        """How many further tasks it takes now."""
        ...

    def submit(self, task: WorkItem, /) -> None:
        """Take a task."""
        ...

    def wait(self, seconds: float, /) -> list[Done]:
        """Return tasks that ended since; after so many seconds an empty list."""
        ...

    def close(self) -> None:
        """Stop everything that runs; tasks that were not done are lost."""
        ...


class Serial:
    """Runs one task after another, here.

    Args:
        work: What to do.
        device: Where.
    """

    def __init__(self, work: Work, device: str = "cpu") -> None:
        self._work, self._device = work, device
        self._tasks: deque[WorkItem] = deque()

    @property
    def room(self) -> int:
        """One task at a time."""
        return 1 - len(self._tasks)

    def submit(self, task: WorkItem) -> None:
        """Take a task; it runs when it is waited for."""
        self._tasks.append(task)

    def wait(self, seconds: float) -> list[Done]:
        """Run what was taken."""
        task = self._tasks.popleft()
        self._work(replace(task, device=self._device))
        return [Done(task.key)]

    def close(self) -> None:
        """Forget what was taken."""
        self._tasks.clear()


@dataclass
class _Running:
    """A task under way: its process, where it says what went wrong, until when, and on what."""

    task: WorkItem
    process: BaseProcess
    answer: Connection
    until: float
    device: str


class Pool:
    """Runs every task in a process of its own.

    A process that dies, or runs over its task's limit, takes nothing else along. What died is done
    again when all else is done, alone, since memory may have been short; at the third death it
    fails.

    Args:
        work: What to do; it is sent to the processes.
        workers: How many at once.
        devices: One for each; default the processor.

    Raises:
        BadOption: If there are to be none.
    """

    def __init__(self, work: Work, workers: int, devices: Sequence[str] = ()) -> None:
        if workers < 1:
            raise BadOption(f"a pool needs at least one worker; got {workers}")
        self._work = work
        self._free = list(devices or ["cpu"] * workers)[:workers]
        self._running: list[_Running] = []
        self._lost: deque[WorkItem] = deque()
        self._deaths: Counter[str] = Counter()
        # A fork of a process with threads may hang: the server forks before it has any.
        known = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if known else "spawn")
        if known:
            self._context.set_forkserver_preload(["__main__", "gifthorse.bench.worker"])

    @property
    def room(self) -> int:
        """A task for every free worker; none while what died is done again."""
        again = self._lost or any(self._deaths[one.task.key] for one in self._running)
        return 0 if again else len(self._free)

    def submit(self, task: WorkItem) -> None:
        """Start a task."""
        device = self._free.pop()
        mine, theirs = self._context.Pipe(duplex=False)
        given = (self._work, replace(task, device=device), theirs)
        process = self._context.Process(target=_alone, args=given, daemon=True)
        process.start()
        theirs.close()
        until = time.monotonic() + task.limit
        self._running.append(_Running(task, process, mine, until, device))

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since.

        Raises:
            UsageError: If one says that no other would fare better.
        """
        if self._lost and not self._running:
            self.submit(self._lost.popleft())
        soonest = min((one.until for one in self._running), default=math.inf)
        patience = max(0.0, min(seconds, soonest - time.monotonic()))
        ended = wait([one.process.sentinel for one in self._running], patience)
        out = []
        for one in list(self._running):
            late = time.monotonic() > one.until
            if one.process.sentinel in ended or late:
                out += self._ended(one, late and one.process.sentinel not in ended)
        return out

    def _ended(self, one: _Running, late: bool) -> list[Done]:
        self._running.remove(one)
        self._free.append(one.device)
        if late:
            one.process.kill()
        one.process.join()
        key, said = one.task.key, _read(one.answer)
        if isinstance(said, Exception):
            raise said
        if not said:
            return [Done(key)]
        if late:
            return [Done(key, OVERRAN, "timeout")]
        self._deaths[key] += 1
        if self._deaths[key] >= ALONE:
            return [Done(key, DIED)]
        self._lost.append(one.task)
        return []

    def close(self) -> None:
        """End all workers: they have a moment to tidy up, then they are killed."""
        for one in self._running:
            one.process.terminate()
        until = time.monotonic() + TIDY
        for one in self._running:
            one.process.join(max(0.0, until - time.monotonic()))
            one.process.kill()
            one.process.join()
            one.answer.close()
        self._running.clear()


def _read(answer: Connection) -> Exception | str:
    """Return what a process that has ended said: an error, nothing, or that it died before."""
    try:
        with answer:
            said: Exception | str = answer.recv()
    except (EOFError, OSError):
        return DIED
    return said


def _alone(work: Work, task: WorkItem, answer: Connection) -> None:
    """Do a task in a process of its own, which ends with its parent and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    keep_freed()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIDY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        work(task)
        answer.send("")
    except GifthorseError as error:
        answer.send(error)
    except Exception as error:  # as words: not every error can be sent
        answer.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _end(number: int, frame: FrameType | None) -> None:
    """Leave nothing in the temporary folder on the way out."""
    raise SystemExit(1)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cards(share: float) -> list[str]:
    """Return a device for every task that the graphics cards here take at once.

    Args:
        share: What part of a card a task asks for; 0 asks for none.

    Raises:
        BadOption: If a task is to use more than one card.
        UsageError: If there is no card.
    """
    import torch

    if share <= 0:
        return []
    if share > 1:
        raise BadOption(f"a task works on one GPU or a part of one; got {share:g} GPUs")
    count = torch.cuda.device_count()
    if not count:
        raise UsageError("there is no GPU here that torch can use: leave --gpus out")
    return [f"cuda:{n}" for n in range(count) for _ in range(int(1 / share + 1e-9))]


# 2. Which task is next ------------------------------------------------------------------------


@dataclass
class RunStatus:
    """How far a run is; what `gifthorse bench status` shows.

    Attributes:
        total: Tasks of this run.
        done: Those that ended.
        failed: Those whose worker died or overran.
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
        spent = max(0.0, self.beat - self.started)  # clocks may be set back
        return spent / self.done * (self.total - self.done)


Tell: TypeAlias = Callable[[RunStatus], None]
Failed: TypeAlias = Callable[[Any, Done], None]


def missing(cells: Iterable[Cell], store: Store) -> list[Task]:
    """Return the tasks that a store lacks for some cells, parents first."""
    recorded, models = store.recorded(), store.models()
    lacking = [cell for cell in cells if judging(cell).key not in recorded]
    todo = [task for task in tasks(lacking) if task.kind == "judge" or task.key not in models]
    open_ = {task.key for task in todo}
    return [replace(t, after=tuple(key for key in t.after if key in open_)) for t in todo]


def drive(
    todo: Sequence[WorkItem],
    executor: Executor,
    failed: Failed,
    tell: Tell,
) -> RunStatus:
    """Run tasks, each after those it needs, and return how that went.

    Args:
        todo: Tasks, with only those parents that are still to be run.
        executor: What runs them.
        failed: Called with a task that was not finished, and why, to leave a record of it.
        tell: Called after every change, and at least once a second.
    """
    by_key = {task.key: task for task in todo}
    waits = {task.key: len(task.after) for task in todo}
    children: dict[str, list[str]] = {}
    for task in todo:
        for parent in task.after:
            children.setdefault(parent, []).append(task.key)
    ready = deque(task for task in todo if not task.after)
    status, running = RunStatus(total=len(todo)), dict[str, str]()
    while status.done < status.total:
        while ready and executor.room > 0:
            task = ready.popleft()
            running[task.key] = task.words
            executor.submit(task)
        _beat(status, running, tell)
        for done in executor.wait(1.0):
            _note(done, by_key, status, failed)
            running.pop(done.key, None)
            for child in children.pop(done.key, ()):
                waits[child] -= 1
                if not waits[child]:
                    ready.append(by_key[child])
    status.ended = True
    _beat(status, running, tell)
    return status


def _note(done: Done, by_key: dict[str, WorkItem], status: RunStatus, failed: Failed) -> None:
    status.done += 1
    if done.error:
        status.failed += 1
        failed(by_key[done.key], done)


def _beat(status: RunStatus, running: dict[str, str], tell: Tell) -> None:
    status.beat, status.running = time.time(), list(running.values())
    tell(status)


@contextmanager
def heartbeat(store: Store) -> Iterator[Tell]:
    """Keep other drivers off a store as long as this one runs, and let them read how far it is.

    Raises:
        UsageError: If another driver is at work there.
    """
    with _locked(store):
        last = -1.0

        def tell(status: RunStatus) -> None:
            nonlocal last
            now = time.monotonic()
            if status.ended or now - last >= 1:
                last = now
                store.write(HEART, json.dumps(asdict(status), indent=1).encode())

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


def status(store: Store) -> RunStatus | None:
    """Return how far the last run in a store is, or was when it ended; None if there was none."""
    try:
        return RunStatus(**json.loads(store.read(HEART) or b""))
    except (ValueError, TypeError, RecursionError):  # none, or damaged: nobody is the wiser
        return None
