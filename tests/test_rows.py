"""The page of coverage: all rows of the papers, and of each that what is said to do it is there."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections import Counter
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from scripts import papers, rows

from gifthorse.bench.plan import PROFILES
from gifthorse.bench.tasks import FAMILIES
from gifthorse.cli.commands import app
from gifthorse.core.errors import GifthorseError
from gifthorse.core.options import describe, vary
from gifthorse.data.packed import PACKED
from gifthorse.inversion import INVERTERS
from gifthorse.models.zoo import NETS

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "src/gifthorse/bench"
ROWS = rows.rows()
METHODS: dict[str, Mapping[str, Any]] = {"inverter": INVERTERS}
METHODS |= {str(kind): methods for kind, methods in FAMILIES.items()}
NAMES: dict[str, Container[str]] = {
    "net": NETS,
    "data": PACKED,
    "profile": PROFILES,
    "figure": tomllib.loads((BENCH / "figures.toml").read_text()),
    "sheet": [t["name"] for t in tomllib.loads((BENCH / "layouts.toml").read_text())["layout"]],
}
# Methods, metrics and tools, and experiments, as an audit counted them in the papers.
COUNTED = {"zoo": (55, 28), "pixel": (19, 22), "usb": (9, 9), "imc": (13, 8)}
OF = {"zoo": "TrojanZoo", "pixel": "PixelBackdoor", "usb": "USB", "imc": "IMC"}


def check(one: str) -> None:
    """Fail if there is nothing of this name, or if it has no such option."""
    kind, *words = one.split()
    if kind == "gifthorse":
        check_command(words)
    elif kind in METHODS:
        method = METHODS[kind][words[0]]
        options = dict(word.partition("=")[::2] for word in words[1:])
        vary(method, {name: value for name, value in options.items() if value})
        assert {n for n, v in options.items() if not v} <= known(method), one
    elif kind in NAMES:
        assert words[0] in NAMES[kind], one
        assert len(words) == 1, one
    elif "/" in kind:
        assert (ROOT / kind).is_file(), one
    else:
        named(one)


def known(method: Any) -> set[str]:
    """Options of a method, and the parts that they lie in."""
    every = describe(method)
    return {name[:at] for name in every for at in (*_dots(name), len(name))}


def _dots(name: str) -> list[int]:
    return [at for at, sign in enumerate(name) if sign == "."]


@cache
def program() -> Any:
    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    command = program()
    while words and not words[0].startswith("-"):
        command, words = command.commands[words[0]], words[1:]
    assert set(words) <= {flag for p in command.params for flag in p.opts}, command.name


def named(name: str) -> object:
    """What a dotted name of Python stands for."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_what_does_a_row_is_there(row: rows.Row) -> None:
    for one in row.how:
        check(one)
    for plan in re.findall(r"plans/\w+\.toml", row.why):
        assert plan in row.how
    assert not row.record or papers.section(row.record)


@pytest.mark.parametrize(
    "wrong",
    [
        "attack badnit",
        "attack badnet stamp.sizes",
        "attack badnet stamp.form=round",
        "net resnet19",
        "sheet prices",
        "plans/usb_table9.toml",
        "gifthorse analyse",
        "gifthorse analyze --agianst",
        "gifthorse.analysis.landscapes",
    ],
)
def test_what_is_not_there_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, LookupError, AttributeError, GifthorseError)):
        check(wrong)


def test_the_rows_are_those_of_the_papers() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    count = Counter((row.paper, row.kind) for row in ROWS)
    kinds = ("method", "experiment")
    assert {p: tuple(count[p, kind] for kind in kinds) for p in COUNTED} == COUNTED
    assert sum(count.values()) == 163


def test_rows_and_claims_name_each_other() -> None:
    claims = {c.id: (key, c) for key, paper in papers.by_key().items() for c in paper.claims}
    assert len(claims) == sum(len(paper.claims) for paper in papers.papers())
    assert {name for row in ROWS for name in row.claims} == set(claims)
    for row in ROWS:
        for name in row.claims:
            assert claims[name][0] == row.paper, row.id


def test_every_plan_of_a_paper_is_in_a_row_and_is_about_what_it_is_called() -> None:
    plans = {path for path in (ROOT / "plans").glob("*.toml") if path.stem.partition("_")[0] in OF}
    in_rows = {one for row in ROWS for one in row.how if one.startswith("plans/")}
    assert {f"plans/{path.name}" for path in plans} <= in_rows
    for path in plans:
        paper, _, rest = path.stem.partition("_")
        about = tomllib.loads(path.read_text())["about"]
        assert about.startswith(OF[paper]), path
        if found := re.match(r"(table|figure)(\d+)", rest):
            word = {"table": "Tables?", "figure": r"Figs?\."}[found[1]]
            assert re.match(rf"{OF[paper]} {word} {found[2]}\b(?! to)", about), path


def test_the_page_is_what_the_script_prints() -> None:
    assert (ROOT / "docs/coverage.md").read_text() == rows.page(), "run python scripts/rows.py"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"status": "finished"}, "no 'finished'"),
        ({"kind": "figure"}, "no kind 'figure'"),
        ({"why": "it is not"}, "says why"),
        ({"status": "part"}, "says why"),
        ({"how": ()}, "what does it"),
        ({"record": "reproductions.md#table-6"}, "name a section"),
        ({"kind": "experiment"}, "name a section"),
    ],
)
def test_a_row_that_says_too_much_or_too_little_is_refused(
    changed: dict[str, Any], words: str
) -> None:
    good: dict[str, Any] = {
        "id": "Z-1",
        "paper": "zoo",
        "kind": "method",
        "at": "Eq. 1",
        "what": "a sum",
    }
    good |= {"status": "done", "how": ("attack badnet",)}
    rows.Row(**good)
    with pytest.raises(ValueError, match=words):
        rows.Row(**good | changed)
