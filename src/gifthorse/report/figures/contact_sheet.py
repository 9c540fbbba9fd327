"""A contact sheet: images, the same stamped, and what changed, with what the net says of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadImages, ShapeMismatch
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.types import Images, Labels, Shape, Subject, Trigger
from gifthorse.report.figures.drawing import COLORS
from gifthorse.training import predict, still

ROWS = 3  # clean, stamped, change
LEGIBLE = 96  # a tile this wide has room for a word under it
PAPER, INK, WRONG, FAINT = "#ffffff", "#000000", COLORS[1], "#606060"


@method
class Sheet:
    """How a contact sheet is laid out. Every image is a column of three tiles.

    Attributes:
        columns: Images side by side; further ones follow below.
        scale: Screen pixels a side for each image pixel; 0 takes the least that makes a tile at
            least 96 wide.
        gain: What changes are multiplied with; 0 makes the largest change on the sheet white.
        gap: White pixels around tiles.
        line: Height of one of the two lines of text under a tile, in pixels.
    """

    columns: Annotated[int, AtLeast(1)] = 8
    scale: Annotated[int, NotNegative] = 0
    gain: Annotated[float, NotNegative] = 0.0
    gap: Annotated[int, NotNegative] = 8
    line: Annotated[int, AtLeast(1)] = 15

    def zoom(self, shape: Shape) -> int:
        """Return how many screen pixels a side an image pixel takes."""
        return self.scale or -(-LEGIBLE // shape[2])

    def place(self, shape: Shape, i: int, row: int, rows: int = ROWS) -> tuple[int, int]:
        """Return left and top of a tile: image `i`, row 0 clean, 1 stamped, 2 change."""
        _, H, W = shape
        band, column = divmod(i, self.columns)
        zoom, below = self.zoom(shape), 2 * self.line + self.gap
        left = self.gap + column * (W * zoom + self.gap)
        return left, self.gap + (band * rows + row) * (H * zoom + below)

    def size(self, shape: Shape, n: int, rows: int = ROWS) -> tuple[int, int]:
        """Return width and height of a sheet of `n` images with `rows` tiles each."""
        across, bands = min(n, self.columns), -(-n // self.columns)
        width = self.gap + across * (shape[2] * self.zoom(shape) + self.gap)
        return width, self.place(shape, bands * self.columns, 0, rows)[1]


def contact_sheet(
    subject: Subject,
    x: Images,
    labels: Labels,
    trigger: Trigger,
    *,
    names: Sequence[str] = (),
    sheet: Sheet = Sheet(),
) -> Image.Image:
    """Return a picture of images, stamped images and changes, with predicted classes under them.

    Pixels of a tile are those of the image in 8 bits, enlarged without smoothing. A class that is
    not the true one is written in another color; the true one stands under the change.

    Args:
        subject: The classifier.
        x: Images to show, `(n, C, H, W)`; C = 3 is shown in color, else the mean over C in gray.
        labels: Their true classes, `(n,)`.
        trigger: What stamps them; one that wanders stays where it was.
        names: Class names by number; classes beyond them are numbered.
        sheet: How it is laid out.

    Raises:
        BadImages: If there are no images.
        ShapeMismatch: If images or labels have another shape than asked for.
    """
    if not len(x):
        raise BadImages("a contact sheet needs at least one image")
    if tuple(x.shape[1:]) != subject.shape or labels.shape != (len(x),):
        raise ShapeMismatch(
            f"a contact sheet needs images (n, C, H, W) of {subject.shape} and n labels; got "
            f"{tuple(x.shape)} and {tuple(labels.shape)}"
        )
    with still(subject), torch.no_grad():
        stamped = deepcopy(trigger)(x)
        before, after = (predict(subject, z).argmax(1).tolist() for z in (x, stamped))
    change = (stamped - x).abs()
    gain = sheet.gain or 1 / max(float(change.max()), 1 / 255)
    page = Image.new("RGB", sheet.size(subject.shape, len(x)), PAPER)
    pen = _Pen(page, sheet, subject.shape)
    for i, label in enumerate(labels.tolist()):
        clean, hit, true = (_name(names, c) for c in (before[i], after[i], label))
        pen.tile(i, 0, x[i], (clean, "clean"), INK if before[i] == label else WRONG)
        pen.tile(i, 1, stamped[i], (hit, "stamped"), INK if after[i] == label else WRONG)
        pen.tile(i, 2, change[i] * gain, (f"true: {true}", f"change \u00d7 {gain:.3g}"), FAINT)
    return page


def plain_sheet(
    x: Images, words: Sequence[tuple[str, str]], marked: Tensor, *, sheet: Sheet = Sheet()
) -> Image.Image:
    """Return a picture of images with two lines of text under each.

    Args:
        x: Images to show, `(n, C, H, W)`; C = 3 is shown in color, else the mean over C in gray.
        words: The two lines of each, cut to the width of a tile.
        marked: Whose first line is written in another color, `(n,)` bool.
        sheet: How it is laid out; every image is one tile.

    Raises:
        BadImages: If there are no images.
    """
    if not len(x):
        raise BadImages("a contact sheet needs at least one image")
    shape: Shape = (x.shape[1], x.shape[2], x.shape[3])
    page = Image.new("RGB", sheet.size(shape, len(x), 1), PAPER)
    pen = _Pen(page, sheet, shape, 1)
    for i, (lines, odd) in enumerate(zip(words, marked.tolist(), strict=True)):
        pen.tile(i, 0, x[i], lines, WRONG if odd else INK)
    return page


def write_sheet(path: Path, page: Image.Image) -> None:
    """Write a contact sheet as a PNG, whole or not at all.

    Raises:
        UsageError: If the file cannot be written.
    """
    with atomic(path) as file:
        page.save(file, "PNG", optimize=True)


class _Pen:
    """Puts tiles and the words under them on a page."""

    def __init__(self, page: Image.Image, sheet: Sheet, shape: Shape, rows: int = ROWS) -> None:
        from matplotlib import get_data_path  # late: slow

        self.page, self.sheet, self.shape, self.rows = page, sheet, shape, rows
        self.draw = ImageDraw.Draw(page)
        # The font that comes with matplotlib: the same letters everywhere, and most alphabets.
        font = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
        self.font = ImageFont.truetype(str(font), max(6.0, sheet.line * 0.7))

    def tile(self, i: int, row: int, picture: Tensor, words: tuple[str, str], ink: str) -> None:
        """Draw one picture `(C, H, W)` with two lines under it, cut to its width."""
        left, top = self.sheet.place(self.shape, i, row, self.rows)
        zoom, (_, H, W) = self.sheet.zoom(self.shape), self.shape
        self.page.paste(_pixels(picture, zoom), (left, top))
        for line, (text, color) in enumerate(zip(words, (ink, FAINT), strict=True)):
            at = left, top + H * zoom + line * self.sheet.line
            self.draw.text(at, self._cut(text, W * zoom), fill=color, font=self.font)

    def _cut(self, text: str, width: int) -> str:
        """Return as much of a text as has room, with an ellipsis where some was cut."""
        if self.font.getlength(text) <= width:
            return text
        fits = [i for i in range(len(text)) if self.font.getlength(text[:i] + "\u2026") <= width]
        return text[: fits[-1]] + "\u2026" if fits else ""


def _pixels(picture: Tensor, zoom: int) -> Image.Image:
    """Return a picture `(C, H, W)` in [0, 1] with every pixel `zoom` times as large."""
    color = picture if len(picture) == 3 else picture.mean(0, keepdim=True).expand(3, -1, -1)
    dots = (color.nan_to_num(nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    large = dots.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).permute(1, 2, 0)
    return Image.fromarray(large.contiguous().cpu().numpy())


def _name(names: Sequence[str], label: int) -> str:
    """Return the name of a class on one line without control characters, or its number."""
    known = names[label][:200] if label < len(names) else ""
    plain = " ".join("".join(c if c.isprintable() else " " for c in known).split())
    return plain or str(label)
