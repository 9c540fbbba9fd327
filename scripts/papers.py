"""Write docs/papers.md: each table and figure of the papers, its claim, and whether it holds here.

python scripts/papers.py          # writes docs/papers.md, of evidence/papers/claims.toml
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLAIMS, PAGE = ROOT / "evidence/papers/claims.toml", ROOT / "docs/papers.md"
STATES = ("holds", "in part", "does not", "not tested")
HEAD = """\
# Papers

Each table and figure of the four papers behind this project: what it claims in a sentence, the
paper's figures and ours, and whether it holds here. This page is made by `python
scripts/papers.py`; a test looks up every figure of ours in the section that its row links to,
where the command is that printed it, with net, data, seeds, cost, machine and commit.
[Coverage](coverage.md) goes through the papers row by row, methods as well as experiments. Most
runs here are of small nets and one seed, since they were made on two threads: what does not hold on
them may hold on the paper's. Not to be had here are CIFAR-100, SVHN, LISA, VGGFace2, ISIC and
NIST's TrojAI models.
"""


@dataclass(frozen=True)
class Claim:
    """One claim of a paper.

    Attributes:
        id: What rows.toml calls it.
        item: Its table or figure.
        claim: What it says, in a sentence.
        state: One of `STATES`.
        theirs: The paper's figures.
        ours: Ours.
        at: Page and section that have ours, below docs/.
        why: What speaks for the state, if it is not that the claim holds.
    """

    id: str
    item: str
    claim: str
    state: str
    theirs: str = ""
    ours: str = ""
    at: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"{self.item}: {self.state!r} is none of {', '.join(STATES)}")
        if self.state != "holds" and not self.why:
            raise ValueError(f"{self.item}: say why it is {self.state!r}")
        if (self.state == "not tested") == bool(self.at):
            raise ValueError(f"{self.item}: what was tested names a section, and nothing else does")


@dataclass(frozen=True)
class Paper:
    """A paper and its claims."""

    title: str
    about: str
    claims: tuple[Claim, ...]


def papers() -> list[Paper]:
    """Return all papers with their claims."""
    return list(by_key().values())


def by_key() -> dict[str, Paper]:
    """Return all papers with their claims, by what rows.toml calls them."""
    told = tomllib.loads(CLAIMS.read_text())["papers"]
    return {
        key: Paper(one["title"], one["about"], tuple(Claim(**row) for row in one["row"]))
        for key, one in told.items()
    }


def slug(heading: str) -> str:
    """Return the anchor of a heading.

    Example:
        >>> slug("TrojanZoo's Table 8")
        'trojanzoos-table-8'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def section(at: str) -> str:
    """Return the text of a section, with those below it.

    Args:
        at: `page.md#anchor`.

    Raises:
        KeyError: If the page has no such section.
    """
    name, _, anchor = at.partition("#")
    text = (ROOT / "docs" / name).read_text()
    parts = re.split(r"(?m)^(?=##+ )", text)
    for n, part in enumerate(parts):
        level, _, heading = part.partition("\n")[0].partition(" ")
        if level and slug(heading) == anchor:
            below = [p for p in parts[n + 1 :]]
            end = next((i for i, p in enumerate(below) if p.index(" ") <= len(level)), len(below))
            return part + "".join(below[:end])
    raise KeyError(f"{name} has no section {anchor}")


def page() -> str:
    """Return the page."""
    return "".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    every = papers()
    yield "\n| paper | " + " | ".join(STATES) + " | claims |\n|---|" + "---:|" * 5 + "\n"
    for paper in every:
        count = Counter(c.state for c in paper.claims)
        cells = " | ".join(str(count[state]) for state in STATES)
        yield f"| [{paper.title}](#{slug(paper.title)}) | {cells} | {len(paper.claims)} |\n"
    for paper in every:
        yield f"\n## {paper.title}\n\n{paper.about}\n\n"
        yield "| | claim | paper | here | holds | because |\n|---|---|---|---|---|---|\n"
        for c in paper.claims:
            here = f"[{c.ours or 'tables'}]({c.at})" if c.at else ""
            state = f"**{c.state}**" if c.state == "does not" else c.state
            yield f"| {c.item} | {c.claim} | {c.theirs} | {here} | {state} | {c.why} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
