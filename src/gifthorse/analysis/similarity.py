"""How alike two sets of features are: of the same images (CKA), or of different ones (MMD)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the median distance
MANY = 2000  # images from which on the bias of CKA is small


@dataclass(frozen=True)
class Discrepancy:
    """How far apart two samples of features are.

    Attributes:
        value: MMD^2, unbiased: about 0, also below, for samples of one distribution.
        p: How often a random split of both gives at least as much, in (0, 1].
        permutations: How many random splits there were.
    """

    value: float
    p: float
    permutations: int


@dataclass(frozen=True)
class Centroids:
    """How two means of features lie to each other: cosine in [-1, 1], Euclidean distance."""

    cosine: float
    distance: float


def linear_cka(one: Tensor, other: Tensor, *, debiased: bool | None = None) -> float:
    """Return the linear centered kernel alignment of two feature tables of the same images.

    1 if one is a rotated and scaled copy of the other. Without the correction it is inflated where
    there are fewer images than features.

    Args:
        one: `(N, d)`.
        other: `(N, e)`, of the same images in the same order.
        debiased: Whether to use the unbiased estimate of HSIC, which needs 4 images and may be
            below 0; None does so for fewer than 2,000 images.

    Returns:
        The alignment, NaN if a table is constant.

    Raises:
        ShapeMismatch: If the tables are not of the same images.
        BadImages: If there are too few.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019;
    Song et al., Feature Selection via Dependence Maximization, JMLR 2012, eq. 5 (unbiased HSIC).
    """
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other):
        raise ShapeMismatch(
            f"CKA needs two tables (N, d) and (N, e) of the same images; got {tuple(one.shape)} "
            f"and {tuple(other.shape)}"
        )
    unbiased = len(one) < MANY if debiased is None else debiased
    if len(one) < (4 if unbiased else 2):
        raise BadImages(f"CKA needs at least {4 if unbiased else 2} images; got {len(one)}")
    x, y = (t.detach().double() - t.detach().double().mean(0) for t in (one, other))
    if unbiased:
        k, m = x @ x.T, y @ y.T
        return _ratio(_hsic(k, m), _hsic(k, k), _hsic(m, m))
    cross, xx, yy = (float((a.T @ b).square().sum()) for a, b in ((x, y), (x, x), (y, y)))
    return _ratio(cross, xx, yy)


def _ratio(cross: float, one: float, other: float) -> float:
    return cross / math.sqrt(one * other) if one > 0 and other > 0 else math.nan


def _hsic(k: Tensor, m: Tensor) -> float:
    """Return the unbiased estimate of HSIC, times a constant, from Gram matrices `(N, N)`."""
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
    return float((k * m).sum() + sums)


def mmd(one: Tensor, other: Tensor, rng: Generator, *, permutations: int = 500) -> Discrepancy:
    """Return the squared maximum mean discrepancy of two samples of features, with a p-value.

    The kernel is the mean of five Gaussians `exp(-|a - b|^2 / (2 s^2))`, their widths s from a
    quarter to four times the median distance of all rows.

    Args:
        one: `(m, d)`.
        other: `(n, d)`.
        rng: Source of the permutations.
        permutations: Random splits for the p-value, which is `(1 + hits) / (1 + permutations)`.

    Raises:
        ShapeMismatch: If the rows have different lengths.
        BadImages: If there are fewer than two rows on either side.
        BadOption: If there are fewer permutations than 1.

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, eq. 3. Differs: several widths.
    """
    if permutations < 1:
        raise BadOption(f"permutations must be at least 1; got {permutations}")
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ShapeMismatch(
            f"MMD needs two tables (m, d) and (n, d); got {tuple(one.shape)}, {tuple(other.shape)}"
        )
    m, n = len(one), len(other)
    if min(m, n) < 2:
        raise BadImages(f"MMD needs at least 2 images on either side; got {m} and {n}")
    kernel = _kernel(torch.cat([one, other]).detach().double().cpu())
    sides = torch.zeros(permutations + 1, m + n, dtype=torch.float64)
    sides[0, :m] = 1
    for row in sides[1:]:
        row[torch.randperm(m + n, generator=rng)[:m]] = 1
    each = sides @ kernel
    within = (each * sides).sum(1)
    across = (each * (1 - sides)).sum(1)
    rest = kernel.sum() - within - 2 * across
    values = within / (m * (m - 1)) + rest / (n * (n - 1)) - 2 * across / (m * n)
    # Rounding must not tell equal splits apart.
    hits = int((values[1:] >= values[0] - 1e-12).sum())
    return Discrepancy(float(values[0]), (1 + hits) / (1 + permutations), permutations)


def _kernel(rows: Tensor) -> Tensor:
    """Return the kernel matrix of rows `(N, d)`, zero on the diagonal."""
    far = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    apart = far[~torch.eye(len(rows), dtype=torch.bool)]
    middle = float(apart.quantile(0.5)) if len(apart) < 2**24 else float(apart.median())
    middle = middle or float(apart.mean()) or 1.0  # most rows may be equal, or all
    widths = [factor * middle for factor in BANDWIDTHS]
    kernel = torch.stack([torch.exp(-far.square() / (2 * s * s)) for s in widths]).mean(0)
    return kernel.fill_diagonal_(0)


def centroids(target: Tensor, clean: Tensor, stamped: Tensor) -> dict[str, Centroids]:
    """Return how the mean features of three groups lie to each other.

    Latent and adversarial attacks should pull stamped images to the target class.

    Args:
        target: Features of clean images of the target class, `(m, d)`.
        clean: Of other clean images, `(n, d)`.
        stamped: Of the same images with the trigger, `(n, d)`.

    Returns:
        By name: `stamped to target`, `stamped to clean` and `clean to target`.

    Raises:
        BadImages: If a group has no images.
    """
    if not (len(target) and len(clean) and len(stamped)):
        raise BadImages("every group needs at least one image for its mean")
    t, c, s = (group.detach().double().mean(0) for group in (target, clean, stamped))
    pairs = {"stamped to target": (s, t), "stamped to clean": (s, c), "clean to target": (c, t)}
    return {
        name: Centroids(float(F.cosine_similarity(a, b, dim=0)), float((a - b).norm()))
        for name, (a, b) in pairs.items()
    }
