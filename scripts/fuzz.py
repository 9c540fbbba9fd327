"""Fuzz the parsers of untrusted bytes, guided by coverage.

    python scripts/fuzz.py [--minutes N] [--parser NAME ...] [--out DIR] [--turn SECONDS]

Parsers take turns, each turn in a process of its own that libFuzzer (`atheris`) drives, until the
time is over. A parser may raise our own errors; any other error, a death, a hang, more memory than
a reader may take, and any attempt to write, connect, or start something is a finding. Each place is
reported once: as a line of `findings.jsonl`, with the input in base64. `agreement` compares our
reader with PyTorch's restricted one and safetensors' own instead. `summary.json` counts executions.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

MEMORY = 1 << 30  # bytes beyond what a parser starts with
SLOW = 5.0  # seconds of processor time that a small input may take
HANG = 60  # seconds on the wall
AGREEMENT = "agreement"
FOLLOWED = ["gifthorse", "pickletools", "tomllib", "csv", "zipfile", "numpy.lib"]


# 1. A turn ------------------------------------------------------------------------------------


class Findings:
    """Where findings of one parser are written down, each place once."""

    def __init__(self, name: str, out: Path) -> None:
        path = out / "findings.jsonl"
        path.touch()
        lines = map(json.loads, path.read_text().splitlines())
        self.name, self.log = name, os.open(path, os.O_WRONLY | os.O_APPEND)
        self.known = {line["place"] for line in lines if line["parser"] == name}

    def add(self, place: str, words: str, data: bytes) -> None:
        """Write down a finding, unless its place is known."""
        if place not in self.known:
            self.known.add(place)
            told = {"parser": self.name, "place": place, "words": words[:300]}
            told["input"] = base64.b64encode(data[:100_000]).decode()
            os.write(self.log, (json.dumps(told) + "\n").encode())


class Target:
    """What libFuzzer calls with each input."""

    def __init__(self, run: Callable[[bytes], str], findings: Findings, tally: Path) -> None:
        self.run, self.findings, self.counts = run, findings, Counter[str]()
        self.tally = os.open(tally, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def __call__(self, data: bytes) -> None:
        """Parse an input; note what is no refusal of ours."""
        begun = time.process_time()
        try:
            self.counts[self.run(data)] += 1
        except BaseException as error:
            self.counts["finding"] += 1
            self.findings.add(_place(error), repr(error), data)
        if (took := time.process_time() - begun) > SLOW:
            self.findings.add("slow", f"{took:.1f} s for {len(data)} bytes", data)
        if sum(self.counts.values()) % 200 == 0:
            self.write()

    def write(self) -> None:
        """Write down how the executions ended so far."""
        os.pwrite(self.tally, json.dumps(self.counts).encode().ljust(8000), 0)

    def guard(self, event: str, args: tuple[object, ...]) -> None:
        """Audit hook: an act beyond reading is a finding, and is refused."""
        from gifthorse.core.isolated.confinement import refuse

        if event == "os.truncate" and isinstance(args[0], int):
            return  # the open file that inputs are put into
        try:
            refuse(event, args, ("/",))
        except PermissionError as error:
            self.findings.add(f"{event} {args[:2]}"[:120], str(error), b"")
            raise


def _place(error: BaseException) -> str:
    frames = list(traceback.extract_tb(error.__traceback__))
    ours = [f for f in frames if "/gifthorse/" in f.filename or "/fuzzing/" in f.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"


def fuzz(name: str, out: Path, seconds: int) -> None:
    """Fuzz one parser in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=FOLLOWED):
        from tests.fuzzing import agreement, parsers
    models = name == AGREEMENT
    parser = parsers.PARSERS["tensors" if models else name]

    def run(data: bytes) -> str:
        return agreement.compared(*parsers.model(data)) if models else parsers.parsed(name, data)

    target = Target(run, Findings(name, out), out / f"{name}.tally")
    corpus, words = _prepared(name, out, parser.seeds(), parser.words)
    options = [
        *(sys.argv[0], corpus, f"-dict={words}", f"-max_total_time={seconds}", "-max_len=4096"),
        *(f"-timeout={HANG}", "-rss_limit_mb=4096", f"-artifact_prefix={out}/died-{name}-"),
        *("-use_value_profile=1", "-verbosity=0"),
    ]
    atheris.Setup(options, target)
    with parsers.in_process():
        for seed in parser.seeds():  # whatever is imported late is imported before the guard
            target(seed)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
        sys.addaudithook(target.guard)
        atheris.Fuzz()


def _prepared(name: str, out: Path, seeds: list[bytes], words: list[bytes]) -> tuple[str, Path]:
    """Write the seeds and the dictionary of a parser."""
    corpus = out / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(seed)
    escaped = ("".join(rf"\x{byte:02x}" for byte in word) for word in words)
    path = out / f"{name}.dict"
    path.write_text("".join(f'"{word}"\n' for word in escaped))
    return str(corpus), path


# 2. Turns -------------------------------------------------------------------------------------


def turn(name: str, out: Path, seconds: int) -> tuple[int, dict[str, int]]:
    """Run one turn in a process; return its exit status and how its executions ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--one", name, "--out", str(out), "--turn", str(seconds)]
    with (out / f"{name}.log").open("ab") as log:
        done = subprocess.run(  # noqa: S603 - this script
            command, stdout=log, stderr=log, env=environment, cwd=out, check=False
        )
    tally = out / f"{name}.tally"
    told = tally.read_text() if tally.exists() else ""
    return done.returncode, json.loads(told or "{}")


def turns(names: list[str], out: Path, seconds: float, longest: int) -> dict[str, Any]:
    """Let parsers take turns until the time is over; return what they did."""
    summary: dict[str, Any] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in names:
            left = int(min(longest, max(10, seconds / len(names)), max(10, end - time.monotonic())))
            status, outcomes = turn(name, out, left)
            row = summary.setdefault(name, {"turns": 0, "executions": 0, "deaths": 0, "ends": {}})
            row["turns"] += 1
            row["executions"] += sum(outcomes.values())
            row["deaths"] += status != 0
            row["ends"] = dict(Counter(row["ends"]) + Counter(outcomes))
            (out / "summary.json").write_text(json.dumps(summary, indent=1))
            if time.monotonic() >= end:
                break
    return summary


def main() -> int:
    """Fuzz by turns; return how many places were found."""
    line = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    line.add_argument("--minutes", type=float, default=10)
    line.add_argument("--parser", action="append", default=[])
    line.add_argument("--out", type=Path, default=Path("out/fuzz"))
    line.add_argument("--turn", type=int, default=120)
    line.add_argument("--one", help=argparse.SUPPRESS)
    asked = line.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if asked.one:
        fuzz(asked.one, out, asked.turn)
        return 0
    from tests.fuzzing.parsers import PARSERS

    names = asked.parser or [*PARSERS, AGREEMENT]
    summary = turns(names, out, 60 * asked.minutes, asked.turn)
    found = (out / "findings.jsonl").read_text().splitlines()
    died = sorted(path.name for path in out.glob("died-*"))
    executions = {name: row["executions"] for name, row in summary.items()}
    print(json.dumps({"executions": executions, "findings": len(found), "died": died}, indent=1))
    return min(len(found) + len(died), 100)


if __name__ == "__main__":
    sys.exit(main())
