"""How much of a trigger is needed: keep its strongest pixels and see how often it still works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import asr
from gifthorse.core.tensors import STEP
from gifthorse.core.types import Batch, Goal, Rate, Samples, Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.training import predict
from gifthorse.triggers import Additive, Patch

EVERY = 200  # up to here each size is tried, from here on sizes 1 % apart


def ranking(trigger: Trigger) -> Tensor:
    """Return how much a trigger changes each pixel: its opacity, or the largest change, `(H, W)`.

    Source: Tao et al., PixelBackdoor, CVPR 2022, sec. 5.2: pixels are ranked by mask value (Neural
    Cleanse) or by the largest change of a channel (UAP, PixelBackdoor).
    """
    return trigger.render()[1][0]


def pixels(trigger: Trigger) -> int:
    """Return the number of pixels that a trigger changes by 1/255 or more.

    Example:
        >>> pixels(Additive(torch.tensor([[[0.5, 0.003], [-0.25, 0.0]]])))
        2
    """
    return int((ranking(trigger) >= STEP - 1e-6).sum())


def top_k(trigger: Trigger, k: int) -> Trigger:
    """Return the trigger with only its `k` strongest pixels; of equal ones the first in reading.

    Args:
        trigger: A patch, whose opacity becomes 0 elsewhere, or an additive trigger, whose change
            does.
        k: Pixels to keep, 0 to H * W.

    Raises:
        BadOption: If `k` is out of range, or the trigger has no fixed place.

    Example:
        >>> top_k(Additive(torch.tensor([[[0.1, -0.9], [0.5, 0.0]]])), 2).delta.tolist()
        [[[0.0, -0.8999999761581421], [0.5, 0.0]]]
    """
    place = _place(trigger)
    if not 0 <= k <= place.numel():
        raise BadOption(f"k must be 0 to {place.numel()} pixels for this trigger; got {k}")
    return _kept(trigger, place < k)


def grid(total: int) -> list[int]:
    """Return the sizes at which triggers are compared: each from 1 to 200, then 1 % apart.

    The last one is `total`, the number of pixels of an image.

    Example:
        >>> grid(210)[197:]
        [198, 199, 200, 202, 204, 206, 208, 210]
    """
    sizes = list(range(1, min(EVERY, total) + 1))
    while sizes[-1] < total:
        sizes.append(min(total, sizes[-1] + max(1, round(sizes[-1] * 0.01))))
    return sizes


def success_over_size(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    samples: Samples,
    sizes: Sequence[int],
    *,
    chunk: int = 512,
) -> list[Rate]:
    """Return the attack success of a trigger cut to each of the sizes.

    Args:
        subject: The classifier.
        trigger: A patch or an additive trigger.
        goal: Its goal; images of the target class do not count.
        samples: Images that the search did not use.
        sizes: Numbers of pixels to keep, each 0 to H * W, in any order.
        chunk: Most images in one forward; several sizes share one.

    Raises:
        BadOption: If a size is out of range, or the trigger has no fixed place.
    """
    strong, total = _strong(trigger), ranking(trigger).numel()
    if any(not 0 <= k <= total for k in sizes):
        raise BadOption(f"sizes must be 0 to {total} pixels; got {list(sizes)}")
    needed = sorted({min(k, strong) for k in sizes})  # beyond that, nothing is left to add
    found = dict(_success(subject, trigger, goal, samples, needed, chunk))
    return [found[min(k, strong)] for k in sizes]


def align_size(subject: Subject, trigger: Trigger, goal: Goal, samples: Samples, size: int) -> Rate:
    """Return the attack success of a trigger cut to `size` pixels, those of the one it is held to.

    Raises:
        BadOption: If the size is out of range, or the trigger has no fixed place.

    Source: PixelBackdoor, sec. 5.2, first experiment.
    """
    return success_over_size(subject, trigger, goal, samples, [size])[0]


def align_asr(
    subject: Subject, trigger: Trigger, goal: Goal, samples: Samples, reference: float
) -> int | None:
    """Return the fewest strongest pixels with which a trigger works as often as another does.

    Success does not grow steadily with size, so the sizes of `grid` are tried one after another
    from below, up to the trigger's own size; there is no bisection.

    Args:
        subject: The classifier.
        trigger: A patch or an additive trigger.
        goal: Its goal; images of the target class do not count.
        samples: Images that the search did not use.
        reference: Attack success to reach, in [0, 1].

    Returns:
        A number of pixels, at least 1; None if the trigger never works that often.

    Raises:
        BadOption: If the trigger has no fixed place.

    Source: PixelBackdoor, sec. 5.2, second experiment. Differs: the paper prunes until success
    falls to the reference, which depends on where pruning starts; this is the first from below.
    """
    strong = max(1, _strong(trigger))
    sizes = [k for k in grid(ranking(trigger).numel()) if k < strong] + [strong]
    for k, rate in _success(subject, trigger, goal, samples, sizes, 512):
        if rate.value >= reference:
            return k
    return None


def _success(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    samples: Samples,
    sizes: Sequence[int],
    chunk: int,
) -> Iterator[tuple[int, Rate]]:
    """Yield size and success, a few sizes at a time; a caller may stop early."""
    place = _place(trigger)
    x, y = _victims(samples, goal)
    for some in torch.tensor(sizes).split(max(1, chunk // max(1, len(x)))):
        with torch.no_grad():
            cut = _kept(trigger, place < some.view(-1, 1, 1, 1, 1))
            predicted = [  # (g, n) each, for g sizes and n images
                predict(subject, cut(part).flatten(0, 1), chunk)
                .argmax(1)
                .view(len(some), len(part))
                for part in x.split(chunk)
            ]
        for k, row in zip(some.tolist(), torch.cat(predicted, 1), strict=True):
            yield k, asr(row, y, goal)


def _strong(trigger: Trigger) -> int:
    """Return how many pixels a trigger changes at all."""
    return int((ranking(trigger) > 0).sum())


def _place(trigger: Trigger) -> Tensor:
    """Return the place of each pixel in the order from strongest to weakest, `(H, W)` int64."""
    strength = ranking(trigger)
    order = strength.flatten().argsort(descending=True, stable=True)
    return order.argsort().view_as(strength)


def _kept(trigger: Trigger, keep: Tensor) -> Trigger:
    """Return a trigger without what is not kept; `keep` may have more leading dimensions."""
    if isinstance(trigger, Patch):
        return Patch(trigger.pattern, trigger.mask * keep)
    if isinstance(trigger, Additive):
        return Additive(trigger.delta * keep)
    raise BadOption(
        f"only a Patch or an Additive trigger has pixels to prune; got {type(trigger).__name__}"
    )


def _victims(samples: Samples, goal: Goal) -> Batch:
    """Return the images that the goal is about."""
    x, y = whole(samples)
    keep = goal.applies_to(y)
    return x[keep], y[keep]
