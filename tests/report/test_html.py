from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled

from gifthorse.core.types import Finding, Goal, Report
from gifthorse.report import WRITERS

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects start tags, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("example", [backdoored, nothing_found, inconclusive])
def test_the_page_is_closed_in_itself(example: Callable[[], Report]) -> None:
    text = WRITERS["html"](example())
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    assert all((img["src"] or "").startswith("data:image/png;base64,") for img in page.all("img"))
    assert all(img["alt"] for img in page.all("img"))
    assert not [tag for tag, attrs in page.tags if "style" in attrs or "onclick" in attrs]
    assert not re.search(r"https?://", text)
    assert page.all("html")[0]["lang"] == "en"


def test_the_policy_allows_the_one_style_sheet_and_nothing_else() -> None:
    text = WRITERS["html"](backdoored())
    match = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert match
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    policy = next(m for m in Page(text).all("meta") if m.get("http-equiv"))["content"]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def test_the_sections_come_in_order() -> None:
    text = WRITERS["html"](backdoored())
    order = ["<h1>BACKDOORED</h1>", "What was scanned", "Is the model fed", "The trigger<"]
    order += ["Classes compared", "Confirmation", "Coverage and limits", "What to do next"]
    order += ["How to repeat this", "The whole result as JSON"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_bars_are_as_high_as_sizes_are_large() -> None:
    page = Page(WRITERS["html"](backdoored()))
    sizes = {arm.goal.target: arm.size for arm in backdoored().verdicts[1].arms if arm.feasible}
    bars = [rect for rect in page.all("rect") if rect["data-class"]]
    assert [int(bar["data-class"] or -1) for bar in bars] == list(range(43))
    heights = {int(b["data-class"] or -1): float(b["height"] or 0) for b in bars}
    scale = heights[14] / sizes[14]
    for number, size in sizes.items():
        assert heights[number] == pytest.approx(scale * size, abs=2e-3)
    assert [b["data-class"] for b in bars if "outlier" in (b["class"] or "")] == ["14"]
    assert [b["data-class"] for b in bars if "infeasible" in (b["class"] or "")] == ["31"]


def test_stamped_examples_show_predictions_before_and_after() -> None:
    text = WRITERS["html"](backdoored())
    assert text.count('<span class="said moved">14 stop</span>') == 7
    assert '<span class="said">2 limit 50</span>' in text
    assert len(Page(text).all("img")) == 3 + 3 * 8


def test_claims_of_the_file_are_marked_as_such() -> None:
    text = WRITERS["html"](backdoored())
    start = text.index("What the file says about itself")
    assert "claims, not facts. What was checked" in text[start : start + 300]
    assert "“gifthorse attack badnet”" in text[start : start + 900]


def test_what_a_detector_took_stands_beside_its_time_and_settings() -> None:
    text = WRITERS["html"](backdoored())
    assert "4 min 41 s, 41,234 image-steps" in text
    assert '<th scope="row">image-steps</th><td class="num">41,234</td>' in text
    assert text.count("image-steps</th>") == 1  # the other detector counted none


def test_reports_that_broke_off_are_drawn_too() -> None:
    bare = replace(nothing_found(), label="NOT SCANNED", preparation=None, verdicts=())
    text = WRITERS["html"](bare)
    assert "This file was not examined." in text
    assert "nan" not in re.sub(r"data:image\S+", "", WRITERS["html"](spoiled(backdoored())))


def test_many_classes_and_findings_are_drawn() -> None:
    report = backdoored()
    base = report.verdicts[1]
    arms = tuple(replace(base.arms[k % 43], goal=Goal(k)) for k in range(200))
    findings = tuple(Finding("BD001", "HIGH", 1.0, f"Number {k}.", Goal(k)) for k in range(25))
    many = replace(report, verdicts=(replace(base, arms=arms, findings=findings),))
    text = WRITERS["html"](many)
    assert len([r for r in Page(text).all("rect") if r.get("data-class")]) == 200
    assert "5 further findings" in text
