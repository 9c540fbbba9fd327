"""Class pairs that a corner pixel turns: all to all, some to some, one alone, and none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.detection.test_k_arm import Given, Pairs, subject
from tests.detection.test_resuming import same
from tests.report.examples import nothing_found
from tests.toys import BANDS, band_images, bands
from torch import Generator, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject, Verdict
from gifthorse.data.samples import InMemory
from gifthorse.detection import DETECTORS, UMD
from gifthorse.detection.nearest import nearest_pairs, pair_distances
from gifthorse.workflows.detect import NOT_COVERED, PAIRS, detect
from gifthorse.workflows.prepare import Prepared

NEXT = tuple((k, (k + 1) % BANDS) for k in range(BANDS))
MIXED = ((0, 3), (3, 1), (1, 0), (2, 5), (5, 4), (4, 2))
SHORT = vary(DETECTORS["umd"], {"inverter.config.rounds": 30})


def goals(pairs: tuple[tuple[int, int], ...]) -> list[Goal]:
    return [Goal(t, s) for s, t in pairs]


def given(sizes: Mapping[Goal, float]) -> UMD:
    """Every search finds the corner, at the size that it is told; 100 px where it is not."""
    return UMD(Given(sizes))


def scanned(detector: UMD, net: nn.Module, seed: int = 0, run: Run | None = None) -> Verdict:
    return detector(
        subject(net), band_images(8), Generator().manual_seed(seed), Run() if run is None else run
    )


# 1. What a search finds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [pytest.param(NEXT, id="next"), pytest.param(MIXED, id="permuted", marks=pytest.mark.slow)],
)
def test_all_to_all_is_named_with_its_map(pairs: tuple[tuple[int, int], ...]) -> None:
    """One bright pixel in the corner is all that any of the pairs needs."""
    assert isinstance(SHORT, UMD)
    got = scanned(SHORT, Pairs(*pairs))
    first, *rest = got.findings
    assert (got.label, first.rule, first.severity) == ("BACKDOORED", "BD007", "CRITICAL")
    assert first.goal is None
    assert first.evidence["size"] == 1
    for source, target in pairs:
        assert f"class {source} -> class {target}" in first.message
    assert {f.goal for f in rest if f.evidence["size"] == 1} == set(goals(pairs))
    assert first.confirmation is not None
    assert first.confirmation.asr.trials == 4 * BANDS  # unseen images of every class
    assert first.confirmation.asr.value > first.confirmation.control.value + 0.5


def test_a_pair_alone_is_named_as_one() -> None:
    longer = vary(SHORT, {"inverter.config.rounds": 50})
    assert isinstance(longer, UMD)
    got = scanned(longer, Pairs((4, 1)))
    first = got.findings[0]
    assert (got.label, first.rule, first.goal) == ("BACKDOORED", "BD002", Goal(1, 4))
    assert "class 4 -> class 1" in first.message
    assert got.score == got.statistics["pair_score"] > 1 > got.statistics["map_score"]


# 2. Verdicts on searches that are given ----------------------------------------------------------


def test_one_pair_that_was_met_is_enough_for_the_map() -> None:
    """One trigger of 6 turns every class, and all others are as large as those of no pair."""
    got = scanned(given({Goal(1, 0): 50.0}), Pairs(*NEXT))
    assert (got.label, got.findings[0].rule) == ("BACKDOORED", "BD007")
    assert got.statistics["map_score"] == 6 / 4  # all six, where four are more than half of them


def test_some_classes_with_small_triggers_are_a_core() -> None:
    """Three of six classes are turned, into two others: no more than half of them."""
    pairs = ((0, 3), (1, 4), (2, 3))
    got = scanned(given(dict.fromkeys(goals(pairs), 2.0)), Pairs(*pairs))
    assert got.statistics["map_score"] < 1 < got.statistics["core_score"]
    first = got.findings[0]
    assert (got.label, first.rule, first.goal) == ("BACKDOORED", "BD007", None)
    assert first.evidence["classes_turned"] == 3


def test_classes_with_one_target_are_named_by_it() -> None:
    pairs = tuple((s, 2) for s in range(BANDS) if s != 2)
    got = scanned(given(dict.fromkeys(goals(pairs), 2.0)), Pairs(*pairs))
    assert (got.label, got.findings[0].rule) == ("BACKDOORED", "BD001")
    assert got.findings[0].goal == Goal(2)


def test_a_core_of_large_triggers_is_none() -> None:
    got = scanned(given({}), Pairs((0, 3), (1, 4)))
    assert got.label == "NO BACKDOOR FOUND"
    assert max(got.statistics[k] for k in ("map_score", "core_score", "pair_score")) < 1


def test_a_small_trigger_that_unseen_images_resist_is_no_pair() -> None:
    got = scanned(given({Goal(1, 4): 1.0}), bands().net)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score == 0


def test_what_the_last_layer_is_near_to_is_searched_where_classes_are_many() -> None:
    finds = Given({})
    few = replace(UMD(finds), every=3, share=0.25)
    got = scanned(few, Pairs((4, 1), (0, 5)))
    ((_, searched),) = finds.seen
    assert len(searched) == 8  # a quarter of 30 pairs
    assert {Goal(1, 4), Goal(5, 0)} <= set(searched)  # clean images of the source lean there
    assert set(got.coverage) == set(searched)


def test_too_few_pairs_are_no_answer() -> None:
    data = band_images(4)
    two = InMemory(data.images[data.labels < 2], data.labels[data.labels < 2], BANDS)
    got = given({})(bands(), two, Generator(), Run())
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "IN002")
    assert "there are 2" in got.findings[0].message


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    brief = vary(DETECTORS["umd"], {"inverter.config.rounds": 2})
    assert isinstance(brief, UMD)
    whole = scanned(brief, Pairs(*NEXT))
    half = int(whole.image_steps / 2)
    cut = scanned(brief, Pairs(*NEXT), run=Run(budget=half, store=tmp_path / "state"))
    assert (cut.label, cut.coverage) == ("INCONCLUSIVE", ())
    assert same(scanned(brief, Pairs(*NEXT), run=Run(store=tmp_path / "state")), whole)


# 3. What the report says was searched ------------------------------------------------------------


@pytest.mark.parametrize(("every", "left"), [(10, NOT_COVERED[2:]), (3, NOT_COVERED[1:])])
def test_pairs_and_maps_are_covered_where_all_pairs_were_searched(
    every: int, left: tuple[str, ...]
) -> None:
    preparation = nothing_found().preparation
    assert preparation is not None
    prepared = Prepared(subject(Pairs(*NEXT)), band_images(12), preparation, ())
    detectors = {"umd": replace(given({}), every=every, share=0.25)}
    lines = detect(prepared, detectors, Generator().manual_seed(0), Run()).not_covered
    some = () if every == 10 else (f"{PAIRS}: 8 of 30 pairs were searched",)
    assert [line for line in lines if "target classes" not in line] == [*some, *left]


# 4. The distances that pairs are screened by -----------------------------------------------------


def test_pair_distances_by_hand() -> None:
    """Logits are features; an image of class k has 1 at k, and 0.5 of class 0's at class 2.

    From class 0 to 2: 0.5 / sqrt(2), to all others 1 / sqrt(2). Its row's median is that of others,
    and so is its column's, so that the pair has half of what is usual of both.
    """
    pixels = (torch.eye(4) * 254).byte()
    pixels[0, 2] = 127
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    net = Subject(nn.Sequential(nn.Flatten(), layer).eval(), (1, 1, 4), 4)
    clean = InMemory(pixels.view(4, 1, 1, 4), torch.arange(4), 4)
    far, usual = pair_distances(net, clean, Run()), 254 / 255 / 2**0.5
    assert far[0, 2].item() == pytest.approx(0.5 / usual)
    assert far[1, 3].item() == pytest.approx(1 / usual)
    assert far.diagonal().isinf().all()
    every = [Goal(t, s) for s in range(4) for t in range(4) if s != t]
    assert nearest_pairs(net, clean, every, 1, Run()) == [Goal(2, 0)]
