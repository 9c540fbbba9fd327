"""Clouds whose places and overlaps are known."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.analysis.projection import feature_view, linear_probe, project, silhouette
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch


def cloud(n: int, seed: int, at: float = 0.0, d: int = 6) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + at


def test_principal_components_are_those_of_the_decomposition(rng: Generator) -> None:
    rows = cloud(40, 0) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    centered = rows.double() - rows.double().mean(0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    expected = u[:, :2] * s[:2]
    got = project(rows, rng, method="pca")
    torch.testing.assert_close(got.abs(), expected.abs(), atol=1e-8, rtol=0)  # signs are free


def test_neighbors_stay_neighbors(rng: Generator) -> None:
    """Two clouds far apart: the nearest neighbor of each point is of its own."""
    rows = torch.cat([cloud(30, 0), cloud(30, 1, at=20.0)])
    got = project(rows, rng)
    far = torch.cdist(got, got).fill_diagonal_(float("inf"))
    side = torch.arange(60) < 30
    assert side.equal(side[far.argmin(1)])
    again = project(rows, torch.Generator().manual_seed(0))
    assert got.equal(again)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_few_equal_or_narrow_features_are_placed_all_the_same(rng: Generator, method: str) -> None:
    for rows in (cloud(4, 0), torch.ones(5, 3), cloud(5, 1, d=1)):
        got = project(rows, rng, method=method)  # type: ignore[arg-type]
        assert got.shape == (len(rows), 2)
        assert bool(got.isfinite().all())


def test_the_silhouette_is_that_of_the_definition(rng: Generator) -> None:
    one, other = torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [11.0]])
    # by hand: a = (2, 2, 1, 1), b = (10.5, 8.5, 9, 10)
    expected = (8.5 / 10.5 + 6.5 / 8.5 + 8 / 9 + 9 / 10) / 4
    assert silhouette(one, other) == pytest.approx(expected)
    assert abs(silhouette(cloud(60, 2), cloud(60, 3)) or 9) < 0.05
    assert silhouette(one, other[:1]) is None


def test_the_probe_tells_what_can_be_told(rng: Generator) -> None:
    apart = linear_probe(cloud(30, 0), cloud(30, 1, at=4.0), rng)
    mixed = linear_probe(cloud(200, 2), cloud(200, 3), rng)
    assert apart is not None
    assert mixed is not None
    assert apart.auroc == 1.0
    assert apart.folds == mixed.folds == 5
    assert abs(mixed.auroc - 0.5) < 0.1
    shifted = linear_probe(cloud(400, 4), cloud(400, 5, at=0.4), rng)
    assert shifted is not None
    # two normal clouds: AUROC = Phi(distance / sqrt(2)), here of 0.4 * sqrt(6)
    ideal = float(torch.special.ndtr(torch.tensor(0.4 * 6**0.5 / 2**0.5)))
    assert shifted.auroc == pytest.approx(ideal, abs=0.04)
    few = linear_probe(cloud(2, 6), cloud(30, 7, at=5.0), rng)
    assert few is not None
    assert few.folds == 2
    assert linear_probe(cloud(1, 6), cloud(30, 7), rng) is None


def test_a_view_keeps_its_groups_and_gives_figures_on_two_of_them(rng: Generator) -> None:
    target, others, stamped = cloud(6, 0), cloud(9, 1), cloud(7, 2, at=9.0)
    view = feature_view(target, others, stamped, rng, method="pca")
    assert view.groups.bincount().tolist() == [6, 9, 7]
    assert view.points.shape == (22, 2)
    assert view.silhouette == silhouette(target, stamped)
    assert view.probe is not None
    assert view.probe.auroc == 1.0
    none = feature_view(target[:0], others, stamped, rng, method="pca")
    assert none.silhouette is None
    assert none.probe is None


def test_what_makes_no_sense_is_refused(rng: Generator) -> None:
    with pytest.raises(BadImages, match="at least 3"):
        project(cloud(2, 0), rng)
    with pytest.raises(BadOption, match="at most 2000"):
        project(torch.randn(2001, 2), rng)
    with pytest.raises(BadOption, match="method must be one of"):
        project(cloud(5, 0), rng, method="umap")  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatch, match="two groups"):
        silhouette(cloud(3, 0), cloud(3, 0, d=2))
