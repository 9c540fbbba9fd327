"""Small pictures to stamp: drawn here, so that no image file is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gifthorse.core.errors import BadOption

Picture: TypeAlias = Literal["apple", "ring_text", "tag", "cross", "checker"]

FINE = 4  # pictures are drawn so many times larger, and averaged


def mark(picture: Picture, size: int) -> Tensor:
    """Return where a picture has ink, and how much: opacity `(1, size, size)` in [0, 1].

    Args:
        picture: `apple`, `ring_text` (a ring with a "c" in it and a text across), `tag` (a tilted
            price tag with a hole), `cross` or `checker` (fields of a quarter of the side, in whole
            pixels).
        size: Side in pixels, 1 or more.

    Source: TrojanZoo's marks (apple, copyright text with a ring, price tag, square), drawn anew.
    Differs: opacity alone, as the ink gives the color; so nothing has to be premultiplied, and a
    black mark is not taken for an empty one.

    Raises:
        BadOption: If `size` is below 1.
    """
    if size < 1:
        raise BadOption(f"a picture needs a size of 1 pixel or more; got {size}")
    side = size * FINE
    canvas = Image.new("L", (side, side), 0)
    _DRAWN[picture](canvas)
    fine = np.asarray(canvas, dtype=np.float32) / 255
    return torch.from_numpy(fine.reshape(size, FINE, size, FINE).mean((1, 3)))[None]


def _box(side: int, *corners: float) -> list[float]:
    """Return left, top, right and lower edge, given as shares of the side."""
    return [c * (side - 1) for c in corners]


def _apple(canvas: Image.Image) -> None:
    pen, side = ImageDraw.Draw(canvas), canvas.width
    pen.ellipse(_box(side, 0.05, 0.28, 0.62, 1.0), fill=255)
    pen.ellipse(_box(side, 0.38, 0.28, 0.95, 1.0), fill=255)
    pen.ellipse(_box(side, -0.08, 0.42, 0.20, 0.70), fill=0)  # the bite
    pen.ellipse(_box(side, 0.46, 0.02, 0.76, 0.24), fill=255)  # the leaf


def _ring_text(canvas: Image.Image) -> None:
    pen, side = ImageDraw.Draw(canvas), canvas.width
    thick = max(1, side // 14)
    pen.ellipse(_box(side, 0.0, 0.0, 1.0, 1.0), outline=255, width=thick)
    pen.arc(_box(side, 0.25, 0.25, 0.75, 0.75), 45, 315, fill=255, width=thick)
    words = Image.new("L", canvas.size, 0)
    font = ImageFont.load_default(size=max(4.0, side / 5))
    ImageDraw.Draw(words).text((side / 2, side / 2), "SAMPLE", fill=255, font=font, anchor="mm")
    turned = words.rotate(45, Image.Resampling.BICUBIC)
    canvas.paste(255, mask=turned)


def _tag(canvas: Image.Image) -> None:
    pen, side = ImageDraw.Draw(canvas), canvas.width
    pen.rounded_rectangle(_box(side, 0.05, 0.27, 0.95, 0.73), radius=side * 0.12, fill=255)
    pen.ellipse(_box(side, 0.12, 0.42, 0.28, 0.58), fill=0)  # the hole
    canvas.paste(canvas.rotate(30, Image.Resampling.BICUBIC))


def _cross(canvas: Image.Image) -> None:
    pen, side = ImageDraw.Draw(canvas), canvas.width
    near = int(side * 0.375)
    far = side - near - 1
    pen.rectangle((near, 0, far, side - 1), fill=255)
    pen.rectangle((0, near, side - 1, far), fill=255)


def _checker(canvas: Image.Image) -> None:
    field = np.arange(canvas.width) // (FINE * max(1, canvas.width // FINE // 4))
    board = ((field[:, None] + field[None, :]) % 2 == 0).astype(np.uint8) * 255
    canvas.paste(Image.fromarray(board))


_DRAWN: dict[str, Callable[[Image.Image], None]] = {
    "apple": _apple,
    "ring_text": _ring_text,
    "tag": _tag,
    "cross": _cross,
    "checker": _checker,
}
