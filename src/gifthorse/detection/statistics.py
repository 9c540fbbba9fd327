"""How far the smallest trigger lies below the others."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gifthorse.core.errors import ShapeMismatch
from gifthorse.core.stats import MAD_SCALE, log_depth, mad, median


def anomaly_index(sizes: Tensor, *, floor: float = 0.05) -> Tensor:
    """Return how many robust deviations each class's trigger lies below the median.

    Args:
        sizes: Trigger sizes, shape `(K,)`, in pixels, K >= 3. An arm without a feasible trigger
            counts as the whole image, never as 0.
        floor: Least deviation, as a share of the median; guards near-equal sizes.

    Returns:
        Shape `(K,)`, unitless; larger is more suspicious, 0 at or above the median.

    Raises:
        ShapeMismatch: If `sizes` is not one-dimensional or K < 3.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV-C. Differs: small side only, true median
    for even K, floored MAD.

    Example:
        >>> import torch
        >>> anomaly_index(torch.tensor([30.0, 31.0, 29.0, 1.0])).argmax().item()
        3
    """
    _check(sizes)
    middle = median(sizes)
    return ((middle - sizes) / mad(sizes, max(1e-12, (floor * middle).item()))).clamp(min=0)


def log_anomaly_index(sizes: Tensor, *, floor: float = 0.2, peers: Tensor | None = None) -> Tensor:
    """Return how many robust deviations each size lies below the median, on a log scale.

    Sizes are positive and skewed; on the plain scale no class can lie further below the median
    than `median / MAD`, however small its trigger. Logarithms lift that bound, so that a trigger
    of one pixel among many of a hundred stands out as it should.

    Args:
        sizes: Trigger sizes, shape `(K,)`, in pixels, K >= 3.
        floor: Least deviation, in natural-log units (0.2 is a factor of 1.22).
        peers: Which of them all are compared with, `(K,)` bool, three or more; None for all.

    Returns:
        Shape `(K,)`, unitless; 0 at or above the median.

    Example:
        >>> import torch
        >>> log_anomaly_index(torch.tensor([100.0, 100.0, 100.0, 100.0, 1.0])).argmax().item()
        4
    """
    _check(sizes if peers is None else sizes[peers])
    return log_depth(sizes, floor, peers).clamp(min=0)


def aiv(
    values: Tensor,
    *,
    middle: Literal["mean", "lower"] = "mean",
    side: Literal["low", "high", "both"] = "low",
) -> Tensor:
    """Return the anomaly index value as benchmarks print it: no floor, infinite where MAD is 0.

    `|v - med| / (1.4826 MAD + 1e-8)`. It is for tables beside published ones; verdicts are made of
    `depth`. More than 2 is 95 % sure of one class, not of the largest of K.

    Args:
        values: One number a class, `(K,)`, K >= 3.
        middle: The median of an even number of values: the `mean` of the two in the middle, as
            numpy has it, or the `lower` of them, as torch and TrojanZoo's code.
        side: Which side of the median counts, 0 on the other: `low` for sizes, `high` for success
            or activations, `both` as the formula is printed.

    Returns:
        Shape `(K,)`, at least 0. If half of the values or more are equal, all others that count
        are infinite; see `degenerate`.

    Raises:
        ShapeMismatch: If `values` is not one-dimensional or K < 3.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV-C; TrojanZoo sec. 5.3.

    Example:
        >>> sizes = torch.tensor([9.0, 50.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0])
        >>> [round(aiv(sizes, middle=m)[0].item(), 2) for m in ("mean", "lower")]
        [12.01, 14.84]
    """
    _check(values)
    apart = values.double() - _middle(values.double(), middle)
    deviation = _middle(apart.abs(), middle)
    index = apart.abs() / (MAD_SCALE * deviation + 1e-8)
    if not deviation:
        index = torch.where(apart == 0, 0.0, torch.inf)
    if side == "both":
        return index
    return torch.where(apart < 0 if side == "low" else apart > 0, index, 0.0)


def degenerate(values: Tensor) -> bool:
    """Whether half of the values `(K,)` or more are equal, so that nothing measures the others.

    Example:
        >>> degenerate(torch.tensor([1.0, 7.0, 7.0, 7.0]))
        True
    """
    return not bool(_middle((values - _middle(values, "mean")).abs(), "mean"))


def _middle(values: Tensor, kind: Literal["mean", "lower"]) -> Tensor:
    return median(values) if kind == "mean" else values.median()


def _check(sizes: Tensor) -> None:
    if sizes.ndim != 1 or len(sizes) < 3:
        raise ShapeMismatch(
            f"sizes must have shape (K,) with K >= 3, one a class; got {tuple(sizes.shape)}"
        )
