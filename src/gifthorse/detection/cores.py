"""Which class pairs share one trigger: a core of pairs whose triggers turn each other's images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.stats import mad, median


def links(transfer: Tensor, sources: Tensor) -> Tensor:
    """Return how strongly pairs are linked: how well the trigger of either turns the other.

    Args:
        transfer: `(N, N)` in [0, 1]: the share of images of pair j's source that the trigger of
            pair i sends to pair j's target.
        sources: The source of each pair, `(N,)`; no image can have two labels, so pairs of the same
            source have no link.

    Returns:
        `(N, N)`, symmetric, 0 on the diagonal.

    Raises:
        ShapeMismatch: If the shapes do not fit.
    """
    if transfer.shape != (len(sources), len(sources)):
        raise ShapeMismatch(
            f"transfer must have shape (N, N) for {len(sources)} pairs; got {tuple(transfer.shape)}"
        )
    apart = sources[:, None] != sources
    return (transfer + transfer.T) / 2 * apart


def closeness(linked: Tensor, core: Sequence[int]) -> float:
    """Return how much closer the pairs of a core are to each other than any other pair is to them.

    The least mean link of a member to the other members, less the largest mean link of a pair
    outside to the members.

    Example:
        >>> linked = torch.tensor([[0.0, 0.9, 0.1], [0.9, 0.0, 0.3], [0.1, 0.3, 0.0]])
        >>> round(closeness(linked, [0, 1]), 2)
        0.7
    """
    members = torch.zeros(len(linked), dtype=torch.bool)
    members[list(core)] = True
    to_core = linked[:, members].sum(1)
    inside = float(to_core[members].min()) / max(1, len(core) - 1)
    outside = to_core[~members] / len(core)
    return inside - (float(outside.max()) if len(outside) else 0.0)


def closest_core(linked: Tensor, sources: Tensor, *, starts: int, least: int) -> list[int]:
    """Return the core of pairs, of sources that all differ, with the largest closeness.

    From each of the strongest links a core grows by the pair that keeps it closest, as long as
    there is a source left; of all cores on the way the closest one counts.

    Args:
        linked: `(N, N)` from `links`.
        sources: The source of each pair, `(N,)`.
        starts: How many of the strongest links to begin with.
        least: Pairs that must stay outside, so that a core has something to be compared with.

    Returns:
        Numbers of the pairs in order, two at least; none where all have the same source.

    Source: UMD's clustering of class pairs; see `detection.umd`.
    """
    count = len(sources)
    strong = linked.triu(1).flatten().topk(min(starts, count * count))
    best, most = list[int](), -math.inf
    for strength, place in zip(*(t.tolist() for t in strong), strict=True):
        core = list(divmod(place, count))
        while strength > 0 and count - len(core) >= least:
            if (close := closeness(linked, core)) > most:
                best, most = sorted(core), close
            left = (~torch.isin(sources, sources[core])).nonzero().flatten().tolist()
            if not left:
                break
            core = max(([*core, i] for i in left), key=lambda grown: closeness(linked, grown))
    return best


def prominence(sizes: Tensor, core: Sequence[int]) -> float:
    """Return by how many robust deviations a core's triggers are smaller than all others.

    `(median in the core - median outside) / (1.4826 MAD outside)` of the inverse sizes, which tell
    small triggers apart and do not care how large the large ones are. Of an even core the median is
    the lower of the two in the middle: one small trigger is not to speak for two pairs.

    Args:
        sizes: Trigger sizes, `(N,)`, in pixels, above 0.
        core: Numbers of the pairs in it; others must be left.

    The deviation is a twentieth of the median at least, against near-equal sizes.

    Example:
        >>> sizes = torch.tensor([2.0, 2.0, 10.0, 10.0, 20.0, 20.0])
        >>> round(prominence(sizes, [0, 1]) * 1.4826, 6)
        17.0
    """
    inverse, members = 1 / sizes.double().clamp_min(0.1), torch.zeros(len(sizes), dtype=torch.bool)
    members[list(core)] = True
    others = inverse[~members]
    usual = median(others)
    return float((inverse[members].median() - usual) / mad(others, 0.05 * float(usual)))


def bound_of_many(count: int, sure: float = 0.95) -> float:
    """Return what the largest of so many standard normal values stays below, so sure.

    `sqrt(2) erfinv(2 sure^(1 / count) - 1)`.

    Example:
        >>> round(bound_of_many(1), 3), round(bound_of_many(90), 3)
        (1.645, 3.254)
    """
    share = torch.tensor(2 * sure ** (1 / count) - 1, dtype=torch.float64)
    return math.sqrt(2) * float(share.erfinv())
