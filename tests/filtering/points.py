"""Images that are their own features, so that what a filter computes can be computed by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.types import Batch, Shape, Subject


@dataclass(frozen=True, eq=False)
class Points:
    """Points `(N, d)` as images `(N, 1, 1, d)`, with labels."""

    points: Tensor
    labels: Tensor
    classes: int = 2

    @property
    def shape(self) -> Shape:
        return 1, 1, self.points.shape[1]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Tensor, /) -> Batch:
        return self.points[index][:, None, None], self.labels[index]

    def permuted(self, order: Tensor) -> Points:
        return Points(self.points[order], self.labels[order], self.classes)


def reader(d: int, classes: int = 2) -> Subject:
    """A net whose features are the points; the class is the largest of the first coordinates."""
    last = nn.Linear(d, classes, bias=False)
    with torch.no_grad():
        last.weight.copy_(torch.eye(classes, d))
    return Subject(nn.Sequential(nn.Flatten(), last).eval(), (1, 1, d), classes)


def cloud(n: int, d: int, label: int, seed: int, shift: Tensor | float = 0.0) -> Tensor:
    """Normal noise of deviation 1, shifted, in which coordinate `label` wins among the first two.

    The first two coordinates are `(5, 0)` or `(0, 5)`, exactly.
    """
    x = torch.randn(n, d, generator=Generator().manual_seed(seed)) + shift
    x[:, :2] = 0
    x[:, label] = 5
    return x


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)
