"""Does a trigger light up other neurons than clean images do?"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.types import Goal, Samples, Subject, Trigger
from gifthorse.data.samples import batches, near
from gifthorse.models.features import features
from gifthorse.training import frozen_eval

HALF = 0.5  # of the neurons: what one ratio is of
SHARES = (0.01, 0.05, 0.1, 0.25, HALF)


@dataclass(frozen=True)
class Separation:
    """How far apart the neurons lie that clean and that stamped images light up most.

    Attributes:
        units: Neurons in either set (k).
        value: The neuron separation ratio, 0 for the same neurons to 1 for none in common.
        chance: What two sets drawn at random would give on average, to first order: a ratio near
            it says that the sets have nothing to do with each other.
    """

    units: int
    value: float
    chance: float


def separation(
    subject: Subject,
    clean: Samples,
    trigger: Trigger,
    *,
    goal: Goal | None = None,
    share: float = HALF,
) -> Separation:
    """Return the neuron separation ratio (NSR) of the most active penultimate neurons.

    Args:
        subject: The classifier.
        clean: Images; their labels count only with a goal.
        trigger: What stamps them.
        goal: If given, only the images that it is about are used: none of the target class.
        share: Which share of the neurons is compared, in (0, 1]; at least one is.

    Raises:
        BadOption: If the share is out of range.
        NotApplicable: If the net has no features.
        BadImages: If no image is left.

    Source: TrojanZoo sec. 4.2, eq. 4: `1 - |Nt and Nc| / |Nt or Nc|` over the top k neurons by
    mean activation; the paper leaves k open, its code takes half of the neurons. Unrelated sets give
    2/3 then, and 0.95 of a tenth, where every backdoor is at 1: that tells nothing. Read it beside
    the ratio of a benign net under the same trigger. Differs: the code prints the index itself,
    not 1 minus it, and averages with signs over the images of the target class, too.
    """
    return separation_curve(subject, clean, trigger, goal=goal, shares=(share,))[0]


def separation_curve(
    subject: Subject,
    clean: Samples,
    trigger: Trigger,
    *,
    goal: Goal | None = None,
    shares: Sequence[float] = SHARES,
) -> list[Separation]:
    """Return the neuron separation ratio for each share of the neurons; see `separation`."""
    if any(not 0 < share <= 1 for share in shares):
        raise BadOption(f"shares of the neurons must lie in (0, 1]; got {list(shares)}")
    return compared(*_means(subject, clean, trigger, goal), shares)


def compared(before: Tensor, after: Tensor, shares: Sequence[float] = SHARES) -> list[Separation]:
    """Return the neuron separation ratio of two mean activations, `(d,)`, for each share.

    Example:
        >>> before, after = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 0.0, 1.0, 2.0]])
        >>> round(compared(before, after, [0.5])[0].value, 3)
        0.667
    """
    # Of equal neurons the first counts on both sides, so that equal means give equal sets.
    ranks = [m.argsort(descending=True, stable=True).argsort() for m in (before, after)]
    return [_compared(ranks[0], ranks[1], share) for share in shares]


def _compared(before: Tensor, after: Tensor, share: float) -> Separation:
    """Compare the neurons in the first `share` of two rankings, `(d,)` places each."""
    d = len(before)
    k = max(1, round(share * d))
    one, other = before < k, after < k
    overlap = float((one & other).sum() / (one | other).sum())
    return Separation(k, 1 - overlap, 1 - k / (2 * d - k))


def _means(
    subject: Subject, clean: Samples, trigger: Trigger, goal: Goal | None
) -> tuple[Tensor, Tensor]:
    """Return the mean features of clean and stamped images, `(d,)` float64 each."""
    trigger = deepcopy(trigger)  # one that wanders stays where it was
    before, after, count = [], [], 0
    with frozen_eval(subject), torch.no_grad():
        for x, y in batches(near(clean, subject), 512):
            use = _used(y, goal)
            if bool(use.any()):
                before.append(features(subject, x[use]).cpu().double().sum(0))
                after.append(features(subject, trigger(x[use])).cpu().double().sum(0))
                count += int(use.sum())
    if not count:
        raise BadImages("no image is left to compare neurons on: give images of other classes")
    return torch.stack(before).sum(0) / count, torch.stack(after).sum(0) / count


def _used(y: Tensor, goal: Goal | None) -> Tensor:
    if goal is None:
        return torch.ones_like(y, dtype=torch.bool)
    return goal.applies_to(y)
