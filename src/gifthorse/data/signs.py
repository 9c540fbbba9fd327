"""Traffic signs of no real country: shapes with borders and icons, drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption

FINE = 4  # signs are drawn so many times larger, and averaged
GRID = 5  # cells of an icon along each side
UNLIKE = 0.15  # share of pixels by which any two icons differ at least

Corners = list[tuple[float, float]]  # to the right and down, in [-1, 1]


def _ring(count: int, turn: float = 0.0, pinch: float = 1.0) -> Corners:
    """Return a regular polygon that fills the square; every other corner is drawn inwards."""
    angles = [2 * math.pi * i / count + math.radians(turn) - math.pi / 2 for i in range(count)]
    radii = [pinch if i % 2 else 1.0 for i in range(count)]
    points = np.array(
        [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
    )
    low, high = points.min(0), points.max(0)
    return [(float(a), float(b)) for a, b in (points - low) / (high - low) * 2 - 1]


def _pill() -> Corners:
    return [(0.65 * x, 0.65 * y + (0.35 if y > 0 else -0.35)) for x, y in _ring(64)]


SHAPES: dict[str, Corners] = {
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "inverted triangle": [(-1, -1), (1, -1), (0, 1)],
    "diamond": _ring(4),
    "square": _ring(4, 45),
    "pentagon": _ring(5),
    "hexagon": _ring(6),
    "octagon": _ring(8, 22.5),
    "circle": _ring(64),
    "shield": [(-1, -1), (1, -1), (1, 0.1), (0.7, 0.6), (0, 1), (-0.7, 0.6), (-1, 0.1)],
    "star": _ring(10, 0, 0.55),
    "trapezoid": [(-0.6, -1), (0.6, -1), (1, 1), (-1, 1)],
    "pill": _pill(),
    "cross": [
        *((-0.5, -1), (0.5, -1), (0.5, -0.5), (1, -0.5), (1, 0.5), (0.5, 0.5)),
        *((0.5, 1), (-0.5, 1), (-0.5, 0.5), (-1, 0.5), (-1, -0.5), (-0.5, -0.5)),
    ],
    "arrow": [(0, -1), (1, 0), (0.55, 0), (0.55, 1), (-0.55, 1), (-0.55, 0), (-1, 0)],
}
BORDERS = {
    "red": (200, 20, 30),
    "blue": (25, 60, 190),
    "green": (15, 130, 60),
    "yellow": (245, 200, 20),
    "orange": (240, 120, 20),
    "black": (25, 25, 25),
    "purple": (120, 35, 150),
    "brown": (110, 65, 30),
}
FILLS = [(250, 250, 250), (250, 244, 205), (215, 232, 250), (220, 244, 220), (250, 224, 228)]
INKS = [(20, 20, 20), (20, 35, 110), (130, 15, 20), (10, 75, 40)]
MOST_SIGNS = len(SHAPES) * len(BORDERS)


def draw_signs(classes: int, side: int, rng: Generator) -> tuple[Tensor, tuple[str, ...]]:
    """Return `classes` signs, no two with the same shape and border or with similar icons.

    Args:
        classes: How many, 2 to `MOST_SIGNS`.
        side: Height and width in pixels; a sign fills the square.
        rng: Source of shapes, colors and icons.

    Returns:
        Colors times opacity, and opacity, `(classes, 4, side, side)` in [0, 1]; and names such as
        `red octagon`.

    Raises:
        BadOption: If there are not so many different signs.

    Source: the sign data of TrojAI, rounds 2 to 4. Differs: drawn by this code, from 14 shapes, 8
    border colors and random icons, where NIST took 600 drawings made by hand.
    """
    if not 2 <= classes <= MOST_SIGNS:
        raise BadOption(f"there are signs for 2 to {MOST_SIGNS} classes; got {classes}")
    pairs = [(shape, border) for shape in SHAPES for border in BORDERS]
    chosen = [pairs[i] for i in torch.randperm(len(pairs), generator=rng)[:classes].tolist()]
    icons = _icons(classes, side * FINE, rng)
    signs = [
        _sign(shape, border, icon, rng) for (shape, border), icon in zip(chosen, icons, strict=True)
    ]
    fine = torch.from_numpy(np.stack(signs).astype(np.float32) / 255).permute(0, 3, 1, 2)
    fine = torch.cat([fine[:, :3] * fine[:, 3:], fine[:, 3:]], 1)
    small = torch.nn.functional.avg_pool2d(fine, FINE)
    return small, tuple(f"{border} {shape}" for shape, border in chosen)


def _sign(shape: str, border: str, icon: Image.Image, rng: Generator) -> NDArray[np.uint8]:
    side = icon.width
    canvas = Image.new("RGBA", (side, side))
    inner = Image.new("L", (side, side))
    _fill(ImageDraw.Draw(canvas), SHAPES[shape], side, BORDERS[border])
    _fill(ImageDraw.Draw(inner), [(x * 0.76, y * 0.76) for x, y in SHAPES[shape]], side, 255)
    canvas.paste(FILLS[_below(len(FILLS), rng)], mask=inner)
    both = Image.fromarray(np.minimum(np.asarray(icon), np.asarray(inner)))
    canvas.paste(INKS[_below(len(INKS), rng)], mask=both)
    return np.asarray(canvas)


def _fill(
    pen: ImageDraw.ImageDraw, corners: Corners, side: int, ink: int | tuple[int, int, int]
) -> None:
    pen.polygon([((x + 1) / 2 * (side - 1), (y + 1) / 2 * (side - 1)) for x, y in corners], ink)


# Icons ----------------------------------------------------------------------------------------


def _icons(count: int, side: int, rng: Generator) -> list[Image.Image]:
    """Return glyphs in the middle of a square, every two unlike each other."""
    icons: list[NDArray[np.uint8]] = []
    wide = side // 2
    while len(icons) < count:
        glyph = _glyph(wide, rng)
        inked = glyph.mean() / 255
        far = all(np.mean(glyph != other) >= UNLIKE for other in icons)
        if 0.2 <= inked <= 0.8 and far:
            icons.append(glyph)
    pasted = []
    for glyph in icons:
        canvas = Image.new("L", (side, side))
        canvas.paste(Image.fromarray(glyph), ((side - wide) // 2, (side - wide) // 2))
        pasted.append(canvas)
    return pasted


def _glyph(side: int, rng: Generator) -> NDArray[np.uint8]:
    """Return 2 to 4 figures on the lines of a grid, mirrored to the left."""
    canvas = Image.new("L", (side, side))
    pen, cell = ImageDraw.Draw(canvas), side / GRID
    for _ in range(2 + _below(3, rng)):
        a, b = sorted(_below(GRID, rng) * cell for _ in range(2))
        top, bottom = sorted(_below(GRID, rng) * cell for _ in range(2))
        figure = list(_FIGURES.values())[_below(len(_FIGURES), rng)]
        figure(pen, [a, top, b + cell - 1, bottom + cell - 1])
    half = np.array(canvas)
    both: NDArray[np.uint8] = np.maximum(half, half[:, ::-1])
    return both


def _wedge(pen: ImageDraw.ImageDraw, box: list[float]) -> None:
    left, top, right, bottom = box
    pen.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], 255)


def _bar(pen: ImageDraw.ImageDraw, box: list[float]) -> None:
    left, top, right, bottom = box
    pen.line([left, bottom, right, top], 255, width=max(1, round((right - left) / 4)))


_FIGURES: dict[str, Callable[[ImageDraw.ImageDraw, list[float]], None]] = {
    "block": lambda pen, box: pen.rectangle(box, 255),
    "disc": lambda pen, box: pen.ellipse(box, 255),
    "wedge": _wedge,
    "bar": _bar,
}


def _below(bound: int, rng: Generator) -> int:
    return int(torch.randint(bound, (1,), generator=rng))
