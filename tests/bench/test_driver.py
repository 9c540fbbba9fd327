"""The driver and its executors: order, deaths, heartbeat, two drivers in one store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.bench.fakes import Stamp, task

from gifthorse.bench import driver
from gifthorse.bench.driver import Standing, drive, heartbeat
from gifthorse.bench.executors import DIED, Executor, Pool, Serial
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Task
from gifthorse.core.errors import BadOption, UsageError

# Two trees: 0 <- 1 <- 2, 3; 4 <- 5.
TREE = [task(0), task(1, 0), task(2, 1), task(3, 1), task(4), task(5, 4)]

EXECUTORS: dict[str, Callable[[Stamp], Executor]] = {
    "serial": Serial,
    "pool": lambda work: Pool(work, 2),
}
executors = pytest.mark.parametrize("name", sorted(EXECUTORS))


def driven(executor: Executor, todo: list[Task]) -> tuple[Standing, dict[int, str]]:
    """Run tasks to their end; how that went, and what was said of those that died."""
    dead: dict[int, str] = {}

    def failed(task: Task, error: str) -> None:
        dead[task.cell.seed] = error

    try:
        return drive(todo, executor, failed, lambda standing: None), dead
    finally:
        executor.close()


@executors
def test_every_task_runs_once_and_after_its_parents(name: str, tmp_path: Path) -> None:
    work = Stamp(str(tmp_path))  # asserts that its parents are done
    standing, dead = driven(EXECUTORS[name](work), list(reversed(TREE)))
    assert [work.times(n) for n in range(6)] == [1] * 6
    assert (standing.done, standing.failed, standing.ended, dead) == (6, 0, True, {})


def test_a_pool_survives_a_worker_that_dies_once(tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), seconds=0.05, stumbles=(1, 5))
    standing, dead = driven(Pool(work, 2), TREE)
    assert [work.times(n) for n in range(6)] == [1] * 6
    assert (standing.done, dead) == (6, {})


def test_a_task_that_always_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), seconds=0.05, dies=(3,))
    standing, dead = driven(Pool(work, 2), TREE)
    assert [work.times(n) for n in range(6)] == [1, 1, 1, 0, 1, 1]
    assert dead == {3: DIED}
    assert (standing.done, standing.failed) == (6, 1)


def test_what_is_told_counts_up_and_names_what_runs(tmp_path: Path) -> None:
    told: list[tuple[int, tuple[str, ...]]] = []

    def tell(standing: Standing) -> None:
        told.append((standing.done, tuple(standing.running)))

    drive(TREE, Serial(Stamp(str(tmp_path))), lambda t, e: None, tell)
    assert [done for done, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    assert told[0][1] == ("judge data net clean no defense seed 0",)
    assert told[-1][1] == ()


def test_time_left_is_the_mean_of_what_was_done() -> None:
    standing = Standing(total=10, done=4, started=100.0, beat=120.0)
    assert standing.left == 30.0
    assert Standing(total=10).left is None


def test_a_pool_needs_workers(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="at least one worker; got 0"):
        Pool(Stamp(str(tmp_path)), 0)


def test_two_drivers_do_not_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with heartbeat(store) as tell:
        tell(Standing(total=3, done=1, beat=time.time()))
        with pytest.raises(UsageError, match="another run is at work"), heartbeat(store):
            pass
    with heartbeat(store):  # the first one is gone
        pass
    standing = driver.status(store)
    assert standing is not None
    assert (standing.total, standing.done, standing.pid) == (3, 1, os.getpid())


def test_a_store_far_away_is_free_once_nobody_writes() -> None:
    store = Store("memory://far/away")
    with heartbeat(store) as tell:
        tell(Standing(total=3, done=1, beat=time.time()))
    with pytest.raises(UsageError, match="another run is at work"), heartbeat(store):
        pass
    store.write(driver.HEART, b'{"total": 3, "beat": 1.0}')
    with heartbeat(store):
        pass


SCRIPT = """
import sys
from tests.bench.fakes import Stamp, task
from gifthorse.bench.driver import drive
from gifthorse.bench.executors import Pool
if __name__ == "__main__":
    work = Stamp(sys.argv[1], seconds=60)
    drive([task(n) for n in range(4)], Pool(work, 2), lambda t, e: None, lambda s: None)
"""


def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'src'}"}
    made = tmp_path / "made"
    made.mkdir()
    run = subprocess.Popen([sys.executable, script, made], env=env)
    until(lambda: len(pids(made)) == 2, 60)
    run.send_signal(signal.SIGKILL)
    run.wait()
    until(lambda: not any(alive(pid) for pid in pids(made)), 20)


def pids(folder: Path) -> list[int]:
    return [int(w) for p in folder.iterdir() for w in p.read_text().split() if w.isdigit()]


def alive(pid: int) -> bool:
    try:
        # A zombie still has a number: it ended, and nobody asked how.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_a_closed_pool_leaves_no_process(tmp_path: Path) -> None:
    pool = Pool(Stamp(str(tmp_path), seconds=60), 2)
    pool.submit(task(0))
    until(lambda: len(pids(tmp_path)) == 1, 60)
    pool.close()
    until(lambda: not any(alive(pid) for pid in pids(tmp_path)), 20)
    # A killed process is reaped only when its last thread has ended.
    until(lambda: not multiprocessing.active_children(), 20)
