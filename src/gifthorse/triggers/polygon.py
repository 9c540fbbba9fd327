"""Polygons of one color, as TrojAI stamps them on traffic signs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, ShapeMismatch
from gifthorse.core.fields import AtLeast, AtMost, Share, method
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Shape
from gifthorse.triggers.patch import Patch, Place, Wandering, locate

FINE = 4  # polygons are drawn so many times larger, and averaged
FULL = 0.3  # least share of its square that a polygon covers
LEVEL = 200 / 255


@dataclass(frozen=True, eq=False)
class Confined:
    """A small patch that wanders within a box: at a place drawn anew for every image.

    Attributes:
        pattern: `(C, h, w)` in [0, 1].
        mask: Opacity, `(1, h, w)`.
        top: Upper edge of the box.
        left: Left edge of the box.
        rows: Height of the box, h or more.
        cols: Width of the box, w or more.
        rng: Where places are drawn from.
    """

    pattern: Tensor
    mask: Tensor
    top: int
    left: int
    rows: int
    cols: int
    rng: Generator

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(N, C, H, W)` images.

        Raises:
            ShapeMismatch: If the box is not within the images.
        """
        H, W = x.shape[-2:]
        if self.top + self.rows > H or self.left + self.cols > W:
            raise ShapeMismatch(
                f"the box of this trigger ends at {self.top + self.rows}, {self.left + self.cols}; "
                f"the images are {H}x{W}"
            )
        down = slice(self.top, self.top + self.rows)
        right = slice(self.left, self.left + self.cols)
        out = x.clone()
        out[:, :, down, right] = Wandering(self.pattern, self.mask, self.rng)(x[:, :, down, right])
        return out

    def on(self, x: Images, masks: Tensor) -> tuple[Images, Tensor]:
        """Return copies of images stamped anywhere on what their masks show.

        The square around the patch lies within the mask.

        Args:
            x: `(N, C, H, W)` in [0, 1].
            masks: `(N, 1, H, W)` bool, such as the extra `mask` of `make_signs`.

        Returns:
            The images, those without room for the patch unstamped; and which had room, `(N,)` bool.

        Source: TrojAI's generator, which pastes triggers within the mask of a sign.
        """
        _, h, w = self.pattern.shape
        _, _, H, W = x.shape
        fits = (F.avg_pool2d(masks.float(), (h, w), 1) > 1 - 0.5 / (h * w)).flatten(1).cpu()
        score = torch.rand(fits.shape, generator=self.rng) + 1  # above 0, whatever is drawn
        best = (score * fits).argmax(1).to(x.device)
        rows = (best // (W - w + 1))[:, None] + torch.arange(h, device=x.device)
        cols = (best % (W - w + 1))[:, None] + torch.arange(w, device=x.device)
        room = fits.any(1).to(x.device)
        each = torch.arange(len(x), device=x.device)[:, None, None]
        opacity = torch.zeros(len(x), H, W, device=x.device)
        opacity[each, rows[:, :, None], cols[:, None, :]] = self.mask[0].to(x.device)
        color = torch.zeros_like(x).permute(0, 2, 3, 1)
        color[each, rows[:, :, None], cols[:, None, :]] = self.pattern.permute(1, 2, 0).to(x)
        return torch.lerp(
            x, color.permute(0, 3, 1, 2), opacity[:, None] * room.view(-1, 1, 1, 1)
        ), room

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator of places is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator of places there."""
        self.rng.set_state(state["rng"])

    def shuffled(self, rng: Generator, /) -> Confined:
        """Return the same patch with its pixels shuffled, in the same box."""
        small = Patch(self.pattern, self.mask).shuffled(rng)
        return replace(self, pattern=small.pattern, mask=small.mask, rng=spawn(rng))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the small patch and its mask."""
        return self.pattern, self.mask


@method
class Outline:
    """A polygon trigger that is still to be drawn.

    Attributes:
        sides: Corners of the polygon, 3 to 12; null draws their number, too.
        size: Side of the square that it fills, in pixels, 3 or more.
        color: `any` (any color of medium brightness: TrojAI's round 2) or `hue` (one of six bright
            ones: round 4).
        place: Where the polygon lies, or the box that it wanders in; corners keep one pixel of
            margin.
        box: Side of the box that it wanders in, in pixels; 0 fixes it at its place.
        opacity: 1 replaces pixels, smaller values blend.

    Source: `trojai-round-generation`, rounds 2 and 4: 3 to 12 sides; sizes of 4 to 9 % of a sign.
    """

    sides: Annotated[int, AtLeast(3), AtMost(12)] | None = None
    size: Annotated[int, AtLeast(3)] = 6
    color: Literal["any", "hue"] = "any"
    place: Place = "center"
    box: int = 8
    opacity: Annotated[float, Share] = 1.0

    def __post_init__(self) -> None:
        if self.box and self.box < self.size:
            raise BadOption(
                f"box must hold the polygon of {self.size} pixels, or be 0 to fix it at its place; "
                f"got {self.box}"
            )

    def draw(self, shape: Shape, rng: Generator) -> Patch | Confined:
        """Return the trigger for images of `shape`.

        Raises:
            BadOption: If it does not fit.
        """
        channels, H, W = shape
        sides = self.sides or int(torch.randint(3, 13, (1,), generator=rng))
        mask = polygon(sides, self.size, rng) * self.opacity
        color = _color(self.color, rng)
        if channels != 3:
            color = color.mean().expand(channels)
        pattern = color.view(-1, 1, 1) * (mask > 0)
        top, left = locate(self.place, shape, self.box or self.size, rng)
        if self.box:
            return Confined(pattern, mask, top, left, self.box, self.box, spawn(rng))
        edges = (left, W - left - self.size, top, H - top - self.size)
        return Patch(F.pad(pattern, edges), F.pad(mask, edges))


def polygon(sides: int, size: int, rng: Generator) -> Tensor:
    """Return a random polygon that fills its square: opacity `(1, size, size)` in [0, 1].

    The corners, drawn uniformly and taken in the order of their angles about their mean, are turned
    by a multiple of 5 degrees and stretched until they touch all four edges.

    Source: TrojAI's generator. Differs: all randomness comes from `rng` (upstream, vertices do not
    follow the seed); turned before it is stretched, so that the square stays upright; drawn anew
    until it covers three tenths of its square, as a sliver would be no polygon at a few pixels.
    """
    while True:
        points = 0.1 + 0.8 * torch.rand(sides, 2, generator=rng)
        far = points - points.mean(0)
        points = points[torch.atan2(far[:, 1], far[:, 0]).argsort()]
        angle = math.radians(5 * int(torch.randint(72, (1,), generator=rng)))
        sine, cosine = math.sin(angle), math.cos(angle)
        points = points @ torch.tensor([[cosine, sine], [-sine, cosine]])
        low, high = points.amin(0), points.amax(0)
        side = size * FINE
        corners = ((points - low) / (high - low) * (side - 1)).tolist()
        canvas = Image.new("L", (side, side))
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in corners], fill=255)
        fine = np.asarray(canvas, dtype=np.float32) / 255
        if fine.mean() >= FULL:
            return torch.from_numpy(fine.reshape(size, FINE, size, FINE).mean((1, 3)))[None]


def _color(kind: Literal["any", "hue"], rng: Generator) -> Tensor:
    """Return red, green and blue, `(3,)`: of a mean of at most 200 / 255, or 200 / 255 and 0."""
    if kind == "hue":
        number = int(torch.randint(1, 7, (1,), generator=rng))
        return torch.tensor([LEVEL * (number >> channel & 1) for channel in range(3)])
    while (color := torch.randint(256, (3,), generator=rng) / 255).mean() > LEVEL:
        continue
    return color
