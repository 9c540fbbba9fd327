"""Statistics that several parts need: robust deviations, intervals, areas, each in one place."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from gifthorse.core.types import Rate

MAD_SCALE = 1.4826  # as published; makes the MAD of normal values their standard deviation

# 1. Robust deviations -------------------------------------------------------------------------


def median(values: Tensor) -> Tensor:
    """Return the true median: the mean of the two middle values if their number is even.

    Example:
        >>> median(torch.tensor([1.0, 2.0, 10.0, 20.0])).item()
        6.0
    """
    return torch.quantile(values, 0.5)


def mad(values: Tensor, floor: float = 0.0) -> Tensor:
    """Return the robust deviation: 1.4826 times the median distance from the median.

    Args:
        values: Shape `(K,)`.
        floor: Least deviation, in the unit of the values; guards near-equal values.

    Example:
        >>> round(mad(torch.tensor([8.0, 9.0, 10.0, 11.0, 4.0])).item(), 4)
        1.4826
    """
    return (MAD_SCALE * median((values - median(values)).abs())).clamp(min=floor)


def robust_z(values: Tensor, floor: float) -> Tensor:
    """Return how many robust deviations each value lies above the median; below is negative.

    Args:
        values: Shape `(K,)`, of any sign.
        floor: Least deviation, in the unit of the values; 1e-12 if it is less.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV-C. Differs: signed, true median for even
    K, floored.

    Example:
        >>> robust_z(torch.tensor([0.0, 0.0, 0.0, 3.0]), floor=0.5).tolist()
        [0.0, 0.0, 0.0, 6.0]
    """
    z: Tensor = (values - median(values)) / mad(values, max(floor, 1e-12))
    return z


def log_sizes(sizes: Tensor) -> Tensor:
    """Return the logarithms of sizes in pixels, which below 0.1 count as 0.1."""
    return sizes.clamp(min=0.1).log()


def log_depth(sizes: Tensor, floor: float = 0.2, peers: Tensor | None = None) -> Tensor:
    """Return how many robust deviations each log size lies below the median, negative above it.

    Args:
        sizes: Trigger sizes in pixels, shape `(K,)`; see `log_sizes`.
        floor: Least deviation, in natural-log units (0.2 is a factor of 1.22).
        peers: Whose median and deviation it is, `(K,)` bool; None for all.

    Example:
        >>> log_depth(torch.tensor([100.0, 100.0, 100.0, 100.0, 1.0])).argmax().item()
        4
    """
    logs = log_sizes(sizes)
    known = logs if peers is None else logs[peers]
    depth: Tensor = (median(known) - logs) / mad(known, floor)
    return depth


# 2. Shares and means --------------------------------------------------------------------------


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a binomial share; (0, 1) without trials.

    In closed form, as every accuracy needs it and `scipy.stats` takes seconds to import.

    Source: Wilson, JASA 1927.

    Example:
        >>> low, high = wilson(42, 42)
        >>> round(low, 3), high
        (0.916, 1.0)
    """
    if trials == 0:
        return 0.0, 1.0
    p, z2 = hits / trials, z * z
    center = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    low = 0.0 if hits == 0 else max(0.0, center - half)
    return low, 1.0 if hits == trials else min(1.0, center + half)


def t_half_width(deviation: float, count: int) -> float:
    """Return half the width of the 95 % t-interval of a mean, as of one over seeds or models.

    Args:
        deviation: Sample standard deviation of the numbers.
        count: How many there are; of fewer than two nothing is known, the width is infinite.

    Example:
        >>> round(t_half_width(0.1, 3), 4)
        0.2484
    """
    from scipy.special import stdtrit  # late: slow

    if count < 2:
        return math.inf
    return float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)


def rate(hits: Tensor) -> Rate:
    """Return the share of True in a bool vector with its 95 % Wilson interval.

    Example:
        >>> rate(torch.tensor([True, True, False, True])).value
        0.75
    """
    count, trials = int(hits.sum()), hits.numel()
    low, high = wilson(count, trials)
    return Rate(count / trials if trials else 0.0, low, high, trials)


def mean_rate(values: Tensor, least: float = 0.0) -> Rate:
    """Return the mean of numbers in [least, 1], `(N,)`, with its 95 % t-interval, cut to these.

    For probabilities, and for shares of several models. One number alone has the whole range for
    its interval, and so has none, whose mean is called 0. Numbers that are all equal have an
    interval of no width, however few they are.

    Args:
        values: The numbers.
        least: Where their range starts: 0, or -1 for changes.

    Example:
        >>> spread = mean_rate(torch.tensor([0.4, 0.5, 0.6]))
        >>> [round(v, 3) for v in (spread.low, spread.value, spread.high)]
        [0.252, 0.5, 0.748]
    """
    n, known = len(values), values.double()
    if n < 2:
        return Rate(float(known.sum()), least, 1.0, n)
    value, half = float(known.mean()), t_half_width(float(known.std()), n)
    return Rate(value, max(least, value - half), min(1.0, value + half), n)


def paired_drop(first: Tensor, second: Tensor) -> Rate:
    """Return how much smaller the second share is than the first, of the same images, in [-1, 1].

    Args:
        first: Bool, `(N,)`.
        second: Bool, `(N,)`.

    Source: Newcombe, Statistics in Medicine 17:2635 (1998), method 10, which squares and adds
    Wilson's intervals and is closed where a bootstrap would need a seed.

    Example:
        >>> paired_drop(torch.tensor([True, True]), torch.tensor([True, False])).value
        0.5
    """
    n = len(first)
    if not n:
        return Rate(0.0, -1.0, 1.0, 0)
    p, q = rate(first), rate(second)
    r = _agreement(first, second)

    def reach(u: float, v: float) -> float:
        return math.sqrt(max(0.0, u * u - 2 * r * u * v + v * v))

    drop = p.value - q.value
    low = drop - reach(p.value - p.low, q.high - q.value)
    return Rate(drop, low, drop + reach(p.high - p.value, q.value - q.low), n)


def _agreement(first: Tensor, second: Tensor) -> float:
    """Return the correlation of two bool vectors, a positive one corrected for continuity."""
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    gap: float = both * neither - one * other
    gap = max(gap - n / 2, 0.0) if gap > 0 else gap
    sides = (both + one) * (other + neither) * (both + other) * (one + neither)
    return gap / math.sqrt(sides) if sides else 0.0


# 3. Areas under ROC curves --------------------------------------------------------------------


def auroc(negative: Tensor, positive: Tensor) -> float:
    """Return the area under the ROC curve: how often a positive has the higher score.

    By counting, as scikit-learn takes seconds to import and refuses infinite scores.

    Args:
        negative: Scores, `(n,)`, at least one.
        positive: Scores, `(m,)`, at least one; equal scores count a half.

    Example:
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, torch.inf]))
        0.875
    """
    low, high = (scores.double().sort().values for scores in (negative, positive))
    below = [torch.searchsorted(low, high, right=ties) for ties in (False, True)]
    return float(torch.stack(below).double().mean()) / len(low)


def auroc_interval(
    negative: Tensor, positive: Tensor, rng: Generator, *, draws: int = 2000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of `auroc` by bootstrap.

    Both kinds are drawn again each among themselves. Unlike `scipy.stats.bootstrap` it takes one
    score of a kind, and compares every pair once, not once a draw.

    Args:
        negative: Scores, `(n,)`, at least one.
        positive: Scores, `(m,)`, at least one.
        rng: Source of the draws.
        draws: How many.

    Returns:
        Both ends, equal if the scores do not overlap, however few they are.
    """
    low, high = negative.double()[:, None], positive.double()[None, :]
    wins = (high > low).double() + 0.5 * (high == low)  # (n, m)
    first, second = (_weights(k, draws, rng) for k in wins.shape)
    areas = ((first @ wins) * second).sum(1)
    ends = torch.quantile(areas, torch.tensor([0.025, 0.975]).double()).clamp(max=1)
    return ends[0].item(), ends[1].item()


def _weights(count: int, draws: int, rng: Generator) -> Tensor:
    """Return the share `(draws, count)` of each of `count` scores in samples of as many."""
    chosen = torch.randint(count, (draws, count), generator=rng)
    ones = torch.ones(chosen.shape, dtype=torch.float64) / count
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add(1, chosen, ones)
