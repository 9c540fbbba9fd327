"""Does a trigger survive what happens to a picture on its way: shrinking, turning, cropping?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F

from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import asr
from gifthorse.core.types import Goal, Images, Rate, Samples, Subject, Trigger
from gifthorse.data.samples import batches, near


def rescaled(x: Images, percent: float) -> Images:
    """Shrink images to `percent` of their sides, in the middle of a black frame of the old size.

    Bilinear, without smoothing first. Small images cannot tell near scales apart: 98 % and 96 % of
    32 pixels are both 31.

    Raises:
        BadOption: If `percent` is not above 0 and at most 100.
    """
    H, W = x.shape[-2:]
    h, w = _part(H, percent), _part(W, percent)
    small = F.interpolate(x, (h, w), mode="bilinear", align_corners=False)
    top, left = (H - h) // 2, (W - w) // 2
    return F.pad(small, (left, W - w - left, top, H - h - top))


def enlarged(x: Images, percent: float) -> Images:
    """Cut out the middle `percent` of both sides and enlarge it to the old size, bilinear.

    Raises:
        BadOption: If `percent` is not above 0 and at most 100.
    """
    H, W = x.shape[-2:]
    h, w = _part(H, percent), _part(W, percent)
    top, left = (H - h) // 2, (W - w) // 2
    middle = x[..., top : top + h, left : left + w]
    return F.interpolate(middle, (H, W), mode="bilinear", align_corners=False)


def rotated(x: Images, degrees: float) -> Images:
    """Turn images counterclockwise about their center: bilinear, black outside, same size."""
    H, W = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid measures both sides as 2, whatever their lengths are
    rows = [[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]]
    theta = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    at = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, at, align_corners=False)


def _part(side: int, percent: float) -> int:
    if not 0 < percent <= 100:
        raise BadOption(f"percent must lie above 0 and be at most 100; got {percent}")
    return max(1, round(side * percent / 100))


# The ten columns of PixelBackdoor's Table 5.
TABLE_5: Mapping[str, Callable[[Images], Images]] = MappingProxyType(
    {"normal": lambda x: x}
    | {f"rescale {p} %": partial(rescaled, percent=p) for p in (98, 96, 88, 80)}
    | {f"rotate {d} deg": partial(rotated, degrees=d) for d in (1, 2, 3, 4, 5)}
)


def robustness(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    samples: Samples,
    *,
    views: Mapping[str, Callable[[Images], Images]] = TABLE_5,
    chunk: int = 512,
) -> dict[str, Rate]:
    """Return the attack success of stamped images that were then transformed.

    Args:
        subject: The classifier.
        trigger: What is stamped, once an image, before all transforms.
        goal: Its goal; images of the target class do not count.
        samples: Images that the search did not use.
        views: Transforms by name.
        chunk: Most images in one forward.

    Returns:
        One rate a transform, and `average`, whose ends average the ends of the others: they share
        their images, so pooling them would promise too much.

    Source: PixelBackdoor, appendix I and Table 5. Differs: the paper does not say how images are
    rescaled at a fixed input size, nor which way they turn; its average leaves out the normal
    column in some rows.
    """
    predicted: dict[str, list[torch.Tensor]] = {name: [] for name in views}
    labels = []
    with torch.no_grad():
        for x, y in batches(near(samples, subject), chunk):
            keep = goal.applies_to(y)
            if not keep.any():
                continue
            stamped = trigger(x[keep])
            labels.append(y[keep].cpu())
            for name, view in views.items():
                predicted[name].append(subject(view(stamped)).argmax(1).cpu())
    if not labels:
        return dict.fromkeys([*views, "average"], Rate(0.0, 0.0, 1.0, 0))
    rates = {name: asr(torch.cat(p), torch.cat(labels), goal) for name, p in predicted.items()}
    return rates | {"average": _average(list(rates.values()))}


def _average(rates: list[Rate]) -> Rate:
    n = len(rates)
    value, low, high = (sum(getattr(r, end) for r in rates) / n for end in ("value", "low", "high"))
    return Rate(value, low, high, rates[0].trials)
