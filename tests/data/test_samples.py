from __future__ import annotations

import pytest
import torch

from gifthorse.core.errors import ShapeMismatch
from gifthorse.data import InMemory, Subset, batches, split, whole


def counting(labels: list[int]) -> InMemory:
    """Image i is filled with the value i."""
    values = torch.arange(len(labels), dtype=torch.uint8)
    return InMemory(values[:, None, None, None].expand(-1, 1, 2, 2), torch.tensor(labels), 3)


def test_pixels_are_divided_by_255() -> None:
    data = InMemory(
        torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.zeros(1).long(), 1
    )
    x, _ = whole(data)
    assert torch.equal(x.flatten() * 255, torch.arange(256.0))
    assert data.shape == (1, 16, 16)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match=r"got torch.float32, \(1, 1, 2, 2\)"):
        InMemory(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), 1)
    with pytest.raises(ShapeMismatch, match=r"labels must have shape \(1,\).*got \(2,\)"):
        InMemory(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(2).long(), 1)


def test_subset_of_a_subset_points_at_the_right_images() -> None:
    inner = Subset(Subset(counting([0] * 9), torch.tensor([8, 6, 4, 2])), torch.tensor([3, 0]))
    assert (whole(inner)[0][:, 0, 0, 0] * 255).tolist() == [2, 8]
    assert (inner.shape, inner.classes, len(inner)) == ((1, 2, 2), 3, 2)


def test_batches_cover_everything_once() -> None:
    data = counting([0] * 10)
    in_order = [x[:, 0, 0, 0] * 255 for x, _ in batches(data, 4)]
    assert [len(x) for x in in_order] == [4, 4, 2]
    assert torch.cat(in_order).tolist() == list(range(10))
    mixed = torch.cat(
        [x[:, 0, 0, 0] for x, _ in batches(data, 4, torch.Generator().manual_seed(0))]
    )
    assert (mixed * 255).tolist() != list(range(10))
    assert (mixed * 255).sort().values.tolist() == list(range(10))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_split_is_disjoint_complete_and_balanced(share: float) -> None:
    data = counting([0] * 10 + [1] * 5 + [2] * 5)
    a, b = split(data, share, torch.Generator().manual_seed(0))
    assert sorted(a.index.tolist() + b.index.tolist()) == list(range(20))
    counts = whole(a)[1].bincount(minlength=3)
    assert (counts - torch.tensor([10, 5, 5]) * share).abs().max() < 1
    assert len(a) == round(20 * share)
