"""Where tasks run: in this process, in a pool of processes, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from gifthorse.bench.cells import Task
from gifthorse.errors import BadOption, UsageError

Work: TypeAlias = Callable[[Task], None]

DIED = "the process that worked on it died: killed, or out of memory"
ALONE = 2  # times that a task may take its worker down with it, alone in the pool


@dataclass(frozen=True)
class Needs:
    """What one task asks of a Ray node.

    Attributes:
        cpus: Processors.
        gpus: Graphics cards, or a part of one.
        memory: Bytes; None asks for nothing.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None


@dataclass(frozen=True)
class Done:
    """A task that came to its end; `error` says why its worker could not finish it."""

    key: str
    error: str = ""


class Executor(Protocol):
    """Runs tasks, in whatever order and wherever it likes; the results are in the store."""

    @property
    def room(self) -> int:
        """How many further tasks it takes now."""
        ...

    def submit(self, task: Task, /) -> None:
        """Take a task."""
        ...

    def wait(self, seconds: float, /) -> list[Done]:
        """Return tasks that ended since; after so many seconds an empty list."""
        ...

    def close(self) -> None:
        """Stop everything that runs; tasks that were not done are lost."""
        ...


class Serial:
    """Runs one task after another, here."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tasks: deque[Task] = deque()

    @property
    def room(self) -> int:
        """One task at a time."""
        return 1 - len(self._tasks)

    def submit(self, task: Task) -> None:
        """Take a task; it runs when it is waited for."""
        self._tasks.append(task)

    def wait(self, seconds: float) -> list[Done]:
        """Run what was taken."""
        task = self._tasks.popleft()
        self._work(task)
        return [Done(task.key)]

    def close(self) -> None:
        """Forget what was taken."""
        self._tasks.clear()


class Pool:
    """Runs tasks in processes of their own.

    A worker that dies takes the whole pool with it. Then all that was under way is done again, one
    task at a time, so that the one to blame fails by itself and the others do not.

    Args:
        work: What to do; it is sent to the workers.
        workers: How many processes.

    Raises:
        BadOption: If there are to be none.
    """

    def __init__(self, work: Work, workers: int) -> None:
        if workers < 1:
            raise BadOption(f"a pool needs at least one worker; got {workers}")
        self._work, self._workers = work, workers
        self._flying: dict[Future[None], Task] = {}
        self._suspects: deque[Task] = deque()
        self._deaths: dict[str, int] = {}
        self._pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        return ProcessPoolExecutor(self._workers, context, _guard, (os.getpid(),))

    @property
    def room(self) -> int:
        """One task more than workers, so that none waits for the next."""
        return 0 if self._suspects else self._workers + 1 - len(self._flying)

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._flying[self._pool.submit(self._work, task)] = task

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since."""
        if self._suspects and not self._flying:
            self.submit(self._suspects.popleft())
        ended, _ = wait(self._flying, seconds, FIRST_COMPLETED)
        out, lost = [], []
        for future in ended:
            task = self._flying.pop(future)
            try:
                future.result()
                out.append(Done(task.key))
            except BrokenProcessPool:
                lost.append(task)
        return out + self._recover(lost) if lost else out

    def _recover(self, lost: list[Task]) -> list[Done]:
        lost += self._flying.values()
        self._flying.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._fresh()
        if len(lost) == 1:
            key = lost[0].key
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= ALONE:
                return [Done(key, DIED)]
        self._suspects += lost
        return []

    def close(self) -> None:
        """Kill all workers."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()


class OnRay:
    """Runs tasks on a Ray cluster, or on a Ray of its own on this machine.

    Nodes need gifthorse and, unless the store is a URL, the same folder. A task whose node is lost
    is run again elsewhere.

    Args:
        work: What to do.
        needs: What a task asks of a node.
        address: Of a running cluster, as `ray start` prints it, or `auto`; None starts one here.

    Raises:
        UsageError: If Ray is not installed, or no cluster is at the address.
    """

    def __init__(self, work: Work, needs: Needs, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("Ray is not installed: pip install 'gifthorse[ray]'") from error
        self._ray: Any = ray
        self._owner = not ray.is_initialized()
        if self._owner:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(f"no Ray cluster at {address}: {error}") from error
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 5}
        if needs.memory is not None:
            options["memory"] = needs.memory
        self._remote = ray.remote(_quietly).options(**options)
        self._shared = ray.put(work)
        self._flying: dict[Any, Task] = {}

    @property
    def room(self) -> int:
        """Enough to keep a cluster busy, and to notice in time what ended."""
        return 1000 - len(self._flying)

    def submit(self, task: Task) -> None:
        """Hand a task to the cluster."""
        self._flying[self._remote.remote(self._shared, task)] = task

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since."""
        refs = list(self._flying)
        ended, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ended:  # what else is there by now
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        out = []
        for ref in ended:
            task = self._flying.pop(ref)
            try:
                self._ray.get(ref)
                out.append(Done(task.key))
            except (
                self._ray.exceptions.WorkerCrashedError,
                self._ray.exceptions.NodeDiedError,
                self._ray.exceptions.OutOfMemoryError,
            ):
                out.append(Done(task.key, DIED))
        return out

    def close(self) -> None:
        """Cancel what runs, and stop the cluster if it was started here."""
        for ref in self._flying:
            self._ray.cancel(ref, force=True)
        self._flying.clear()
        if self._owner:
            self._ray.shutdown()


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quietly(work: Work, task: Task) -> None:
    work(task)


def _guard(parent: int) -> None:
    """Make a worker end with its parent, however that ended, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
