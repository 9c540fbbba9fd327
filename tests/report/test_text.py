from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled

from gifthorse.core.types import Report
from gifthorse.report import WRITERS, render

REPORTS = [backdoored, nothing_found, inconclusive]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def drawn(report: Report, width: int, **options: object) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=width, force_terminal=False, **options))  # type: ignore[arg-type]
    return out.getvalue()


def test_the_facts_of_a_backdoor_are_all_there() -> None:
    text = squeezed(WRITERS["text"](backdoored()))
    for fact in (
        "gifthorse 0.1.0 · scan · device cpu · seed 7",
        "traffic.safetensors 42.7 MB sha256 9f31…c0 safetensors, no code",
        "resnet18 (guessed from 122 tensors) · 43 classes · input 3x32x32",
        "86 from ./clean (43 classes, 2 each) · labels from folders",
        "clean accuracy 95.3 % [89, 98] with normalize=cifar10 (imagenet 88.4 %, none 41.9 %)",
        "weights NO BACKDOOR FOUND score 1.2 (suspicious from 3.5) · 3 s",
        "43 goals · 4 min 41 s, 41,234 image-steps",
        'BACKDOORED class 14 "stop" confidence 0.97 [0.91, 0.99]',
        "BD001 patch, all classes to one · severity CRITICAL",
        "9 of 1,024 pixels (0.9 %), lower right",
        "100 % of 42 unseen images [92, 100]",
        "a random trigger of the same size: 2.4 %; no trigger: 0 %",
        "size 8.6 pixels; median of the other 42: 55.2",
        "next Do not deploy this file.",
        "Not looked for: warping triggers; sample-specific triggers;",
        "5 min 12 s · exit 1",
    ):
        assert fact in text


def test_an_inconclusive_verdict_leads_with_the_reason_and_shows_what_was_tried() -> None:
    lines = [line.strip() for line in WRITERS["text"](inconclusive()).splitlines()]
    at = lines.index("INCONCLUSIVE")
    assert lines[at + 1].startswith("Clean accuracy is 11.5 %, near chance")
    table = "\n".join(lines[at:])
    assert re.search(r"imagenet\s+11.5 % \[8, 17\]\s+0.34\s+chosen\n", table)
    assert re.search(r"none\s+10.5 % \[7, 16\]\s+0.62\n", table)


def test_without_calibration_the_confidence_is_a_word() -> None:
    assert "confidence uncalibrated" in WRITERS["text"](nothing_found())


@pytest.mark.parametrize("example", REPORTS)
@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal(example: Callable[[], Report], width: int) -> None:
    long = replace(example(), reason="x" * 300)
    assert max(map(len, drawn(long, width).splitlines())) <= width


def test_plain_text_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = WRITERS["text"](backdoored())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert WRITERS["text"](backdoored()) == expected
    assert "\x1b" not in expected
    assert max(map(len, expected.splitlines())) <= 80


def test_color_comes_with_a_terminal_and_goes_with_no_color() -> None:
    out = io.StringIO()
    colored = Console(file=out, width=80, force_terminal=True, color_system="standard")
    render(backdoored(), colored)
    assert "\x1b[1;31mBACKDOORED" in out.getvalue()
    bare = io.StringIO()
    render(backdoored(), Console(file=bare, width=80, force_terminal=True, no_color=True))
    assert "31m" not in bare.getvalue()


def test_a_terminal_without_unicode_gets_what_it_can_show() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    render(backdoored(), Console(file=file, width=80, force_terminal=False))
    file.flush()
    assert b"gifthorse 0.1.0 - scan - device cpu" in raw.getvalue()


def test_output_files_are_named_on_the_last_line() -> None:
    out = io.StringIO()
    render(backdoored(), Console(file=out, width=80), outputs=["out/report.html"])
    last = out.getvalue().splitlines()[-1].strip()
    assert last == "report out/report.html · 5 min 12 s · exit 1"


def test_numbers_that_are_none_are_said_so() -> None:
    text = WRITERS["text"](spoiled(backdoored()))
    assert "score n/a" in text
    assert not re.search(r"\b(nan|inf)\b", text)
