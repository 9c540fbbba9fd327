"""Where tasks run: in this process, in a pool of processes, or on a Ray cluster."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from gifthorse.bench.tasks import Task
from gifthorse.core.errors import BadOption, UsageError

Work: TypeAlias = Callable[[Task], None]

DIED = "the process that worked on it died: killed, or out of memory"
GRACE = 10.0  # seconds that a broken pool has to say which tasks it lost
ALONE = 3  # times that a task may take its worker down with it, when no other can be to blame
LOST = 10  # times that a task's node may be lost, which the task is hardly to blame for
LEAST = 16  # tasks that a cluster is given even if it is small: what waits there makes it grow

log = logging.getLogger("gifthorse")


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

    def fit(self, node: Mapping[str, float]) -> int:
        """Return how many tasks at once a node with such resources can do."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory or 0}
        return min((int(node.get(k, 0.0) / n) for k, n in asked.items() if n), default=1)


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
        self._alone = False  # whether a suspect runs, which must not take others along
        self._deaths: Counter[str] = Counter()
        self._pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        return ProcessPoolExecutor(self._workers, context, _guard, (os.getpid(),))

    @property
    def room(self) -> int:
        """One task more than workers, so that none waits for the next."""
        return 0 if self._suspects or self._alone else self._workers + 1 - len(self._flying)

    def submit(self, task: Task) -> None:
        """Take a task."""
        try:
            self._flying[self._pool.submit(self._work, task)] = task
        except BrokenProcessPool:  # a worker died since the last wait; this task is not to blame
            self._suspects.append(task)
            if not self._flying:
                self._pool = self._fresh()

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since."""
        if self._suspects and not self._flying:
            self._alone = True
            self.submit(self._suspects.popleft())
        ended, _ = wait(self._flying, seconds, FIRST_COMPLETED)
        out, lost = self._sorted(ended)
        if lost:  # soon all the others are lost too, but for those that were done just before
            ended, _ = wait(self._flying, GRACE)
            more, others = self._sorted(ended)
            out, lost = out + more, [*lost, *others, *self._flying.values()]
            self._flying.clear()
            out += self._recover(lost)
        self._alone = self._alone and bool(self._flying)
        return out

    def _sorted(self, ended: Iterable[Future[None]]) -> tuple[list[Done], list[Task]]:
        """Return what was done and what was lost with a worker."""
        out, lost = [], []
        for future in ended:
            task = self._flying.pop(future)
            try:
                future.result()
                out.append(Done(task.key))
            except BrokenProcessPool:
                lost.append(task)
        return out, lost

    def _recover(self, lost: list[Task]) -> list[Done]:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._fresh()
        if len(lost) == 1:
            key = lost[0].key
            self._deaths[key] += 1
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

    Nodes need gifthorse, the data and, unless the store is a URL, the same folder. A task whose
    node is lost is run again elsewhere; one that takes its worker down again and again fails.

    Args:
        work: What to do.
        needs: What a task asks of a node.
        address: Of a running cluster, as `ray start` prints it, or `auto`; None starts one here.

    Raises:
        UsageError: If Ray is not installed, no cluster is at the address, or a Ray of its own
            cannot have what a task needs.
    """

    def __init__(self, work: Work, needs: Needs, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("Ray is not installed: pip install 'gifthorse[ray]'") from error
        self._ray: Any = ray
        self._owner = not ray.is_initialized()
        if self._owner:
            _join(ray, address)
        self._needs, self._slots, self._counted = needs, 0, -math.inf
        self._deaths: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._flying: dict[Any, Task] = {}
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        if needs.memory is not None:
            options["memory"] = needs.memory
        self._remote = ray.remote(_there).options(**options)
        self._shared = ray.put((work, os.getcwd()))
        if not self._count():
            self._too_much(address)

    def _too_much(self, address: str | None) -> None:
        """Say that no node has what a task needs; a cluster that grows may come to have it."""
        words = f"no node of the Ray cluster has what a task needs: {self._needs}"
        if self._owner and address is None:
            self.close()
            raise UsageError(words)
        log.warning("%s; waiting for one", words)

    @property
    def room(self) -> int:
        """Twice what the nodes that are there can do at once, so that none of them waits."""
        return max(LEAST, 2 * self._count()) - len(self._flying)

    def _count(self) -> int:
        """Return how many tasks the nodes can do at once; they may come and go."""
        if (now := time.monotonic()) - self._counted > 5:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._slots, self._counted = sum(self._needs.fit(node) for node in nodes), now
        return self._slots

    def submit(self, task: Task) -> None:
        """Hand a task to the cluster."""
        self._flying[self._remote.remote(self._shared, task)] = task

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since."""
        refs = list(self._flying)
        ended, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ended:  # what else is there by now
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [done for ref in ended for done in self._ended(ref, self._flying.pop(ref))]

    def _ended(self, ref: Any, task: Task) -> list[Done]:
        """Return how a task ended, or nothing if it is run again."""
        known = self._ray.exceptions
        try:
            self._ray.get(ref)
        except known.RayTaskError as error:  # what the work raised, as in a pool
            if not isinstance(error.cause, known.RayError):
                raise error.cause from error
            raise _unable(error.cause, "a node has no such gifthorse") from error
        except (known.WorkerCrashedError, known.OutOfMemoryError):
            return self._again(task, self._deaths, ALONE)
        except known.NodeDiedError:
            return self._again(task, self._losses, LOST)
        except known.RayError as error:
            raise _unable(error, "the Ray cluster failed: mend it and resume") from error
        return [Done(task.key)]

    def _again(self, task: Task, count: Counter[str], most: int) -> list[Done]:
        count[task.key] += 1
        if count[task.key] >= most:
            return [Done(task.key, DIED)]
        log.info("once more, since worker or node was lost: %s", task.cell.words)
        self.submit(task)
        return []

    def close(self) -> None:
        """Cancel what runs, and stop the cluster if it was started here."""
        for ref in self._flying:
            self._ray.cancel(ref, force=True)
        self._flying.clear()
        if self._owner:
            self._ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one here.

    Raises:
        UsageError: If that is not possible.
    """
    if address is not None:
        _reach(address)
    # What becomes of workers and nodes is told by the driver; Ray would print it among results.
    private: Any = getattr(ray, "_private", None)
    if hasattr(getattr(private, "worker", None), "print_to_stdstream"):
        private.worker.print_to_stdstream = _logged
    # "local", since Ray would take None for whatever cluster was started here last.
    asked = {"address": address} if address else {"address": "local", "num_cpus": processors()}
    try:
        ray.init(**asked, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UsageError(
            f"cannot use a Ray cluster at {address or 'this machine'}: {error} "
            "If it asks for a token, set RAY_AUTH_MODE=token, and the token as on its nodes."
        ) from error


def _unable(error: Exception, words: str) -> UsageError:
    return UsageError(f"{words} ({str(error).partition(chr(10))[0]})")


def _logged(said: Mapping[str, Any], *_: object, **__: object) -> None:
    log.debug("Ray: %s", said.get("lines"))


def _reach(address: str) -> None:
    """Raise if nothing answers at an address; Ray itself would try for minutes.

    Raises:
        UsageError: If so.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster at {address}: {error}") from error


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _there(shared: tuple[Work, str], task: Task) -> None:
    """Work on a node, in the folder that the driver is in if the node has it."""
    work, folder = shared
    if Path(folder).is_dir():
        os.chdir(folder)
    work(task)


def _guard(parent: int) -> None:
    """Make a worker end with its parent, however that ended, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
