"""Which images every arm sees: batches against a plain transcription, and arms with few images."""

from __future__ import annotations

import pytest
import torch
from tests.toys import BANDS, band_images, bands
from torch import Generator, Tensor

from gifthorse.core.types import Goal, Samples
from gifthorse.data.samples import InMemory
from gifthorse.search import CostController, MaskPattern, Objective, SearchConfig
from gifthorse.search.data import SearchData

ROUNDS = 3


def stage(clean: Samples, goals: list[Goal], config: SearchConfig) -> SearchData:
    objective = Objective(MaskPattern(), CostController.fixed(len(goals)))
    return SearchData(bands(), clean, goals, Generator().manual_seed(0), objective, config)


def seen(made: SearchData) -> list[Tensor]:
    """The indices `(steps, A, B)` of some rounds."""
    arms = torch.arange(len(made.target))
    return [torch.stack(list(made.batches(arms))) for _ in range(ROUNDS)]


def plain(made: SearchData) -> list[Tensor]:
    """The same where all arms have as many images: whole passes, each in a fresh order."""
    rounds, count = [], int(made.count[0])
    for _ in range(ROUNDS):
        steps, left = [], made.steps
        while left:
            now = min(left, count // made.batch)
            order = torch.stack(
                [
                    row[torch.randperm(count, generator=rng)[: now * made.batch]]
                    for row, rng in zip(made.index, made.rngs, strict=True)
                ]
            )
            steps += order.split(made.batch, dim=1)  # type: ignore[no-untyped-call]
            left -= now
        rounds.append(torch.stack(steps))
    return rounds


@pytest.mark.parametrize(
    "config",
    [SearchConfig(batch=8), SearchConfig(batch=8, steps=2), SearchConfig(batch=8, min_steps=10)],
)
def test_arms_with_as_many_images_see_whole_passes(config: SearchConfig) -> None:
    goals = [Goal(k) for k in range(BANDS)]
    made, again = (stage(band_images(), goals, config) for _ in range(2))
    assert (
        made.steps == {0: 3, 2: 2, 10: 3}[config.steps]
        if not config.min_steps
        else made.steps == 10
    )
    for got, want in zip(seen(made), plain(again), strict=True):
        assert torch.equal(got, want)


def rare(each: int = 8) -> InMemory:
    """One image of class 5, `each` of the others."""
    data = band_images(each)
    keep = (data.labels != 5) | (torch.arange(len(data)) < BANDS)
    return InMemory(data.images[keep], data.labels[keep], BANDS)


def test_an_arm_with_one_image_holds_no_other_back() -> None:
    others = [Goal(0, k) for k in range(1, 5)]
    alone = stage(rare(), others, SearchConfig(batch=4))
    both = stage(rare(), [*others, Goal(0, 5)], SearchConfig(batch=4))
    assert (alone.batch, alone.steps) == (both.batch, both.steps) == (4, 2)
    for one, two in zip(seen(alone), seen(both), strict=True):
        assert torch.equal(one, two[:, :4])
        assert two[:, 4].min() == two[:, 4].max()  # its only image, as often as it takes  # type: ignore[no-untyped-call]


def test_an_arm_with_few_images_sees_each_of_them_as_often_as_it_can() -> None:
    data = band_images(8)
    keep = (data.labels != 5) | (torch.arange(len(data)) < 3 * BANDS)  # three of class 5
    few = InMemory(data.images[keep], data.labels[keep], BANDS)
    made = stage(few, [*(Goal(0, k) for k in range(1, 5)), Goal(0, 5)], SearchConfig(batch=8))
    (index, *_) = seen(made)
    assert index.shape == (1, 5, 8)
    assert sorted(index[0, 4].unique(return_counts=True)[1].tolist()) == [2, 3, 3]  # type: ignore[no-untyped-call]
    assert index[0, 3].unique().numel() == 8  # type: ignore[no-untyped-call]
