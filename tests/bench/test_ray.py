"""The driver on a real Ray: one of its own, and a cluster of two nodes of which one is killed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.bench.fakes import Stamp, task

from gifthorse.bench.cluster import LOST, Needs, OnRay
from gifthorse.bench.runner import ALONE, DIED
from gifthorse.core.errors import UsageError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)

ROOT = Path(__file__).parents[2]
HERE = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # or a busy machine starves them
}

# Drivers and nodes are processes of their own: Ray would leave signal handlers and threads here.
DRIVER = """
import json, sys
from tests.bench.fakes import Stamp, task
from gifthorse.bench.cluster import Needs, OnRay
from gifthorse.bench.runner import drive
if __name__ == "__main__":
    work, numbers, address = Stamp(**json.loads(sys.argv[1])), json.loads(sys.argv[2]), sys.argv[3]
    todo, dead = [task(*n) for n in numbers], {}
    executor = OnRay(work, Needs(cpus=1), address or None)
    failed = lambda task, done: dead.update({task.cell.seed: done.error})
    standing = drive(todo, executor, failed, lambda standing: None)
    executor.close()
    print(json.dumps([standing.done, standing.failed, dead]), flush=True)
    sys.stdin.read()  # until the test has seen what is left
"""
NODES = """
import json, sys
from ray.cluster_utils import Cluster
if __name__ == "__main__":
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    pid = node.all_processes["raylet"][0].process.pid
    print(json.dumps([cluster.address, pid]), flush=True)
    sys.stdin.read()
    cluster.shutdown()
"""


@dataclass
class Script:
    """A process, with a mark that all those it starts inherit."""

    text: str
    folder: Path
    arguments: tuple[str, ...] = ()
    mark: str = field(default_factory=lambda: f"GIFTHORSE_MARK={uuid.uuid4().hex}")
    process: Any = None

    def __enter__(self) -> Script:
        file = self.folder / f"script_{uuid.uuid4().hex}.py"
        file.write_text(self.text)
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, file, *self.arguments],
            env=os.environ | HERE | {name: value},
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in self.others():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def said(self) -> Any:
        """What the script says in its first line, and nothing else before."""
        return json.loads(self.process.stdout.readline())

    def others(self) -> list[int]:
        """Living processes that descend from the script."""
        found = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/environ") if self._of(p)]
        return [pid for pid in found if pid != self.process.pid and alive(pid)]

    def _of(self, environ: Path) -> bool:
        try:
            return self.mark.encode() in environ.read_bytes()
        except OSError:
            return False


def driver(
    folder: Path, numbers: list[tuple[int, ...]], address: str = "", **stamp: object
) -> Script:
    made = folder / "made"
    made.mkdir()
    work = json.dumps({"folder": str(made), **stamp})
    return Script(DRIVER, folder, (work, json.dumps(numbers), address))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def helps(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return name.startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))


def begun(folder: Path) -> dict[int, list[int]]:
    """Processes that began a task, by its number."""
    files = sorted((folder / "made").iterdir())
    return {int(f.name, 16): [int(w) for w in f.read_text().split() if w.isdigit()] for f in files}


def under_way(folder: Path) -> set[int]:
    """Processes that are at a task."""
    texts = [f.read_text().split() for f in (folder / "made").iterdir()]
    return {int(words[-1]) for words in texts if words and words[-1].isdigit()}


def until(true: Callable[[], object], seconds: float, run: Script | None = None) -> None:
    """Wait for something, as long as a script runs, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert run is None or run.process.poll() is None, "the script failed"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# A Ray of its own -----------------------------------------------------------------------------

TREE = [(0,), (1, 0), (2, 1), (3, 1), (4,), (5, 4)]  # 0 <- 1 <- 2, 3; 4 <- 5


def test_a_ray_of_its_own_outlives_workers_and_leaves_nothing(tmp_path: Path) -> None:
    with driver(tmp_path, TREE, seconds=0.05, dies=[3]) as run:
        assert run.said() == [6, 1, {"3": DIED}]
        until(lambda: not run.others(), 20)  # the driver itself still lives
        assert run.process.poll() is None
    work = Stamp(str(tmp_path / "made"))
    assert [work.times(n) for n in range(6)] == [1, 1, 1, 0, 1, 1]
    assert [len(pids) for pids in begun(tmp_path).values()] == [1, 1, 1, ALONE, 1, 1]


@pytest.mark.slow
def test_a_killed_driver_takes_a_ray_of_its_own_along(tmp_path: Path) -> None:
    with driver(tmp_path, [(0,), (1,)], seconds=60) as run:
        until(lambda: under_way(tmp_path), 180, run)
        pids = under_way(tmp_path)
        assert len(run.others()) > len(pids)
        run.process.send_signal(signal.SIGKILL)
        # Ray's own helpers of a node may try for a minute to tell of its end, and then end too.
        until(lambda: all(helps(p) for p in run.others()) and not any(map(alive, pids)), 20)


# A cluster of two nodes -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of a cluster of two nodes, and the process that is its second node."""
    with Script(NODES, tmp_path_factory.mktemp("cluster")) as nodes:
        address, raylet = nodes.said()
        yield address, raylet
        nodes.process.stdin.close()
        until(lambda: all(map(helps, nodes.others())), 30)


def test_tasks_of_a_lost_node_are_done_elsewhere(cluster: tuple[str, int], tmp_path: Path) -> None:
    address, raylet = cluster
    assert alive(raylet)
    with driver(tmp_path, [(n,) for n in range(6)], address, seconds=2) as run:
        until(lambda: raylet in map(parent, under_way(tmp_path)), 180, run)
        lost = {pid for pid in under_way(tmp_path) if parent(pid) == raylet}
        for pid in (raylet, *lost):
            os.kill(pid, signal.SIGKILL)  # the node, before its worker can end by itself
        assert run.said() == [6, 0, {}]
    work = Stamp(str(tmp_path / "made"))
    assert [work.times(n) for n in range(6)] == [1] * 6  # as in a pool
    twice = [pids for pids in begun(tmp_path).values() if len(pids) > 1]
    assert len(twice) == 1
    assert twice[0][0] in lost
    assert twice[0][1] not in lost


def test_workers_on_a_cluster_end_when_their_driver_is_killed(
    cluster: tuple[str, int], tmp_path: Path
) -> None:
    with driver(tmp_path, [(0,), (1,)], cluster[0], seconds=60) as run:
        until(lambda: under_way(tmp_path), 180, run)
        run.process.send_signal(signal.SIGKILL)
        until(lambda: not any(map(alive, under_way(tmp_path))), 20)


# What Ray says --------------------------------------------------------------------------------


def known() -> Any:
    """The exceptions of Ray."""
    return importlib.import_module("ray.exceptions")


class FakeRay:
    """Ends every task as it is told, one after another."""

    def __init__(self, *ends: Exception | None, nodes: int = 1) -> None:
        self.exceptions, self._ends, self._nodes, self.given = known(), list(ends), nodes, 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}}] * self._nodes

    def put(self, value: object) -> object:
        return value

    def remote(self, function: object) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._given))

    def _given(self, *_: object) -> object:
        self.given += 1
        return self.given

    def wait(self, refs: list[object], **_: object) -> tuple[list[object], list[object]]:
        return refs, []

    def get(self, ref: object) -> None:
        if self._ends and (end := self._ends.pop(0)):
            raise end

    def cancel(self, ref: object, force: bool) -> None:
        self.given -= 1


def on(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, needs: Needs | None = None) -> OnRay:
    monkeypatch.setitem(sys.modules, "ray", ray)
    return OnRay(Stamp("nowhere"), needs or Needs())


def test_lost_nodes_and_dead_workers_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(
        *[known().NodeDiedError("")] * (LOST - 1),
        known().WorkerCrashedError(),
        None,
        known().OutOfMemoryError(""),
    )
    executor = on(monkeypatch, ray)
    executor.submit(task(0))
    for _ in range(LOST):
        assert executor.wait(0) == []
    assert [(d.key, d.error) for d in executor.wait(0)] == [(task(0).key, "")]
    executor.submit(task(1))
    assert executor.wait(0) == []


def test_a_task_that_takes_every_worker_down_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(*[known().WorkerCrashedError()] * ALONE)
    executor = on(monkeypatch, ray)
    executor.submit(task(0))
    said = [executor.wait(0) for _ in range(ALONE)]
    assert [[d.error for d in each] for each in said] == [[]] * (ALONE - 1) + [[DIED]]
    assert ray.given == ALONE


def test_what_the_work_raises_arrives_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = UsageError("cannot write to x: disk full")
    told = known().RayTaskError("f", "a long traceback", cause, "title", 1, "127.0.0.1")
    foreign = known().RayTaskError(
        "f", "a long traceback", known().RaySystemError("no gifthorse"), "title", 1, ""
    )
    executor = on(monkeypatch, FakeRay(told, known().LocalRayletDiedError(), foreign))
    executor.submit(task(0))
    with pytest.raises(UsageError, match=r"^cannot write to x: disk full$"):
        executor.wait(0)
    executor.submit(task(0))
    with pytest.raises(UsageError, match=r"the Ray cluster failed: .* raylet died"):
        executor.wait(0)
    executor.submit(task(0))
    with pytest.raises(UsageError, match="a node has no such gifthorse"):
        executor.wait(0)


def test_room_grows_with_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = on(monkeypatch, FakeRay()), on(monkeypatch, FakeRay(nodes=50))
    assert (small.room, large.room) == (16, 200)
    large.submit(task(0))
    assert large.room == 199


def test_what_fits_a_node() -> None:
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}
    fits = [Needs(), Needs(2), Needs(1, 1), Needs(1, 0.5), Needs(1, 0, 32 * 10**9), Needs(9)]
    assert [needs.fit(node) for needs in fits] == [8, 4, 2, 4, 2, 0]
    assert Needs(1, 1).fit({"CPU": 8.0}) == 0


def test_needs_that_no_node_has_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on(monkeypatch, FakeRay(), Needs(gpus=1))
    assert "no node of the Ray cluster has what a task needs" in caplog.text


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"no Ray cluster at {address}"):
            OnRay(Stamp("nowhere"), Needs(), address)
