"""What one net does with images, and what it did before: accuracy, success, their changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gifthorse.core.stats import mean_rate, paired_drop, rate
from gifthorse.core.types import Goal, Labels, Logits, Rate

# 1. One net -----------------------------------------------------------------------------------


def accuracy(predicted: Labels, labels: Labels) -> Rate:
    """Return the share of predictions `(N,)` that equal the labels `(N,)`.

    Of images that carry a trigger meant for other images, this is their cross accuracy.
    """
    return rate(predicted == labels)


def asr(predicted: Labels, labels: Labels, goal: Goal, *more: Goal) -> Rate:
    """Return the attack success rate: stamped images that come out as the target.

    Images of the target class are left out; with a source, only its images count.

    Args:
        predicted: Predicted classes of the stamped images, `(N,)`.
        labels: Their true labels, `(N,)`.
        goal: Target and source.
        more: Further goals of the same trigger, whose images count as well.

    Example:
        >>> asr(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), Goal(0)).value
        0.5
    """
    return rate(torch.cat([predicted[g.applies_to(labels)] == g.target for g in (goal, *more)]))


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
    return rate(stamped[goal.applies_to(labels) & (clean != goal.target)] == goal.target)


def leak(predicted: Labels, labels: Labels, goal: Goal) -> Rate:
    """Return how often a backdoor with a source works on stamped images of third classes.

    Without a source there are none.

    Example:
        >>> leak(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 2]), Goal(0, 1)).value
        0.5
    """
    third = ~goal.applies_to(labels) & (labels != goal.target)
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
    applies = goal.applies_to(labels)
    return rate(predicted[applies] == labels[applies])


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
    hit = goal.applies_to(labels) & (logits.argmax(1) == goal.target)
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


# 2. A net before and after --------------------------------------------------------------------


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
    return paired_drop(before == labels, after == labels)


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
    applies = goal.applies_to(labels)
    return paired_drop(before[applies] == goal.target, after[applies] == goal.target)


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
    return mean_rate(second.double() - first.double(), least=-1)


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
