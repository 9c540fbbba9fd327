from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled

from gifthorse.core.types import Finding, Goal, Report
from gifthorse.report import WRITERS
from gifthorse.report.json import ScanResult, schema_text

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
        preparation=None,
        verdicts=(),
        checks=(check,),
    )


def test_the_published_schema_is_the_one_of_the_models() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text(), (
        "write gifthorse.report.json.schema_text() to docs/report.schema.json"
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
    assert finding["trigger"]["footprint"] == {
        "pixels": 9,
        "area": 1024,
        "l1": 9,
        "peak": 1,
        "box": [28, 28, 31, 31],
        "place": "lower right",
    }
    assert finding["goal"] == {"target": 14, "source": None}
    assert finding["arm"]["size"] == finding["comparison"]["size"] == pytest.approx(8.6)
    assert finding["comparison"]["others"] == 42
    assert finding["confirmation"]["asr"]["value"] == 1
    assert finding["confirmation"]["control"]["value"] == 1 / 42
    assert finding["evidence"] == {"stability": 0.98}


def test_everything_else_is_carried_over() -> None:
    drawn = result(backdoored())
    assert drawn["schema_version"] == "2"
    assert drawn["exit_code"] == 1
    assert drawn["target"]["metadata"]["made by"] == "gifthorse attack badnet"
    assert drawn["data"]["class_names"][14] == "stop"
    used = [
        row["normalization"] == drawn["data"]["normalization"] for row in drawn["data"]["tried"]
    ]
    assert used == [True, False, False]
    assert [d["method"] for d in drawn["detectors"]] == ["weights", "neural_cleanse"]
    arms = drawn["detectors"][1]["arms"]
    assert [arm["goal"]["target"] for arm in arms] == list(range(43))
    assert not arms[31]["feasible"]
    assert [d["image_steps"] for d in drawn["detectors"]] == [0, 41_234.5]
    confidence = drawn["verdict"]["confidence"]
    assert confidence == {
        "value": 0.97,
        "low": 0.91,
        "high": 0.99,
        "calibration": "40 clean resnet18 on GTSRB",
    }
    assert result(nothing_found())["verdict"]["confidence"] is None


def test_numbers_are_finite_or_null() -> None:
    drawn = result(spoiled(nothing_found()))
    row = drawn["detectors"][0]["arms"][0]
    assert (row["size"], row["index"], row["asr"]) == (None, None, None)
    assert drawn["detectors"][0]["score"] is None
    assert drawn["detectors"][0]["statistics"] == {"ratio": None}


def test_a_pair_names_its_source() -> None:
    report = backdoored()
    pair = Finding("BD002", "HIGH", 3.0, "A pair.", Goal(14, source=3))
    verdict = replace(report.verdicts[1], findings=(pair,))
    finding = result(replace(report, verdicts=(verdict,)))["findings"][0]
    assert finding["goal"] == {"target": 14, "source": 3}
    assert finding["trigger"] is None


def test_what_is_written_reads_back_as_our_records() -> None:
    report = backdoored()
    read = TypeAdapter(ScanResult).validate_json(WRITERS["json"](report))
    assert (read.run, read.target, read.data) == (report.run, report.origin, report.preparation)
    assert read.verdict.confidence == report.confidence
    assert [d.arms for d in read.detectors] == [v.arms for v in report.verdicts]
    assert read.findings[0].confirmation == report.verdicts[1].findings[0].confirmation


def test_an_error_is_listed_and_sets_the_exit_code() -> None:
    drawn = result(failed())
    assert (drawn["verdict"]["label"], drawn["checks"][0]["rule"]) == ("ERROR", "FS003")
    assert drawn["exit_code"] == 2
    assert drawn["partial"] is True
    assert drawn["data"] is None
