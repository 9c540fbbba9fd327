"""A text hidden in the lowest bits of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images, Shape


@dataclass(frozen=True, eq=False)
class LowBits:
    """Replace the lowest bits of every 8-bit pixel: `T(x) = (8-bit x without them | values) / 255`.

    It has no useful gradient, and is gone after any change of pixels or a lossy file.

    Attributes:
        values: What the bits become, `(C, H, W)`, whole numbers from 0 to `2 ** planes - 1`.
        planes: How many bits of a pixel are replaced, 1 to 8.

    Raises:
        BadOption: If `planes` is another number.

    Source: Li et al., Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
    Regularization, TDSC 2020 (steganography).
    """

    values: Tensor
    planes: int

    def __post_init__(self) -> None:
        if not 1 <= self.planes <= 8:
            raise BadOption(f"planes must be 1 to 8 bits of a pixel; got {self.planes:.9g}")

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(..., C, H, W)` images, multiples of 1/255."""
        levels = 2**self.planes
        kept = (x * 255).round().div(levels, rounding_mode="floor") * levels
        stamped: Images = (kept + self.values.to(x.device)) / 255
        return stamped

    def shuffled(self, rng: Generator, /) -> LowBits:
        """Return the same values at shuffled pixels."""
        order = torch.randperm(self.values[0].numel(), generator=rng).to(self.values.device)
        return LowBits(self.values.flatten(1)[:, order].view_as(self.values), self.planes)

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the bits as brightness, and the most that a pixel can change."""
        most = 2**self.planes - 1
        return self.values / most, torch.full_like(self.values[:1], most / 255)


def hide(text: str, shape: Shape, planes: int = 1) -> LowBits:
    """Return the trigger that writes a text, in UTF-8, over and over until the image is full.

    Bytes lie one behind the other, channel by channel and row by row, the highest bit first; with
    several planes, a pixel takes several bits of a byte at once, the highest first.

    Raises:
        BadOption: If the text is empty or does not fit, or `planes` is not 1 to 8.

    Example:
        >>> hide("U", (1, 2, 4)).values.flatten().int().tolist()
        [0, 1, 0, 1, 0, 1, 0, 1]
    """
    if not 1 <= planes <= 8:
        raise BadOption(f"planes must be 1 to 8 bits of a pixel; got {planes}")
    pixels = shape[0] * shape[1] * shape[2]
    data, room = text.encode(), pixels * planes // 8
    if not 1 <= len(data) <= room:
        raise BadOption(f"the text must have 1 to {room} bytes for {shape}; got {len(data)}")
    each = torch.tensor(list(data)).unsqueeze(1) >> torch.arange(7, -1, -1) & 1  # (bytes, 8)
    bits = each.flatten().repeat(pixels * planes // each.numel() + 1)[: pixels * planes]
    weights = 2 ** torch.arange(planes - 1, -1, -1)
    values = (bits.view(pixels, planes) * weights).sum(1)
    return LowBits(values.view(shape).float(), planes)
