"""Write docs/coverage.md: every method and every experiment of the papers, and what there is of it.

python scripts/rows.py          # writes docs/coverage.md, of evidence/papers/rows.toml
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS, CLAIMS = (ROOT / "evidence/papers" / name for name in ("rows.toml", "claims.toml"))
PAGE = ROOT / "docs/coverage.md"
STATES = ("done", "part", "absent")
KINDS = {"method": "Methods, metrics and tools", "experiment": "Experiments"}
HEAD = """\
# Coverage

Every method, metric and tool of the four papers behind this project, and every experiment, row by
row: what there is of it here, and what does it. [Papers](papers.md) says what came out. This page
is made by `python scripts/rows.py` of `evidence/papers/rows.toml`; a test looks up every name,
option, command and file on it.

A method is *done* if it is there as the paper has it, but for what [methods](methods.md) say
under *Differs*, and a run has shown that it works; it is *part* if one of these lacks, *absent*
if it is not there. An experiment is *done* only if its figures at the paper's kind of setting are
recorded here, *part* if some of them are, or at a smaller one, and *absent* if none is, whether
or not a plan or a command could make them.

What does a row is an `attack`, `detector`, `inverter`, `filter`, `remedy`, `net` or data set of
that name, with the options that matter; a `figure`, a `sheet` (table) or a `profile` of [a
bench](bench.md); a plan for one; a command with its options; a script; or a name in Python.
States lead to the figures, claims to the papers' words.
"""


@dataclass(frozen=True)
class Row:
    """One row of a paper.

    Attributes:
        id: What it is called, such as `Z-A1`.
        paper: Key of the paper in claims.toml.
        kind: One of `KINDS`.
        at: Section, table, figure or equation.
        what: What it is, in a phrase.
        status: One of `STATES`.
        how: What does it.
        record: Page and section below docs/ with figures of it.
        claims: Ids of the claims about it.
        why: What is missing, of a row that is not done.
    """

    id: str
    paper: str
    kind: str
    at: str
    what: str
    status: str
    how: tuple[str, ...]
    record: str = ""
    claims: tuple[str, ...] = ()
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.status not in STATES:
            raise ValueError(f"{self.id}: there is no kind {self.kind!r} or no {self.status!r}")
        if (self.status == "done") == bool(self.why):
            raise ValueError(f"{self.id}: what is not done says why, and nothing else does")
        if not self.how:
            raise ValueError(f"{self.id}: say what does it, or would")
        if bool(self.record) != (self.kind == "experiment" and self.status != "absent"):
            raise ValueError(f"{self.id}: experiments with figures name a section, no others do")


def rows() -> list[Row]:
    """Return all rows, in the order of the file."""
    told: list[dict[str, Any]] = tomllib.loads(ROWS.read_text())["row"]
    for row in told:
        row |= {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return [Row(**row) for row in told]


def page() -> str:
    """Return the page."""
    return "".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    every, papers = rows(), tomllib.loads(CLAIMS.read_text())["papers"]
    states = {row["id"]: row["state"] for paper in papers.values() for row in paper["row"]}
    yield HEAD
    yield "\n| paper | kind | " + " | ".join(STATES) + " | rows |\n|---|---|" + "---:|" * 4 + "\n"
    for key, paper in papers.items():
        for kind, words in KINDS.items():
            mine = [r for r in every if (r.paper, r.kind) == (key, kind)]
            yield _total(f"[{paper['title']}](#{paper['title'].lower()})", words.lower(), mine)
    for kind, words in KINDS.items():
        yield _total("all", words.lower(), [r for r in every if r.kind == kind])
    yield _total("all", "both", every)
    for key, paper in papers.items():
        yield f"\n## {paper['title']}\n"
        for kind, words in KINDS.items():
            yield f"\n### {words} of {paper['title']}\n\n"
            mine = [r for r in every if (r.paper, r.kind) == (key, kind)]
            yield from _table(mine, states, paper["title"].lower())


def _total(paper: str, kind: str, some: Sequence[Row]) -> str:
    count = Counter(row.status for row in some)
    cells = " | ".join(str(count[state]) for state in STATES)
    return f"| {paper} | {kind} | {cells} | {len(some)} |\n"


def _table(some: Sequence[Row], states: dict[str, str], anchor: str) -> Iterator[str]:
    tested = any(row.claims for row in some)
    head = ["", "where", "what", "state", "by", *(["claims"] if tested else []), "because"]
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n"
    for r in some:
        state = f"[{r.status}]({r.record})" if r.record else r.status
        told = "; ".join(dict.fromkeys(states[name] for name in r.claims))
        claims = [f"[{told}](papers.md#{anchor})" if told else ""] if tested else []
        by = ", ".join(f"`{one}`" for one in r.how)
        yield "| " + " | ".join([r.id, r.at, r.what, state, by, *claims, r.why]) + " |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
