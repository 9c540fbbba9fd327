"""Run the situations of tests/cases as a user would, and print them as tables of Markdown.

    python scripts/cases.py [WORD ...]            # those whose name holds a word; all by default
    python scripts/cases.py --keep cases.jsonl --jobs 2 --out docs/robustness.md

One row a case: what was fed, what is right, what came, seconds and peak memory of a process. With
`--keep` outcomes are kept as they come, and those that are kept already are not played again; with
`--kept` no other is.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cases.case import ROOT, Case, play
from tests.cases.test_cases import CASES

HEADER = "| case | fed | right | got | s | MB |\n|---|---|---|---|---|---|"
KINDS = {
    "Situations that users of neighboring tools met": ("faults",),
    "Hostile files, faults of the world, and what else strangers bring": ("",),
}
PAGE = """\
# Strangers' files, nets, images and machines

Every row is a command as a user would give it, in a process of its own, with the input built anew:
what was fed, what is right, the exit status that came, seconds, and the peak memory of any process.
A fault would stand in bold. `python scripts/cases.py` runs them; `pytest -m slow tests/cases` fails
if one is not right. Exit statuses: 0 nothing found, 1 a finding, 2 not examined, 3 no verdict, 4 a
wrong call; 128 and the number of the signal for one that was ended by it.

"""


def row(case: Case, kept: Mapping[str, Any]) -> str:
    """One line of the table; a fault is in bold."""
    got = f"exit {kept['status']}" + "".join(f"; **{fault}**" for fault in kept["wrong"])
    cells = (case.name, case.fed, case.right, got, f"{kept['seconds']:.0f}", f"{kept['memory']}")
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def played(cases: list[Case], keep: Path | None, jobs: int) -> Iterator[tuple[Case, Any]]:
    """Play cases, several at once, and yield each with its outcome."""
    lines = keep.read_text().splitlines() if keep is not None and keep.exists() else []
    known, at = {kept["name"]: kept for kept in map(json.loads, lines)}, commit()
    with ThreadPoolExecutor(jobs) as pool:
        ask = [case for case in cases if case.name not in known]
        for case, outcome in zip(ask, pool.map(play, ask), strict=True):
            kept = {"name": case.name, "commit": at, **asdict(outcome), "text": ""}
            if keep is not None:
                with keep.open("a") as file:
                    file.write(json.dumps(kept) + "\n")
            yield case, kept
    yield from ((case, known[case.name]) for case in cases if case.name in known)


def commit() -> str:
    """Return the commit that is played on."""
    ask = ["/usr/bin/env", "git", "rev-parse", "--short", "HEAD"]
    return subprocess.check_output(ask, cwd=ROOT, text=True).strip()  # noqa: S603 - our words


def page(found: Mapping[str, tuple[Case, Any]]) -> str:
    """Return all rows under their headings, with the machine and the commits."""
    played_on = ", ".join(sorted({kept["commit"] for _, kept in found.values()}))
    wrong = sum(bool(kept["wrong"]) for _, kept in found.values())
    parts = [
        f"{len(found)} cases, {wrong} of them not right, on {platform.machine()} with "
        f"{os.cpu_count()} hardware threads, torch {version('torch')}, commit {played_on}.\n"
    ]
    rest = dict(found)
    for title, words in KINDS.items():
        names = [name for name in rest if name.startswith(words)]
        rows = [row(*rest.pop(name)) for name in names]
        parts.append("\n".join([f"\n## {title}\n", HEADER, *rows, ""]))
    return PAGE + "".join(parts) + fuzzed()


def fuzzed() -> str:
    """Return what fuzzing ran, found and left as samples, of what is kept of its runs."""
    told = json.loads((ROOT / "evidence/fuzzing.json").read_text())
    counts = told["executions"]
    rows = (f"| {name} | {count:,} |" for name, count in counts.items())
    found = (f"| {f['was']} | {f['now']} | `{f['sample']}` |" for f in told["findings"])
    return "\n".join([
        "\n## Fuzzing\n",
        "`make fuzz` mutates files by libFuzzer, a parser after the other.",
        f"So far {told['minutes']} minutes,",
        f"{sum(counts.values()):,} executions at commits {', '.join(told['commits'])}. `agreement`",
        "compares our reader with those of torch and safetensors on the same bytes.\n",
        "| parser | executions |\n|---|---|", *rows,
        "\n| found | now | sample in tests/corpus |\n|---|---|---|", *found, "",
    ])  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the rows as they come; return 1 if a case is not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kept", action="store_true")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had them ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    words = given.words or [""]
    cases = [case for case in CASES if any(word in case.name for word in words)]
    if given.kept and given.keep is not None:
        known = {json.loads(line)["name"] for line in given.keep.read_text().splitlines()}
        cases = [case for case in cases if case.name in known]
    print(HEADER)
    found: dict[str, tuple[Case, Any]] = {}
    for case, kept in played(cases, given.keep, given.jobs):
        found[case.name] = (case, kept)
        print(row(case, kept), flush=True)
    if given.out is not None:
        order = {case.name: found[case.name] for case in cases}
        given.out.write_text(page(order))
    return int(any(kept["wrong"] for _, kept in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
