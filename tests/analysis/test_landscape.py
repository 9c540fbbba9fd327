"""Landscapes of objectives whose values on the grid are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.analysis import directions, landscape, local_minima, minima
from gifthorse.core.errors import BadOption


def variables(rng: Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 6, 6, generator=rng) * 5, torch.randn(1, 6, 6, generator=rng) * 0.1


def bowl(center: tuple[Tensor, ...], moved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The squared distance to a center, its first tensor's part and its second's."""
    parts = [(m - c).flatten(1).square().sum(1) for c, m in zip(center, moved, strict=True)]
    return parts[0] + parts[1], parts[0], parts[1]


def seed(number: int) -> Generator:
    return torch.Generator().manual_seed(number)


def test_directions_are_orthogonal_and_as_long_as_each_tensor(rng: Generator) -> None:
    at = variables(rng)
    for v, d, e in zip(at, *directions(at, rng), strict=True):
        assert d.shape == e.shape == v.shape
        assert d.norm().item() == pytest.approx(v.norm().item(), rel=1e-5)
        assert e.norm().item() == pytest.approx(v.norm().item(), rel=1e-5)
        assert abs((d * e).sum() / v.square().sum()) < 1e-5


def test_a_bowl_is_a_bowl_with_one_minimum_at_the_origin(rng: Generator) -> None:
    at = variables(rng)
    found = landscape(lambda moved: bowl(at, moved), at, rng, extent=2.0, points=21)
    a, b = torch.meshgrid(found.axis, found.axis, indexing="ij")
    for surface, square in (
        (found.loss, sum(v.square().sum() for v in at)),
        (found.cross_entropy, at[0].square().sum()),
        (found.penalty, at[1].square().sum()),
    ):
        assert torch.allclose(surface.float(), (a**2 + b**2) * square, rtol=1e-4, atol=1e-4)
        assert local_minima(surface) == 1
        assert minima(surface)[10, 10]
    assert found.axis[[0, 10, -1]].tolist() == [-2, 0, 2]
    assert found.gap == 0.0


def test_the_gap_says_how_far_the_origin_is_from_the_least(rng: Generator) -> None:
    at = variables(rng)
    first, _ = directions(at, seed(5))
    aside = tuple(v + 0.5 * d for v, d in zip(at, first, strict=True))

    def raised(moved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        loss, one, two = bowl(aside, moved)
        return loss + 1, one, two

    found = landscape(raised, at, seed(5), points=21)
    assert minima(found.loss).nonzero().tolist() == [[15, 10]]  # half along the first direction
    square = sum(v.square().sum().item() for v in at)
    assert found.gap == pytest.approx(0.25 * square, rel=1e-3)


def test_waves_have_as_many_minima_as_they_should() -> None:
    at = (torch.tensor([1.0, 0.0, 0.0]),)
    first, second = (d[0] for d in directions(at, seed(1)))

    def waves(moved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        a, b = (moved[0] - at[0]) @ first, (moved[0] - at[0]) @ second
        z = -(3 * torch.pi * a).cos() - (3 * torch.pi * b).cos()
        return z, z, z

    found = landscape(waves, at, seed(1), points=61)
    assert local_minima(found.loss) == 9  # at -2/3, 0 and 2/3 each way


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(rng: Generator) -> None:
    at = variables(rng)

    def curved(moved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        z = moved[0].sin().flatten(1).sum(1)
        return z, z, z

    once, twice, other = (landscape(curved, at, seed(s), points=9).loss for s in (3, 3, 4))
    assert torch.equal(once, twice)
    assert not torch.equal(once, other)
    assert torch.allclose(landscape(curved, at, seed(3), points=9, chunk=81).loss, once, atol=1e-4)


def test_calls_are_no_larger_than_asked_and_take_no_gradient(rng: Generator) -> None:
    at = tuple(v.requires_grad_() for v in variables(rng))
    sizes = []

    def watch(moved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        sizes.append(len(moved[0]))
        assert not moved[0].requires_grad
        return bowl(at, moved)

    found = landscape(watch, at, rng, points=5, chunk=8)
    assert sizes == [8, 8, 8, 1]
    assert not found.loss.requires_grad
    assert not found.loss.is_inference()


def test_minima_are_those_of_a_plain_loop(rng: Generator) -> None:
    grid = torch.randint(12, (17, 23), generator=rng).float()
    expected = torch.zeros(17, 23, dtype=torch.bool)
    for i in range(1, 16):
        for j in range(1, 22):
            around = grid[i - 1 : i + 2, j - 1 : j + 2].flatten()
            expected[i, j] = bool((around.sort().values[1:] > grid[i, j]).all())
    assert torch.equal(minima(grid), expected)
    assert local_minima(grid) == int(expected.sum()) > 5
    assert local_minima(torch.ones(9, 9)) == 0  # a plain has no strict minimum


@pytest.mark.parametrize(("points", "extent"), [(10, 1.0), (1, 1.0), (5, 0.0)])
def test_a_grid_without_a_middle_is_refused(points: int, extent: float, rng: Generator) -> None:
    at = variables(rng)
    with pytest.raises(BadOption, match="odd number"):
        landscape(lambda moved: bowl(at, moved), at, rng, points=points, extent=extent)
