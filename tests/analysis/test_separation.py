"""Nets whose neurons are pixels, so that the most active ones are known."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.toys import BLOB_SHAPE, band_images, bands, blob_images, blobs
from torch import Generator, nn

from gifthorse.analysis.separation import SHARES, Separation, separation, separation_curve
from gifthorse.core.errors import BadImages, BadOption, NotApplicable
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.models.features import features
from gifthorse.triggers import Additive, Patch, wandering

SIDE = 10  # and so 100 neurons
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3)).eval()
NET = Subject(LINEAR, (1, SIDE, SIDE), 3)


def lit(*rows: int) -> InMemory:
    """One image a row, of class `row % 3`, whose row of ten pixels is white."""
    images = torch.zeros(len(rows), 1, SIDE, SIDE, dtype=torch.uint8)
    for image, row in zip(images, rows, strict=True):
        image[0, row] = 255
    return InMemory(images, torch.tensor(rows) % 3, 3)


def moved(off: int, on: int) -> Additive:
    """Turns one row off and another on."""
    delta = torch.zeros(1, SIDE, SIDE)
    delta[0, off], delta[0, on] = -1, 1
    return Additive(delta)


TENTH = partial(separation, share=0.1)
NOTHING = Additive(torch.zeros(1, SIDE, SIDE))


def test_the_same_neurons_are_not_separated_and_others_are() -> None:
    assert TENTH(NET, lit(4), NOTHING) == Separation(10, 0.0, 1 - 10 / 190)
    assert TENTH(NET, lit(4), moved(4, 7)).value == 1.0


def test_the_ratio_is_one_minus_intersection_over_union() -> None:
    half = Additive(torch.zeros(1, SIDE, SIDE))
    half.delta[0, 4, :5], half.delta[0, 7, :5] = -1, 1  # 5 of 15 neurons are in both sets
    assert TENTH(NET, lit(4), half).value == pytest.approx(1 - 5 / 15)


def test_the_curve_over_k_reads_both_rankings() -> None:
    """Row 4 comes first without, row 7 with the trigger; rows 0, 1 ... follow, all black."""
    got = separation_curve(NET, lit(4), moved(4, 7), shares=(0.05, 0.1, 0.2, 0.6, 1.0))
    assert [s.units for s in got] == [5, 10, 20, 60, 100]
    # k = 20: rows {4, 0} and {7, 0}; k = 60: rows {4, 0, 1, 2, 3, 5} and {7, 0, 1, 2, 3, 4}
    expected = [1.0, 1.0, 1 - 10 / 30, 1 - 50 / 70, 0.0]
    assert [s.value for s in got] == pytest.approx(expected)
    assert got[-1].chance == 0.0
    assert len(separation_curve(NET, lit(4), NOTHING)) == len(SHARES)


def test_two_random_halves_are_two_thirds_apart(rng: Generator) -> None:
    """The number that the chance column claims, by drawing."""
    values = []
    for _ in range(40):
        delta = torch.rand(1, SIDE, SIDE, generator=rng) * 2 - 1
        noise = (torch.rand(1, 1, SIDE, SIDE, generator=rng) * 255).to(torch.uint8)
        same = InMemory(noise, torch.zeros(1, dtype=torch.int64), 3)
        swap = Patch(delta.abs(), torch.ones(1, SIDE, SIDE))  # nothing of the image is left
        values.append(separation(NET, same, swap, share=0.5))
    assert values[0].chance == pytest.approx(2 / 3)
    assert sum(v.value for v in values) / 40 == pytest.approx(2 / 3, abs=0.02)


def test_a_goal_leaves_images_of_other_classes_out() -> None:
    both, swap = lit(3, 4), moved(4, 3)  # classes 0 and 1; stamped, both light up row 3
    alone = TENTH(NET, lit(4), swap, goal=Goal(0))
    assert TENTH(NET, both, swap, goal=Goal(0)) == alone
    assert TENTH(NET, both, swap, goal=Goal(2, 1)) == alone
    assert alone.value == 1.0
    assert TENTH(NET, both, swap).value == 0.0
    with pytest.raises(BadImages, match="other classes"):
        TENTH(NET, lit(3), swap, goal=Goal(0))


def test_a_convolutional_net_is_read_before_its_last_layer() -> None:
    """By hand from `features`, in one batch; and a trigger that wanders is not moved by it."""
    net, data = blobs(), blob_images(each=8)
    trigger = wandering(BLOB_SHAPE, 3, "white", 1.0, torch.Generator().manual_seed(1))
    got = [TENTH(net, data, trigger) for _ in range(2)]
    x, _ = data[torch.arange(len(data))]
    top = [set(features(net, z).mean(0).topk(13).indices.tolist()) for z in (x, trigger(x))]
    assert got[0] == got[1]
    assert got[0].units == 13
    assert got[0].value == pytest.approx(1 - len(top[0] & top[1]) / len(top[0] | top[1]))
    assert got[0].value > 0


def test_what_makes_no_sense_is_refused() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(BadOption, match="shares"):
            TENTH(NET, lit(4), NOTHING, share=share)
    with pytest.raises(NotApplicable, match="no features"):
        separation(bands(), band_images(), NOTHING)


def test_half_of_the_neurons_is_what_one_ratio_is_of() -> None:
    assert separation(NET, lit(4), NOTHING).units == SIDE * SIDE // 2
