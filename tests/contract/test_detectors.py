"""What every detector keeps to: it flags the planted bands, not the clean ones, seed by seed."""

from __future__ import annotations

from functools import cache
from typing import get_args

import pytest
import torch
from tests.toys import BANDS, band_images, bands
from torch import Generator

from gifthorse.detection import DETECTORS
from gifthorse.options import describe, vary
from gifthorse.session import LocalSession
from gifthorse.types import Detector, Goal, Label, Verdict

# Fewer rounds than on a real net, where a round moves far more variables.
TOY = {"inverter.pace.rounds": 120}
SEEDS = range(5)

names = pytest.mark.parametrize("name", sorted(DETECTORS))


def toy(name: str) -> Detector:
    known = describe(DETECTORS[name])
    return vary(DETECTORS[name], {key: value for key, value in TOY.items() if key in known})


@cache
def verdict(name: str, planted: int | None, seed: int) -> Verdict:
    data = band_images(each=8, seed=seed)
    return toy(name)(bands(planted), data, Generator().manual_seed(seed))


@names
@pytest.mark.parametrize("seed", SEEDS)
def test_it_flags_the_planted_bands_and_names_the_class(name: str, seed: int) -> None:
    where = (seed + 1) % BANDS
    got = verdict(name, where, seed)
    assert got.label == "BACKDOORED"
    assert got.score >= got.threshold
    assert got.findings[0].goal == Goal(where)
    assert got.findings[0].severity == "CRITICAL"


@names
@pytest.mark.parametrize("seed", SEEDS)
def test_it_does_not_flag_the_clean_bands(name: str, seed: int) -> None:
    got = verdict(name, None, seed)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold
    assert not any(f.severity in ("CRITICAL", "HIGH", "MEDIUM") for f in got.findings)


@names
def test_the_planted_scores_lie_above_the_clean_ones(name: str) -> None:
    planted = [verdict(name, (seed + 1) % BANDS, seed).score for seed in SEEDS]
    assert min(planted) > max(verdict(name, None, seed).score for seed in SEEDS)


@names
def test_a_verdict_is_complete(name: str) -> None:
    got = verdict(name, 1, 0)
    assert got.label in get_args(Label)
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert got.seconds > 0
    assert set(got.settings) == set(describe(DETECTORS[name]))
    for found in got.findings:
        assert found.confirmation is not None
        assert found.message


@names
def test_the_same_seed_gives_the_same_table(name: str) -> None:
    short = {"inverter.pace.rounds": 10}
    known = describe(DETECTORS[name])
    detector = vary(DETECTORS[name], {k: v for k, v in short.items() if k in known})
    tables = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        got = detector(bands(1), band_images(), Generator().manual_seed(0))
        tables.append([(a.size, a.asr, a.index) for a in got.arms])
    assert tables[0] == tables[1]


@names
def test_subject_and_images_stay_as_they_were(name: str) -> None:
    subject, clean = bands(1), band_images()
    pixels, labels = clean.images.clone(), clean.labels.clone()
    short = {"inverter.pace.rounds": 3}
    known = describe(DETECTORS[name])
    detector = vary(DETECTORS[name], {k: v for k, v in short.items() if k in known})
    detector(subject, clean, Generator().manual_seed(0))
    assert torch.equal(clean.images, pixels)
    assert torch.equal(clean.labels, labels)
    assert not subject.net.training


@names
def test_a_stopped_detector_never_says_that_nothing_was_found(name: str) -> None:
    calls: list[tuple[int, int, str]] = []
    session = LocalSession(lambda *a: calls.append(a), seconds=0, image_steps=7.0)
    rng, whole = Generator().manual_seed(0), verdict(name, None, 0)
    got = toy(name)(bands(), band_images(each=8), rng, session=session)
    assert got.image_steps == pytest.approx(session.image_steps - 7)
    if got.label == "NO BACKDOOR FOUND":  # it was done before it could be stopped
        assert (got.score, got.arms) == (whole.score, whole.arms)
        return
    assert calls
    assert 0 < got.image_steps < whole.image_steps
    assert got.label == "INCONCLUSIVE"
    stopped = [f for f in got.findings if f.rule == "IN003"]
    assert [f.severity for f in stopped] == ["HIGH"]
    assert "the time limit of 0 s is reached" in stopped[0].message
