"""Runs tasks on a Ray cluster, or on a Ray of its own on this machine."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gifthorse.bench.runner import ALONE, DIED, Done, Work, WorkItem, processors
from gifthorse.core.errors import UsageError

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
        self._flying: dict[Any, WorkItem] = {}
        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}
        if needs.memory is not None:
            options["memory"] = needs.memory
        self._remote = ray.remote(_there).options(**options)
        # Ray shows a task the cards that it has for it, and no others.
        self._device = "cuda:0" if needs.gpus else "cpu"
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

    def submit(self, task: WorkItem) -> None:
        """Hand a task to the cluster."""
        placed = replace(task, device=self._device)
        self._flying[self._remote.remote(self._shared, placed)] = task

    def wait(self, seconds: float) -> list[Done]:
        """Return tasks that ended since."""
        refs = list(self._flying)
        ended, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ended:  # what else is there by now
            ended, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [done for ref in ended for done in self._ended(ref, self._flying.pop(ref))]

    def _ended(self, ref: Any, task: WorkItem) -> list[Done]:
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

    def _again(self, task: WorkItem, count: Counter[str], most: int) -> list[Done]:
        count[task.key] += 1
        if count[task.key] >= most:
            return [Done(task.key, DIED)]
        log.info("once more, since worker or node was lost: %s", task.words)
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
    # What becomes of workers and nodes is told by the driver. Ray would print it among results, and
    # has no option against that: `log_to_driver` is about what workers print.
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


def _there(shared: tuple[Work, str], task: WorkItem) -> None:
    """Work on a node, in the folder that the driver is in if the node has it."""
    work, folder = shared
    if Path(folder).is_dir():
        os.chdir(folder)
    work(task)
