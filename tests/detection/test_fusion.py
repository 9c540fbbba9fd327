"""One probability from several detectors: against scikit-learn, in closed form, and in a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from tests.detection.test_calibration import EVERY, FOUND, STOPPED, Fixed
from tests.report.examples import nothing_found
from tests.toys import band_images, bands
from torch import Generator

from gifthorse.core.errors import UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Confirmation, Finding, Goal, Label, Rate, Report, Verdict
from gifthorse.detection import DETECTORS
from gifthorse.detection.calibrations import Calibrations, dumped, loaded
from gifthorse.detection.fusion import (
    ANY,
    Evidence,
    FamilyModel,
    Fusion,
    KnownEvidence,
    area,
    evidence,
    features,
    fuse,
    left_out,
    regression,
)
from gifthorse.workflows.answer import SURE, mutual
from gifthorse.workflows.detect import detect
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.scan import Request, beside

RNG = np.random.default_rng(3)
GOOD = RNG.normal(0, 1, (30, 3))
BAD = RNG.normal([1.5, 0.7, 0.4], 1, (24, 3))


def test_features_are_scores_transfers_and_agreement() -> None:
    said = {
        "a": Evidence(np.expm1(2.0), 4, 0.75),
        "b": Evidence(0.0, 4),
        "c": Evidence(np.expm1(1.0), 1),
        "d": Evidence(0.0),
    }
    assert features(said, "abcd").tolist() == pytest.approx([2, 0, 1, 0, 0.75, 0, 0, 0, 1 / 3])
    assert features(said, "ad").tolist() == pytest.approx([2, 0, 0.75, 0, 0])


def test_evidence_is_of_the_leading_class_and_its_unseen_images() -> None:
    seen = Confirmation(Rate(0.9, 0.8, 1.0, 10), Rate(0.2, 0.1, 0.3, 10), Rate(0.1, 0.0, 0.2, 10))
    lead = Finding("BD001", "CRITICAL", 5.0, "", Goal(3), confirmation=seen)
    first = Finding("IN003", "HIGH", 0.0, "")
    verdict = Verdict("a", 5.0, 3.0, "BACKDOORED", (first, lead))
    said = evidence(verdict)
    assert (said.score, said.target) == (5.0, 3)
    assert said.transfer == pytest.approx(0.7)
    assert evidence(replace(verdict, findings=(first,))) == Evidence(5.0, None, 0.0)


def test_the_regression_is_scikit_learns_where_no_weight_wants_to_be_negative() -> None:
    x = np.concatenate([GOOD, BAD])
    z = (x - x.mean(0)) / x.std(0)
    low, high = 1 / 32, 25 / 26
    share = np.repeat([low, high], [30, 24])
    weight = np.repeat([54 / 60, 54 / 48], [30, 24])
    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8)
    model.fit(
        np.concatenate([z, z]),
        np.repeat([1, 0], 54),
        np.concatenate([weight * share, weight * (1 - share)]),
    )
    line = regression(GOOD, BAD)
    assert (line[:-1] > 0).all()
    assert line[:-1] * x.std(0) == pytest.approx(model.coef_[0], abs=2e-3)


def test_a_feature_that_points_the_wrong_way_or_never_differs_has_no_weight() -> None:
    good = np.column_stack([GOOD[:, :1], -GOOD[:, :1], np.ones(30)])
    bad = np.column_stack([BAD[:, :1], -BAD[:, :1], np.ones(24)])
    line = regression(good, bad)
    assert line[0] > 0
    assert line[1:3].tolist() == [0, 0]

    def loss(row: np.ndarray) -> float:  # the same problem with one weight
        x = np.concatenate([good[:, 0], bad[:, 0]])
        odds = row[0] * (x - x.mean()) / x.std() + row[1]
        share = np.repeat([1 / 32, 25 / 26], [30, 24])
        weight = np.repeat([54 / 60, 54 / 48], [30, 24])
        terms = share * np.log1p(np.exp(-odds)) + (1 - share) * np.log1p(np.exp(odds))
        return float(weight @ terms + row[0] ** 2 / 2)

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8}).x
    spread = np.concatenate([good[:, 0], bad[:, 0]]).std()
    assert line[0] * spread == pytest.approx(best[0], abs=1e-3)


def test_who_is_left_out_is_judged_by_the_others_alone() -> None:
    p, q = left_out(GOOD[:6], BAD[:6])
    line = regression(GOOD[1:6], BAD[:6])
    assert p[0] == pytest.approx(1 / (1 + np.exp(-(GOOD[0] @ line[:-1] + line[-1]))))
    line = regression(GOOD[:6], BAD[:5])
    assert q[5] == pytest.approx(1 / (1 + np.exp(-(BAD[5] @ line[:-1] + line[-1]))))
    assert area(np.asarray([0.1, 0.4]), np.asarray([0.3, 0.9])) == 0.75


def known(score: float, family: str | None, target: int | None = None) -> KnownEvidence:
    said = Evidence(score, target, 0.0 if family is None else 0.9)
    return KnownEvidence({"a": said, "b": Evidence(1.0, target)}, family)


MODELS = [
    *(known(0.1 * i, None) for i in range(8)),
    *(known(5.0 + i, "patch", 1) for i in range(6)),
    *(known(0.9 + i / 10, "warp", 2) for i in range(5)),
    *(known(4.0, "rare", 2) for i in range(4)),
]


@pytest.fixture(scope="module", name="joint")
def fused() -> Fusion:
    return fuse("toys", ["a", "b"], MODELS, classes=(3, 10), sides=(28, 32), resamples=8)


def test_a_family_has_a_regression_if_it_has_models_enough(joint: Fusion) -> None:
    counts = {name: (m.clean, m.backdoored) for name, m in joint.families.items()}
    assert counts == {ANY: (8, 15), "patch": (8, 6), "warp": (8, 5)}
    assert joint.families["patch"].auc == 1
    assert joint.families["patch"].alarms == 0


def test_a_probability_stays_within_what_the_models_can_carry(joint: Fusion) -> None:
    low, high = (
        joint.confidence({"a": Evidence(s, k, t), "b": Evidence(s, k)})
        for s, k, t in ((0.0, None, 0.0), (1e6, 2, 1.0))
    )
    assert 1 / 10 <= low.value < 0.5 < high.value <= 16 / 17
    assert low.low <= low.value <= low.high
    assert high.low <= high.value <= high.high
    assert (
        joint.confidence({"a": Evidence(9.0, 1, 0.9), "b": Evidence(1.0, 1)}, "patch").value > 0.5
    )


@pytest.mark.parametrize(
    ("classes", "sides", "covered"),
    [(10, (32, 32), True), (3, (28, 30), True), (2, (32, 32), False), (10, (32, 64), False)],
)
def test_what_no_such_model_was_like_is_not_covered(
    joint: Fusion, classes: int, sides: tuple[int, int], covered: bool
) -> None:
    assert joint.covers(classes, sides) is covered


def test_a_file_keeps_it_and_one_that_does_not_fit_is_refused(joint: Fusion) -> None:
    text = dumped("toys", {}, {}, [joint])
    assert loaded(text, "x.json").together == (joint,)
    for before, after in (
        ('"detectors": ["a", "b"]', '"detectors": ["a"]'),
        ('"any": {', '"some": {'),
        ('"auc": 1.0', '"auc": 2.0'),
    ):
        assert before in text
        with pytest.raises(UsageError, match=r"x.json is no calibration"):
            loaded(text.replace(before, after), "x.json")


# In a scan ------------------------------------------------------------------------------------


def always(chance: float, *, classes: int = 6) -> Calibrations:
    """A fusion of two detectors that says the same of every model."""
    odds = float(np.log(chance / (1 - chance)))
    some = FamilyModel(1000, 1000, ((0, 0, 0, 0, 0, odds),), 0.9, 0.3, 1, 1)
    blind = replace(some, auc=0.6)
    families = {ANY: some, "patch": some, "warp": blind}
    return Calibrations({}, (Fusion("toys", ("a", "b"), (3, classes), (1, 64), families),))


@pytest.fixture(name="scan")
def scanned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    def scan(known: Calibrations, *made: Fixed) -> Report:
        rows = dict(zip("abc", made, strict=False))
        for name, detector in rows.items():
            monkeypatch.setitem(DETECTORS, name, detector)
        preparation = nothing_found().preparation
        assert preparation is not None
        prepared = Prepared(bands(), band_images(), preparation, ())
        return detect(prepared, rows, Generator().manual_seed(0), Run(), calibrations=known)

    return scan


CALM = Fixed("NO BACKDOOR FOUND", score=0.5)
ODD = Fixed("SUSPICIOUS", (replace(FOUND, severity="MEDIUM"),))
SURE_ROW = Fixed("BACKDOORED", (FOUND,))


@pytest.mark.parametrize(
    ("chance", "first", "label"),
    [
        (0.2, CALM, "NO BACKDOOR FOUND"),
        (0.2, ODD, "NO BACKDOOR FOUND"),
        (0.2, SURE_ROW, "NO BACKDOOR FOUND"),
        (0.6, CALM, "SUSPICIOUS"),
        (0.6, ODD, "SUSPICIOUS"),
        (0.6, SURE_ROW, "SUSPICIOUS"),
        (0.95, CALM, "SUSPICIOUS"),
        (0.95, ODD, "SUSPICIOUS"),
        (0.95, SURE_ROW, "BACKDOORED"),
    ],
)
def test_label_and_probability_are_of_all_detectors_together(
    scan: Callable[..., Report], chance: float, first: Fixed, label: Label
) -> None:
    report = scan(always(chance), first, CALM)
    assert report.label == label
    assert report.confidence is not None
    assert report.confidence.value == pytest.approx(chance)
    assert [row.family for row in report.families] == ["patch"]
    adds = [check for check in report.checks if check.rule == "BD011"]
    assert bool(adds) is (chance >= 0.5 and first is CALM)
    graver = {"CRITICAL", "MEDIUM"} if chance < 0.5 else set()
    assert not graver & {f.severity for v in report.verdicts for f in v.findings}
    assert SURE == 0.9


@pytest.mark.parametrize(
    ("known", "second"),
    [
        (always(0.6), Fixed("INCONCLUSIVE")),
        (always(0.6), Fixed("NO BACKDOOR FOUND", (STOPPED,))),
        (always(0.6), Fixed("NO BACKDOOR FOUND", coverage=EVERY[:2])),
        (always(0.6, classes=5), CALM),
    ],
)
def test_nothing_is_said_together_of_what_is_not_all_there(
    scan: Callable[..., Report], known: Calibrations, second: Fixed
) -> None:
    report = scan(known, CALM, second)
    assert report.families == ()
    assert report.confidence is None
    assert "BD011" not in [check.rule for check in report.checks]


def test_a_suspicion_of_what_was_not_read_stays(scan: Callable[..., Report]) -> None:
    report = scan(always(0.2), CALM, CALM, ODD)
    assert (report.label, report.confidence) == ("SUSPICIOUS", None)


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (("pixel_quick", "latent_shift", "free_eagle"), ["latent_shift", "free_eagle"]),
        (("pixel_quick", "warp"), []),  # no search is made for it
        (("pixel_quick",), []),
    ],
)
def test_what_a_calibration_reads_joins_the_preset(
    names: tuple[str, ...], joined: list[str], tmp_path: Path
) -> None:
    def asked(classes: tuple[int, int], blind: bool = False, preset: str = "standard") -> list[str]:
        odds = (0.0,) * (2 * len(names) + 2)
        some = FamilyModel(9, 9, (odds,), 0.9, 0.3, 1, 1)
        fusion = Fusion("toys", names, classes, (1, 64), {ANY: some})
        (tmp_path / "own.json").write_text(dumped("toys", {}, {}, [fusion]))
        preparation = nothing_found().preparation
        assert preparation is not None
        prepared = Prepared(bands(), band_images(), preparation, (), blind=blind)
        request = Request(calibration=tmp_path / "own.json", preset=preset)
        return list(beside(request, prepared))

    assert asked((3, 10)) == ["mm_bd_quick", *joined]
    assert asked((30, 43)) == ["mm_bd_quick"]
    assert asked((3, 10), preset="quick") == []
    assert asked((3, 10), blind=True) == []


def odd(target: int, label: Label = "SUSPICIOUS") -> Verdict:
    lead = Finding("BD010", "MEDIUM", 9.0, f"Class {target} is odd.", Goal(target))
    return Verdict("a", 9.0, 2.0, label, (lead,))


def test_without_a_search_two_have_to_lead_to_one_class() -> None:
    calm = replace(odd(4, "NO BACKDOOR FOUND"), method="b")
    agreed = mutual([odd(4), calm])
    assert [v.label for v in agreed] == ["SUSPICIOUS", "NO BACKDOOR FOUND"]
    assert "b leads to that class, too" in agreed[0].findings[0].message
    alone = mutual([odd(3), calm])
    assert [v.label for v in alone] == ["NO BACKDOOR FOUND"] * 2
    assert alone[0].findings[0].severity == "LOW"
    assert "No other test leads to that class" in alone[0].findings[0].message
