"""A repair as text and as a page, and the trigger that a scan hands on to one."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from pydantic import TypeAdapter
from tests.report.examples import backdoored
from tests.report.test_hostile import ACTING, HOSTILE
from tests.report.test_html import Page

from gifthorse.core.stats import wilson
from gifthorse.core.types import Confirmation, Goal, Rate
from gifthorse.report import WRITERS
from gifthorse.report.json import encoded
from gifthorse.report.repairs import WRITERS as REPAIRS
from gifthorse.report.repairs import RepairRecord

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


def rate(hits: int, trials: int = 42) -> Rate:
    return Rate(hits / trials, *wilson(hits, trials), trials)


def seen(hits: int) -> dict[str, Any]:
    return asdict(Confirmation(rate(hits), rate(3, 336), rate(0)))


def trial(whose: str, before: int, after: int) -> dict[str, Any]:
    goal = asdict(Goal(2))
    return {"whose": whose, "goal": goal, "before": seen(before), "after": seen(after)}


def record(name: str = "stop", **changes: object) -> RepairRecord:
    """A repair, with the same text wherever the file or its names may put one."""
    said: dict[str, Any] = {
        "repaired": {"path": name, "sha256": "5cb0" + "0" * 60, "arch": "tiny"},
        "method": "unlearning_quick",
        "options": {"share": name},
        "seed": 0,
        "command": name,
        "scan": {"path": name, "label": "BACKDOORED"},
        "images": {"used": 43, "judged": 42, "source": name},
        "class_names": [name] * 5,
        "mirroring": {
            "plain": asdict(rate(41)), "mirrored": asdict(rate(20)), "points": 0.05,
            "harmless": False,
        },
        "unchanged": False,
        "reforms": False,
        "accuracy": {
            "before": asdict(rate(41)), "after": asdict(rate(40)),
            "drop": asdict(Rate(1 / 42, -0.05, 0.08, 42)),
        },
        "triggers": [trial("true", 41, 0), trial("recovered", 38, 1)],
        "distances": {
            "mean": {"before": 7.0, "after": 66.5}, "failures": {"before": 0, "after": 3},
            "increase": 8.5,
            "pairs": [{"source": 0, "target": 2, "before": 7.0, "after": 66.5}],
        },
        "seconds": 91.0,
        "versions": {"gifthorse": "0.1.0"},
    }  # fmt: skip
    return TypeAdapter(RepairRecord).validate_python(said | changes)


def exhibit() -> dict[str, torch.Tensor | float]:
    """Ten stamped images that went to class 2 before and stay what they are after."""
    x, labels = torch.rand(10, 3, 8, 8), torch.arange(10) % 2
    mask = torch.zeros(1, 8, 8)
    mask[:, 6:, 6:] = 1
    return {
        "pattern": mask.expand(3, -1, -1), "mask": mask, "before": x,
        "after": torch.maximum(x, mask), "before_label": labels,
        "after_label": torch.full((10,), 2), "healed_before_label": labels,
        "healed_after_label": labels, "size": 4.0,
    }  # fmt: skip


def drawn(name: str) -> str:
    return REPAIRS["html"](record(name), [exhibit(), exhibit()])


def squeezed(text: str) -> str:
    return " ".join(text.split())


# 1. What is said ----------------------------------------------------------------------------------


def test_the_text_has_every_figure_before_and_after() -> None:
    text = REPAIRS["text"](record())
    lines = [squeezed(line) for line in text.splitlines()]
    assert "clean accuracy 97.6 % [88, 100] 95.2 % [84, 99]" in lines
    assert lines.count('sent to class 2 "stop"') == 2
    assert "true trigger 97.6 % [88, 100] 0 % [0, 8]" in lines
    assert "recovered trigger 90.5 % [78, 96] 2.4 % [0, 12]" in lines
    assert "shuffled, same size 0.9 % [0, 3] 0.9 % [0, 3]" in lines
    whole = squeezed(text)
    assert "drop 2.4 % [-5, 8] of accuracy, on 42 images it did not use" in whole
    assert "left out: accuracy 47.6 % [33, 62] mirrored, 97.6 % [88, 100] as they are" in whole
    assert "7 px before, 66.5 px after, the mean of 1 pair of classes, +850% over pairs" in whole
    assert "3 without a trigger" in whole
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "REPAIRED"),
        ({"triggers": []}, "CHANGED"),
        ({"unchanged": True}, "UNCHANGED"),
        ({"triggers": [trial("true", 41, 0), trial("recovered", 38, 30)]}, "NOT REPAIRED"),
        (
            {"accuracy": asdict(record().accuracy) | {"drop": asdict(Rate(0.8, 0.7, 0.9, 42))}},
            "DAMAGED",
        ),
    ],
)
def test_a_word_says_what_came_of_it(changes: dict[str, Any], word: str) -> None:
    said = record(**changes)
    assert f"  {word}. " in REPAIRS["text"](said)
    assert f"<h1>{word}</h1>" in REPAIRS["html"](said)
    for write in REPAIRS.values():
        assert "A repair is no proof" in squeezed(write(said))


def test_where_images_are_reformed_no_new_file_is_spoken_of() -> None:
    for write in REPAIRS.values():
        assert "scan the new file" in squeezed(write(record()))
        said = squeezed(write(record(method="smoothing", reforms=True)))
        assert "as they were: smoothing reforms images before the net" in said
        assert "scan the new file" not in said


def test_what_was_not_measured_goes_unsaid() -> None:
    bare = record(scan=None, mirroring=None, distances=None, triggers=[], class_names=[])
    for write in REPAIRS.values():
        text = re.sub("<style>.*?</style>", "", write(bare), flags=re.DOTALL)
        assert not re.search("mirror|scan +/|px|trigger 9", text)


def test_a_record_is_written_as_it_is_and_reads_back() -> None:
    said = record("lone \udcff surrogate", seconds=math.inf)
    told = json.loads(encoded(said), parse_constant=pytest.fail)
    assert (told["command"], told["seconds"]) == ("lone ? surrogate", None)
    told = json.loads(encoded(record()))
    assert told["images"] == {"used": 43, "judged": 42, "source": "stop"}
    assert TypeAdapter(RepairRecord).validate_python(told) == record()


# 2. The page --------------------------------------------------------------------------------------


def test_the_page_is_closed_in_itself() -> None:
    text = drawn("stop")
    page = Page(text)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    assert all((img["src"] or "").startswith("data:image/png;base64,") for img in page.all("img"))
    assert all(img["alt"] for img in page.all("img"))
    assert not re.search(r"https?://", text)
    match = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert match
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text


def test_the_look_is_that_of_a_scan() -> None:
    sheets = [
        re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        for text in (drawn("stop"), WRITERS["html"](backdoored()))
    ]
    assert sheets[0] == sheets[1] != []


def test_stamped_images_show_what_both_models_say() -> None:
    text = drawn("stop")
    assert len(Page(text).all("img")) == 2 * (3 + 2 * 8)
    assert text.count('<span class="said moved">2 &#34;stop&#34;</span>') == 2 * 8
    assert text.count('<span class="said">0 &#34;stop&#34;</span>') == 2 * 3 * 4


def test_a_trigger_without_a_picture_has_figures_alone() -> None:
    text = REPAIRS["html"](record())
    assert not Page(text).all("img")
    assert text.count("Images sent to class 2") == 2


# 3. Hostile texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_acts(name: str) -> None:
    text = REPAIRS["text"](record(name))
    assert not ACTING.search(text)
    assert max(map(len, text.splitlines())) <= 80
    page = drawn(name)
    assert not ACTING.search(page)
    assert [t for t, _ in Page(page).tags] == [t for t, _ in Page(drawn("harmless")).tags]
    assert "1337" not in re.sub(r"data:image\S+", "", page)


# 4. What a scan hands on --------------------------------------------------------------------------


def test_a_result_carries_the_trigger_itself() -> None:
    report = backdoored()
    verdict = report.verdicts[1]
    finding = verdict.findings[0]
    kept = torch.tensor(list(b"eNrtext=="), dtype=torch.uint8)
    told = replace(finding, evidence={**finding.evidence, "packed": kept})
    texts = []
    for one in (told, finding):
        whole = replace(report, verdicts=(replace(verdict, findings=(one,)),))
        result = json.loads(WRITERS["json"](whole))
        jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(result)
        texts.append(result["findings"][0]["trigger"]["packed"])
    assert texts == ["eNrtext==", None]
