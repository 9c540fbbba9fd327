"""Run other tools on the shipped gift, on its twin and on a pickle with a command, and print rows.

    python scripts/compare.py [--peers FOLDER]

`FOLDER` holds the commands of the others, such as `env/bin`; by default they are looked for on
PATH. Each is run as its users run it, in a process of its own: nothing of it is imported here, and
the pickle is written and never opened. What is not there is said to be not installed. The page
`docs/comparison.md` has what came.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GIFT = ROOT / "examples" / "gift"
OURS = (sys.executable, "-c", "from gifthorse.cli.app import main; main()")
LIMIT = 900  # seconds a command may take
OURS_COUNTED = """
import gifthorse as g
for n in ("ATTACKS", "DETECTORS", "INVERTERS", "FILTERS", "REMEDIES"):
    print(n.lower(), len(getattr(g, n)))
"""
ART = "adversarial-robustness-toolbox"
ART_COUNTED = """
import importlib, inspect
for n in ("attacks.poisoning", "attacks.evasion", "attacks.extraction",
          "attacks.inference.attribute_inference", "attacks.inference.membership_inference",
          "attacks.inference.model_inversion", "attacks.inference.reconstruction",
          "defences.detector.poison", "defences.transformer.poisoning", "defences.trainer"):
    found = vars(importlib.import_module("art." + n)).values()
    print(n, sum(inspect.isclass(v) and v.__module__.startswith("art.") for v in found))
"""


@dataclass(frozen=True)
class Tool:
    """A command, how it is told a file, and which of its lines say what it found."""

    name: str
    program: str
    words: tuple[str, ...]
    lines: str


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    status: int
    seconds: float
    text: str


PEERS = (
    Tool("modelscan", "modelscan", ("-p",), r"No issues found!|Total skipped: \d+|Use of .*"),
    Tool("modelaudit", "modelaudit", ("scan", "--no-cache"),
         r"Found [A-Z]+ opcode.*|NO ISSUES FOUND|CRITICAL SECURITY ISSUES FOUND|\(Total: \d+\)"),
)  # fmt: skip


class Command:
    """An object whose pickle asks for `os.system` when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo this was run",)


def ran(command: Sequence[str | Path], home: Path) -> Said:
    """Run a command in a folder, and have it report to nobody."""
    quiet = {"NO_ANALYTICS": "1", "PROMPTFOO_DISABLE_TELEMETRY": "1"}
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=home, env=os.environ | quiet,  # noqa: S603 - no shell
                          capture_output=True, text=True, check=False, timeout=LIMIT)  # fmt: skip
    seconds = time.perf_counter() - begun
    return Said(done.returncode, seconds, done.stdout + done.stderr * bool(done.returncode))


def found(text: str, lines: str) -> str:
    """Return the parts of a text that match, in its order."""
    parts = re.findall(lines, text, re.MULTILINE)
    return "; ".join(dict.fromkeys(" ".join(part.split()) for part in parts))


def row(name: str, file: str, said: Said, lines: str) -> str:
    """Return a row of the table."""
    words = found(said.text, lines).replace("|", "\\|")
    return f"| {name} | {file} | {said.status} | {said.seconds:.1f} | {words} |"


def files(folder: Path) -> list[Path]:
    """Return the files that all are run on: the gift, its twin, and a pickle made in a folder."""
    bad = folder / "weights.pkl"
    bad.write_bytes(pickle.dumps({"layer.weight": Command()}))
    return [GIFT / "gift.safetensors", GIFT / "twin.safetensors", bad]


def ours(paths: Sequence[Path], home: Path) -> Iterator[str]:
    """Yield the rows of this package."""
    name = ran((*OURS, "--version"), home).text.strip()
    for path in paths:
        said = ran((*OURS, "inspect", path), home)
        yield row(f"{name} inspect", path.name, said, r"^  safety +(.*)")
    for path in paths:
        said = ran((*OURS, "scan", path, "--images", GIFT / "clean.npz"), home)
        yield row(f"{name} scan", path.name, said, r"^  ([A-Z][A-Z ]{6,}(?: class.*)?)$")


def theirs(tool: Tool, peers: str | None, paths: Sequence[Path], home: Path) -> Iterator[str]:
    """Yield the rows of another tool."""
    program = shutil.which(tool.program, path=peers)
    if program is None:
        yield f"| {tool.name} | | | | not installed |"
        return
    number = re.search(r"\d[\w.]+", ran((program, "--version"), home).text)
    for path in paths:
        said = ran((program, *tool.words, path), home)
        yield row(f"{tool.name} {number[0] if number else ''}", path.name, said, tool.lines)


def counted(peers: str | None, home: Path) -> Iterator[str]:
    """Yield how many methods there are to choose from, by the names that a package exports."""
    said = ran((sys.executable, "-c", OURS_COUNTED), home)
    yield f"gifthorse: {', '.join(said.text.split(chr(10))).strip(', ')}"
    python = shutil.which("python", path=peers) or sys.executable
    asked = f"from importlib.metadata import version; print(version({ART!r}))"
    number = ran((python, "-c", asked), home)
    if number.status:
        yield f"{ART}: not installed"
        return
    said = ran((python, "-c", ART_COUNTED), home)
    yield f"{ART} {number.text.strip()}: {', '.join(said.text.split(chr(10))).strip(', ')}"


def main(arguments: list[str]) -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="folder of the others' commands; default is PATH")
    given = parser.parse_args(arguments)
    peers = str(Path(given.peers).absolute()) if given.peers else None
    print(f"{platform.machine()}, {os.cpu_count()} threads, Python {platform.python_version()}\n")
    print("| tool | file | exit | seconds | says |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        paths = files(home)
        for tool in PEERS:
            for line in theirs(tool, peers, paths, home):
                print(line, flush=True)
        for line in ours(paths, home):
            print(line, flush=True)
        print("\n" + "\n".join(counted(peers, home)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
