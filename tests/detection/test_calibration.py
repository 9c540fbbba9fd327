"""Platt scaling against its defining equations, and what it must not do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests.report.examples import nothing_found
from tests.toys import BANDS, band_images, bands
from torch import Generator

from gifthorse.core.run import Run
from gifthorse.core.types import Arm, Finding, Goal, Label, Report, Samples, Subject, Verdict
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.detection.calibration import fit, scaled
from gifthorse.detection.calibrations import shipped
from gifthorse.workflows.answer import DOUBT
from gifthorse.workflows.detect import NOT_COVERED, PAIRS, detect
from gifthorse.workflows.prepare import Prepared

CLEAN = (0.1, 0.8, 1.2, 1.9, 2.5, 3.4, 0.4, 1.1)
BAD = (2.2, 4.0, 5.5, 6.1, 8.3, 9.0)
BAG = fit("toy", CLEAN, BAD, resamples=40)


def test_the_fit_maximizes_the_likelihood_of_platts_targets() -> None:
    def loss(line: np.ndarray) -> float:
        def part(scores: tuple[float, ...], target: float) -> float:
            p = 1 / (1 + np.exp(-(line[0] * np.log1p(scores) + line[1])))
            return float(-np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))

        return part(CLEAN, 1 / (len(CLEAN) + 2)) + part(BAD, (len(BAD) + 1) / (len(BAD) + 2))

    best = minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    assert BAG.lines[0] == pytest.approx(tuple(best.x), abs=1e-3)


@settings(max_examples=25)
@given(st.floats(-10, 60), st.floats(0, 20))
def test_a_higher_score_never_means_less(score: float, more: float) -> None:
    low, high = BAG.confidence(score), BAG.confidence(score + more)
    assert low.value <= high.value
    assert 0 <= low.low <= low.value <= low.high <= 1
    assert low == BAG.confidence(score)


def test_a_small_bag_carries_little_confidence() -> None:
    few, many = (fit("toy", (0.0,) * n, (9.0,) * n, resamples=0) for n in (4, 400))
    assert few.confidence(9.0).value == pytest.approx(5 / 6, abs=0.01)
    assert many.confidence(9.0).value == pytest.approx(401 / 402, abs=0.01)
    assert few.confidence(1e6).value == pytest.approx(5 / 6)  # no extrapolation beyond the bag
    assert few.confidence(1e6).low < many.confidence(1e6).low


def test_large_scores_do_not_make_the_smallest_found_one_unlikely() -> None:
    bag = fit("toy", (1.0, 1.5, 2.0, 2.3) * 5, (4.4, 5.5, 9.0, 12.0, 18.0, 90.0) * 3, resamples=0)
    assert bag.confidence(4.4).value > 0.5 > bag.confidence(2.3).value
    assert scaled([-3.0, 0.0, 3.0]).tolist() == [-math.log(4), 0.0, math.log(4)]


def test_scores_that_say_nothing_give_even_odds() -> None:
    same = tuple(map(float, range(50)))
    assert fit("toy", same, same, resamples=0).confidence(10.0).value == pytest.approx(
        0.5, abs=0.02
    )


def test_numbers_of_models_are_no_prior() -> None:
    few = fit("toy", CLEAN, BAD, resamples=0)
    many = fit("toy", CLEAN * 20, BAD, resamples=0)
    middle = math.expm1(-few.lines[0][1] / few.lines[0][0])
    assert math.isclose(many.confidence(middle).value, 0.5, abs_tol=0.12)


def test_shipped_calibrations_name_detectors_and_hold_enough_models() -> None:
    assert shipped().detectors
    for name, bag in shipped().detectors.items():
        assert name in DETECTORS
        assert len(bag.clean) >= 12
        assert len(bag.backdoored) >= 12
        assert len(bag.lines) == 201
        again = fit(bag.name, bag.clean, bag.backdoored, resamples=0)
        assert again.lines[0] == pytest.approx(bag.lines[0], abs=1e-3)


# What a scan makes of calibrated and other verdicts ---------------------------------------------

FOUND = Finding("BD001", "CRITICAL", 9.0, "A trigger was found.")
STOPPED = Finding("IN003", "HIGH", 0.0, "Time is up.")
EVERY = tuple(Goal(k) for k in range(BANDS))
PAIRED = tuple(Goal(t, s) for t in range(BANDS) for s in range(BANDS) if s != t)


@dataclass(frozen=True)
class Fixed:
    """A detector that always says the same."""

    label: Label
    findings: tuple[Finding, ...] = ()
    score: float = 9.0
    coverage: tuple[Goal, ...] = EVERY

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        run.charge(1)
        return Verdict("Fixed", self.score, 3.0, self.label, self.findings, coverage=self.coverage)


def report_on(
    monkeypatch: pytest.MonkeyPatch, *made: Fixed, over: int = 9, first: int = 9, near: int = 9
) -> Report:
    """A scan by detectors under the names of calibrated ones.

    The run is over from `over`; those from `first` are asked in doubt only, from `near` beside.
    """
    detectors = dict(zip(sorted(shipped().detectors), made, strict=False))
    for name, detector in detectors.items():
        monkeypatch.setitem(DETECTORS, name, detector)
    preparation = nothing_found().preparation
    assert preparation is not None
    prepared = Prepared(bands(), band_images(), preparation, ())
    rng, rows = Generator().manual_seed(0), list(detectors.items())
    now, later, beside = dict(rows[: min(first, near)]), dict(rows[first:]), dict(rows[near:])
    return detect(prepared, now, rng, Run(budget=over), second=later, beside=beside)


def test_a_whole_scan_is_calibrated_and_a_stopped_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = report_on(monkeypatch, Fixed("BACKDOORED", (FOUND,)))
    assert whole.label == "BACKDOORED"
    assert whole.confidence is not None
    stopped = report_on(monkeypatch, Fixed("BACKDOORED", (FOUND, STOPPED)))
    assert (stopped.label, stopped.confidence) == ("SUSPICIOUS", None)
    assert stopped.reason == FOUND.message
    assert stopped.not_covered[-1].endswith("finds in more rounds: a limit stopped it")


CLEAN_ROW, BAD_ROW = Fixed("NO BACKDOOR FOUND", score=0.5), Fixed("BACKDOORED", (FOUND,))


@pytest.mark.parametrize(("first", "label"), [(CLEAN_ROW, "INCONCLUSIVE"), (BAD_ROW, "BACKDOORED")])
def test_a_detector_that_did_not_run_is_named_and_only_a_finding_wins_over_it(
    first: Fixed, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sorted(shipped().detectors)[1]
    assert report_on(monkeypatch, CLEAN_ROW, CLEAN_ROW).label == "NO BACKDOOR FOUND"
    report = report_on(monkeypatch, first, CLEAN_ROW, over=1)
    assert report.label == label
    assert [v.method for v in report.verdicts] == sorted(shipped().detectors)[:1]
    assert report.not_covered[-1] == f"what {name} looks for: it did not run"
    (check,) = report.checks
    assert check.rule == "IN003"
    assert check.message == f"{name} did not run: the budget of 1 image-steps is spent."
    if label == "INCONCLUSIVE":
        assert report.reason == check.message


@dataclass(frozen=True)
class Failing(Fixed):
    """A detector with a fault."""

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        raise ZeroDivisionError("nobody thought of that")


@pytest.mark.parametrize(("other", "label"), [(CLEAN_ROW, "INCONCLUSIVE"), (BAD_ROW, "BACKDOORED")])
def test_a_detector_that_fails_keeps_the_others_from_nothing(
    other: Fixed, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sorted(shipped().detectors)[0]
    report = report_on(monkeypatch, Failing("INCONCLUSIVE"), other)
    assert report.label == label
    (check,) = report.checks
    assert check.message == f"{name} failed: ZeroDivisionError: nobody thought of that"
    assert f"what {name} looks for: it did not run" in report.not_covered
    with pytest.raises(ZeroDivisionError):
        report_on(monkeypatch, Failing("INCONCLUSIVE"))


def led(goal: Goal) -> Fixed:
    """A search that passes a net, with its smallest trigger for this class."""
    smallest = Finding("BD001", "INFO", 0.5, "The smallest trigger.", goal)
    return Searched("NO BACKDOOR FOUND", (smallest,), score=0.5)


@dataclass(frozen=True)
class Searched(Fixed):
    """One that has a table of what it tried."""

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        arms = (Arm(Goal(0), 0.0, 1.0, 0.0, True, 1),)
        return replace(super().__call__(subject, clean, rng, run), arms=arms)


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        (CLEAN_ROW, True),
        (Fixed("INCONCLUSIVE"), True),
        (BAD_ROW, False),
        (Fixed("NO BACKDOOR FOUND", (STOPPED,)), False),
    ],
)
def test_a_detector_beside_is_asked_unless_a_backdoor_was_found_or_a_limit_reached(
    first: Fixed, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_on(monkeypatch, first, CLEAN_ROW, near=1)
    assert len(report.verdicts) == 1 + asked


def test_what_cannot_judge_two_classes_is_no_gap_beside_what_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gifthorse.workflows.detect.FEW_CLASSES", {sorted(shipped().detectors)[0]})
    two = replace(bands(), classes=2)
    monkeypatch.setattr("tests.detection.test_calibration.bands", lambda: two)
    report = report_on(monkeypatch, Fixed("INCONCLUSIVE"), CLEAN_ROW, near=1)
    assert len(report.verdicts) == 1
    assert not [line for line in report.not_covered if "did not run" in line]
    assert "IN004" not in [check.rule for check in report.checks if "needs three" in check.message]


ODD = Finding("BD010", "MEDIUM", 9.0, "Class 2 is odd.", Goal(2))


@pytest.mark.parametrize(
    ("asked", "leads", "label", "words"),
    [
        (Fixed("SUSPICIOUS", (ODD,)), 2, "SUSPICIOUS", "Class 2 is odd. It is the class that"),
        (Fixed("SUSPICIOUS", (ODD,)), 1, "NO BACKDOOR FOUND", "No search leads to that class"),
        (Fixed("INCONCLUSIVE", (Finding("IN004", "HIGH", 0.0, "Few."),)), 2, None, ""),
        (Fixed("INCONCLUSIVE", (STOPPED,)), 2, "INCONCLUSIVE", "Time is up."),
        (CLEAN_ROW, 2, "NO BACKDOOR FOUND", ""),
        (Searched("SUSPICIOUS", (ODD,)), 1, "SUSPICIOUS", "Class 2 is odd."),
    ],
)
def test_what_searches_no_trigger_counts_for_the_class_that_a_search_leads_with(
    asked: Fixed,
    leads: int,
    label: Label | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = report_on(monkeypatch, led(Goal(leads)), asked, near=1)
    assert [v.label for v in report.verdicts[1:]] == ([label] if label else [])
    assert report.label == (label or "NO BACKDOOR FOUND")
    assert words in "".join(f.message for v in report.verdicts[1:] for f in v.findings)


@pytest.mark.parametrize(
    ("first", "asked"),
    [
        (Fixed("NO BACKDOOR FOUND", score=0.5), False),
        (Fixed("NO BACKDOOR FOUND", score=2.95), True),
        (Fixed("SUSPICIOUS", (FOUND,)), True),
        (Fixed("INCONCLUSIVE"), True),
        (BAD_ROW, False),
        (Fixed("NO BACKDOOR FOUND", (STOPPED,), score=2.95), False),
    ],
)
def test_a_second_detector_is_asked_where_the_first_leaves_doubt(
    first: Fixed, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_on(monkeypatch, first, BAD_ROW, first=1)
    assert len(report.verdicts) == 1 + asked
    assert report.label == ("BACKDOORED" if asked else first.label)
    assert not any("did not run" in line for line in report.not_covered)
    calm = report_on(monkeypatch, first, Fixed("NO BACKDOOR FOUND", score=0.1), first=1)
    assert calm.label == first.label


def test_doubt_begins_above_all_clean_models_of_the_default_and_below_its_threshold() -> None:
    bag, detector = shipped().detectors["pixel_quick"], DETECTORS["pixel_quick"]
    assert isinstance(detector, Inspector)
    assert bag.confidence(max(bag.clean)).value < DOUBT < bag.confidence(detector.threshold).value


def test_what_is_not_covered_is_what_no_detector_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*rows: Fixed) -> list[str]:
        return list(report_on(monkeypatch, *rows).not_covered)

    rest = [line for line in NOT_COVERED if line != PAIRS]
    few = Fixed("NO BACKDOOR FOUND", coverage=tuple(Goal(k) for k in (0, 3, 4, 5)))
    assert missing(CLEAN_ROW) == [PAIRS, *rest]
    assert missing(few) == ["target classes other than 0, 3-5", PAIRS, *rest]
    assert missing(few, CLEAN_ROW) == [PAIRS, *rest]
    assert missing(Fixed("NO BACKDOOR FOUND", coverage=PAIRED), CLEAN_ROW) == rest
    none = Fixed("NO BACKDOOR FOUND", coverage=())
    assert missing(none) == ["all target classes: none was searched", PAIRS, *rest]


def test_a_few_class_pairs_searched_are_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = report_on(monkeypatch, Fixed("NO BACKDOOR FOUND", coverage=EVERY + PAIRED[:2]))
    assert lines.not_covered[0] == f"{PAIRS}: 2 of 30 pairs were searched"
    assert not hasattr(DETECTORS["k_arm"], "pairs")  # what may be searched is no claim


@pytest.mark.parametrize("number", [0, 1])
def test_label_and_probability_never_contradict_each_other(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sorted(shipped().detectors)[number]
    seen = set()
    for label in ("BACKDOORED", "NO BACKDOOR FOUND"):
        for score in torch.linspace(0, 12, 49).tolist():
            rows = (Fixed(label, (FOUND,), score),) * (number + 1)
            report = report_on(monkeypatch, *rows)
            verdict = report.verdicts[number]
            assert verdict.method == name
            chance = shipped().detectors[name].confidence(score).value
            seen.add(verdict.label)
            if verdict.label == "BACKDOORED":
                assert chance >= 0.5
            if verdict.label == "NO BACKDOOR FOUND":
                assert chance < 0.5
            if report.confidence is not None and report.label == "BACKDOORED":
                assert report.confidence.value >= 0.5
            if report.confidence is not None and report.label == "NO BACKDOOR FOUND":
                assert report.confidence.value < 0.5
    assert seen == {"BACKDOORED", "SUSPICIOUS", "NO BACKDOOR FOUND"}
