"""Down-upsampling: make every image smaller and large again before the net sees it."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import OpenShare, method
from gifthorse.core.run import Run
from gifthorse.core.types import Images, Logits, Samples, Subject

Kernel: TypeAlias = Literal["bilinear", "bicubic", "area"]


@method
class DownUp:
    """Scale every image down and up again.

    Needs no data and changes no weight. Cost: next to nothing. It takes away triggers that live on
    single pixels or on fine detail; a patch of a few pixels survives.

    The result is not a bare net behind a normalization: its weights alone, in a file, would be
    those of the net as it was.

    Attributes:
        ratio: Height and width in between, as a share of the image's, in (0, 1); rounded down.
        kernel: How pixels are made from others: `bilinear`, `bicubic` or `area`.
        antialias: Whether a pixel is made from all others that it covers, in both steps; without
            it, from the nearest two or four a side. `area` always takes all.

    Source: TrojanZoo Table 21 (ratio 0.95 with anti-aliasing), called recompression in its code.
    Differs: `antialias` is the table's word; the code takes what its library does, which in 2021
    was not to filter tensors (`antialias=false`), and is to filter them today.
    """

    ratio: Annotated[float, OpenShare] = 0.95
    kernel: Kernel = "bilinear"
    antialias: bool = True

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the classifier behind both steps.

        Raises:
            NotApplicable: If the images have no smaller size.
        """
        _, h, w = subject.shape
        if min(h, w) < 2:
            raise NotApplicable(f"images of {h} x {w} pixels cannot be made smaller")
        reform = Rescale(self.ratio, self.kernel, self.antialias)
        return replace(subject, net=Reformed(reform, deepcopy(subject.net)).eval())


class Rescale(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] made smaller and large again, same shape and range.

    Attributes:
        ratio: Height and width in between, as a share of the image's.
        kernel: How pixels are made from others.
        antialias: Whether from all that they cover.
    """

    def __init__(self, ratio: float, kernel: Kernel, antialias: bool = True) -> None:
        super().__init__()
        self.ratio, self.kernel, self.antialias = ratio, kernel, antialias

    def forward(self, x: Images) -> Images:
        """Return the images, blurred a little."""
        # 0.29 * 100 is a little below 29.
        small = [max(1, math.floor(self.ratio * side + 1e-9)) for side in x.shape[2:]]
        return self._resized(self._resized(x, small), list(x.shape[2:])).clamp(0, 1)

    def _resized(self, x: Images, size: list[int]) -> Images:
        if self.kernel == "area":
            return F.interpolate(x, size, mode="area")
        out: Tensor = F.interpolate(
            x, size, mode=self.kernel, align_corners=False, antialias=self.antialias
        )
        return out


class Reformed(nn.Module):
    """A net behind a change of its images: raw pixels in [0, 1] in, logits out.

    The net comes last, so that what asks for the last layer still finds it.

    Attributes:
        reform: From images to images, same shape and range.
        net: From images to logits, with its normalization.
    """

    def __init__(self, reform: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.reform = reform
        self.net = net

    def forward(self, x: Images) -> Logits:
        """Return logits `(N, K)` for raw images `(N, C, H, W)` in [0, 1]."""
        logits: Tensor = self.net(self.reform(x))
        return logits
