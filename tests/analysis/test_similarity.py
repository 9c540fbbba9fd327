"""Invariances, closed forms and samples of one distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.analysis.similarity import BANDWIDTHS, centroids, linear_cka, mmd
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("debiased", [False, True])
def test_rotations_scales_and_shifts_do_not_count(debiased: bool) -> None:
    x = normal(30, 12, 0)
    rotation = torch.linalg.qr(normal(12, 12, 1))[0]
    for y in (x @ rotation, 3.7 * x, x + 5, torch.cat([x, x], 1)):
        assert linear_cka(x, y, debiased=debiased) == pytest.approx(1.0)


def test_independent_features_are_unlike_and_only_the_corrected_figure_says_so() -> None:
    found = [
        [linear_cka(normal(40, 200, i), normal(40, 200, 100 + i), debiased=d) for i in range(10)]
        for d in (False, True)
    ]
    assert min(found[0]) > 0.7
    assert abs(sum(found[1]) / 10) < 0.02
    assert max(map(abs, found[1])) < 0.1


def test_one_feature_each_gives_the_squared_correlation() -> None:
    x, y = normal(50, 1, 0), normal(50, 1, 0) + normal(50, 1, 1)
    r = float(torch.corrcoef(torch.cat([x, y], 1).T)[0, 1])
    assert linear_cka(x, y, debiased=False) == pytest.approx(r * r)


def test_the_corrected_figure_is_the_u_statistic_over_quadruples() -> None:
    """HSIC as the mean over ordered quadruples of images, which no correction enters."""
    x, y = normal(7, 3, 2), normal(7, 2, 3)

    def hsic(k: Tensor, m: Tensor) -> float:
        total, count = 0.0, 0
        n = range(len(k))
        for i in n:
            for j in set(n) - {i}:
                for q in set(n) - {i, j}:
                    for r in set(n) - {i, j, q}:
                        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
                        count += 1
        return total / count

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y) == pytest.approx(expected)


def test_the_squared_discrepancy_is_that_of_the_definition(rng: Generator) -> None:
    x, y = normal(4, 3, 0), normal(5, 3, 1) + 0.5
    rows = torch.cat([x, y])
    far = [[float((a - b).norm()) for b in rows] for a in rows]
    apart = sorted(far[i][j] for i in range(9) for j in range(9) if i != j)
    middle = (apart[35] + apart[36]) / 2

    def k(i: int, j: int) -> float:
        return sum(math.exp(-(far[i][j] ** 2) / (2 * (f * middle) ** 2)) for f in BANDWIDTHS) / 5

    one, other = range(4), range(4, 9)
    expected = sum(k(i, j) for i in one for j in one if i != j) / 12
    expected += sum(k(i, j) for i in other for j in other if i != j) / 20
    expected -= 2 * sum(k(i, j) for i in one for j in other) / 20
    assert mmd(x, y, rng, permutations=3).value == pytest.approx(expected)


def test_halves_of_one_class_are_alike_and_their_p_is_anything(rng: Generator) -> None:
    found = []
    for seed in range(60):
        rows = normal(40, 8, seed)
        found.append(mmd(rows[:20], rows[20:], rng, permutations=99))
    p = torch.tensor([f.p for f in found])
    assert abs(sum(f.value for f in found) / 60) < 0.01
    # uniform p: mean 0.5 +- 0.037, 6 of 60 at or below 0.1
    assert float(p.mean()) == pytest.approx(0.5, abs=0.12)
    assert 1 <= int((p <= 0.1).sum()) <= 13
    assert float(p.min()) > 0


def test_other_samples_are_told_apart(rng: Generator) -> None:
    got = mmd(normal(30, 8, 0), normal(30, 8, 1) + 1, rng, permutations=199)
    assert got.p == 1 / 200
    assert got.value > 0.1
    same = mmd(torch.ones(5, 2), torch.ones(6, 2), rng, permutations=20)
    assert same.value == pytest.approx(0.0, abs=1e-12)
    assert same.p == 1.0


def test_means_lie_where_they_were_put() -> None:
    target, clean = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    got = centroids(target, clean, torch.tensor([[2.0, 2.0]]))
    assert got["stamped to target"].cosine == pytest.approx(0.5**0.5)
    assert got["stamped to target"].distance == pytest.approx(2.0)
    assert got["clean to target"].cosine == pytest.approx(0.0)
    assert got["clean to target"].distance == pytest.approx(8**0.5)


def test_what_makes_no_sense_is_refused_or_has_no_number(rng: Generator) -> None:
    x = normal(6, 3, 0)
    assert math.isnan(linear_cka(x, torch.ones(6, 2), debiased=False))
    with pytest.raises(ShapeMismatch, match="same images"):
        linear_cka(x, x[:5])
    with pytest.raises(BadImages, match="at least 4"):
        linear_cka(x[:3], x[:3])
    with pytest.raises(BadImages, match="at least 2"):
        mmd(x, x[:1], rng)
    with pytest.raises(BadOption, match="permutations"):
        mmd(x, x, rng, permutations=0)
    with pytest.raises(ShapeMismatch, match=r"\(6, 3\), \(6, 2\)"):
        mmd(x, x[:, :2], rng)
    with pytest.raises(BadImages, match="every group"):
        centroids(x[:0], x, x)
