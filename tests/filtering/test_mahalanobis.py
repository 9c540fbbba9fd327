"""The distance against scikit-learn's, on features that are the pixels."""

from __future__ import annotations

import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data import InMemory
from gifthorse.filtering.mahalanobis import Mahalanobis

WIDTH = 4


def reading() -> Subject:
    """Class 1 where the first pixel is bright; features are the pixels."""
    layer = nn.Linear(WIDTH, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0] * WIDTH, [10.0] + [0.0] * (WIDTH - 1)]))
        layer.bias.copy_(torch.tensor([0.0, -5.0]))
    return Subject(nn.Sequential(nn.Flatten(), layer).eval(), (1, 1, WIDTH), 2)


def drawn(rng: Generator, count: int = 60) -> tuple[Tensor, Tensor]:
    y = torch.arange(count) % 2
    x = torch.rand(count, 1, 1, WIDTH, generator=rng) * 0.3
    x[:, 0, 0, 0] += 0.65 * y
    return (x * 255).round().byte(), y


def test_it_is_the_distance_under_a_shared_covariance(rng: Generator) -> None:
    x, y = drawn(rng)
    other, _ = drawn(rng, 10)
    scores = Mahalanobis(ridge=0.0)(
        reading(), InMemory(x, y, 2), InMemory(other, torch.zeros(10).long(), 2), rng, Run()
    )
    pixels, suspects = (v.flatten(1).double() / 255 for v in (x, other))
    means = torch.stack([pixels[y == k].mean(0) for k in (0, 1)])
    shared = EmpiricalCovariance(assume_centered=True).fit((pixels - means[y]).numpy())
    said = (suspects[:, 0] > 0.5).long()
    expected = torch.from_numpy(shared.mahalanobis((suspects - means[said]).numpy())).sqrt()
    assert torch.allclose(scores.double(), expected, rtol=1e-4)


def test_without_a_right_answer_there_is_nothing_to_compare_with(rng: Generator) -> None:
    x, y = drawn(rng)
    with pytest.raises(NotApplicable, match="no clean image its own class"):
        Mahalanobis()(reading(), InMemory(x, 1 - y, 2), InMemory(x, y, 2), rng, Run())
