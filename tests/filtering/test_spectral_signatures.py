"""Spectral signatures against numpy's singular value decomposition, and planted directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.filtering.points import Points, cloud, reader, seeded
from torch import Tensor

from gifthorse.core.run import Run
from gifthorse.filtering import SpectralSignatures
from gifthorse.filtering.spectral_signatures import signature

D = 12


def svd(rows: Tensor) -> Any:
    return np.linalg.svd(rows.double().numpy())[2][0]


def two_classes(n: int = 30) -> Points:
    points = torch.cat([cloud(n, D, 0, 1), cloud(n, D, 1, 2, 3.0)])
    return Points(points, torch.arange(2).repeat_interleave(n))


def test_the_dataset_score_is_the_squared_projection_of_each_labeled_class() -> None:
    data = two_classes()
    data = data.permuted(torch.randperm(60, generator=seeded()))
    scores = SpectralSignatures("dataset")(reader(D), data, data, seeded(), Run())
    for c in range(2):
        rows = data.points[data.labels == c].double()
        rows = rows - rows.mean(0)
        wanted = (rows.numpy() @ svd(rows)) ** 2
        assert np.allclose(scores[data.labels == c].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("fit_on", ["union", "reference"])
def test_the_online_score_is_in_variances_of_the_clean_images(fit_on: Any) -> None:
    clean, suspects = two_classes(), Points(cloud(9, D, 1, 5, 2.0), torch.zeros(9).long())
    scores = SpectralSignatures(fit_on=fit_on)(reader(D), clean, suspects, seeded(), Run())
    known = clean.points[30:].double()  # the suspects come out as class 1, whatever their labels
    new = suspects.points.double() - known.mean(0)
    known = known - known.mean(0)
    v = svd(torch.cat([known, new]) if fit_on == "union" else known)
    wanted = (new.numpy() @ v) ** 2 / np.var(known.numpy() @ v)
    assert np.allclose(scores.numpy(), wanted, rtol=1e-4)


def test_a_constant_added_to_all_features_changes_nothing() -> None:
    points = torch.randn(40, D, generator=seeded()).double()
    assert torch.allclose(signature(points), signature(points + 100))


def test_a_planted_direction_is_found_and_removed() -> None:
    """A twentieth shifted by 8 deviations: at least 95 % of them within the top 7.5 %."""
    shift = torch.zeros(D)
    shift[4] = 8
    points = torch.cat([cloud(380, D, 0, 1), cloud(20, D, 0, 2, shift)])
    data, method = Points(points, torch.zeros(400).long()), SpectralSignatures("dataset")
    out = method.removed(method(reader(D), data, data, seeded(), Run()), data.labels)
    assert int(out.sum()) == 30
    assert int(out[380:].sum()) >= 19


@pytest.mark.parametrize(
    ("expected", "n", "count"), [(0.05, 40, 3), (0.05, 41, 4), (0.5, 40, 20), (0.01, 40, 1)]
)
def test_exactly_so_many_are_removed_of_each_class_even_if_scores_tie(
    expected: float, n: int, count: int
) -> None:
    labels = torch.arange(3).repeat_interleave(n)
    out = SpectralSignatures(expected=expected).removed(torch.zeros(3 * n), labels)
    assert torch.bincount(labels[out], minlength=3).tolist() == [count] * 3


def test_a_direction_that_clean_images_never_take_gives_large_finite_scores() -> None:
    clean = Points(cloud(20, D, 0, 1) * (torch.arange(D) < 6), torch.zeros(20).long())
    odd = cloud(2, D, 0, 1)
    odd[:, 2:] = 0
    odd[1, 8] = 50.0
    scores = SpectralSignatures()(
        reader(D), clean, Points(odd, torch.zeros(2).long()), seeded(), Run()
    )
    assert scores.isfinite().all()
    assert scores[1] > 1000 * scores[0].clamp(min=0.1)


def test_suspects_without_clean_company_are_not_judged() -> None:
    clean = Points(cloud(20, D, 0, 1), torch.zeros(20).long())
    suspects = Points(torch.cat([cloud(3, D, 0, 2), cloud(3, D, 1, 3)]), torch.zeros(6).long())
    scores = SpectralSignatures()(reader(D), clean, suspects, seeded(), Run())
    assert (scores[:3] > 0).all()
    assert (scores[3:] == 0).all()


def test_equal_images_are_not_suspicious() -> None:
    same = Points(cloud(1, D, 0, 1).expand(20, D), torch.zeros(20).long())
    assert SpectralSignatures("dataset")(reader(D), same, same, seeded(), Run()).abs().max() < 1e-9
    assert SpectralSignatures()(reader(D), same, same, seeded(), Run()).isfinite().all()
