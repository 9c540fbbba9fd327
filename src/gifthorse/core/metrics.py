"""Figures of merit: tensors in, rates with their intervals out."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.tensors import wilson
from gifthorse.core.types import Goal, Images, Labels, Logits, Rate

Overlap: TypeAlias = Literal["topk", "half", "zoo"]
Column: TypeAlias = Literal["clean", "backdoored", "correct", "correct set", "wrong"]

# 1. Shares and means --------------------------------------------------------------------------


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
    return _mean(values, 0.0)


def _mean(values: Tensor, least: float) -> Rate:
    """Return the mean of numbers in [least, 1] with its 95 % t-interval, cut to that range."""
    from scipy.special import stdtrit  # late: slow

    n, known = len(values), values.double()
    value = float(known.mean()) if n else 0.0
    if n < 2:
        return Rate(value, least, 1.0, n)
    half = float(stdtrit(n - 1, 0.975)) * float(known.std()) / math.sqrt(n)
    return Rate(value, max(least, value - half), min(1.0, value + half), n)


# 2. One net -----------------------------------------------------------------------------------


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
    return rate(predicted[goal.meant(labels)] == goal.target)


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
    return rate(stamped[goal.meant(labels) & (clean != goal.target)] == goal.target)


def leak(predicted: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return how often a backdoor with a source works on stamped images of third classes.

    Without a source there are none.

    Example:
        >>> leak(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 2]), Goal(0, 1)).value
        0.5
    """
    third = ~goal.meant(labels) & (labels != goal.target)
    return rate(predicted[third] == goal.target)


def robust_accuracy(predicted: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return how often stamped images still come out as what they show (RA).

    Args:
        predicted: Predicted classes of the stamped images, `(N,)`.
        labels: Their true labels, `(N,)`; images that the goal is not about are left out.
        goal: Target and source.

    Source: BackdoorBench, `R-Acc`.

    Example:
        >>> robust_accuracy(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2]), Goal(0)).value
        0.5
    """
    meant = goal.meant(labels)
    return rate(predicted[meant] == labels[meant])


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
    hit = goal.meant(labels) & (logits.argmax(1) == goal.target)
    return mean_rate(logits[hit].softmax(1)[:, goal.target]) if bool(hit.any()) else None


def confidence(logits: Logits, labels: Labels) -> Rate:
    """Return the mean probability of the true class (CCC) over all clean images, right or wrong.

    Args:
        logits: What the net says of the clean images, `(N, K)`.
        labels: Their true labels, `(N,)`.

    Source: TrojanZoo sec. 4.2.
    """
    return mean_rate(logits.softmax(1).gather(1, labels[:, None])[:, 0])


def confidence_correct(logits: Logits, labels: Labels) -> Rate | None:
    """Return the mean probability of the true class over the clean images that come out as it.

    Args:
        logits: What the net says of the clean images, `(N, K)`.
        labels: Their true labels, `(N,)`.

    Returns:
        A mean whose trials are the images that come out right; None without any.
    """
    right = logits.argmax(1) == labels
    return confidence(logits[right], labels[right]) if bool(right.any()) else None


# 3. A net before and after --------------------------------------------------------------------


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
    return _drop(before == labels, after == labels)


def asr_drop(before: Labels, after: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return how much attack success was taken away (ARD), in [-1, 1]; positive is good.

    Args:
        before: Predicted classes of the stamped images by the backdoored net, `(N,)`.
        after: Those of the same images by the repaired net, `(N,)`.
        labels: Their true labels, `(N,)`; images that the goal is not about are left out.
        goal: Target and source.

    Source: TrojanZoo sec. 4.3, which prints it negative; interval as `clean_drop`.

    Example:
        >>> before, after, labels = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 2]])
        >>> asr_drop(before, after, labels, Goal(0)).value
        0.5
    """
    meant = goal.meant(labels)
    return _drop(before[meant] == goal.target, after[meant] == goal.target)


def confidence_change(before: Logits, after: Logits, labels: Labels) -> Rate:
    """Return how much more probable the true class became (change of CCC), in [-1, 1].

    Args:
        before: What the first net says of the clean images, `(N, K)`.
        after: What the other net says of the same images, `(N, K)`.
        labels: True labels, `(N,)`.

    Returns:
        The mean of the images' changes with its t-interval: images are compared with themselves.
    """
    first, second = (p.softmax(1).gather(1, labels[:, None])[:, 0] for p in (before, after))
    return _mean(second.double() - first.double(), -1.0)


def change(before: Rate | None, after: Rate | None) -> float | None:
    """Return after less before, None unless both are known: for TMC, whose images differ.

    Example:
        >>> change(rate(torch.tensor([True, False])), rate(torch.tensor([True])))
        0.5
    """
    if before is None or after is None or not before.trials or not after.trials:
        return None
    return after.value - before.value


def der(asr: tuple[Rate, Rate], accuracy: tuple[Rate, Rate]) -> float | None:
    """Return the defense effectiveness rating, in [0, 1]; 0.5 says that nothing happened.

    `(max(0, ASR fallen) - max(0, accuracy fallen) + 1) / 2`. It hides a bad bargain: a net that
    says one class of everything can rate well, so print both beside it, and see `collapsed`.

    Args:
        asr: Attack success before and after.
        accuracy: Accuracy before and after.

    Returns:
        The rating; None if a rate is of no trials.

    Source: Zhu et al., Enhancing Fine-Tuning Based Backdoor Defense, ICCV 2023; BackdoorBench.
    Differs: accuracy lost is subtracted, as the paper has it, where some of BackdoorBench's
    functions add it.
    """
    return _rating(asr[0], asr[1], accuracy)


def rir(robust: tuple[Rate, Rate], accuracy: tuple[Rate, Rate]) -> float | None:
    """Return the robustness improvement rating, in [0, 1]; 0.5 says that nothing happened.

    `(max(0, RA gained) - max(0, accuracy fallen) + 1) / 2`.

    Args:
        robust: Robust accuracy before and after.
        accuracy: Accuracy before and after.

    Returns:
        The rating; None if a rate is of no trials.

    Source: BackdoorBench. Differs: as `der`.
    """
    return _rating(robust[1], robust[0], accuracy)


def _rating(high: Rate, low: Rate, accuracy: tuple[Rate, Rate]) -> float | None:
    if not all(r.trials for r in (high, low, *accuracy)):
        return None
    gained, lost = high.value - low.value, accuracy[0].value - accuracy[1].value
    return (max(0.0, gained) - max(0.0, lost) + 1) / 2


def collapsed(before: Rate, after: Rate) -> bool:
    """Whether less than half of the accuracy is left, so that other figures mean little."""
    return after.value < 0.5 * before.value


def _drop(first: Tensor, second: Tensor) -> Rate:
    """Return how much smaller a share is than the other, of the same images, by Newcombe."""
    n = len(first)
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


# 4. Triggers ----------------------------------------------------------------------------------


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


# 5. Many models -------------------------------------------------------------------------------


def column(flagged: Collection[int], target: int | None) -> Column:
    """Return what a detector's flags say of one model, in the words of USB's tables.

    Args:
        flagged: Classes that the detector flags.
        target: The true target; None of a clean model, which is `clean` or `backdoored`.

    Example:
        >>> column({1}, 1), column({0, 1}, 1), column({0}, 1), column((), 1)
        ('correct', 'correct set', 'wrong', 'clean')
    """
    flags = set(flagged)
    if not flags:
        return "clean"
    if target is None:
        return "backdoored"
    if target not in flags:
        return "wrong"
    return "correct" if len(flags) == 1 else "correct set"


@dataclass(frozen=True)
class Columns:
    """How many models of a population a detector puts where.

    Attributes:
        clean: Nothing was flagged.
        backdoored: Something was.
        correct: The target alone was; None for clean models, which have none.
        correct_set: The target and others were.
        wrong: Others were, and not the target.

    Raises:
        BadOption: If the last three do not add up to `backdoored`.

    Source: USB, Tables 1-6.
    """

    clean: int
    backdoored: int
    correct: int | None = None
    correct_set: int | None = None
    wrong: int | None = None

    def __post_init__(self) -> None:
        known = [v for v in (self.correct, self.correct_set, self.wrong) if v is not None]
        if known and (len(known) < 3 or sum(known) != self.backdoored):
            raise BadOption(f"correct + correct_set + wrong must be backdoored; got {self}")


def columns(flagged: Sequence[Collection[int]], targets: Sequence[int] | None = None) -> Columns:
    """Count a population of backdoored models, or of clean ones.

    Args:
        flagged: The flagged classes of each model.
        targets: The true target of each; None if all are clean.

    Raises:
        BadOption: If there is not one target a model.

    Example:
        >>> columns([{1}, {0, 2}, ()], [1, 1, 1])
        Columns(clean=1, backdoored=2, correct=1, correct_set=0, wrong=1)
    """
    truth: Sequence[int | None] = [None] * len(flagged) if targets is None else targets
    if len(truth) != len(flagged):
        raise BadOption(f"{len(flagged)} models need as many targets; got {len(truth)}")
    found = [column(f, t) for f, t in zip(flagged, truth, strict=True)]
    clean, total = found.count("clean"), len(found)
    if targets is None:
        return Columns(clean, total - clean)
    counts = [found.count(word) for word in ("correct", "correct set", "wrong")]
    return Columns(clean, total - clean, *counts)


def model_auc(
    clean: Tensor, backdoored: Tensor, rng: Generator, *, draws: int = 2000
) -> Rate | None:
    """Return the ROC-AUC of a detector's scores over models, with a bootstrap interval.

    The share of pairs of a clean and a backdoored model in which the latter has the higher score;
    equal scores count a half. Clean and backdoored models are drawn again each among themselves.

    Args:
        clean: Scores of clean models, `(n,)`; higher is worse.
        backdoored: Scores of backdoored models, `(m,)`.
        rng: Source of the bootstrap.
        draws: How many times the models are drawn again.

    Returns:
        The area with its 95 % percentile interval and all models as trials; None unless there are
        models of both kinds. Scores that do not overlap have an interval of no width, however few
        they are.
    """
    n, m = len(clean), len(backdoored)
    if not n or not m:
        return None
    gap = backdoored.double()[None, :] - clean.double()[:, None]  # (n, m)
    wins = (gap > 0).double() + 0.5 * (backdoored[None, :] == clean[:, None])  # inf equals inf
    first, second = (_weights(k, draws, rng) for k in (n, m))
    areas = ((first @ wins) * second).sum(1)
    low, high = torch.quantile(areas, torch.tensor([0.025, 0.975]).double()).tolist()
    return Rate(float(wins.mean()), min(1.0, low), min(1.0, high), n + m)


def _weights(count: int, draws: int, rng: Generator) -> Tensor:
    """Return the share `(draws, count)` of each of `count` models in samples of as many."""
    chosen = torch.randint(count, (draws, count), generator=rng)
    ones = torch.ones(chosen.shape, dtype=torch.float64) / count
    return torch.zeros(draws, count, dtype=torch.float64).scatter_add(1, chosen, ones)


def decisions(clean: Tensor, backdoored: Tensor, threshold: float) -> dict[str, Rate]:
    """Return how a detector does at a threshold: `accuracy`, `tpr` and `fpr` over models.

    Args:
        clean: Scores of clean models, `(n,)`.
        backdoored: Scores of backdoored models, `(m,)`; at the threshold or above is right.
        threshold: Where suspicion starts.
    """
    false, true = clean >= threshold, backdoored >= threshold
    return {"accuracy": rate(torch.cat([~false, true])), "tpr": rate(true), "fpr": rate(false)}
