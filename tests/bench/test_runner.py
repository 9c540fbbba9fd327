"""The runner and its executors: order, deaths, limits, heartbeat, two runners in one store."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tests.bench.fakes import Stamp, task

from gifthorse.bench import runner, tasks
from gifthorse.bench.runner import (
    DIED,
    OVERRAN,
    Done,
    Executor,
    Pool,
    RunStatus,
    Serial,
    cards,
    drive,
    heartbeat,
)
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Setting, Task
from gifthorse.core.errors import BadOption, UsageError


@dataclass(frozen=True)
class Slow:
    """Task 0 takes long, the others do not."""

    slow: Stamp
    quick: Stamp

    def __call__(self, task: Task) -> None:
        (self.quick if task.cell.seed else self.slow)(task)


# Two trees: 0 <- 1 <- 2, 3; 4 <- 5.
TREE = [task(0), task(1, 0), task(2, 1), task(3, 1), task(4), task(5, 4)]

EXECUTORS: dict[str, Callable[[Stamp], Executor]] = {
    "serial": Serial,
    "pool": lambda work: Pool(work, 2),
}
executors = pytest.mark.parametrize("name", sorted(EXECUTORS))


def driven(executor: Executor, todo: list[Task]) -> tuple[RunStatus, dict[int, str]]:
    """Run tasks to their end; how that went, and what was said of those that died."""
    dead: dict[int, str] = {}

    def failed(task: Task, done: Done) -> None:
        dead[task.cell.seed] = done.error

    try:
        return drive(todo, executor, failed, lambda standing: None), dead
    finally:
        executor.close()


@executors
def test_every_task_runs_once_and_after_its_parents(name: str, tmp_path: Path) -> None:
    work = Stamp(str(tmp_path))  # asserts that its parents are done
    status, dead = driven(EXECUTORS[name](work), list(reversed(TREE)))
    assert [work.times(n) for n in range(6)] == [1] * 6
    assert (status.done, status.failed, status.ended, dead) == (6, 0, True, {})


def test_a_pool_survives_a_worker_that_dies_once(tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), seconds=0.05, stumbles=(1, 5))
    status, dead = driven(Pool(work, 2), TREE)
    assert [work.times(n) for n in range(6)] == [1] * 6
    assert (status.done, dead) == (6, {})


def test_a_task_that_always_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), seconds=0.05, dies=(3,))
    status, dead = driven(Pool(work, 2), TREE)
    assert [work.times(n) for n in range(6)] == [1, 1, 1, 0, 1, 1]
    assert dead == {3: DIED}
    assert (status.done, status.failed) == (6, 1)


def test_a_task_that_overruns_is_stopped_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow task has a limit; the quick ones beside and after it come to their end."""
    monkeypatch.setattr(tasks, "READING", 3.0)
    slow, quick = Stamp(str(tmp_path), seconds=60), [task(n) for n in (1, 2, 3)]
    hurried = replace(task(0), cell=replace(task(0).cell, setting=Setting(time_limit=0.1)))
    ended: list[Done] = []
    started = time.monotonic()
    pool = Pool(Slow(slow, replace(slow, seconds=0.0)), 2)
    try:
        status = drive([hurried, *quick], pool, lambda t, d: ended.append(d), lambda s: None)
    finally:
        pool.close()
    assert ended == [Done(hurried.key, OVERRAN, "timeout")]
    assert (status.done, status.failed) == (4, 1)
    assert [slow.times(n) for n in range(4)] == [0, 1, 1, 1]
    assert time.monotonic() - started < 50
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_only_judging_has_a_limit_and_a_method_may_stop_by_itself_first() -> None:
    hurried = replace(task(0), cell=replace(task(0).cell, setting=Setting(time_limit=60.0)))
    assert hurried.limit == 2 * 60 + tasks.READING
    assert replace(hurried, kind="implant").limit == math.inf
    assert task(0).limit == math.inf


@executors
def test_what_no_task_would_fare_better_with_stops_the_run(name: str, tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), raises=(1,))
    with pytest.raises(UsageError, match="task 1 finds no data: set GIFTHORSE_DATA"):
        driven(EXECUTORS[name](work), TREE)
    assert work.times(2) == 0


def test_every_task_has_a_card_of_its_own(tmp_path: Path) -> None:
    work = Stamp(str(tmp_path), seconds=0.5)
    driven(Pool(work, 2, ["cuda:0", "cuda:1"]), [task(0), task(1)])
    assert {work.device(n) for n in (0, 1)} == {"cuda:0", "cuda:1"}
    driven(Serial(work, "cuda:7"), [task(2)])
    assert work.device(2) == "cuda:7"
    driven(Serial(work), [task(3)])
    assert work.device(3) == "cpu"


def test_cards_are_shared_in_whole_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cards(0.0) == []
    assert cards(1.0) == ["cuda:0", "cuda:1"]
    assert cards(0.4) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    with pytest.raises(BadOption, match="one GPU or a part of one; got 2 GPUs"):
        cards(2.0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="no GPU here"):
        cards(0.5)


def test_a_pool_kills_only_its_own(tmp_path: Path) -> None:
    stranger = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    stranger.start()
    pool = Pool(Stamp(str(tmp_path), seconds=60), 1)
    pool.submit(task(0))
    until(lambda: len(pids(tmp_path)) == 1, 60)
    pool.close()
    try:
        assert not any(alive(pid) for pid in pids(tmp_path))
        assert stranger.is_alive()
    finally:
        stranger.kill()
        stranger.join()


def test_what_is_told_counts_up_and_names_what_runs(tmp_path: Path) -> None:
    told: list[tuple[int, tuple[str, ...]]] = []

    def tell(status: RunStatus) -> None:
        told.append((status.done, tuple(status.running)))

    drive(TREE, Serial(Stamp(str(tmp_path))), lambda t, e: None, tell)
    assert [done for done, _ in told] == [0, 1, 2, 3, 4, 5, 6]
    assert told[0][1] == ("judge data net clean no defense seed 0",)
    assert told[-1][1] == ()


def test_time_left_is_the_mean_of_what_was_done() -> None:
    status = RunStatus(total=10, done=4, started=100.0, beat=120.0)
    assert status.left == 30.0
    assert RunStatus(total=10).left is None


def test_a_pool_needs_workers(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="at least one worker; got 0"):
        Pool(Stamp(str(tmp_path)), 0)


def test_two_drivers_do_not_share_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with heartbeat(store) as tell:
        tell(RunStatus(total=3, done=1, beat=time.time()))
        with pytest.raises(UsageError, match="another run is at work"), heartbeat(store):
            pass
    with heartbeat(store):  # the first one is gone
        pass
    status = runner.status(store)
    assert status is not None
    assert (status.total, status.done, status.pid) == (3, 1, os.getpid())


def test_a_store_far_away_is_free_once_nobody_writes() -> None:
    store = Store("memory://far/away")
    with heartbeat(store) as tell:
        tell(RunStatus(total=3, done=1, beat=time.time()))
    with pytest.raises(UsageError, match="another run is at work"), heartbeat(store):
        pass
    store.write(runner.HEART, b'{"total": 3, "beat": 1.0}')
    with heartbeat(store):
        pass


SCRIPT = """
import sys
from tests.bench.fakes import Stamp, task
from gifthorse.bench.runner import Pool, drive
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
