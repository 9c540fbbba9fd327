"""A contact sheet: images, the same stamped, and what changed, with what the net says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadImages, ShapeMismatch
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.tensors import STEP
from gifthorse.core.types import Images, Labels, Shape
from gifthorse.report.figures.drawing import COLORS
from gifthorse.report.pictures import colored, dots
from gifthorse.report.words import printable

ROWS = 3  # clean, stamped, change
LEGIBLE = 96  # a tile this wide has room for a word under it
PAPER, INK, WRONG, FAINT = "#ffffff", "#000000", COLORS[1], "#606060"


@method
class SheetLayout:
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
    clean: tuple[Images, Labels],
    stamped: tuple[Images, Labels],
    labels: Labels,
    *,
    names: Sequence[str] = (),
    sheet: SheetLayout = SheetLayout(),
) -> Image.Image:
    """Return a picture of images, stamped images and changes, with predicted classes under them.

    Pixels of a tile are those of the image in 8 bits, enlarged without smoothing. A class that is
    not the true one is written in another color; the true one stands under the change.

    Args:
        clean: Images to show, `(n, C, H, W)`, and what the net says of them, `(n,)`; C = 3 is shown
            in color, else the mean over C in gray.
        stamped: The same images with a trigger, and what the net says of these.
        labels: Their true classes, `(n,)`.
        names: Class names by number; classes beyond them are numbered.
        sheet: How it is laid out.

    Raises:
        BadImages: If there are no images.
        ShapeMismatch: If the images differ in shape, or there is not one class for each.
    """
    (x, said), (z, says) = clean, stamped
    shape = _shape(x)
    if z.shape != x.shape or any(classes.shape != (len(x),) for classes in (said, says, labels)):
        raise ShapeMismatch(
            "a contact sheet needs clean and stamped images of one shape and n classes each; got "
            f"{[tuple(t.shape) for t in (x, z, said, says, labels)]}"
        )
    change = (z - x).abs()
    gain = sheet.gain or 1 / max(float(change.max()), STEP)
    page = Image.new("RGB", sheet.size(shape, len(x)), PAPER)
    pen = _Pen(page, sheet, shape)
    for i, row in enumerate(zip(said.tolist(), says.tolist(), labels.tolist(), strict=True)):
        before, after, label = row
        said_of, says_of, true = (_name(names, k) for k in row)
        pen.tile(i, 0, x[i], (said_of, "clean"), INK if before == label else WRONG)
        pen.tile(i, 1, z[i], (says_of, "stamped"), INK if after == label else WRONG)
        pen.tile(i, 2, change[i] * gain, (f"true: {true}", f"change \u00d7 {gain:.3g}"), FAINT)
    return page


def _shape(x: Images) -> Shape:
    """Return channels, height and width of the images to show, of which there must be one."""
    if not len(x):
        raise BadImages("a contact sheet needs at least one image")
    return (x.shape[1], x.shape[2], x.shape[3])


def plain_sheet(
    x: Images,
    words: Sequence[tuple[str, str]],
    marked: Tensor,
    *,
    sheet: SheetLayout = SheetLayout(),
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
    shape = _shape(x)
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

    def __init__(
        self, page: Image.Image, sheet: SheetLayout, shape: Shape, rows: int = ROWS
    ) -> None:
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
    large = dots(colored(picture)).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return Image.fromarray(large.numpy())


def _name(names: Sequence[str], label: int) -> str:
    """Return the name of a class on one line without control characters, or its number."""
    known = names[label][:200] if label < len(names) else ""
    return " ".join(printable(known).split()) or str(label)
