"""One kind of model file: how it is built, and what its own framework says of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = 5
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Pictures = Sequence[Image.Image]
Says = Callable[[Pictures], Tensor]


@dataclass(frozen=True)
class Instance:
    """A model as its framework wrote it.

    Attributes:
        path: File or folder.
        says: Outputs `(N, K)` of the framework for pictures, its own preprocessing included.
        size: Height and width of the pictures; those of a model that resizes may have any.
        gray: Whether pictures have one channel.
        normalize: How its pictures are normalized, where no file says so.
    """

    path: Path
    says: Says
    size: tuple[int, int]
    gray: bool = False
    normalize: str = "imagenet"


@dataclass(frozen=True)
class Kind:
    """A net in a container.

    Attributes:
        name: Of the row, such as `Swin, folder`.
        make: Builds it in an empty folder.
        needs: Packages that write it; their versions are shown.
        arch: What the user has to give as `--arch`, if anything.
        refused: Words of the refusal, where it is not opened; empty where it is.
        layout: Whether the file was laid out here by hand as its library does.
    """

    name: str
    make: Callable[[Path], Instance]
    needs: tuple[str, ...] = ("torch",)
    arch: str | None = None
    refused: str = ""
    layout: bool = False


def pictures(size: tuple[int, int], count: int = 16, *, gray: bool = False) -> list[Image.Image]:
    """Return pictures of soft spots of color and some noise, the same each time."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        spots = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        soft = np.asarray(spots.resize(size[::-1], Image.Resampling.BICUBIC), float)
        pixels = (soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8)
        made.append(Image.fromarray(pixels).convert("L" if gray else "RGB"))
    return made


def pixels(images: Pictures) -> Tensor:
    """Return pictures of one size as `(N, C, H, W)` in [0, 1]."""
    arrays = [np.array(image)[..., None] if image.mode == "L" else np.array(image)
              for image in images]  # fmt: skip
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def normalized(images: Pictures) -> Tensor:
    """Return pictures as most training scripts feed them: by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in IMAGENET)
    return (pixels(images) - mean) / std


def plain(net: nn.Module) -> Says:
    """Return what a net of torch says of pictures that are normalized like ImageNet's."""

    def says(images: Pictures) -> Tensor:
        with torch.no_grad():
            out = net(normalized(images))
        return logits_of(out)

    return says


def logits_of(out: Any) -> Tensor:
    """Return the logits that a net of any library returns."""
    if isinstance(out, tuple | list):  # YOLO's classifiers: probabilities, logits
        out = out[0]
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits


def lively(net: nn.Module, says: Says, size: tuple[int, int]) -> nn.Module:
    """Give an untrained net norms that have seen pictures, and logits that differ between them."""
    some = pictures(size)
    with torch.no_grad():
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            kept, norm.momentum = norm.momentum, 1.0
            nn.init.uniform_(norm.weight, 0.7, 1.3)
            nn.init.normal_(norm.bias, std=0.1)
            norm.train()
        if norms:
            says(some)
        for norm in norms:
            norm.momentum = kept
            norm.eval()
        logits = says(some)
        spread = logits.sub(logits.mean(0)).std().clamp(min=1e-8)
        for head in net.modules():
            if isinstance(head, nn.Linear) and head.out_features == logits.shape[1]:
                head.weight /= spread
                if head.bias is not None:
                    head.bias.copy_((head.bias - logits.mean(0)) / spread)
    return net.eval().requires_grad_(False)
