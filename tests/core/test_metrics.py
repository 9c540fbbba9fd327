"""Figures of merit against naive counting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import (
    Columns,
    accuracy,
    asr,
    asr_all,
    asr_drop,
    asr_net,
    auc_asr_over_cad,
    auc_cad_over_asr,
    change,
    changed_size,
    clean_drop,
    collapsed,
    column,
    columns,
    confidence,
    confidence_change,
    confidence_correct,
    decisions,
    der,
    leak,
    mask_jaccard,
    mask_overlap,
    mask_size,
    mean_rate,
    model_auc,
    rate,
    rir,
    robust_accuracy,
    target_confidence,
)
from gifthorse.core.stats import wilson
from gifthorse.core.types import Goal, Rate
from gifthorse.filtering.scoring import refused

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


def test_images_of_all_goals_of_a_trigger_count_each_for_its_own() -> None:
    """Of class 0 two of three come out as 1, of class 1 one of two as 2; class 2 is no source."""
    labels, said = torch.tensor([[0, 0, 0, 1, 1, 2], [1, 1, 2, 2, 1, 1]])
    got = asr(said, labels, Goal(1, 0), Goal(2, 1))
    assert (got.value, got.trials) == (3 / 5, 5)


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


# Before and after --------------------------------------------------------------------------------


def test_robust_accuracy_counts_stamped_images_that_keep_their_class() -> None:
    predicted, labels = torch.tensor([0, 1, 0, 2, 3]), torch.tensor([0, 1, 1, 2, 2])
    assert robust_accuracy(predicted, labels, Goal(0)) == rate(torch.tensor([1, 0, 1, 0]) > 0)
    assert robust_accuracy(predicted, labels, Goal(0, 2)).value == 0.5
    assert robust_accuracy(predicted, labels, Goal(0)).trials == 4


@given(triples, st.integers(0, 3), st.none() | st.integers(0, 3))
def test_the_drop_in_success_is_that_of_two_rates_and_nothing_for_the_same_net(
    rows: list[tuple[int, int, int]], target: int, source: int | None
) -> None:
    before, after, labels = (torch.tensor(column) for column in zip(*rows, strict=True))
    goal = Goal(target, source)
    got, rates = (
        asr_drop(before, after, labels, goal),
        [asr(v, labels, goal) for v in (before, after)],
    )
    assert got.trials == rates[0].trials
    assert got.value == pytest.approx(rates[0].value - rates[1].value)
    assert got.low <= got.value <= got.high
    assert asr_drop(before, before, labels, goal).value == 0.0


def test_the_drop_in_success_has_newcombes_interval() -> None:
    first, second, labels = answers(59, 6, 16, 80)
    got = asr_drop(first, second, torch.zeros_like(labels), Goal(1))
    assert got == clean_drop(first, second, labels)
    assert (got.low, got.high) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def test_the_change_of_confidence_has_the_t_interval_of_pairs(rng: Generator) -> None:
    before, after = torch.randn(2, 9, 3, generator=rng)
    labels = torch.arange(9) % 3
    got = confidence_change(before, after, labels)
    p, q = (v.softmax(1)[torch.arange(9), labels].double() for v in (before, after))
    low, high = stats.ttest_rel(q.numpy(), p.numpy()).confidence_interval(0.95)
    assert (got.low, got.value, got.high) == pytest.approx((low, float((q - p).mean()), high))
    assert confidence_change(before, before, labels) == Rate(0.0, 0.0, 0.0, 9)
    assert confidence_change(before[:1], after[:1], labels[:1]).low == -1


def test_confidence_in_right_answers_leaves_wrong_ones_out() -> None:
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    got = confidence_correct(p.log(), torch.tensor([0, 1, 1]))
    assert got is not None
    assert got.value == pytest.approx(0.65)
    assert got.trials == 2
    assert confidence_correct(p.log(), torch.tensor([1, 1, 0])) is None


def known(value: float, trials: int = 10) -> Rate:
    return Rate(value, 0.0, 1.0, trials)


def test_ratings_by_hand() -> None:
    own = (known(0.9), known(0.7))
    assert der((known(1.0), known(0.1)), own) == pytest.approx((0.9 - 0.2 + 1) / 2)
    assert rir((known(0.1), known(0.8)), own) == pytest.approx((0.7 - 0.2 + 1) / 2)
    # What goes the other way counts as nothing: worse success, better accuracy.
    assert der((known(0.5), known(0.8)), (known(0.5), known(0.6))) == 0.5
    assert rir((known(0.5), known(0.2)), (known(0.5), known(0.6))) == 0.5
    assert der((known(0.0, 0), known(0.0)), own) is None
    assert rir((known(0.0), known(0.0)), (own[0], known(0.0, 0))) is None


shares = st.floats(0, 1)


@given(shares, shares, shares, shares)
def test_ratings_stay_between_0_and_1(a: float, b: float, c: float, d: float) -> None:
    own = (known(c), known(d))
    for got in (der((known(a), known(b)), own), rir((known(a), known(b)), own)):
        assert got is not None
        assert 0 <= got <= 1
    assert der((known(a), known(a)), (known(c), known(c))) == 0.5


def test_a_net_has_collapsed_below_half_of_what_it_knew() -> None:
    assert collapsed(known(0.9), known(0.44))
    assert not collapsed(known(0.9), known(0.45))


def test_a_change_needs_both_ends() -> None:
    assert change(known(0.25), known(0.75)) == 0.5
    for ends in ((None, known(0.5)), (known(0.5), None), (known(0.0, 0), known(0.5))):
        assert change(*ends) is None


# Triggers ----------------------------------------------------------------------------------------


def test_overlap_in_three_readings() -> None:
    """Three true pixels; the recovered mask has two of them on top, and one elsewhere."""
    true, recovered = torch.zeros(3, 4), torch.zeros(3, 4)
    true[0, :3] = 0.2
    recovered[0, 0], recovered[0, 1], recovered[2, 0], recovered[0, 2] = 0.9, 0.8, 0.46, 0.4
    assert mask_overlap(recovered, true) == 2 / 4
    assert mask_overlap(recovered, true, "zoo") == 2 / 3
    assert mask_overlap(recovered, true, "half") == 2 / 4
    assert mask_overlap(recovered.clamp(max=0.8), true, "half") == 2 / 4  # 0.46 is above 0.4
    assert mask_overlap(true, true) == mask_overlap(true, true, "half") == 1
    assert mask_overlap(recovered, true) == mask_jaccard(recovered, true)


@pytest.mark.parametrize("inside", range(9))
def test_the_published_overlaps_are_of_eight_pixels_beside_nine(inside: int) -> None:
    true, recovered = torch.zeros(6, 6), torch.zeros(6, 6)
    true[:3, :3] = 1
    rows = torch.cat(
        [true.flatten().nonzero()[:inside], (true.flatten() == 0).nonzero()[: 9 - inside]]
    )
    recovered.view(-1)[rows[:8].flatten()] = 1.0
    hits = min(inside, 8)
    assert mask_overlap(recovered, true, "zoo") == pytest.approx(hits / (17 - hits))


def test_what_is_not_there_has_no_overlap() -> None:
    none, some = torch.zeros(2, 2), torch.ones(2, 2)
    assert mask_overlap(some, none) is None
    assert mask_overlap(none, none, "half") is None
    assert mask_overlap(none, some, "half") == 0
    assert math.isnan(mask_jaccard(some, none))
    one = torch.zeros(2, 2)
    one[0, 0] = 1
    assert mask_overlap(one, one, "zoo") == 0  # the top 0 of 1


def test_equal_entries_are_taken_in_their_order() -> None:
    true, recovered = torch.zeros(1, 6), torch.ones(1, 6)
    true[0, :2] = 1
    assert mask_overlap(recovered, true) == 1
    assert mask_overlap(recovered, true.flip(1)) == 0


def test_the_size_of_a_mask_is_its_sum_and_a_change_counts_from_one_level_of_eight_bits_on() -> (
    None
):
    mask = torch.zeros(1, 8, 8)
    mask[:, :3, :3] = 1
    assert mask_size(mask) == 9
    assert mask_size(mask * 0.5) == 4.5
    before = torch.full((2, 3, 4, 4), 0.5)
    after = before.clone()
    after[0, 1, 0, 0], after[0, 2, 0, 0], after[0, 0, 1, 1] = 0.75, 0.4, 0.5 + 1 / 255
    pixels, size = changed_size(before, after)
    assert pixels == 0.5  # one pixel of one image of two
    assert size == pytest.approx((0.25 + 1 / 255) / 2)


# Many models -------------------------------------------------------------------------------------


def test_columns_count_models_by_hand() -> None:
    flagged = [set(), {3}, {3, 4}, {4}, {3}, {1, 2, 4}]
    assert columns(flagged, [3] * 6) == Columns(1, 5, correct=2, correct_set=1, wrong=2)
    assert columns(flagged) == Columns(1, 5)
    assert columns([], []) == Columns(0, 0, 0, 0, 0)
    assert [column(f, None) for f in flagged[:2]] == ["clean", "backdoored"]


flags = st.lists(st.tuples(st.sets(st.integers(0, 3)), st.integers(0, 3)), max_size=20)


@given(flags)
def test_the_columns_of_backdoored_models_add_up(rows: list[tuple[set[int], int]]) -> None:
    got = columns([f for f, _ in rows], [t for _, t in rows])
    assert got.clean + got.backdoored == len(rows)
    assert got.correct is not None
    assert got.correct + (got.correct_set or 0) + (got.wrong or 0) == got.backdoored


def test_columns_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(BadOption, match="correct"):
        Columns(0, 3, 1, 1, 0)
    with pytest.raises(BadOption, match="correct"):
        Columns(0, 1, 1)
    with pytest.raises(BadOption, match="targets"):
        columns([{1}], [1, 2])


scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


@given(scores, scores)
def test_the_area_over_models_is_scikit_learns_and_turns_with_the_labels(
    clean: list[float], backdoored: list[float]
) -> None:
    from sklearn.metrics import roc_auc_score

    given = torch.tensor(clean), torch.tensor(backdoored)
    got = model_auc(*given, Generator().manual_seed(0), draws=200)
    back = model_auc(given[1], given[0], Generator().manual_seed(0), draws=200)
    assert got is not None
    assert back is not None
    truth = [0] * len(clean) + [1] * len(backdoored)
    assert got.value == pytest.approx(roc_auc_score(truth, [*clean, *backdoored]))
    assert got.value + back.value == pytest.approx(1)
    assert 0 <= got.low <= got.high <= 1
    assert got.trials == len(truth)


def test_the_bootstrap_covers_what_theory_says(rng: Generator) -> None:
    """Normal scores one deviation apart: Hanley and McNeil's error of the area, 20 beside 20."""
    clean, backdoored = torch.randn(20, generator=rng), torch.randn(20, generator=rng) + 1
    got = model_auc(clean, backdoored, rng)
    assert got is not None
    a = got.value
    q, r = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 19 * (q - a * a) + 19 * (r - a * a)) / 400)
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    again = model_auc(clean, backdoored, Generator().manual_seed(4))
    assert again == model_auc(clean, backdoored, Generator().manual_seed(4))


def test_the_area_of_models_that_do_not_overlap_and_of_none() -> None:
    low, high = torch.tensor([0.0, 1.0]), torch.tensor([2.0, math.inf])
    rng = Generator().manual_seed(0)
    assert model_auc(low, high, rng) == Rate(1.0, 1.0, 1.0, 4)
    assert model_auc(high[1:], high[1:], rng) == Rate(0.5, 0.5, 0.5, 2)  # both infinite
    assert model_auc(low[:0], high, rng) is None
    assert model_auc(low, high[:0], rng) is None


def test_decisions_at_a_threshold() -> None:
    got = decisions(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 3.0]), 2.0)
    assert {k: v.value for k, v in got.items()} == {"accuracy": 0.8, "tpr": 1, "fpr": 1 / 3}
    assert [v.trials for v in got.values()] == [5, 2, 3]


# A net and its filter ----------------------------------------------------------------------------


def test_rejected_images_are_neither_right_nor_hijacked() -> None:
    """ACC_sys and ASR_sys of the specification, with `filtering.scoring.refused`."""
    predicted, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 1])
    flagged = torch.tensor([False, True, False, False])
    assert accuracy(refused(predicted, flagged), labels).value == 0.5
    hit = torch.tensor([2, 2, 2, 1])
    assert asr(refused(hit, flagged), labels, Goal(2)).value == pytest.approx(1 / 3)
    assert asr(refused(hit, torch.ones(4) > 0), labels, Goal(2)).value == 0
    assert asr(refused(hit, torch.zeros(4) > 0), labels, Goal(2)) == asr(hit, labels, Goal(2))
