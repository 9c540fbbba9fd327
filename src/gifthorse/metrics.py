"""Figures of merit: tensors in, rates with their intervals out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gifthorse.tensors import wilson
from gifthorse.types import Goal, Labels, Logits, Rate


def rate(hits: Tensor) -> Rate:
    """Return the share of True in a bool vector with its 95 % Wilson interval.

    Example:
        >>> rate(torch.tensor([True, True, False, True])).value
        0.75
    """
    count, trials = int(hits.sum()), hits.numel()
    low, high = wilson(count, trials)
    return Rate(count / trials if trials else 0.0, low, high, trials)


def mean_rate(values: Tensor) -> Rate:
    """Return the mean of numbers in [0, 1], `(N,)`, with its 95 % t-interval, cut to [0, 1].

    For probabilities, and for shares of several models. One number alone has the interval [0, 1],
    and so has none, whose mean is called 0. Numbers that are all equal have an interval of no
    width, however few they are.

    Example:
        >>> spread = mean_rate(torch.tensor([0.4, 0.5, 0.6]))
        >>> [round(v, 3) for v in (spread.low, spread.value, spread.high)]
        [0.252, 0.5, 0.748]
    """
    from scipy.special import stdtrit  # late: slow

    n, known = len(values), values.double()
    value = float(known.mean()) if n else 0.0
    if n < 2:
        return Rate(value, 0.0, 1.0, n)
    half = float(stdtrit(n - 1, 0.975)) * float(known.std()) / math.sqrt(n)
    return Rate(value, max(0.0, value - half), min(1.0, value + half), n)


def accuracy(predicted: Labels, labels: Labels) -> Rate:
    """Return the share of predictions `(N,)` that equal the labels `(N,)`.

    Of images that carry a trigger meant for other images, this is their cross accuracy.
    """
    return rate(predicted == labels)


def asr(predicted: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return the attack success rate: stamped images that come out as the target.

    Images of the target class are left out; with a source, only its images count.

    Args:
        predicted: Predicted classes of the stamped images, `(N,)`.
        labels: Their true labels, `(N,)`.
        goal: Target and source.

    Example:
        >>> asr(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), Goal(0)).value
        0.5
    """
    return rate(predicted[_meant(labels, goal)] == goal.target)


def asr_all(predicted: Labels, goal: Goal) -> Rate:
    """Return the share of all stamped images that come out as the target, as TrojanZoo counts."""
    return rate(predicted == goal.target)


def asr_net(stamped: Labels, clean: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return the attack success on images that did not come out as the target before.

    Args:
        stamped: Predicted classes of the stamped images, `(N,)`.
        clean: Those of the same images without the trigger, `(N,)`.
        labels: True labels, `(N,)`.
        goal: Target and source.

    Example:
        >>> before, after, labels = torch.tensor([[0, 1, 2], [0, 0, 2], [1, 1, 2]])
        >>> asr_net(after, before, labels, Goal(0)).value
        0.5
    """
    return rate(stamped[_meant(labels, goal) & (clean != goal.target)] == goal.target)


def leak(predicted: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return how often a backdoor with a source works on stamped images of third classes.

    Without a source there are none.

    Example:
        >>> leak(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 2]), Goal(0, 1)).value
        0.5
    """
    third = ~_meant(labels, goal) & (labels != goal.target)
    return rate(predicted[third] == goal.target)


def target_confidence(logits: Logits, labels: Labels, goal: Goal) -> Rate | None:
    """Return the mean probability of the target (TMC) over stamped images that come out as it.

    Args:
        logits: What the net says of the stamped images, `(N, K)`.
        labels: Their true labels, `(N,)`; images that the goal is not about are left out.
        goal: Target and source.

    Returns:
        A mean with its t-interval, where trials are the successful images; None without any.

    Source: TrojanZoo sec. 4.2. Differs: no success gives None, not NaN.
    """
    hit = _meant(labels, goal) & (logits.argmax(1) == goal.target)
    return mean_rate(logits[hit].softmax(1)[:, goal.target]) if bool(hit.any()) else None


def confidence(logits: Logits, labels: Labels) -> Rate:
    """Return the mean probability of the true class (CCC) over all clean images, right or wrong.

    Args:
        logits: What the net says of the clean images, `(N, K)`.
        labels: Their true labels, `(N,)`.

    Source: TrojanZoo sec. 4.2.
    """
    return mean_rate(logits.softmax(1).gather(1, labels[:, None])[:, 0])


def clean_drop(before: Labels, after: Labels, labels: Labels) -> Rate:
    """Return how much accuracy was lost (CAD), in [-1, 1]; a gain is negative.

    The interval allows for both nets being asked about the same images: mostly they fail on the
    same ones, so the loss is known better than either accuracy.

    Args:
        before: Predictions of the net that is compared with, `(N,)`.
        after: Predictions of the other net on the same images, `(N,)`.
        labels: True labels, `(N,)`.

    Source: TrojanZoo sec. 4.2; interval: Newcombe, Statistics in Medicine 17:2635 (1998), method
    10, which squares and adds Wilson's and is closed where a bootstrap would need a seed.

    Example:
        >>> clean_drop(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1])).value
        0.5
    """
    n, first, second = len(labels), before == labels, after == labels
    if not n:
        return Rate(0.0, -1.0, 1.0, 0)
    p, (p_low, p_high) = float(first.double().mean()), wilson(int(first.sum()), n)
    q, (q_low, q_high) = float(second.double().mean()), wilson(int(second.sum()), n)
    r = _agreement(first, second)

    def reach(u: float, v: float) -> float:
        return math.sqrt(max(0.0, u * u - 2 * r * u * v + v * v))

    drop = p - q
    return Rate(drop, drop - reach(p - p_low, q_high - q), drop + reach(p_high - p, q - q_low), n)


def _agreement(first: Tensor, second: Tensor) -> float:
    """Return the correlation of two bool vectors, a positive one corrected for continuity."""
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    gap: float = both * neither - one * other
    gap = max(gap - n / 2, 0.0) if gap > 0 else gap
    sides = (both + one) * (other + neither) * (both + other) * (one + neither)
    return gap / math.sqrt(sides) if sides else 0.0


def auc_cad_over_asr(points: Sequence[tuple[float, float]], max_cad: float = 0.03) -> float | None:
    """Return the area under accuracy lost as a function of success, in [0, 1]; small is strong.

    Points that lose too much are dropped, both axes are stretched to [0, 1], and a curve that
    never falls is fitted (isotonic least squares, straight between its points).

    Args:
        points: Success and accuracy lost (`asr`, `clean_drop`) at each share of poison.
        max_cad: Most accuracy that a point may lose.

    Returns:
        The area; 0 if all points lose the same, None unless two of them differ in success.

    Source: TrojanZoo sec. 5.2.2 and fig. 5: a smaller area is a stronger leverage. Differs: no
    smoothing; its code prints the complement, see `auc_asr_over_cad`.

    Example:
        >>> auc_cad_over_asr([(0.2, 0.0), (0.6, 0.01), (1.0, 0.02)])
        0.5
    """
    from sklearn.isotonic import IsotonicRegression  # late: slow

    within = [p for p in points if p[1] <= max_cad + 1e-9]  # 0.95 - 0.92 is a little above 0.03
    kept = torch.tensor(within, dtype=torch.float64).view(-1, 2)
    if len(kept[:, 0].unique()) < 2:
        return None
    low, high = kept.amin(0), kept.amax(0)
    success, lost = ((kept - low) / torch.where(high > low, high - low, 1.0)).T.numpy()
    fitted = IsotonicRegression().fit(success, lost)
    ys, xs = torch.from_numpy(fitted.y_thresholds_), torch.from_numpy(fitted.X_thresholds_)
    return float(torch.trapezoid(ys, xs))


def auc_asr_over_cad(points: Sequence[tuple[float, float]], max_cad: float = 0.03) -> float | None:
    """Return the complement of `auc_cad_over_asr`, which TrojanZoo's code prints; large is strong.

    Args:
        points: Success and accuracy lost at each share of poison.
        max_cad: Most accuracy that a point may lose.
    """
    area = auc_cad_over_asr(points, max_cad)
    return None if area is None else 1 - area


def mask_jaccard(recovered: Tensor, true: Tensor) -> float:
    """Return the overlap (MJS) of a recovered trigger with the true one, in [0, 1].

    The recovered importance `(H, W)` is cut to its k largest entries, k = pixels of the true mask
    `(H, W)`; the index is intersection over union.

    Source: TrojanZoo sec. 5.3. Differs: keeps k pixels, not the k - 1 of TrojanZoo's strict `>`.

    Example:
        >>> true = torch.zeros(4, 4); true[0, :2] = 1
        >>> mask_jaccard(torch.rand(4, 4) * 0.1 + true, true)
        1.0
    """
    truth = true.flatten() > 0
    k = int(truth.sum())
    top = torch.zeros_like(truth)
    top[recovered.flatten().topk(k).indices] = True
    return float((top & truth).sum() / (top | truth).sum())


def _meant(labels: Labels, goal: Goal) -> Tensor:
    """Return which images the goal is about, `(N,)` bool."""
    return labels != goal.target if goal.source is None else labels == goal.source
