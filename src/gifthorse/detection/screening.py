"""Which goals clean images lean to already: the screening before K-Arm's race."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gifthorse.core.stats import robust_z
from gifthorse.core.types import Goal, Labels


def ranks(classes: int, top: float) -> int:
    """Return how many ranks count as high; halves go to even, as the released code rounds."""
    return 2 if classes <= 8 else round(top * classes)


def _high(chances: Tensor, top: float) -> Tensor:
    """Return which classes rank high on which images, `(N, K)` bool."""
    high = torch.zeros_like(chances, dtype=torch.bool)
    index = chances.topk(ranks(chances.shape[1], top)).indices
    return high.scatter_(1, index, torch.ones_like(high))


def standing_out(
    chances: Tensor, *, top: float = 0.25, outlier: float = 5.0, most: float = 0.5
) -> Goal | None:
    """Return the target that clean images of all classes lean to, if one stands out.

    Args:
        chances: Softmax outputs on clean images, `(N, K)`.
        top: Share of K that counts as high ranks; two classes count for K of 8 or fewer.
        outlier: Robust deviations by which the share of images that a class ranks high on must
            exceed the median of all classes; the least deviation is that of a share drawn by
            chance.
        most: And the least such share.

    Source: K-Arm's released code, Arm_Pre_Screening.py. Differs: the share of 0.95 that it asks for
    is one of TrojAI's nets; an outlier test tells without it, or does not.

    Example:
        >>> chances = torch.rand(80, 40, generator=torch.Generator().manual_seed(0))
        >>> standing_out(chances)
        >>> chances[:, 7] += 0.5
        >>> standing_out(chances)
        Goal(target=7, source=None)
    """
    count, classes = chances.shape
    even = ranks(classes, top) / classes
    if even >= 1:
        return None
    share = _high(chances, top).double().mean(0)
    ahead = robust_z(share, math.sqrt(even * (1 - even) / count))
    best = int(share.argmax())
    return Goal(best) if ahead[best] > outlier and share[best] > most else None


def leaning_pairs(
    chances: Tensor,
    labels: Labels,
    *,
    top: float = 0.25,
    within: float = 0.9,
    victims: int = 3,
    least: float = 1e-8,
) -> list[Goal]:
    """Return the class pairs that images of single classes lean to.

    Args:
        chances: Softmax outputs on clean images, `(N, K)`.
        labels: Their classes, `(N,)`; a class may be missing.
        top: Share of K that counts as high ranks; two classes count for K of 8 or fewer.
        within: Share of a class's images on which the target ranks high.
        victims: Most pairs with the same target, those with the largest sum of softmax.
        least: Sum and median of the target's softmax, where it ranks high, lie above this.

    Returns:
        Pairs by target, the likeliest first; none where every rank is high.

    Source: K-Arm's released code, Arm_Pre_Screening.py. Differs: images are grouped by their
    labels, not by predictions.

    Example:
        >>> chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
        >>> leaning_pairs(chances, torch.tensor([0, 2]))
        [Goal(target=1, source=0), Goal(target=1, source=2)]
    """
    classes = chances.shape[1]
    if classes <= ranks(classes, top):
        return []
    high = _high(chances, top)
    found: dict[int, list[tuple[float, int]]] = {}
    for source in labels.unique().tolist():
        mine = labels == source
        share = high[mine].double().mean(0)
        leaning = chances[mine].masked_fill(~high[mine], math.nan)
        total, middle = leaning.nansum(0), leaning.nanquantile(0.5, 0)
        close = (share >= within) & (total > least) & (middle > least)
        close[source] = False
        for target in close.nonzero().flatten().tolist():
            found.setdefault(target, []).append((-float(total[target]), source))
    return [
        Goal(target, source)
        for target in sorted(found)
        for _, source in sorted(found[target])[:victims]
    ]
