"""How images come to the size that a net takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from PIL import Image

from gifthorse.core.errors import BadImages

Kernel: TypeAlias = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

MOST_PIXELS = 1 << 26  # of an image before its crop; a strip of few pixels grows beyond all bounds


@dataclass(frozen=True)
class Resize:
    """Resize, then crop the middle.

    Attributes:
        size: Height and width of what comes out.
        shortest: Side that the shorter edge is resized to first, keeping the aspect ratio; None
            resizes both edges to `resized`.
        resized: Height and width before the crop; None for `size`.
        kernel: Filter of Pillow.
        even: Where a crop lies that leaves an odd number of pixels over: half of them rounded to
            the even number, as torchvision does; else rounded down, as transformers does.
    """

    size: tuple[int, int]
    shortest: int | None = None
    resized: tuple[int, int] | None = None
    kernel: Kernel = "bilinear"
    even: bool = False

    @classmethod
    def read(cls, told: Mapping[str, Any] | None) -> Resize | None:
        """Return what `dataclasses.asdict` and JSON made plain; None stays None."""
        if told is None:
            return None
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return cls(**plain)

    @property
    def words(self) -> str:
        """What is done, to be said of an image."""
        height, width = self.size
        way = f"resized to {self.shortest} pixels along the shorter edge"
        if self.shortest is None:
            high, wide = self.resized or self.size
            way = f"resized to {high}x{wide}"
            if (high, wide) == self.size:
                return f"{way}, aspect ratio not kept"
        return f"{way} ({self.kernel}), the middle {height}x{width} kept"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return an image of `size`; one that has it already is returned as it is."""
        height, width = self.size
        if image.size == (width, height):
            return image
        grown = self._grown(image)
        over = grown.width - width, grown.height - height
        left, top = (round(n / 2) if self.even else n // 2 for n in over)
        return grown.crop((left, top, left + width, top + height))

    def _grown(self, image: Image.Image) -> Image.Image:
        if self.shortest is None:
            height, width = self.resized or self.size
        else:  # as PyTorch and transformers cut to whole pixels
            low, high = sorted(image.size)
            sides = self.shortest, int(self.shortest * high / low)
            height, width = sides if image.height <= image.width else sides[::-1]
        if height * width > MOST_PIXELS:
            raise BadImages(
                f"is {image.height}x{image.width} and would be {height}x{width} before its crop"
            )
        return image.resize((width, height), Image.Resampling[self.kernel.upper()])
