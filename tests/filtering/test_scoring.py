"""Judging scores: against scikit-learn, by counting, and at the edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.filtering.points import Points, reader
from torch import Generator

from gifthorse.core.errors import BadImages, BadOption, Incomplete
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.data.samples import Subset
from gifthorse.filtering.scoring import Asked, judge, pairs, refused, threshold

Scores = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(Scores, Scores)
def test_the_area_is_the_share_of_pairs_in_the_right_order(a: list[int], b: list[int]) -> None:
    clean, stamped = torch.tensor(a).float(), torch.tensor(b).float()
    found = judge(clean, stamped, clean)
    ahead = (stamped[:, None] > clean).float() + (stamped[:, None] == clean).float() / 2
    assert found.auroc == pytest.approx(float(ahead.mean()))
    assert 0 <= found.tpr_roc <= 1


@given(Scores, st.floats(0, 0.99))
def test_a_threshold_flags_no_more_calibration_images_than_allowed(
    a: list[int], fpr: float
) -> None:
    scores = torch.tensor(a).float()
    limit = threshold(scores, fpr)
    assert limit in scores
    assert float((scores > limit).float().mean()) <= fpr + 1e-9


def test_what_is_counted_is_counted_right() -> None:
    calibration = torch.arange(20.0)  # flags above 18
    clean = torch.tensor([0.0, 17.0, 18.0, 19.0])
    stamped = torch.tensor([18.0, 18.5, 20.0, 30.0, 1.0])
    found = judge(clean, stamped, calibration)
    assert found.threshold == 18
    assert (found.tpr.value, found.tpr.trials) == (0.6, 5)
    assert (found.fpr.value, found.fpr.trials) == (0.25, 4)
    assert found.precision is not None
    assert (found.precision.value, found.precision.trials) == (0.75, 4)
    assert found.accuracy.value == pytest.approx(6 / 9)
    assert found.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    # Ranks from the top: 30 s, 20 s, 19 c, 18.5 s, then a tie of 18 s and 18 c, 17 c, 1 s, 0 c.
    assert found.auprc == pytest.approx((1 + 1 + 3 / 4 + 4 / 6 + 5 / 8) / 5)
    assert found.tpr_zoo == 0.4  # above the largest clean score


def test_the_curve_is_read_between_its_points() -> None:
    """Half of the stamped lie above all clean ones, half among a tie of all clean ones."""
    clean, stamped = torch.zeros(10), torch.tensor([1.0, 0.0])
    assert judge(clean, stamped, clean, 0.05).tpr_roc == pytest.approx(0.5 + 0.05 * 0.5)
    assert judge(torch.arange(10.0), torch.tensor([20.0]), clean).tpr_roc == 1


def test_the_zoo_threshold_is_the_sixth_largest_of_a_hundred() -> None:
    clean = torch.randperm(100, generator=Generator().manual_seed(0)).float()
    stamped = torch.tensor([94.0, 94.5, 95.0])
    assert judge(clean, stamped, clean).tpr_zoo == pytest.approx(2 / 3)


def test_without_a_flag_there_is_no_precision() -> None:
    found = judge(torch.zeros(3), torch.zeros(3), torch.zeros(3))
    assert found.precision is None
    assert found.f1 is None
    assert found.tpr.value == 0
    assert found.auroc == 0.5


def test_shares_and_scores_must_be_there() -> None:
    some, none = torch.zeros(3), torch.zeros(0)
    for fpr in (-0.1, 1.0):
        with pytest.raises(BadOption, match="fpr"):
            threshold(some, fpr)
    with pytest.raises(BadImages, match="got none"):
        threshold(none)
    for clean, stamped in ((none, some), (some, none)):
        with pytest.raises(BadImages, match="both kinds"):
            judge(clean, stamped, some)


def test_good_pairs_are_right_then_hijacked_and_not_of_the_target() -> None:
    labels = torch.tensor([0, 1, 2, 3, 3])
    clean, stamped = torch.tensor([0, 1, 1, 3, 3]), torch.tensor([0, 0, 0, 0, 3])
    assert pairs(clean, stamped, labels, Goal(0)).tolist() == [False, True, False, True, False]
    assert pairs(clean, stamped, labels, Goal(0, 3)).nonzero().flatten().tolist() == [3]


def test_refused_images_are_neither_right_nor_hijacked() -> None:
    labels, flagged = torch.tensor([1, 1, 2]), torch.tensor([True, False, False])
    assert accuracy(refused(labels, flagged), labels).value == pytest.approx(2 / 3)
    hijacked = torch.zeros(3).long()
    assert asr(refused(hijacked, flagged), labels, Goal(0)).value == pytest.approx(2 / 3)


def test_every_image_asked_costs_half_and_nothing_is_left_half_done() -> None:
    points = torch.rand(9, 4, generator=Generator().manual_seed(0))
    data, run = Points(points, torch.arange(9) % 2), Run()
    found = Asked(reader(4), run).inside(data)
    assert torch.equal(found.labels, data.labels)
    assert torch.equal(found.predicted, points[:, :2].argmax(1))
    assert torch.equal(found.features, points.double())
    assert run.image_steps == 4.5
    late = Asked(reader(4), Run(budget=0))
    for call in (lambda: late.inside(data), lambda: late.logits(data[torch.arange(2)][0])):
        with pytest.raises(Incomplete, match="budget of 0"):
            call()
    with pytest.raises(BadImages, match="no image"):
        late.inside(Subset(data, torch.empty(0, dtype=torch.long)))
