"""Activation clustering against scikit-learn called directly, and on clouds of known kinds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import silhouette_score
from tests.filtering.points import Points, cloud, reader, seeded

from gifthorse.core.errors import Incomplete
from gifthorse.core.run import Run
from gifthorse.filtering import ActivationClustering

D = 20


def poisoned(n: int = 90, bad: int = 10, shift: float = 10.0) -> tuple[Points, torch.Tensor]:
    """Two classes; some of class 0 lie `shift` deviations away along the third coordinate."""
    away = torch.zeros(D)
    away[2] = shift
    points = torch.cat([cloud(n, D, 0, 1), cloud(bad, D, 0, 2, away), cloud(n + bad, D, 1, 3)])
    labels = torch.arange(2).repeat_interleave(n + bad)
    order = torch.randperm(2 * (n + bad), generator=seeded())
    truth = (torch.arange(2 * (n + bad)) >= n) & (labels == 0)
    return Points(points, labels).permuted(order), truth[order]


@pytest.mark.parametrize(("reducer", "dims"), [("pca", 5), ("ica", 2)])
def test_the_score_is_that_of_scikit_learn_called_directly(reducer: Any, dims: int) -> None:
    data, _ = poisoned(bad=25)  # whitened heaps are less far apart: they must not be small
    method = ActivationClustering("dataset", dims=dims, reducer=reducer)
    scores = method(reader(D), data, data, seeded(), Run())
    rows = data.points[data.labels == 0].double().numpy()
    ica = FastICA(dims, whiten="unit-variance", random_state=3)
    with warnings.catch_warnings():  # its last rotation need not converge, and does not matter
        warnings.simplefilter("ignore", ConvergenceWarning)
        low = PCA(dims).fit_transform(rows) if reducer == "pca" else ica.fit_transform(rows)
    means = KMeans(2, n_init=10, random_state=7).fit(low)
    s = int(np.bincount(means.labels_).argmin())
    own, other = (np.linalg.norm(low - means.cluster_centers_[j], axis=1) for j in (s, 1 - s))
    assert silhouette_score(low, means.labels_) > 0.1
    wanted = (other - own) / (other + own) + 1
    assert np.allclose(scores[data.labels == 0].numpy(), wanted, atol=1e-5)


def test_two_heaps_ten_deviations_apart_are_told_apart_exactly() -> None:
    data, truth = poisoned()
    scores = ActivationClustering("dataset")(reader(D), data, data, seeded(), Run())
    assert torch.equal(scores > 1, truth)
    assert (scores[data.labels == 1] == 0).all()


def test_online_the_cluster_with_few_clean_images_is_the_bad_one_however_large() -> None:
    """Half of the suspects are stamped, and of those that come out as the target most are."""
    away = torch.zeros(D)
    away[2] = 10
    clean = Points(torch.cat([cloud(40, D, 0, 5), cloud(40, D, 1, 6)]), torch.zeros(80).long())
    points = torch.cat([cloud(60, D, 0, 1, away), cloud(20, D, 0, 2), cloud(40, D, 1, 3)])
    scores = ActivationClustering()(
        reader(D), clean, Points(points, torch.ones(120).long()), seeded(), Run()
    )
    assert torch.equal(scores > 1, torch.arange(120) < 60)
    assert (scores[80:] == 0).all()


def test_a_clean_class_is_never_flagged_but_by_size_alone() -> None:
    data, _ = poisoned(bad=0)
    for rule in ("silhouette", "distance"):
        method = ActivationClustering("dataset", rule=rule)
        assert (method(reader(D), data, data, seeded(), Run()) == 0).all()
    scores = ActivationClustering("dataset", rule="size")(reader(D), data, data, seeded(), Run())
    for c in range(2):
        share = float((scores[data.labels == c] > 1).float().mean())
        assert 0 < share <= 0.5


def test_each_bound_of_the_rules_counts() -> None:
    data, truth = poisoned()
    for options, flags in (
        ({"rule": "relative_size"}, True),
        ({"rule": "relative_size", "share": 0.05}, False),
        ({"rule": "silhouette", "silhouette": 0.99}, False),
        ({"rule": "silhouette", "share": 0.05}, False),
    ):
        method = ActivationClustering("dataset", **options)
        scores = method(reader(D), data, data, seeded(), Run())
        assert bool((scores[truth] > 1).all()) == flags
        assert bool((scores[truth] == 0).all()) != flags


def test_distance_finds_images_that_lie_with_another_class() -> None:
    """Mislabeled images: their features are those of class 1."""
    points = torch.cat([cloud(50, D, 0, 1), cloud(15, D, 1, 2), cloud(60, D, 1, 3)])
    labels = (torch.arange(125) >= 65).long()
    data = Points(points, labels)
    scores = ActivationClustering("dataset", rule="distance")(
        reader(D), data, data, seeded(), Run()
    )
    assert torch.equal(scores > 1, (torch.arange(125) >= 50) & (torch.arange(125) < 65))


def test_small_classes_and_equal_images_are_not_judged() -> None:
    data, _ = poisoned()
    with pytest.raises(Incomplete, match="nothing was judged: clusters take 102 images"):
        ActivationClustering("dataset", dims=51)(reader(D), data, data, seeded(), Run())
    same = Points(cloud(1, D, 0, 1).expand(40, D), torch.zeros(40).long())
    for mode in ("dataset", "online"):
        assert (ActivationClustering(mode)(reader(D), same, same, seeded(), Run()) == 0).all()


def test_the_order_of_the_images_does_not_matter() -> None:
    data, _ = poisoned(shift=4.0)  # heaps that touch
    order = torch.randperm(len(data), generator=seeded(9))
    method = ActivationClustering("dataset", rule="relative_size", share=0.6)
    scores = method(reader(D), data, data, seeded(), Run())
    assert scores.max() > 1
    assert torch.allclose(
        method(reader(D), data, data.permuted(order), seeded(), Run()), scores[order], atol=1e-5
    )


def test_a_silhouette_of_some_points_tells_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the spaced points miss the smaller heap."""
    monkeypatch.setattr("gifthorse.filtering.activation_clustering.SAMPLE", 20)
    for bad in (20, 1):
        data, truth = poisoned(bad=bad, shift=40.0)
        scores = ActivationClustering("dataset")(reader(D), data, data, seeded(), Run())
        assert torch.equal(scores > 1, truth)
