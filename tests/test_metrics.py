"""Figures of merit against naive counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from gifthorse.metrics import (
    accuracy,
    asr,
    asr_all,
    asr_net,
    auc_asr_over_cad,
    auc_cad_over_asr,
    clean_drop,
    confidence,
    leak,
    mask_jaccard,
    mean_rate,
    rate,
    target_confidence,
)
from gifthorse.tensors import wilson
from gifthorse.types import Goal, Rate

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(pairs, st.integers(0, 3), st.none() | st.integers(0, 3))
def test_asr_counts_images_that_were_not_there_before(
    rows: list[tuple[int, int]], target: int, source: int | None
) -> None:
    predicted, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    wanted = [p for p, y in rows if (y == source if source is not None else y != target)]
    hits = sum(p == target for p in wanted)
    share = hits / len(wanted) if wanted else 0.0
    assert asr(predicted, labels, Goal(target, source)) == Rate(
        share, *wilson(hits, len(wanted)), len(wanted)
    )


@given(pairs)
def test_accuracy_counts_equal_ones(rows: list[tuple[int, int]]) -> None:
    predicted, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    got = accuracy(predicted, labels)
    assert got.value == sum(p == y for p, y in rows) / len(rows)
    assert got.low <= got.value <= got.high
    assert got.trials == len(rows)


def test_asr_all_leaves_target_images_in() -> None:
    predicted, labels = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 2, 3])
    assert asr_all(predicted, Goal(0)).value == 0.75
    assert asr(predicted, labels, Goal(0)).value == pytest.approx(2 / 3)


def test_nothing_tried_is_a_rate_of_zero_that_claims_nothing() -> None:
    assert rate(torch.zeros(0, dtype=torch.bool)) == Rate(0.0, 0.0, 1.0, 0)


@pytest.mark.parametrize("inside", range(10))
def test_jaccard_of_nine_pixels_lies_on_the_grid_of_nine(inside: int) -> None:
    true = torch.zeros(8, 8)
    true[:3, :3] = 1
    order = torch.cat([true.flatten().nonzero().flatten(), (true.flatten() == 0).nonzero()[:, 0]])
    recovered = torch.zeros(64)
    recovered[order[9 - inside : 18 - inside]] = torch.linspace(0.9, 0.5, 9)
    assert mask_jaccard(recovered.view(8, 8), true) == pytest.approx(inside / (18 - inside))


def test_jaccard_reads_the_truth_as_on_or_off() -> None:
    true = torch.zeros(4, 4)
    true[0, :2] = 0.3  # a transparent trigger
    assert mask_jaccard(true * 2, true) == 1.0


triples = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
)


@given(triples, st.integers(0, 3), st.none() | st.integers(0, 3))
def test_net_success_and_leaks_count_disjoint_images(
    rows: list[tuple[int, int, int]], target: int, source: int | None
) -> None:
    stamped, clean, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    goal = Goal(target, source)
    meant = [y == source if source is not None else y != target for _, _, y in rows]
    net = [s == target for (s, c, _), m in zip(rows, meant, strict=True) if m and c != target]
    spilled = [
        s == target for (s, _, y), m in zip(rows, meant, strict=True) if not m and y != target
    ]
    assert asr_net(stamped, clean, labels, goal) == rate(torch.tensor(net, dtype=torch.bool))
    assert leak(stamped, labels, goal) == rate(torch.tensor(spilled, dtype=torch.bool))


def test_the_mean_of_numbers_has_scipys_t_interval(rng: Generator) -> None:
    values = torch.rand(9, generator=rng)
    got, array = mean_rate(values), values.double().numpy()
    low, high = stats.t.interval(0.95, 8, array.mean(), stats.sem(array))
    assert (got.value, got.low, got.high) == pytest.approx((array.mean(), low, high))
    assert got.trials == 9


def test_a_mean_of_few_numbers_claims_nothing_and_stays_in_bounds() -> None:
    assert mean_rate(torch.zeros(0)) == Rate(0.0, 0.0, 1.0, 0)
    assert mean_rate(torch.tensor([0.25])) == Rate(0.25, 0.0, 1.0, 1)
    assert mean_rate(torch.tensor([0.0, 1.0])) == Rate(0.5, 0.0, 1.0, 2)
    assert mean_rate(torch.full((5,), 0.25)) == Rate(0.25, 0.25, 0.25, 5)


def test_an_oracle_that_says_the_target_of_everything() -> None:
    """F of the specification: success and confidence 1, the drop is accuracy less 1 / K."""
    labels = torch.arange(4).repeat(5)
    logits = torch.full((20, 4), -200.0)
    logits[:, 2] = 200
    predicted, goal = logits.argmax(1), Goal(2)
    assert asr(predicted, labels, goal).value == asr_net(predicted, labels, labels, goal).value == 1
    assert target_confidence(logits, labels, goal) == Rate(1.0, 1.0, 1.0, 15)
    assert clean_drop(labels, predicted, labels).value == 1 - 1 / 4
    assert confidence(logits, labels).value == 1 / 4


def test_target_confidence_is_over_successes_alone() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.9, 0.05, 0.05]])
    labels = torch.tensor([1, 2, 2, 0])  # the third fails, the fourth is of the target class
    got = target_confidence(p.log(), labels, Goal(0))
    assert got is not None
    assert got.value == pytest.approx(0.7)
    assert got.trials == 2
    only = target_confidence(p.log(), labels, Goal(0, 2))
    assert only is not None
    assert only.value == pytest.approx(0.8)
    assert only.trials == 1
    assert target_confidence(p.log(), labels, Goal(2)) is None
    assert target_confidence(p[:0], labels[:0], Goal(0)) is None


def test_confidence_is_the_probability_of_the_true_class_right_or_wrong() -> None:
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
    assert confidence(p.log(), torch.tensor([0, 1])).value == pytest.approx(0.4)


def answers(both: int, before: int, after: int, neither: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions before and after with so many right ones each, and labels."""
    first = torch.tensor([1] * (both + before) + [0] * (after + neither))
    second = torch.tensor([1] * both + [0] * before + [1] * after + [0] * neither)
    return first, second, torch.ones_like(first)


def test_a_drop_has_newcombes_interval() -> None:
    """Cavo et al. (2012), the worked example of Fagerland, Lydersen and Laake's book, chapter 8."""
    got = clean_drop(*answers(59, 6, 16, 80))
    assert (got.low, got.value, got.high) == pytest.approx((-0.1186, -0.0621, -0.0046), abs=5e-5)
    assert got.trials == 161


counts = st.integers(0, 60)


@given(counts, counts, counts, counts)
def test_a_drop_is_the_difference_of_accuracies_and_turns_with_them(
    both: int, before: int, after: int, neither: int
) -> None:
    first, second, labels = answers(both, before, after, neither)
    got, back = clean_drop(first, second, labels), clean_drop(second, first, labels)
    assert -1 <= got.low <= got.value <= got.high <= 1
    assert (back.low, back.high) == pytest.approx((-got.high, -got.low))
    if len(labels):
        gap = accuracy(first, labels).value - accuracy(second, labels).value
        assert got.value == pytest.approx(gap)
    else:
        assert (got.low, got.high) == (-1, 1)


def test_a_drop_on_the_same_images_is_known_better_than_on_others() -> None:
    """Two nets that fail on nearly the same images, against the same number of failures apart."""
    close, apart = (clean_drop(*answers(*table)) for table in ((80, 5, 2, 13), (70, 15, 12, 3)))
    assert close.value == apart.value
    assert close.high - close.low < 0.7 * (apart.high - apart.low)


def test_the_area_of_known_curves() -> None:
    """Axes are stretched first, so scale and order of the points do not matter."""
    diagonal = [(0.5 + i / 20, i / 500) for i in range(11)]
    assert auc_cad_over_asr(diagonal[::-1]) == pytest.approx(0.5)
    for place in (0.1, 0.75):  # nothing is lost up to here, everything from here on
        step = [(0.0, 0.0), (place, 0.0), (place + 1e-9, 0.02), (1.0, 0.02)]
        assert auc_cad_over_asr(step) == pytest.approx(1 - place)
        assert auc_asr_over_cad(step) == pytest.approx(place)
    parabola = [(x / 200, (x / 200) ** 2 * 0.03) for x in range(201)]
    assert auc_cad_over_asr(parabola) == pytest.approx(1 / 3, abs=1e-4)


def test_a_curve_that_falls_is_made_level_first() -> None:
    """Fitted, the two middle points both lie at their mean; the area is made of three thirds."""
    points = [(0.0, 0.0), (1 / 3, 0.02), (2 / 3, 0.01), (1.0, 0.03)]
    assert auc_cad_over_asr(points) == pytest.approx((0.25 + 0.5 + 0.75) / 3)


def test_points_that_lose_too_much_do_not_count() -> None:
    points = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.95 - 0.92)]  # in binary a little above 0.03
    assert auc_cad_over_asr([*points, (2.0, 0.031)]) == auc_cad_over_asr(points)
    assert auc_cad_over_asr(points) == pytest.approx(0.25)
    assert auc_cad_over_asr(points, 0.01) == 0.0  # nothing is lost at all


def test_there_is_no_area_without_two_degrees_of_success() -> None:
    assert auc_cad_over_asr([]) is None
    assert auc_cad_over_asr([(0.9, 0.01), (0.9, 0.02)]) is None
    assert auc_asr_over_cad([(0.1, 0.01), (0.9, 0.5)]) is None
