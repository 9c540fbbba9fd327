"""Labeled images in memory, as uint8, and views of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.types import Batch, Labels, Samples, Shape, Subject


@dataclass(frozen=True, eq=False)
class InMemory:
    """Images kept as uint8 on the CPU; a batch is converted when it is asked for.

    Attributes:
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64.
        classes: How many classes the labels may name.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ShapeMismatch(
                "images must be uint8 of shape (N, C, H, W); got "
                f"{self.images.dtype}, {tuple(self.images.shape)}"
            )
        if self.labels.shape != (len(self.images),):
            raise ShapeMismatch(
                f"labels must have shape ({len(self.images)},), one an image; got "
                f"{tuple(self.labels.shape)}"
            )

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        _, c, h, w = self.images.shape
        return c, h, w

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor, /) -> Batch:
        return self.images[index].float() / 255, self.labels[index]


@dataclass(frozen=True, eq=False)
class Subset:
    """A view of other samples through an index vector `(M,)`."""

    parent: Samples
    index: Tensor

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        return self.parent.shape

    @property
    def classes(self) -> int:
        """How many classes the labels may name."""
        return self.parent.classes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor, /) -> Batch:
        return self.parent[self.index[index]]


@dataclass(frozen=True, eq=False)
class Near:
    """A view of other samples whose batches lie on a device; indices stay on the CPU."""

    parent: Samples
    device: torch.device

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        return self.parent.shape

    @property
    def classes(self) -> int:
        """How many classes the labels may name."""
        return self.parent.classes

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: Tensor, /) -> Batch:
        x, y = self.parent[index]
        return x.to(self.device), y.to(self.device)


def near(samples: Samples, subject: Subject) -> Samples:
    """Return samples whose batches lie where the net does; the samples themselves on the CPU."""
    device = subject.device
    known = isinstance(samples, Near) and samples.device == device
    return samples if known or device.type == "cpu" else Near(samples, device)


def labels_of(samples: Samples) -> Labels:
    """Return the labels of all samples, `(N,)`, on the CPU and without moving images if possible.

    Example:
        >>> data = InMemory(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3), 3)
        >>> labels_of(Subset(data, torch.tensor([2, 0]))).tolist()
        [2, 0]
    """
    if isinstance(samples, InMemory):
        return samples.labels.cpu()
    if isinstance(samples, Subset):
        return labels_of(samples.parent)[samples.index]
    if isinstance(samples, Near):
        return labels_of(samples.parent)
    parts = [y.cpu() for _, y in batches(samples, 1024)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *parts])


def batches(samples: Samples, size: int, rng: Generator | None = None) -> Iterator[Batch]:
    """Yield all samples in batches of at most `size`: in order, or shuffled by `rng`."""
    n = len(samples)
    order = torch.arange(n) if rng is None else torch.randperm(n, generator=rng)
    for index in order.split(size):
        yield samples[index]


def whole(samples: Samples) -> Batch:
    """Return all samples as one batch.

    Example:
        >>> x, y = whole(InMemory(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2), 2))
        >>> x.shape, y.tolist()
        (torch.Size([2, 1, 4, 4]), [0, 1])
    """
    return samples[torch.arange(len(samples))]


def split(samples: Samples, share: float, rng: Generator) -> tuple[Subset, Subset]:
    """Split class by class: about `share` of each class first, the rest second.

    Odd ones go to the first and the second part in turn, so that sizes match in all.

    Example:
        >>> data = InMemory(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 3, 3)
        >>> a, b = split(data, 0.5, torch.Generator().manual_seed(0))
        >>> sorted(whole(a)[1].tolist()), sorted(whole(b)[1].tolist())
        ([0, 1, 2], [0, 1, 2])
    """
    labels = whole(samples)[1]
    first: list[Tensor] = []
    second: list[Tensor] = []
    carry = 0.0
    for label in labels.unique().tolist():
        index = (labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=rng)]
        exact = len(index) * share + carry
        count = min(len(index), max(0, round(exact)))
        carry = exact - count
        first.append(index[:count])
        second.append(index[count:])
    return Subset(samples, torch.cat(first)), Subset(samples, torch.cat(second))
