"""The pictures on a contact sheet are the images themselves; the words are the net's."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.toys import SIDE, band_images, bands, corner
from torch import Tensor

from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch, UsageError
from gifthorse.core.types import Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.report.figures import contact_sheet as module
from gifthorse.report.figures.contact_sheet import SheetLayout, contact_sheet, write_sheet
from gifthorse.training import predict
from gifthorse.triggers import Additive, wandering

NET = bands(planted=2)
X, Y = (t[:5] for t in whole(band_images()))
WHOLE, SMALL = SheetLayout(), SheetLayout(columns=3, scale=2, gap=4, line=10)


def dots(page: Image.Image) -> Tensor:
    """`(3, height, width)`, 0 to 255."""
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).int()


def tile(page: Image.Image, i: int, row: int, sheet: SheetLayout = SMALL) -> Tensor:
    """One tile, shrunk to one dot an image pixel; all dots of a pixel must be equal."""
    left, top = sheet.place(NET.shape, i, row)
    side, zoom = SIDE * sheet.zoom(NET.shape), sheet.zoom(NET.shape)
    cut = dots(page)[:, top : top + side, left : left + side]
    small = cut[:, ::zoom, ::zoom]
    assert torch.equal(cut, small.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2))
    return small


def drawn(trigger: Trigger, sheet: SheetLayout = SMALL, subject: Subject = NET) -> Image.Image:
    return shown(trigger, subject=subject, sheet=sheet)


def shown(
    trigger: Trigger,
    names: Sequence[str] = (),
    sheet: SheetLayout = WHOLE,
    subject: Subject = NET,
) -> Image.Image:
    """The sheet that goes with a made model."""
    z = deepcopy(trigger)(X)
    said, says = (predict(subject, images).argmax(1) for images in (X, z))
    return contact_sheet((X, said), (z, says), Y, names=names, sheet=sheet)


def test_images_reappear_clean_stamped_and_as_the_change() -> None:
    delta = torch.zeros(1, SIDE, SIDE)
    delta[0, 0, 0] = -1  # the corner is 128 of 255
    trigger = Additive(delta)
    page = drawn(trigger, replace(SMALL, gain=0.5))
    for i in range(len(X)):
        seen = [(255 * t).round().int().expand(3, -1, -1) for t in (X[i], trigger(X)[i])]
        assert torch.equal(tile(page, i, 0), seen[0])
        assert torch.equal(tile(page, i, 1), seen[1])
        change = tile(page, i, 2)
        assert change[:, 0, 0].tolist() == [64] * 3  # half of 128
        assert change.sum() == 3 * 64  # and nothing elsewhere


def test_the_largest_change_is_white_unless_a_gain_is_given() -> None:
    faint = Additive(torch.full((1, SIDE, SIDE), 0.01))
    assert tile(drawn(faint), 0, 2).min() == 255
    assert tile(drawn(faint, replace(SMALL, gain=10.0)), 0, 2).max() == 26
    assert tile(drawn(Additive(torch.zeros(1, SIDE, SIDE))), 0, 2).max() == 0


def test_a_sheet_holds_its_tiles_and_no_more() -> None:
    page = drawn(corner())
    pitch = 2 * SIDE + 2 * SMALL.line + SMALL.gap
    assert page.size == (4 + 3 * (2 * SIDE + 4), 4 + 2 * 3 * pitch)  # two bands for five images
    assert drawn(corner(), replace(SMALL, columns=9)).size == (
        4 + 5 * (2 * SIDE + 4),
        4 + 3 * pitch,
    )
    left, top = SMALL.place(NET.shape, 5, 0)
    assert dots(page)[:, top:, left:].min() == 255  # there is no sixth image


def test_tiles_are_wide_enough_for_words() -> None:
    assert [SheetLayout().zoom((3, side, side)) for side in (12, 32, 96, 224)] == [8, 3, 1, 1]


def test_colors_stay_and_other_channels_become_gray() -> None:
    color = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 2, 2)
    assert np.array(module._pixels(color, 1))[0, 0].tolist() == [255, 128, 0]
    assert np.array(module._pixels(color[:2], 1))[0, 0].tolist() == [191] * 3


def test_what_the_net_says_stands_under_its_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[tuple[float, ...], tuple[str, str]] = {}

    def note(self: object, at: tuple[float, ...], text: str, fill: str, font: object) -> None:
        said[at] = (text, fill)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    shown(corner(), names=("cat", "\n \x1b", "d\tog"))
    sheet = SheetLayout()
    below = SIDE * sheet.zoom(NET.shape)
    for i, label in enumerate(Y.tolist()):
        spot = [(a, b + below) for a, b in (sheet.place(NET.shape, i, row) for row in range(3))]
        true = {0: "cat", 1: "1", 2: "d og"}.get(label, str(label))
        assert said[spot[0]] == (true, module.INK)
        assert said[spot[1]] == ("d og", module.INK if label == 2 else module.WRONG)
        assert said[spot[2]] == (f"true: {true}", module.FAINT)


def test_words_stay_within_their_tile() -> None:
    names = ("a word that is far too long for its tile",) * 6
    page = dots(shown(corner(), names=names, sheet=SMALL))
    left, top = SMALL.place(NET.shape, 1, 0)
    below = page[:, top + 2 * SIDE : top + 2 * SIDE + 2 * SMALL.line]
    assert below[:, :, left - SMALL.gap : left].min() == 255
    assert below[:, :, left : left + 2 * SIDE].min() < 255


def test_the_same_bytes_twice_whatever_a_trigger_draws(tmp_path: Path) -> None:
    trigger = wandering(NET.shape, 3, "white", 1.0, torch.Generator().manual_seed(1))
    for name in "ab":
        write_sheet(tmp_path / name, drawn(trigger))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with Image.open(tmp_path / "a") as page:
        assert torch.equal(dots(page.convert("RGB")), dots(drawn(trigger)))
        assert page.format == "PNG"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match="at least one"):
        contact_sheet((X[:0], Y[:0]), (X[:0], Y[:0]), Y[:0])
    with pytest.raises(ShapeMismatch):
        contact_sheet((X, Y), (X[..., :5], Y), Y)
    with pytest.raises(ShapeMismatch):
        contact_sheet((X, Y), (X, Y[:2]), Y)
    for wrong in ({"columns": 0}, {"scale": -1}, {"gain": -1.0}, {"gain": float("nan")}):
        with pytest.raises(BadOption):
            SheetLayout(**wrong)
    with pytest.raises(UsageError):
        write_sheet(tmp_path / "nowhere" / "sheet.png", drawn(corner()))
