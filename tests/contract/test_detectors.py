"""What every detector keeps to: it flags the planted bands, not the clean ones, seed by seed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.toys import BANDS, band_images, bands
from torch import Generator

from gifthorse.detection import DETECTORS, Inspector
from gifthorse.options import describe, vary
from gifthorse.session import LocalSession
from gifthorse.types import Detector, Goal, Label, Verdict

# Fewer rounds than on a real net, where a round moves far more variables; no schedule that ends
# with a number of rounds the toys do not have.
ROUNDS: dict[str, object] = {
    "inverter.pace.rounds": 120,
    "inverter.pace.schedule": "constant",
    "inverter.pace.steps": 2,
    "inverter.pace.floor": 0,
}
TOY: dict[str, dict[str, object]] = {
    "carve": {"inverter.pace.rounds": 60, "inverter.soft.rounds": 40},
    "deep_inspect": {"inverter.hidden": 8, "inverter.width": 8, "inverter.pace.rounds": 4},
    "gangsweep": {"width": 8, "batch": 8, "floor": 10},
    "mm_bd": {"starts": 4, "steps": 30},
    "neural_cleanse": {"inverter.pace.rounds": 120},
    "neural_cleanse_quick": {"inverter.pace.rounds": 120},
    "pixel": {"inverter.pace.rounds": 120},
    "pixel_halving": {"inverter.pace.rounds": 120},
    "pixel_quick": {"inverter.pace.rounds": 120},
    "tabor": ROUNDS | {"inverter.up": 1.5, "inverter.wait": 3},
    "usb": ROUNDS | {"inverter.wait": 3, "inverter.pace.batch": 8, "inverter.pace.steps": 1},
}
# Flagged and not flagged on other toys, since the bands do not meet what they assume.
ELSEWHERE = {
    "abs": "tests/inversion/test_abs.py",  # bands have no neurons
    "deep_inspect": "tests/contract/test_inverters.py",  # a generator a class is too slow here
    "dltnd": "tests/detection/test_dltnd.py",
    "gangsweep": "tests/detection/test_gangsweep.py",
    "k_arm": "tests/detection/test_k_arm.py",  # clean bands do not lean to the planted class
    "k_arm_pixel": "tests/detection/test_k_arm.py",
    "mm_bd": "tests/detection/test_mm_bd.py",  # makes no trigger: suspicious at most
    "neuron_inspect": "tests/detection/test_neuron_inspect.py",
    "weight_signature": "tests/detection/test_weight_signature.py",
}
SEEDS = range(3)

names = pytest.mark.parametrize("name", sorted(DETECTORS))
judged = pytest.mark.parametrize("name", sorted(set(DETECTORS) - set(ELSEWHERE)))


def toy(name: str) -> Detector:
    return vary(DETECTORS[name], TOY.get(name, {}))


@cache
def verdict(name: str, planted: int | None, seed: int) -> Verdict:
    data = band_images(each=8, seed=seed)
    return toy(name)(bands(planted), data, Generator().manual_seed(seed))


def test_every_detector_is_judged_somewhere() -> None:
    for path in ELSEWHERE.values():
        assert (Path(__file__).parents[2] / path).exists()
    assert set(ELSEWHERE) < set(DETECTORS)


@judged
@pytest.mark.parametrize("seed", SEEDS)
def test_it_flags_the_planted_bands_and_names_the_class(name: str, seed: int) -> None:
    where = (seed + 1) % BANDS
    got = verdict(name, where, seed)
    assert got.label == "BACKDOORED"
    assert got.score >= got.threshold
    assert got.findings[0].goal == Goal(where)
    assert got.findings[0].severity == "CRITICAL"


@judged
@pytest.mark.parametrize("seed", SEEDS)
def test_it_does_not_flag_the_clean_bands(name: str, seed: int) -> None:
    got = verdict(name, None, seed)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold
    assert not any(f.severity in ("CRITICAL", "HIGH", "MEDIUM") for f in got.findings)


@judged
def test_the_planted_scores_lie_above_the_clean_ones(name: str) -> None:
    planted = [verdict(name, (seed + 1) % BANDS, seed).score for seed in SEEDS]
    assert min(planted) > max(verdict(name, None, seed).score for seed in SEEDS)


@names
def test_a_verdict_is_complete(name: str) -> None:
    got = verdict(name, 1, 0)
    assert got.label in get_args(Label)
    assert got.seconds > 0
    assert got.findings
    assert all(found.message for found in got.findings)
    assert set(got.settings) == set(describe(DETECTORS[name]))
    if isinstance(DETECTORS[name], Inspector):
        assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
        assert all(f.confirmation is not None for f in got.findings if f.rule.startswith("BD"))
    if got.label == "BACKDOORED":
        assert any(f.confirmation is not None for f in got.findings)


@names
def test_the_same_seed_gives_the_same_verdict(name: str) -> None:
    torch.manual_seed(1)
    again = toy(name)(bands(1), band_images(each=8), Generator().manual_seed(0))
    first = verdict(name, 1, 0)
    assert (again.label, again.score) == (first.label, first.score)
    tables = [[(a.goal, a.size, a.asr, a.index) for a in v.arms] for v in (first, again)]
    assert tables[0] == tables[1]


@names
def test_subject_and_images_stay_as_they_were(name: str) -> None:
    subject, clean = bands(1), band_images()
    pixels, labels = clean.images.clone(), clean.labels.clone()
    known = describe(DETECTORS[name])
    short = {key: 3 for key in ("inverter.pace.rounds", "inverter.soft.rounds") if key in known}
    detector = vary(toy(name), short)
    detector(subject, clean, Generator().manual_seed(0))
    assert torch.equal(clean.images, pixels)
    assert torch.equal(clean.labels, labels)
    assert not subject.net.training


@names
def test_a_stopped_detector_never_says_that_nothing_was_found(name: str) -> None:
    session = LocalSession(seconds=0, image_steps=7.0)
    whole = verdict(name, None, 0)
    got = toy(name)(bands(), band_images(each=8), Generator().manual_seed(0), session=session)
    assert got.image_steps == pytest.approx(session.image_steps - 7)
    if (got.label, got.score, got.arms) == (whole.label, whole.score, whole.arms):
        assert got.image_steps == whole.image_steps  # it was done before it could be stopped
        return
    assert got.label == "INCONCLUSIVE"
    assert any(f.severity == "HIGH" for f in got.findings)
