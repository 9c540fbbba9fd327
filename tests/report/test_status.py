from __future__ import annotations

from dataclasses import replace

import pytest
from tests.report.examples import nothing_found

from gifthorse.core.types import Finding, Label
from gifthorse.report import FailOn, exit_code

TABLE: list[tuple[Label, int, int, int]] = [  # label, fail on backdoored, suspicious, inconclusive
    ("BACKDOORED", 1, 1, 1),
    ("SUSPICIOUS", 0, 1, 1),
    ("NO BACKDOOR FOUND", 0, 0, 0),
    ("INCONCLUSIVE", 3, 3, 1),
    ("NOT SCANNED", 2, 2, 2),
    ("ERROR", 2, 2, 2),
]
LEVELS: tuple[FailOn, ...] = ("backdoored", "suspicious", "inconclusive")


@pytest.mark.parametrize(("label", "backdoored", "suspicious", "inconclusive"), TABLE)
def test_exit_codes(label: Label, backdoored: int, suspicious: int, inconclusive: int) -> None:
    report = replace(nothing_found(), label=label)
    codes = [exit_code(report, level) for level in LEVELS]
    assert codes == [backdoored, suspicious, inconclusive]
    assert exit_code(report) == suspicious


def test_a_limit_that_was_reached_makes_the_scan_incomplete() -> None:
    limit = Finding("IN003", "MEDIUM", 1.0, "Time was up after 3 of 10 classes.")
    assert exit_code(replace(nothing_found(), checks=(limit,))) == 3
    assert exit_code(replace(nothing_found(), label="BACKDOORED", checks=(limit,))) == 1


def test_a_detector_that_was_stopped_makes_the_scan_incomplete() -> None:
    limit = Finding("IN003", "HIGH", 0.0, "The search was not finished.")
    report = nothing_found()
    stopped = replace(report.verdicts[0], label="SUSPICIOUS", findings=(limit,))
    report = replace(report, label="SUSPICIOUS", verdicts=(stopped,))
    assert exit_code(report) == 1
    assert exit_code(report, "backdoored") == 3
