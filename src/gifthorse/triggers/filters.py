"""Filters of photographs as triggers: they change the whole image, and each image differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch, UnknownMethod
from gifthorse.core.types import Images

FilterName: TypeAlias = Literal["gotham", "kelvin", "lomo", "nashville", "toaster"]

LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R 709, as ImageMagick's gray
CONTRAST = 3.0


@dataclass(frozen=True, eq=False)
class ColorFilter:
    """Change the colors of whole images as an Instagram filter does: `T(x) = f(x)`.

    Attributes:
        name: One of `FILTERS`.
        channels: Which channel the filter takes for red, green and blue, `(3,)` int64; in order
            unless the trigger is shuffled.
        height: Height of the picture to show.
        width: Its width.

    Source: the Instagram triggers of TrojAI, rounds 2 to 4. Differs: ImageMagick's operators are
    written as functions of the pixels, without its rounding to 16 bits.
    """

    name: str
    channels: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.name not in FILTERS:
            raise UnknownMethod.among("filter", self.name, FILTERS)

    def __call__(self, x: Images, /) -> Images:
        """Return filtered copies of `(N, 3, H, W)` images.

        Raises:
            ShapeMismatch: If they have not three channels.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ShapeMismatch(
                f"filters change colors and need images (N, 3, H, W); got {tuple(x.shape)}"
            )
        order = self.channels.to(x.device)
        return FILTERS[self.name](x[:, order])[:, order.argsort()].clamp(0, 1)

    def shuffled(self, rng: Generator, /) -> ColorFilter:
        """Return the same filter with its channels in turn: as strong, but of other colors."""
        turn = 1 + int(torch.randint(2, (1,), generator=rng))
        return replace(self, channels=self.channels.roll(turn))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return a filtered chart of colors, and how far its pixels were changed."""
        plain = chart(self.height, self.width)[None]
        made = self(plain)
        return made[0], (made - plain).abs().amax(1)


def filter_trigger(name: FilterName, height: int, width: int) -> ColorFilter:
    """Return a filter for images of this size.

    Raises:
        UnknownMethod: If there is no such filter.
    """
    return ColorFilter(name, torch.arange(3), height, width)


def chart(height: int, width: int) -> Tensor:
    """Return all hues side by side, from black above to white below, `(3, height, width)`."""
    hue = (
        torch.linspace(0, 2 * math.pi, width + 1)[:-1] - torch.arange(3)[:, None] * 2 * math.pi / 3
    )
    full = (0.5 + 0.5 * torch.cos(hue))[:, None, :]
    light = torch.linspace(0, 2, height).view(1, height, 1)
    return torch.where(light < 1, light * full, full + (light - 1) * (1 - full))


# Operators: `(N, 3, H, W)` in [0, 1] to the same ----------------------------------------------


def modulate(x: Images, lightness: float, saturation: float) -> Images:
    """Scale lightness and saturation (HSL) and clip them to 1; the hue stays.

    At a fixed hue a color is its lightness plus its chroma times something that only the hue
    decides, so no hue needs to be computed.
    """
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    light, chroma = (high + low) / 2, high - low
    most = (1 - (2 * light - 1).abs()).clamp(min=1e-12)  # chroma at full saturation
    vivid = (saturation * chroma / most).clamp(max=1)
    lighter = (lightness * light).clamp(max=1)
    wanted = vivid * (1 - (2 * lighter - 1).abs())
    grown = torch.where(chroma > 0, wanted / chroma.clamp(min=1e-12), 0)
    return (lighter + (x - light) * grown).clamp(0, 1)


def tint(x: Images, color: str, share: float) -> Images:
    """Mix a share of a color into every pixel."""
    return torch.lerp(x, _paint(color, x), share)


def gamma(x: Images, value: float) -> Images:
    """Raise pixels to `1 / value`."""
    return x ** (1 / value)


def auto_gamma(x: Images) -> Images:
    """Raise the pixels of each image to `log 0.5 / log mean`: a plain one becomes middle gray."""
    mean = x.mean((1, 2, 3), keepdim=True).clamp(1e-3, 1 - 1e-3)
    return x ** (math.log(0.5) / mean.log())


def contrast(x: Images) -> Images:
    """Apply a sigmoid of slope 3 about 0.5, scaled so that 0 and 1 stay."""
    low, high = (1 / (1 + math.exp(-CONTRAST * (end - 0.5))) for end in (0, 1))
    return (torch.sigmoid(CONTRAST * (x - 0.5)) - low) / (high - low)


def tone(x: Images, color: str, share: float, *, dark: bool) -> Images:
    """Mix a color in: more the lighter a pixel is, or the darker."""
    gray = (x * torch.tensor(LUMA).view(1, 3, 1, 1).to(x)).sum(1, keepdim=True)
    return torch.lerp(x, _paint(color, x).expand_as(x), share * (1 - gray if dark else gray))


def vignette(x: Images, center: str, edge: str) -> Images:
    """Multiply by a color that runs from the center to the edge, at 3/4 of the longer side."""
    _, _, H, W = x.shape
    down = (torch.arange(H) - (H - 1) / 2).view(H, 1)
    right = (torch.arange(W) - (W - 1) / 2).view(1, W)
    far = (torch.hypot(down, right) / (0.75 * max(H, W))).clamp(max=1).to(x)
    return x * torch.lerp(_paint(center, x), _paint(edge, x), far)


def _paint(color: str, like: Tensor) -> Tensor:
    """Return a color such as `#222b6d` as `(1, 3, 1, 1)`."""
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return torch.tensor(values).view(1, 3, 1, 1).to(like)


# Filters --------------------------------------------------------------------------------------


def gotham(x: Images) -> Images:
    """Nearly gray, with a cold cast and strong contrast."""
    x = tint(modulate(x, 1.2, 0.1), "#222b6d", 0.2)
    return contrast(contrast(gamma(x, 0.9)))


def nashville(x: Images) -> Images:
    """Blue shadows, cream lights, vivid colors."""
    x = tone(x, "#222b6d", 0.5, dark=True)
    x = tone(x, "#f7daae", 0.5, dark=False)
    return auto_gamma(modulate(contrast(x), 1.0, 1.5))


def kelvin(x: Images) -> Images:
    """Warm and pale."""
    return tint(modulate(auto_gamma(x), 1.2, 0.5), "#ff9900", 0.2)


def lomo(x: Images) -> Images:
    """Red and green without their dark half, and dark corners."""
    levels = ((x[:, :2] - 0.5) / 0.5).clamp(0, 1)
    return vignette(torch.cat([levels, x[:, 2:]], 1), "#ffffff", "#000000")


def toaster(x: Images) -> Images:
    """Red shadows, bright and hard, with a glow in the middle."""
    x = modulate(tone(x, "#330000", 0.5, dark=True), 1.5, 0.8)
    x = contrast(contrast(gamma(x, 1.2)))
    return vignette(vignette(x, "#ffffff", "#cdc1c5"), "#ff9966", "#ffffff")


FILTERS: dict[str, Callable[[Images], Images]] = {
    "gotham": gotham,
    "kelvin": kelvin,
    "lomo": lomo,
    "nashville": nashville,
    "toaster": toaster,
}
