"""Standard augmentation of small images, on the batch, by kornia."""

from __future__ import annotations

from functools import lru_cache

from torch import Generator, nn

from gifthorse.core.tensors import seeded
from gifthorse.core.types import Images


@lru_cache(maxsize=8)
def _pipeline(height: int, width: int, pad: int, flip: bool) -> nn.Module:
    from kornia import augmentation as K

    steps: list[nn.Module] = []
    if pad:
        crop = K.RandomCrop(
            (height, width),
            padding=pad,
            cropping_mode="resample",
            resample="nearest",
            align_corners=True,
        )
        steps.append(crop)
    if flip:
        steps.append(K.RandomHorizontalFlip(p=0.5))
    return nn.Sequential(*steps)


def augment(x: Images, rng: Generator, *, pad: int = 4, flip: bool = True) -> Images:
    """Return randomly shifted (zero-padded crop) and mirrored copies, each image by itself.

    kornia draws from torch's global generator; it is seeded from `rng` and put back afterwards.
    """
    with seeded(rng, x.device):
        out: Images = _pipeline(x.shape[-2], x.shape[-1], pad, flip)(x)
    return out
