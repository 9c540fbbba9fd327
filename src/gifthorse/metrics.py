"""Figures of merit: tensors in, rates with their binomial intervals out."""

from __future__ import annotations

import torch
from torch import Tensor

from gifthorse.tensors import wilson
from gifthorse.types import Goal, Labels, Rate


def rate(hits: Tensor) -> Rate:
    """Return the share of True in a bool vector with its 95 % Wilson interval.

    Example:
        >>> rate(torch.tensor([True, True, False, True])).value
        0.75
    """
    count, trials = int(hits.sum()), hits.numel()
    low, high = wilson(count, trials)
    return Rate(count / trials if trials else 0.0, low, high, trials)


def accuracy(predicted: Labels, labels: Labels) -> Rate:
    """Return the share of predictions `(N,)` that equal the labels `(N,)`."""
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
    keep = labels != goal.target if goal.source is None else labels == goal.source
    return rate(predicted[keep] == goal.target)


def asr_all(predicted: Labels, goal: Goal) -> Rate:
    """Return the share of all stamped images that come out as the target, as TrojanZoo counts."""
    return rate(predicted == goal.target)


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
