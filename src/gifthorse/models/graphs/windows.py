"""Convolutions and pools of ONNX: windows that move over an image, and what lies around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gifthorse.core.errors import UnreadableModel

LARGEST = 1024  # of a window, a step, or what is put around an image


class WindowPadding(nn.Module):
    """Put a value around images: fixed numbers a side, or as many as `same` asks for.

    Args:
        pads: Before and behind, of rows and then of columns; None for `same`.
        kernel: Rows and columns of the window.
        strides: Steps of the window.
        dilations: Steps within the window.
        lower: Whether `same` puts the odd one before, not behind.
        value: What is put there.

    Source: ONNX, Operators.md, `auto_pad`: the output has ceil(size / stride) places.
    """

    def __init__(
        self,
        pads: tuple[int, int, int, int] | None,
        kernel: tuple[int, int],
        strides: tuple[int, int],
        dilations: tuple[int, int],
        *,
        lower: bool = False,
        value: float = 0.0,
    ) -> None:
        super().__init__()
        self.pads, self.kernel, self.strides, self.dilations = pads, kernel, strides, dilations
        self.lower, self.value = lower, value

    def forward(self, x: Tensor) -> Tensor:
        """Return larger images `(N, C, H', W')`."""
        top, bottom, left, right = self.pads or (*self._same(x, 0), *self._same(x, 1))
        return F.pad(x, (left, right, top, bottom), value=self.value)

    def _same(self, x: Tensor, axis: int) -> tuple[int, int]:
        size, step = x.shape[2 + axis], self.strides[axis]
        span = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        total = max((-(-size // step) - 1) * step + span - size, 0)
        less, more = total // 2, total - total // 2
        return (more, less) if self.lower else (less, more)


class AveragePool(nn.Module):
    """Mean over windows, of what is in the image alone where its padding does not count."""

    def __init__(self, padding: WindowPadding, *, ceil: bool) -> None:
        super().__init__()
        self.padding, self.ceil = padding, ceil

    def forward(self, x: Tensor) -> Tensor:
        """Return smaller images."""
        inside = torch.ones_like(x[:1, :1])
        return self._mean(x) / self._mean(inside)

    def _mean(self, x: Tensor) -> Tensor:
        m = self.padding
        return F.avg_pool2d(m(x), m.kernel, m.strides, ceil_mode=self.ceil)


class Windows:
    """The settings of a convolution or a pool, checked.

    Attributes:
        kernel: Rows and columns.
        strides: Steps, of rows and columns.
        dilations: Steps within a window.
        pads: Before and behind, of rows and then of columns; None for `same`.

    Raises:
        UnreadableModel: If they are none of a two-dimensional window.
    """

    def __init__(self, settings: Mapping[str, Any], kernel: tuple[int, ...] = ()) -> None:
        self.kernel = _two(settings.get("kernel_shape", kernel), 1)
        self.strides = _two(settings.get("strides", (1, 1)), 1)
        self.dilations = _two(settings.get("dilations", (1, 1)), 1)
        auto = settings.get("auto_pad", "NOTSET")
        self.lower = auto == "SAME_LOWER"
        self.pads: tuple[int, int, int, int] | None = None
        if auto in ("SAME_LOWER", "SAME_UPPER"):
            if self.strides == (1, 1):  # whatever the image's size
                (top, bottom), (left, right) = (self._even(axis) for axis in (0, 1))
                self.pads = top, bottom, left, right
            return
        given = (0, 0, 0, 0) if auto == "VALID" else settings.get("pads", (0, 0, 0, 0))
        top, left = _two(given[:2], 0)
        bottom, right = _two(given[2:], 0)
        self.pads = top, bottom, left, right

    def _even(self, axis: int) -> tuple[int, int]:
        total = (self.kernel[axis] - 1) * self.dilations[axis]
        less, more = total // 2, total - total // 2
        return (more, less) if self.lower else (less, more)

    @property
    def symmetric(self) -> tuple[int, int] | None:
        """Rows and columns around the image, if there are as many on both sides."""
        if self.pads is None or self.pads[0] != self.pads[1] or self.pads[2] != self.pads[3]:
            return None
        return self.pads[0], self.pads[2]

    def padding(self, value: float = 0.0) -> WindowPadding:
        """Return what puts a value around images."""
        return WindowPadding(
            *(self.pads, self.kernel, self.strides, self.dilations), lower=self.lower, value=value
        )


def _two(given: Any, least: int) -> tuple[int, int]:
    """Return two numbers of a window; one-dimensional and three-dimensional ones are refused."""
    numbers = given if isinstance(given, tuple | list) else ()
    fits = len(numbers) == 2 and all(type(n) is int and least <= n <= LARGEST for n in numbers)
    if not fits:
        raise UnreadableModel(
            f"a window of its graph has {given!s:.60}: only those of images are known here, two "
            f"numbers from {least} to {LARGEST}",
            rule="FS009",
        )
    return numbers[0], numbers[1]


def convolution(settings: Mapping[str, Any], weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a convolution with these weights `(out, in / groups, rows, columns)`."""
    found = Windows(settings, tuple(weight.shape[2:]))
    groups = settings.get("group", 1)
    out, inside = weight.shape[:2]
    if tuple(weight.shape[2:]) != found.kernel or groups < 1 or out % groups:
        raise UnreadableModel("a convolution of its graph does not fit its weights", rule="FS003")
    around = found.symmetric
    with torch.device("meta"):
        conv = nn.Conv2d(
            inside * groups,
            out,
            found.kernel,
            found.strides,
            around or 0,
            found.dilations,
            groups,
            bias is not None,
        )
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv if around is not None else nn.Sequential(found.padding(), conv)


def max_pool(settings: Mapping[str, Any]) -> nn.Module:
    """Return the largest value in each window."""
    found, ceil = Windows(settings), bool(settings.get("ceil_mode"))
    around = found.symmetric
    inside = around is not None and all(
        2 * a <= k for a, k in zip(around, found.kernel, strict=True)
    )
    pool = nn.MaxPool2d(
        found.kernel,
        found.strides,
        around if inside and around else 0,
        found.dilations,
        False,
        ceil,
    )
    return pool if inside else nn.Sequential(found.padding(-float("inf")), pool)


def average_pool(settings: Mapping[str, Any]) -> nn.Module:
    """Return the mean of each window."""
    found, ceil = Windows(settings), bool(settings.get("ceil_mode"))
    if found.dilations != (1, 1):
        raise UnreadableModel("an average pool of its graph is dilated", rule="FS009")
    around, whole = found.symmetric, bool(settings.get("count_include_pad"))
    inside = around is not None and all(
        2 * a <= k for a, k in zip(around, found.kernel, strict=True)
    )
    if inside:
        return nn.AvgPool2d(found.kernel, found.strides, around or 0, ceil, whole)
    if whole:
        pool = nn.AvgPool2d(found.kernel, found.strides, 0, ceil)
        return nn.Sequential(found.padding(), pool)
    return AveragePool(found.padding(), ceil=ceil)
