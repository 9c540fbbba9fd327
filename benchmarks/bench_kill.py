"""What is left of a bench whose processes are killed: the same records, nothing done twice.

Runs a plan in peace, then again while its driver, a worker, the process that forks them or a Ray
node is killed with SIGKILL at random moments; a driver that was killed is started anew at once. If
a run is over before there were enough kills, another one begins. The mean time between two kills is
the share that a kill has in the time of the run in peace, but at least what a run needs for its
first task.

    python benchmarks/bench_kill.py --executor pool --kills 20
    python benchmarks/bench_kill.py --executor ray
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gifthorse.bench.runner import DIED
from gifthorse.bench.store import Store
from setting import machine

MARK = "GIFTHORSE_BENCH_KILL"  # in the environment of all processes that a benchmark starts
KINDS = {
    "serial": ("driver",),
    "pool": ("driver", "server", "worker"),
    "ray": ("driver", "worker", "node"),
}


# Processes ------------------------------------------------------------------------------------


def stat(pid: int) -> list[str]:
    """Return the state, the parent and more of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def command(pid: int) -> str:
    """Return the command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def processes() -> list[int]:
    """Return all processes that live; those that ended unasked do not."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if (stat(pid) or "Z")[0] != "Z"]


def marked(mark: str) -> list[int]:
    """Return the other living processes that have a mark or whose command names it."""
    found = []
    for pid in processes():
        try:
            known = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if pid != os.getpid() and (mark.encode() in known or mark in command(pid)):
            found.append(pid)
    return found


def children(pid: int, words: str = "") -> list[int]:
    """Return the children of a process whose command has some words in it."""
    mine = [p for p in processes() if stat(p)[1:2] == [str(pid)]]
    return [p for p in mine if words in command(p)]


def shot(pid: int) -> None:
    """Kill a process, unless it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


# A cluster ------------------------------------------------------------------------------------


class Nodes:
    """A Ray cluster of two nodes on this machine; the second one may be lost and replaced."""

    def __init__(self, stack: ExitStack) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(self._cluster.shutdown)
        self._second: Any = self._cluster.add_node(num_cpus=1)
        self.address: str = self._cluster.address

    def raylets(self) -> list[int]:
        """Return the processes of both nodes; the second one last."""
        nodes = (self._cluster.head_node, self._second)
        return [node.all_processes["raylet"][0].process.pid for node in nodes]

    def workers(self) -> list[int]:
        """Return the processes that work on a task."""
        return [pid for raylet in self.raylets() for pid in children(raylet, "ray::_there")]

    def lose(self) -> None:
        """Kill the second node with all that it runs, and add another one."""
        raylet = self.raylets()[1]
        for pid in (raylet, *children(raylet)):
            shot(pid)
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(num_cpus=1)


# Runs -----------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Looks at a store again and again: files that were done must not change any more.

    Attributes:
        root: The store.
        known: When each file was written.
        redone: Those that were written twice.
        first: When the first one was there.
    """

    root: Path
    known: dict[str, int] = field(default_factory=dict)
    redone: list[str] = field(default_factory=list)
    first: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _look_on(self) -> None:
        while not self._over.wait(0.1):
            self.look()

    def look(self) -> None:
        """Look once."""
        for path in [*self.root.glob("records/*/*.json"), *self.root.glob("models/*/*/spec.json")]:
            name, written = path.relative_to(self.root).as_posix(), path.stat().st_mtime_ns
            if self.known.setdefault(name, written) != written:
                self.redone.append(name)
                self.known[name] = written
        self.first = self.first or (time.monotonic() if self.known else 0.0)


@dataclass
class Bench:
    """A plan and how it is run.

    Attributes:
        plan: Its file.
        executor: Name of one.
        folder: Where stores and logs go.
        nodes: A cluster, for Ray.
        mark: What tells our processes from others.
    """

    plan: Path
    executor: str
    folder: Path
    nodes: Nodes | None
    mark: str

    def start(self, store: Path, *more: str) -> subprocess.Popen[bytes]:
        """Start a driver."""
        words = [sys.executable, "-m", "gifthorse.cli.app", "bench", "run", str(self.plan)]
        words += ["--store", str(store), "--executor", self.executor, *more]
        words += ["--workers", "2"] if self.executor == "pool" else []
        words += ["--address", self.nodes.address] if self.nodes else []
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log)  # noqa: S603

    def ended(self, driver: subprocess.Popen[bytes], seconds: float | None) -> bool:
        """Wait until a driver ends by itself, at most so long; return whether it did.

        Raises:
            SystemExit: If it failed.
        """
        try:
            code = driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code:
            tail = (self.folder / "log").read_text()[-3000:]
            raise SystemExit(f"the driver ended with {code}:\n{tail}")
        return True

    def victims(self, driver: subprocess.Popen[bytes]) -> dict[str, Callable[[], None]]:
        """Return what can be killed now, and how."""
        out: dict[str, Callable[[], None]] = {"driver": driver.kill}
        if self.nodes:
            workers = self.nodes.workers()
            out["node"] = self.nodes.lose
        else:
            servers = children(driver.pid, "multiprocessing.forkserver")
            workers = [pid for server in servers for pid in children(server)]
            if servers:
                out["server"] = lambda: shot(servers[0])
        if workers:
            out["worker"] = lambda: shot(random.choice(workers))  # noqa: S311
        return {kind: out[kind] for kind in KINDS[self.executor] if kind in out}


def peace(bench: Bench, store: Path) -> dict[str, float]:
    """Run the plan undisturbed; return how long it took, and how long until something was done."""
    started = time.monotonic()
    with Watch(store) as watch:
        bench.ended(bench.start(store), None)
    return {"whole": time.monotonic() - started, "first": watch.first - started}


def war(bench: Bench, store: Path, kills: int, mean: float, draw: random.Random) -> dict[str, Any]:
    """Run the plan and kill; return what was killed and when, and what was done twice."""
    started, shots = time.monotonic(), list[dict[str, Any]]()
    with Watch(store) as watch:
        driver = bench.start(store)
        while not bench.ended(driver, draw.uniform(0, 2 * mean) if len(shots) < kills else None):
            victims = bench.victims(driver)
            kind = draw.choice(sorted(victims))
            victims[kind]()
            shots.append(
                {
                    "kind": kind,
                    "second": round(time.monotonic() - started, 1),
                    "done": len(watch.known),
                }
            )
            if kind == "driver":
                driver.wait()
                driver = bench.start(store)
        died = [r["key"] for r in Store(store).records() if r["error"] and DIED in r["error"]]
        if died:  # what was hit again and again is no fault of the driver, but must be told
            for key in died:
                watch.known.pop(f"records/{key[:2]}/{key}.json", None)
            bench.ended(bench.start(store, "--retry"), None)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "kills": shots,
        "files": len(watch.known),
        "redone": watch.redone,
        "died": died,
        "unfinished_files": len(list(store.rglob(".*.part"))),
    }


def timeless(store: Path) -> dict[str, str]:
    """Return records as text by key, without what differs from run to run."""
    return {
        record["key"]: json.dumps({k: v for k, v in record.items() if k != "times"}, indent=1)
        for record in Store(store).records()
    }


def measure(bench: Bench, kills: int, seed: int) -> dict[str, Any]:
    """Run in peace, then as often as it takes to have so many kills."""
    calm = bench.folder / "calm"
    took = peace(bench, calm)
    mean = max(took["whole"] / kills, took["first"])
    wanted, draw, rounds = timeless(calm), random.Random(seed), list[dict[str, Any]]()  # noqa: S311
    while (done := sum(len(r["kills"]) for r in rounds)) < kills:
        store = bench.folder / f"store_{len(rounds)}"
        result = war(bench, store, kills - done, mean, draw)
        found = timeless(store)
        keys = sorted(wanted | found)
        result["different"] = [k for k in keys if wanted.get(k) != found.get(k)]
        rounds.append(result)
        print(f"round {len(rounds)}: {json.dumps(result)}", file=sys.stderr)
    return {
        "executor": bench.executor,
        "plan": str(bench.plan),
        "load": round(os.getloadavg()[0], 1),
        "seconds_in_peace": round(took["whole"], 1),
        "seconds_until_first": round(took["first"], 1),
        "mean_between_kills": round(mean, 1),
        "seconds_with_kills": [r["seconds"] for r in rounds],
        "kills": dict(Counter(s["kind"] for r in rounds for s in r["kills"])),
        "records": len(wanted),
        "statuses": dict(Counter(r["status"] for r in Store(calm).records())),
        "different": [k for r in rounds for k in r["different"]],
        "redone": [n for r in rounds for n in r["redone"]],
        "died": [k for r in rounds for k in r["died"]],
        "unfinished_files": sum(r["unfinished_files"] for r in rounds),
        "rounds": rounds,
    }


def orphans(mark: str, seconds: float) -> list[str]:
    """Return what still runs after a while, with its command; then end it."""
    end = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    said = [f"{pid} {command(pid)[:120]}" for pid in left]
    for pid in left:
        shot(pid)
    return said


def main() -> None:
    """Print what was found as JSON; exit with 1 if something was lost, done twice or left over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, default=Path("plans/smoke.toml"))
    parser.add_argument("--executor", choices=sorted(KINDS), default="pool")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Keep stores and logs in this new folder.")
    a = parser.parse_args()
    folder = a.keep or Path(tempfile.mkdtemp(prefix="bench_kill_"))
    folder.mkdir(parents=True, exist_ok=True)
    mark = f"bench_kill_{os.getpid()}_{time.time_ns()}"
    os.environ[MARK] = mark
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_worker_niceness", "0")):
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        nodes = Nodes(stack) if a.executor == "ray" else None
        found = measure(Bench(a.plan, a.executor, folder, nodes, mark), a.kills, a.seed)
    # Ray's own helpers of a killed node try for a minute to tell of its end before they end.
    found["orphans"] = orphans(mark, 90 if a.executor == "ray" else 20) + orphans(
        f"--store {folder}", 0
    )
    if not a.keep:
        shutil.rmtree(folder)
    print(json.dumps({"machine": machine(), **found}, indent=1))
    sys.exit(any(found[name] for name in ("different", "redone", "orphans")))


if __name__ == "__main__":
    main()
