"""Figures of merit against naive counting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gifthorse.metrics import accuracy, asr, asr_all, mask_jaccard, rate
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
