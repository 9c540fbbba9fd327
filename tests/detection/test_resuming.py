"""Detectors that were stopped or interrupted go on with what was kept, to the same verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.detection.test_k_arm import NC, Leaning, Pairs, both, subject
from tests.toys import BANDS, band_images, bands
from torch import Generator

from gifthorse.core.run import Run
from gifthorse.core.types import Detector, Subject, Verdict
from gifthorse.detection.dltnd import DLTND
from gifthorse.detection.gangsweep import GangSweep
from gifthorse.detection.k_arm import KArmScan
from gifthorse.search.k_arm import KArm

PAINTING = GangSweep(width=4, epochs=1, floor=6, success_threshold=0.0)
# In turns of one label, so that a stop falls between labels as well as within one.
SOLVING = DLTND(rounds=2, steps=6, max_batch=20)
SCORERS: list[Detector] = [PAINTING, SOLVING]
scorers = pytest.mark.parametrize("method", SCORERS, ids=["GangSweep", "DLTND"])
POINTS = (0.05, 0.3, 0.5, 0.75)


def scanned(method: Detector, run: Run, net: Subject | None = None, each: int = 8) -> Verdict:
    """One command: the same method on the same net, images and seed."""
    return method(net or bands(2), band_images(each), Generator().manual_seed(0), run)


def same(one: Verdict, two: Verdict) -> bool:
    """Whether two verdicts are alike but for the time that they took."""
    figures = [(v.label, v.score, v.arms, v.statistics, v.coverage) for v in (one, two)]
    words = [[(f.rule, f.severity, f.message) for f in v.findings] for v in (one, two)]
    return figures[0] == figures[1] and words[0] == words[1]


@scorers
def test_stopped_at_several_points_it_ends_as_if_it_never_was(
    method: Detector, tmp_path: Path
) -> None:
    whole, store = scanned(method, Run()), tmp_path / "state"
    for point in POINTS:
        budget = int(point * whole.image_steps)
        got = scanned(method, Run(budget=budget, store=store))
        assert got.label == "INCONCLUSIVE"
        assert [f.rule for f in got.findings] == ["IN003"]
        assert got.coverage == ()
        assert got.image_steps >= budget
    assert same(scanned(method, Run(store=store)), whole)


@scorers
def test_what_was_kept_is_not_done_again(method: Detector, tmp_path: Path) -> None:
    whole, store = scanned(method, Run()), tmp_path / "state"
    scanned(method, Run(budget=int(0.75 * whole.image_steps), store=store))
    rest = scanned(method, Run(store=store))
    # What was under way at the stop is begun anew: a class of GangSweep, a solution of DLTND.
    again = whole.image_steps / BANDS
    assert whole.image_steps <= rest.image_steps + 1e-6 <= whole.image_steps + again


@scorers
@pytest.mark.parametrize("after", [1, 4, 9])
def test_ctrl_c_keeps_the_state(method: Detector, after: int, tmp_path: Path) -> None:
    said: list[str] = []

    def pressed(done: int, total: int, words: str) -> None:
        said.append(words)
        if len(said) == min(after, BANDS):
            raise KeyboardInterrupt

    whole, store = scanned(method, Run()), tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        scanned(method, Run(pressed, store=store))
    got = scanned(method, Run(store=store))
    assert same(got, whole)
    assert got.image_steps == whole.image_steps  # nothing was under way


def test_a_class_is_painted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[int] = []
    paint = GangSweep._paint

    def counting(self, net, x, target, rng, run):  # type: ignore[no-untyped-def]
        masks = paint(self, net, x, target, rng, run)
        painted.append(target)
        return masks

    monkeypatch.setattr(GangSweep, "_paint", counting)
    steps = scanned(PAINTING, Run()).image_steps
    painted.clear()
    for point in POINTS:
        scanned(PAINTING, Run(budget=int(point * steps), store=tmp_path / "state"))
    scanned(PAINTING, Run(store=tmp_path / "state"))
    assert painted == list(range(BANDS))


# K-Arm: of its bandit nothing is kept, arms that have a trigger are warm ----------------------


def rounds_of(said: list[str]) -> int:
    return sum("done, smallest" in words for words in said)


SCANS = [
    pytest.param(
        Leaning(2), 8, both(NC, scheduler=KArm(rounds=40, each=5, success=0.9)), id="one goal"
    ),
    pytest.param(
        Pairs((4, 1)),
        16,
        both(NC, outlier=100, scheduler=KArm(rounds=150, each=5, success=0.9)),
        id="pairs",
    ),
    pytest.param(
        Pairs((0, 5), (4, 1)),
        16,
        both(NC, outlier=100, scheduler=KArm(rounds=150, each=5, success=0.9)),
        id="more pairs",
    ),
]


@pytest.mark.parametrize(("net", "each", "method"), SCANS)
def test_no_round_of_a_kept_search_is_done_again(
    net: torch.nn.Module, each: int, method: KArmScan, tmp_path: Path
) -> None:
    said: list[str] = []
    whole = scanned(method, Run(lambda *at: said.append(at[2])), subject(net), each)
    assert whole.label == "BACKDOORED"
    forward = sum(arm.rounds for arm in whole.arms)
    back = rounds_of(said) - forward
    assert (back > 0) == (whole.findings[0].rule == "BD002")
    said.clear()
    for point in POINTS:
        run = Run(lambda *at: said.append(at[2]), budget=int(point * whole.image_steps))
        run.store = tmp_path / "state"
        got = scanned(method, run, subject(net), each)
        assert [f.rule for f in got.findings][-1] == "IN003"
    run = Run(lambda *at: said.append(at[2]), store=tmp_path / "state")
    got = scanned(method, run, subject(net), each)
    assert (got.label, got.findings[0].goal) == (whole.label, whole.findings[0].goal)
    assert got.coverage == whole.coverage
    # Every round was told once: those of the goals, and as many of the way back as it was given.
    assert (
        forward
        <= rounds_of(said)
        <= sum(arm.rounds for arm in got.arms) + max(back, max(arm.rounds for arm in got.arms))
    )


def test_the_way_back_does_not_move_what_was_found(tmp_path: Path) -> None:
    """A stop in the check of the reversed pair, with the goals' search kept at its end."""
    net, method = (
        subject(Pairs((4, 1))),
        both(NC, outlier=100, scheduler=KArm(rounds=150, each=5, success=0.9)),
    )
    whole, store = scanned(method, Run(), net, 16), tmp_path / "state"
    one_way = scanned(replace(method, symmetric=False), Run(), net, 16)
    confirmation = 10 * 48 / 2 + 8
    within = int(one_way.image_steps - confirmation) + 1
    cut = scanned(method, Run(budget=within, store=store), net, 16)
    assert cut.label == "INCONCLUSIVE"
    assert "ratio" not in cut.statistics
    got = scanned(method, Run(store=store), net, 16)
    assert got.arms == cut.arms == whole.arms
    assert same(got, whole)


def test_ctrl_c_keeps_the_goals(tmp_path: Path) -> None:
    said: list[str] = []

    def pressed(done: int, total: int, words: str) -> None:
        said.append(words)
        if len(said) == 15:
            raise KeyboardInterrupt

    net, method = subject(Leaning(2)), both(NC, scheduler=KArm(rounds=40, each=5, success=0.9))
    with pytest.raises(KeyboardInterrupt):
        scanned(method, Run(pressed, store=tmp_path / "state"), net)
    run = Run(lambda *at: said.append(at[2]), store=tmp_path / "state")
    got, whole = scanned(method, run, net), scanned(method, Run(), net)
    assert sum(arm.rounds for arm in got.arms) == rounds_of(said) > 15  # each of them once
    assert (got.label, got.findings[0].goal) == (whole.label, whole.findings[0].goal)
