"""How well a recovered trigger fits the true one, and how large a trigger is."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gifthorse.core.types import Images

Overlap: TypeAlias = Literal["topk", "half", "zoo"]


def mask_jaccard(recovered: Tensor, true: Tensor) -> float:
    """Return the overlap (MJS) of a recovered trigger with the true one, in [0, 1].

    The recovered importance `(H, W)` is cut to its k largest entries, k = pixels of the true mask
    `(H, W)`; the index is intersection over union. NaN if the true mask is empty.

    Source: TrojanZoo sec. 5.3. Differs: keeps k pixels, not the k - 1 of TrojanZoo's strict `>`.

    Example:
        >>> true = torch.zeros(4, 4); true[0, :2] = 1
        >>> mask_jaccard(torch.rand(4, 4) * 0.1 + true, true)
        1.0
    """
    index = mask_overlap(recovered, true)
    return math.nan if index is None else index


def mask_overlap(recovered: Tensor, true: Tensor, mode: Overlap = "topk") -> float | None:
    """Return the overlap (MJS) of a recovered trigger with the true one in one of three readings.

    A soft mask has no zeros, so "its nonzero pixels" must be said in some way; all need the truth
    or are of use beside it, so they are for judging alone.

    Args:
        recovered: Importance of each pixel, `(H, W)`.
        true: The true mask, `(H, W)`: its k pixels above 0 count, however faint.
        mode: `topk`, the k largest entries (the first ones, where entries are equal); `half`, all
            above half of the largest; `zoo`, the k - 1 largest, which is what TrojanZoo's Table 12
            has.

    Returns:
        Intersection over union in [0, 1]; None if both are empty.

    Source: TrojanZoo sec. 5.3.
    """
    truth, given = true.flatten() > 0, recovered.flatten()
    if mode == "half":
        top = given > 0.5 * given.amax()
    else:
        count = max(0, int(truth.sum()) - (mode == "zoo"))
        top = torch.zeros_like(truth)
        top[given.argsort(descending=True, stable=True)[:count]] = True
    union = int((top | truth).sum())
    return int((top & truth).sum()) / union if union else None


def mask_size(mask: Tensor) -> float:
    """Return the L1 norm of a mask `(H, W)` or `(1, H, W)` (MLN), in pixels.

    Source: TrojanZoo sec. 5.3.
    """
    return float(mask.abs().double().sum())


def changed_size(before: Images, after: Images) -> tuple[float, float]:
    """Return how much a trigger without a mask changes, each a mean over images, in pixels.

    Args:
        before: Images, `(N, C, H, W)` in [0, 1], at least one.
        after: The same with the trigger.

    Returns:
        Pixels with a channel changed by more than 1 / 255, and the sum over pixels of the largest
        change of a channel.

    Example:
        >>> changed_size(torch.zeros(1, 3, 2, 2), torch.tensor([0.0, 0.5]).expand(1, 3, 2, 2))
        (2.0, 1.0)
    """
    apart = (after - before).abs().double().amax(1)  # (N, H, W)
    seen = apart > 1 / 255 + 1e-6  # one level of 8 bits is a little more in float32
    return float(seen.double().sum((1, 2)).mean()), float(apart.sum((1, 2)).mean())
