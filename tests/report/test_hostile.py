from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.report.examples import backdoored, inconclusive, nothing_found
from tests.report.test_html import Page

from gifthorse.core.types import Report
from gifthorse.report import WRITERS

HOSTILE = [
    "<script>alert(1)</script>",
    "[red]x[/red]",
    "a\x1b[31mred\x1b]8;;http://x\x07",
    "nul\x00\x9b2J",
    "\u202egnp.exe\u2066",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 191 }}{% raw %}",
    "lone \udcff surrogate",
    "line\r\nbreak\u2028",
    "</style><style>*{display:none}",
]
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def poisoned(name: str) -> Report:
    """A report with the same hostile text wherever the file, its names or its images may put it."""
    report = backdoored()
    assert report.preparation
    finding = replace(report.verdicts[1].findings[0], message=name, rule=name)
    verdict = replace(report.verdicts[1], method=name, findings=(finding,), settings={name: name})
    return replace(
        report,
        reason=name,
        origin=replace(report.origin, path=name, notes=(name,), metadata={name: name}, how=name),
        preparation=replace(
            report.preparation, class_names=(name,) * 43, source=name, notes=(name,)
        ),
        verdicts=(verdict,),
        checks=(finding,),
        not_covered=(name,),
        next_steps=(name,),
        run=replace(report.run, command=name, device=name),
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_acts_on_a_terminal(name: str) -> None:
    text = WRITERS["text"](poisoned(name))
    assert not ACTING.search(text)
    text.encode("utf-8")
    assert max(map(len, text.splitlines())) <= 80


def test_markup_of_the_terminal_library_is_shown_as_it_is() -> None:
    assert 'class 14 "[red]x[/red]"' in WRITERS["text"](poisoned("[red]x[/red]"))


@pytest.mark.parametrize("name", HOSTILE)
def test_json_carries_it_as_data(name: str) -> None:
    text = WRITERS["json"](poisoned(name))
    assert text.isascii()
    assert not ACTING.search(text)
    drawn = json.loads(text)
    expected = name.replace("\udcff", "?")
    assert drawn["target"]["path"] == expected
    assert drawn["target"]["metadata"] == {expected: expected}


@pytest.mark.parametrize("name", HOSTILE)
def test_html_keeps_its_structure(name: str) -> None:
    text = WRITERS["html"](poisoned(name))
    assert not ACTING.search(text)
    page, harmless = Page(text), Page(WRITERS["html"](poisoned("harmless")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert not page.all("script")
    assert not [tag for tag, attrs in page.tags if "onerror" in attrs]
    assert "1337" not in re.sub(r"data:image\S+", "", text)


def test_long_claims_are_cut() -> None:
    report = backdoored()
    claims = {f"key {n}": "y" * 100_000 for n in range(500)}
    long = replace(report, origin=replace(report.origin, metadata=claims))
    for write in WRITERS.values():
        assert len(write(long)) < 600_000
    assert "y" * 201 not in WRITERS["text"](long)


@pytest.mark.parametrize("example", [backdoored, nothing_found, inconclusive])
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_no_report_promises_safety(example: Callable[[], Report], name: str) -> None:
    text = WRITERS[name](example())
    assert not re.search(r"\bsafe\b|\bclean (model|file)\b", text, re.IGNORECASE)
