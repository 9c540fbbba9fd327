"""How far the smallest trigger lies below the others."""

from __future__ import annotations

import torch
from torch import Tensor

from gifthorse.errors import ShapeMismatch
from gifthorse.tensors import median


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
        >>> anomaly_index(torch.tensor([30.0, 31.0, 29.0, 1.0])).argmax().item()
        3
    """
    if sizes.ndim != 1 or len(sizes) < 3:
        raise ShapeMismatch(
            f"sizes must have shape (K,) with K >= 3, one a class; got {tuple(sizes.shape)}"
        )
    middle = median(sizes)
    deviation = 1.4826 * median((sizes - middle).abs())
    index: Tensor = (middle - sizes) / torch.maximum(deviation, floor * middle).clamp(min=1e-12)
    return index.clamp(min=0)


def depth(sizes: Tensor, *, floor: float = 0.2) -> Tensor:
    """Return how many robust deviations each size lies below the median, on a log scale.

    Sizes are positive and skewed; on the plain scale no class can lie further below the median
    than `median / MAD`, however small its trigger. Logarithms lift that bound, so that a trigger
    of one pixel among many of a hundred stands out as it should.

    Args:
        sizes: Trigger sizes, shape `(K,)`, in pixels, K >= 3.
        floor: Least deviation, in natural-log units (0.2 is a factor of 1.22).

    Returns:
        Shape `(K,)`, unitless; 0 at or above the median.

    Example:
        >>> depth(torch.tensor([100.0, 100.0, 100.0, 100.0, 1.0])).argmax().item()
        4
    """
    logs = sizes.clamp(min=0.1).log()
    if logs.ndim != 1 or len(logs) < 3:
        raise ShapeMismatch(
            f"sizes must have shape (K,) with K >= 3, one a class; got {tuple(sizes.shape)}"
        )
    middle = median(logs)
    deviation = 1.4826 * median((logs - middle).abs())
    index: Tensor = (middle - logs) / deviation.clamp(min=floor)
    return index.clamp(min=0)
