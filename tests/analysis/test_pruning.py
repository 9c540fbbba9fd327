"""Cut triggers against one cut at a time, and nets whose success over size is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tests.toys import HEIGHT, SIDE, band_images, bands, corner
from torch import Generator, Tensor, nn

from gifthorse.analysis import (
    align_asr,
    align_size,
    grid,
    pixels,
    ranking,
    success_over_size,
    top_k,
)
from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import asr
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.training import predict
from gifthorse.triggers import Additive, Patch, wandering

GOAL = Goal(3)


def faint(rng: Generator) -> Patch:
    """The true trigger of Bands among faint pixels of noise, as Neural Cleanse leaves them."""
    mask = torch.rand(1, SIDE, SIDE, generator=rng) * 0.3
    mask[0, 0, 0] = 1
    pattern = torch.rand(1, SIDE, SIDE, generator=rng)
    pattern[0, 0, 0] = 1
    return Patch(pattern, mask)


class Count(nn.Module):
    """Says class 1 if the number of white pixels is one of those given, else class 0."""

    def __init__(self, yes: set[int]) -> None:
        super().__init__()
        self.yes = torch.tensor(sorted(yes))

    def forward(self, x: Tensor) -> Tensor:
        white = x.sum((1, 2, 3)).round()
        hit = torch.isin(white, self.yes).float()
        return torch.stack([1 - hit, hit], 1)


def counting(yes: set[int], side: int) -> tuple[Subject, InMemory, Additive]:
    """Such a net, black images of class 0, and a trigger that turns every pixel white."""
    black = InMemory(torch.zeros(3, 1, side, side, dtype=torch.uint8), torch.zeros(3).long(), 2)
    white = Additive(torch.ones(1, side, side))
    return Subject(Count(yes), (1, side, side), 2), black, white


def test_ranking_is_opacity_or_the_largest_change_of_a_channel() -> None:
    mask = torch.tensor([[[0.2, 0.7], [0.0, 1.0]]])
    assert torch.equal(ranking(Patch(torch.ones(3, 2, 2), mask)), mask[0])
    delta = torch.tensor([[[0.1, -0.5]], [[-0.3, 0.2]], [[0.0, 0.0]]])
    assert torch.equal(ranking(Additive(delta)), torch.tensor([[0.3, 0.5]]))


def test_pixels_count_changes_of_one_step_and_more() -> None:
    steps = torch.tensor([[[0.0, 0.9 / 255], [1 / 255, 2 / 255]]])
    assert pixels(Patch(torch.ones(1, 2, 2), steps)) == 2
    assert pixels(Additive(-steps)) == 2
    assert pixels(Additive(torch.stack([steps[0], 1 - steps[0]]))) == 4


def test_the_strongest_pixels_stay_as_they_were(rng: Generator) -> None:
    delta = torch.rand(3, 5, 7, generator=rng) * 2 - 1
    cut = top_k(Additive(delta), 4)
    assert isinstance(cut, Additive)
    kept = (cut.delta != 0).any(0)
    assert int(kept.sum()) == 4
    assert torch.equal(cut.delta, delta * kept)
    strength = delta.abs().amax(0)
    assert strength[kept].min() > strength[~kept].max()


def test_of_equal_pixels_the_first_stay() -> None:
    cut = top_k(Patch(torch.ones(1, 3, 3), torch.full((1, 3, 3), 0.5)), 4)
    assert isinstance(cut, Patch)
    assert cut.mask.flatten().tolist() == [0.5] * 4 + [0.0] * 5
    assert torch.equal(cut.pattern, torch.ones(1, 3, 3))


@pytest.mark.parametrize("k", [-1, 10])
def test_impossible_sizes_are_refused(k: int) -> None:
    with pytest.raises(BadOption, match="0 to 9 pixels"):
        top_k(Additive(torch.ones(1, 3, 3)), k)
    subject, black, white = counting({9}, 3)
    with pytest.raises(BadOption, match="0 to 9 pixels"):
        success_over_size(subject, white, Goal(1), black, [1, k])


def test_a_trigger_without_a_place_is_refused(rng: Generator) -> None:
    with pytest.raises(BadOption, match="Wandering"):
        top_k(wandering((1, 9, 9), 3, "white", 1.0, rng), 2)


def test_the_grid_is_fine_then_one_percent() -> None:
    assert grid(150) == list(range(1, 151))
    sizes = grid(224 * 224)
    assert sizes[:200] == list(range(1, 201))
    assert sizes[-1] == 224 * 224
    steps = [b / a for a, b in pairwise(sizes[200:-1])]
    assert all(1.007 < s < 1.013 for s in steps)


def test_one_pixel_of_the_true_trigger_is_enough(rng: Generator) -> None:
    subject, clean = bands(GOAL.target), band_images()
    none, one, every = success_over_size(
        subject, faint(rng), GOAL, clean, [0, 1, SIDE * SIDE], chunk=64
    )
    assert (none.value, one.value) == (0.0, 1.0)
    assert one.trials == 30  # of 36, six are of the target class
    assert one == align_size(subject, corner(), GOAL, clean, 1)
    assert (
        every.value
        == asr(
            predict(subject, faint(torch.Generator().manual_seed(0))(whole(clean)[0])).argmax(1),
            whole(clean)[1],
            GOAL,
        ).value
    )
    assert align_asr(subject, faint(rng), GOAL, clean, 1.0) == 1


@pytest.mark.parametrize("chunk", [7, 100, 4096])
@pytest.mark.parametrize("goal", [Goal(2), Goal(2, source=4)])
def test_many_sizes_at_once_are_one_size_at_a_time(rng: Generator, chunk: int, goal: Goal) -> None:
    subject, clean = bands(), band_images()
    light = torch.zeros(1, SIDE, SIDE)
    light[:, 2 * HEIGHT : 3 * HEIGHT] = torch.rand(1, HEIGHT, SIDE, generator=rng)
    sizes = [40, 324, 0, 40, *range(2, 55, 2)]
    x, y = whole(clean)
    seen = set()
    for trigger in (Additive(light), Patch(torch.ones(1, SIDE, SIDE), light)):
        rates = success_over_size(subject, trigger, goal, clean, sizes, chunk=chunk)
        for k, rate in zip(sizes, rates, strict=True):
            alone = predict(subject, top_k(trigger, k)(x)).argmax(1)
            assert rate == asr(alone, y, goal)
            seen.add(rate.value)
    assert len(seen) > 2


def test_the_first_size_from_below_counts_although_success_is_lost_again() -> None:
    subject, black, white = counting({3, *range(10, 26)}, 5)
    assert align_asr(subject, white, Goal(1), black, 1.0) == 3  # bisection would say 10


def test_large_sizes_are_found_within_one_percent() -> None:
    subject, black, white = counting(set(range(333, 401)), 20)
    found = align_asr(subject, white, Goal(1), black, 1.0)
    assert found == min(k for k in grid(400) if k >= 333)
    assert found is not None
    assert 333 <= found <= 337


def test_the_size_of_the_trigger_itself_is_tried() -> None:
    subject, black, white = counting({237}, 20)
    assert 237 not in grid(400)
    assert align_asr(subject, top_k(white, 237), Goal(1), black, 1.0) == 237


def test_a_trigger_that_never_works_that_often_has_no_size() -> None:
    subject, black, white = counting({3}, 5)
    assert align_asr(subject, top_k(white, 2), Goal(1), black, 0.5) is None
    assert align_asr(subject, top_k(white, 2), Goal(1), black, 0.0) == 1
