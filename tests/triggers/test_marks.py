"""Pictures: their geometry, their size, and how they are stamped."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.triggers import Stamp
from gifthorse.triggers.marks import Picture, mark
from gifthorse.triggers.patch import Patch

PICTURES = get_args(Picture)
pictures = pytest.mark.parametrize("picture", PICTURES)


@pictures
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 33])
def test_a_mark_is_an_opacity_with_some_ink(picture: Picture, size: int) -> None:
    ink = mark(picture, size)
    assert ink.shape == (1, size, size)
    assert 0 <= ink.min() <= ink.max() <= 1
    assert ink.max() > 0.1
    assert torch.equal(ink, mark(picture, size))


@pictures
def test_marks_have_ink_and_gaps(picture: Picture) -> None:
    ink = mark(picture, 32)
    assert 0.15 < ink.mean() < 0.7
    assert ink.max() == 1
    assert ink.min() == 0


def test_marks_differ() -> None:
    drawn = [mark(p, 24) for p in PICTURES]
    for i, a in enumerate(drawn):
        assert all((a - b).abs().mean() > 0.1 for b in drawn[:i])


@pytest.mark.parametrize("picture", ["apple", "tag", "cross"])
def test_a_small_mark_is_a_large_one_seen_from_afar(picture: Picture) -> None:
    far = F.avg_pool2d(mark(picture, 64), 8)
    assert (mark(picture, 8) - far).abs().mean() < 0.05


@pytest.mark.parametrize(("size", "field"), [(2, 1), (4, 1), (5, 1), (8, 2), (12, 3)])
def test_checker_is_exact(size: int, field: int) -> None:
    rows, cols = torch.arange(size)[:, None] // field, torch.arange(size)[None, :] // field
    assert torch.equal(mark("checker", size)[0], ((rows + cols) % 2 == 0).float())


@pytest.mark.parametrize("size", [8, 16])
def test_cross_is_a_quarter_thick_and_alike_from_all_sides(size: int) -> None:
    ink = mark("cross", size)[0]
    band = slice(3 * size // 8, 5 * size // 8)
    expected = torch.zeros(size, size)
    expected[band], expected[:, band] = 1, 1
    assert torch.equal(ink, expected)


def test_the_tag_has_a_hole_and_the_apple_a_bite() -> None:
    tag, apple = mark("tag", 80)[0], mark("apple", 80)[0]
    assert tag[54, 19] == 0
    assert tag[54 - 10, 19] > 0.99
    assert tag[54 + 9, 19 + 3] > 0.99
    assert apple[45, 2:12].max() == 0
    assert apple[45, 68:74].min() == 1


@pictures
def test_a_picture_is_stamped_in_its_place_with_its_ink(picture: Picture, rng: Generator) -> None:
    stamp = Stamp(size=6, form="picture", place="upper_left", opacity=0.5, picture=picture)
    made = stamp.draw((3, 9, 10), rng)
    assert isinstance(made, Patch)
    assert torch.allclose(made.mask[:, 1:7, 1:7], 0.5 * mark(picture, 6))
    assert made.mask.sum() == pytest.approx(0.5 * mark(picture, 6).sum().item(), rel=1e-5)
    x = torch.rand(2, 3, 9, 10, generator=rng)
    assert torch.allclose(made(x), x + made.mask * (1 - x), atol=1e-6)  # white ink
    black = Stamp(size=6, form="picture", place="upper_left", ink="black", picture=picture)
    assert black.draw((3, 9, 10), rng)(torch.ones(1, 3, 9, 10)).mean() < 1


def test_a_picture_at_opacity_zero_stamps_nothing(rng: Generator) -> None:
    x = torch.rand(2, 3, 9, 9, generator=rng)
    assert torch.equal(Stamp(size=5, form="picture", opacity=0.0).draw((3, 9, 9), rng)(x), x)


def test_sizes_that_make_no_sense_are_refused(rng: Generator) -> None:
    with pytest.raises(BadOption):
        mark("apple", 0)
    with pytest.raises(NotApplicable, match="1 to 9 pixels"):
        Stamp(size=10, form="picture").draw((3, 9, 9), rng)
