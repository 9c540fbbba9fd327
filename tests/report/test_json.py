from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled

from gifthorse.core.types import Finding, Goal, Report
from gifthorse.report import WRITERS
from gifthorse.report.schema import schema_text

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def result(report: Report) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(WRITERS["json"](report), parse_constant=refuse)
    return loaded


def failed() -> Report:
    check = Finding("FS003", "HIGH", 0.0, "The file is empty.")
    return replace(
        nothing_found(),
        label="ERROR",
        reason="The file is empty.",
        intake=None,
        verdicts=(),
        checks=(check,),
    )


def test_the_published_schema_is_the_one_of_the_models() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), (
        "write gifthorse.report.schema.schema_text() to docs/report.schema.json"
    )


@pytest.mark.parametrize("example", [backdoored, nothing_found, inconclusive, failed])
@pytest.mark.parametrize("spoil", [False, True])
def test_results_follow_the_published_schema(example: Callable[[], Report], spoil: bool) -> None:
    schema = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    report = example()
    drawn = result(spoiled(report) if spoil and report.verdicts else report)
    jsonschema.Draft202012Validator(schema).validate(drawn)


def test_a_hand_made_trigger_is_measured_exactly() -> None:
    finding = result(backdoored())["findings"][0]
    trigger = finding["trigger"]
    assert trigger["mask_l1"] == 9
    assert trigger["mask_pixels"] == 9
    assert trigger["mask_fraction"] == 9 / 1024
    assert trigger["bbox"] == [28, 28, 31, 31]
    assert trigger["place"] == "lower right"
    assert finding["kind"] == "all_to_one"
    assert finding["target_class"] == 14
    assert finding["source_classes"] is None
    assert finding["statistic"]["size"] == pytest.approx(8.6)
    assert finding["statistic"]["others"] == 42
    assert finding["asr"]["confirm"]["value"] == 1
    assert finding["asr"]["random_baseline"]["value"] == 1 / 42
    assert finding["evidence"] == {"stability": 0.98}


def test_everything_else_is_carried_over() -> None:
    drawn = result(backdoored())
    assert drawn["schema_version"] == "1"
    assert drawn["exit_code"] == 1
    assert drawn["target"]["claims"]["made by"] == "gifthorse attack badnet"
    assert drawn["target"]["classes"][14] == {"index": 14, "name": "stop"}
    chosen = [c["chosen"] for c in drawn["target"]["input"]["normalize"]["candidates"]]
    assert chosen == [True, False, False]
    assert [row["target"] for row in drawn["per_class"]] == list(range(43))
    assert drawn["per_class"][31]["status"] == "infeasible"
    assert [d["name"] for d in drawn["detectors"]] == ["weights", "neural_cleanse"]
    assert [d["image_steps"] for d in drawn["detectors"]] == [0, 41_234.5]
    assert drawn["verdict"]["interval"] == [0.91, 0.99]


def test_numbers_are_finite_or_null() -> None:
    drawn = result(spoiled(nothing_found()))
    row = drawn["per_class"][0]
    assert (row["size"], row["index"], row["asr"]) == (None, None, None)
    assert drawn["detectors"][0]["score"] is None
    assert drawn["detectors"][0]["statistics"] == {"ratio": None}


def test_a_pair_names_its_source() -> None:
    report = backdoored()
    pair = Finding("BD002", "HIGH", 3.0, "A pair.", Goal(14, source=3))
    verdict = replace(report.verdicts[1], findings=(pair,))
    finding = result(replace(report, verdicts=(verdict,)))["findings"][0]
    assert (finding["kind"], finding["source_classes"]) == ("pair", [3])
    assert finding["trigger"] is None


def test_an_error_is_listed_and_sets_the_exit_code() -> None:
    drawn = result(failed())
    assert drawn["errors"][0]["code"] == "FS003"
    assert drawn["exit_code"] == 2
    assert drawn["partial"] is True
    assert drawn["data"] is None
