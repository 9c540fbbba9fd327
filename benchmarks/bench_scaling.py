"""What the driver of a bench costs for each cell, and what a second worker brings.

Cells that do nothing but leave a small record, on every executor: wall time and the driver's own
processor time, with the heartbeat that a run writes, once all workers are up. Then a fixed amount
of work for the processor, with one worker and with two; with `--plan` a plan as well.

    python benchmarks/bench_scaling.py --cells 10000
    python benchmarks/bench_scaling.py --plan plans/smoke.toml
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gifthorse.bench.cluster import Needs, OnRay
from gifthorse.bench.runner import (
    Done,
    Executor,
    Pool,
    RunStatus,
    Serial,
    Work,
    drive,
    heartbeat,
    missing,
)
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Cell, Task, judging
from setting import machine

NAMES = ("serial", "pool", "ray")
WARM = -1  # seed of tasks that only make sure that workers are up


@dataclass(frozen=True)
class Keep:
    """Leave a record of a task, of about 2 kB; or nothing, without a store.

    Attributes:
        root: The store.
    """

    root: str = ""

    def __call__(self, task: Task) -> None:
        """Do it."""
        if task.cell.seed == WARM:
            time.sleep(0.5)
        elif self.root:
            figures = {f"figure_{n}": n / 7 for n in range(40)}
            options = {f"option_{n}": str(n) for n in range(20)}
            Store(self.root).keep({"key": task.key, "cell": options, "figures": figures})


@dataclass(frozen=True)
class Count:
    """Keep a processor busy.

    Attributes:
        steps: For how long.
    """

    steps: int

    def __call__(self, task: Task) -> None:
        """Do it."""
        whole = 0
        for step in range(self.steps if task.cell.seed != WARM else 1):
            whole += step * step
        if task.cell.seed == WARM:
            time.sleep(0.5)


def cell(seed: int) -> Cell:
    """Return a cell of nothing."""
    return Cell("none", "none", None, None, seed)


def plain(number: int, seed: int | None = None) -> list[Task]:
    """Return tasks that wait for nothing."""
    return [Task("judge", f"{n:024x}", cell(n if seed is None else seed)) for n in range(number)]


def engine(name: str, work: Work, workers: int = 2) -> Executor:
    """Return an executor."""
    if name == "serial":
        return Serial(work)
    return Pool(work, workers) if name == "pool" else OnRay(work, Needs())


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that some work takes, by the clock and of this process's processors."""
    started, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - busy


def quiet(status: RunStatus) -> None:
    """Tell nobody."""


def broken(task: Task, done: Done) -> None:
    """Take no failure for an answer.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(f"{task.key}: {done.error}")


def overhead(name: str, cells: int, root: Path | None) -> dict[str, Any]:
    """Return what a cell of nothing costs on an executor, in milliseconds."""
    work = Keep(str(root) if root else "")
    executor = engine(name, work)
    try:
        up, _ = clocked(lambda: drive(plain(4, WARM), executor, broken, quiet))
        with tempfile.TemporaryDirectory() as beats, heartbeat(Store(root or beats)) as tell:
            wall, cpu = clocked(lambda: drive(plain(cells), executor, broken, tell))
    finally:
        executor.close()
    if root:
        assert len(Store(root).recorded()) == cells
    return {
        "executor": name,
        "cells": cells,
        "records": root is not None,
        "ms_a_cell": round(1000 * wall / cells, 3),
        "driver_cpu_ms_a_cell": round(1000 * cpu / cells, 3),
        "seconds_to_start": round(up, 1),
    }


def listing(cells: int, root: Path) -> dict[str, float]:
    """Return what it takes to find out what a plan still lacks: all of it, and nothing."""
    every, store = [cell(n) for n in range(cells)], Store(root)
    first, _ = clocked(lambda: missing(every, store))
    for one in every:
        store.keep({"key": judging(one).key})
    again, _ = clocked(lambda: missing(every, store))
    return {
        "ms_a_cell_of_an_empty_store": round(1000 * first / cells, 3),
        "ms_a_cell_of_a_full_store": round(1000 * again / cells, 3),
    }


def efficiency(seconds: dict[int, float]) -> dict[str, float]:
    """Return what two workers gain: 1 if they are twice as fast as one."""
    return {
        "seconds_with_one": round(seconds[1], 2),
        "seconds_with_two": round(seconds[2], 2),
        "efficiency": round(seconds[1] / seconds[2] / 2, 3),
    }


def counting(tasks: int, steps: int) -> dict[str, float]:
    """Return what a second worker brings for work that needs nothing but a processor."""
    seconds = {}
    for workers in (1, 2):
        pool = Pool(Count(steps), workers)
        drive(plain(2 * workers, WARM), pool, broken, quiet)
        seconds[workers], _ = clocked(lambda pool=pool: drive(plain(tasks), pool, broken, quiet))  # type: ignore[misc]
        pool.close()
    return {"tasks": tasks, "steps": steps} | efficiency(seconds)


def planned(plan: Path) -> dict[str, float]:
    """Return what a second worker brings for a plan, from nothing to the last record."""
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as store:
            words = ["bench", "run", str(plan), "--store", store, "--workers", str(workers)]
            command = [sys.executable, "-m", "gifthorse.cli.app", *words]
            seconds[workers], _ = clocked(lambda c=command: subprocess.run(c, check=True))  # type: ignore[misc]  # noqa: S603
    return efficiency(seconds)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--executors", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--tasks", type=int, default=40, help="Of counting; 0 leaves it out.")
    parser.add_argument("--steps", type=int, default=5_000_000, help="Of a task of counting.")
    parser.add_argument("--plan", type=Path, help="Also run this plan, twice.")
    a = parser.parse_args()
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_worker_niceness", "0")):
        os.environ.setdefault(name, value)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in a.executors:
            rows += [overhead(name, a.cells, root) for root in (None, Path(folder) / name)]
        found = {"overhead": rows, "missing": listing(a.cells, Path(folder) / "listing")}
    if a.tasks:
        found["two_workers"] = counting(a.tasks, a.steps)
    if a.plan:
        found["two_workers_on_a_plan"] = planned(a.plan)
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"machine": machine(), "load": load, **found}, indent=1))


if __name__ == "__main__":
    main()
