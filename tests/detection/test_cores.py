"""The statistic of class pairs against values worked out by hand, whatever the pairs' order."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch
from gifthorse.detection.cores import bound_of_many, closeness, closest_core, links, prominence

# Pairs 0 > 1, 1 > 2, 2 > 0, which share a trigger, and the other three ways.
SOURCES = torch.tensor([0, 1, 2, 0, 1, 2])
PLANTED = [0, 1, 2]


def transfer(weak: float = 0.0) -> Tensor:
    """Triggers of planted pairs turn each other's images; the last one finds but its own way."""
    made = torch.eye(6)
    made[:3, :3] = 1.0
    made[2, :2] = weak
    made[3, 2] = 0.4  # and one by nature
    return made


def test_a_link_is_the_mean_of_both_ways_and_none_within_a_source() -> None:
    linked = links(transfer(), SOURCES)
    assert torch.equal(linked, linked.T)
    assert linked[0, 1] == 1.0
    assert linked[0, 2] == 0.5
    assert linked[3, 2] == pytest.approx(0.2)
    assert linked[0, 3] == linked[0, 0] == 0  # the same source


def test_closeness_by_hand() -> None:
    """Members 0, 1 and 2: mean links 0.75, 0.75 and 0.5; pair 3 is linked by 0.2 / 3."""
    assert closeness(links(transfer(), SOURCES), PLANTED) == pytest.approx(0.5 - 0.2 / 3)
    # Of two alone the third is outside, at a mean link of (0.5 + 0.5) / 2.
    assert closeness(links(transfer(), SOURCES), [0, 1]) == pytest.approx(1.0 - 0.5)


@pytest.mark.parametrize(("weak", "core"), [(0.0, [0, 1]), (0.5, PLANTED), (1.0, PLANTED)])
def test_the_closest_core_has_the_pairs_that_share_a_trigger(weak: float, core: list[int]) -> None:
    """With `weak` = w: all three have (1 + w) / 2 - 0.2 / 3, two of them (1 - w) / 2."""
    linked = links(transfer(weak), SOURCES)
    assert closest_core(linked, SOURCES, starts=5, least=2) == core


def test_a_core_leaves_pairs_to_compare_with() -> None:
    linked = links(transfer(1.0), SOURCES)
    assert len(closest_core(linked, SOURCES, starts=5, least=4)) == 2


def test_pairs_of_one_source_have_no_core() -> None:
    alike = torch.zeros(6, dtype=torch.int64)
    assert closest_core(links(torch.ones(6, 6), alike), alike, starts=5, least=2) == []


def test_the_order_of_pairs_changes_nothing(rng: Generator) -> None:
    made = torch.rand(12, 12, generator=rng)
    sources, sizes = torch.arange(12) % 4, torch.rand(12, generator=rng) * 30 + 1
    core = closest_core(links(made, sources), sources, starts=5, least=3)
    order = torch.randperm(12, generator=rng)
    moved = closest_core(
        links(made[order][:, order], sources[order]), sources[order], starts=5, least=3
    )
    assert sorted(order[moved].tolist()) == core
    assert prominence(sizes[order], moved) == pytest.approx(prominence(sizes, core))


def test_prominence_by_hand() -> None:
    """Inverse sizes 0.5 and 1 against 0.1, 0.2, 0.3, 0.4, 0.5: median 0.3, MAD 0.1."""
    sizes = torch.tensor([1.0, 2.0, 10.0, 5.0, 1 / 0.3, 2.5, 2.0])
    assert prominence(sizes, [0, 1]) == pytest.approx((0.5 - 0.3) / (1.4826 * 0.1))


def test_equal_sizes_outside_have_a_deviation_of_a_twentieth() -> None:
    sizes = torch.tensor([5.0, 10.0, 10.0, 10.0])
    assert prominence(sizes, [0]) == pytest.approx((0.2 - 0.1) / (0.05 * 0.1))


@pytest.mark.parametrize("count", [1, 6, 90, 1806])
def test_the_bound_is_the_quantile_of_the_largest_of_many(count: int) -> None:
    bound = bound_of_many(count)
    assert norm.cdf(bound) ** count == pytest.approx(0.95)
    assert bound == pytest.approx(norm.ppf(0.95 ** (1 / count)))


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(N, N\) for 6 pairs"):
        links(torch.eye(5), SOURCES)


def test_the_largest_of_clean_sizes_seldom_passes(rng: Generator) -> None:
    """Of 400 draws of 90 normal values, as the bound has it about 20 have one above."""
    drawn = torch.randn(400, 90, generator=rng).amax(1)
    assert math.isclose(float((drawn > bound_of_many(90)).float().mean()), 0.05, abs_tol=0.03)
