"""Small pure helpers on tensors that several parts need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

EPSILON = 1e-7  # as in the reference code of Neural Cleanse and PixelBackdoor


def from_box(u: Tensor) -> Tensor:
    """Map raw variables to (0, 1): `tanh(u) / (2 - eps) + 0.5`.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. III-B; PixelBackdoor eq. 4.

    Example:
        >>> from_box(torch.zeros(1)).item()
        0.5
    """
    return torch.tanh(u) / (2 - EPSILON) + 0.5


def to_box(q: Tensor, margin: float = 1e-4) -> Tensor:
    """Invert `from_box`, after clipping `q` to `[margin, 1 - margin]`.

    At exactly 0 or 1 a float32 variable lands where its derivative is about 1e-7 and the pixel
    can practically never move again; the margin prevents that.

    Example:
        >>> from_box(to_box(torch.tensor([0.25, 1.0]))).tolist()
        [0.25, 0.9998999834060669]
    """
    return torch.atanh((q.clamp(margin, 1 - margin) - 0.5) * (2 - EPSILON))


def median(values: Tensor) -> Tensor:
    """Return the true median: the mean of the two middle values if their number is even.

    Example:
        >>> median(torch.tensor([1.0, 2.0, 10.0, 20.0])).item()
        6.0
    """
    return torch.quantile(values, 0.5)


def robust_depth(values: Tensor, floor: float | Tensor) -> Tensor:
    """Return how many robust deviations each value lies below the median, negative above it.

    The deviation is 1.4826 times the median distance from the median, which is the standard
    deviation of normal values, but never less than `floor`.

    Args:
        values: Shape `(K,)`.
        floor: Least deviation, positive, in units of the values.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV-C. Differs: signed, true median for even
    K, floored.

    Example:
        >>> depth = robust_depth(torch.tensor([8.0, 9.0, 10.0, 11.0, 4.0]), 0.1)
        >>> round(depth[4].item() * 1.4826, 4)
        5.0
    """
    middle = median(values)
    deviation = 1.4826 * median((values - middle).abs())
    depth: Tensor = (middle - values) / deviation.clamp(min=floor)
    return depth


def log_depth(sizes: Tensor, floor: float = 0.2) -> Tensor:
    """Return `robust_depth` of the logarithms of sizes, which below 0.1 count as 0.1.

    Args:
        sizes: Trigger sizes in pixels, shape `(K,)`.
        floor: Least deviation, in natural-log units (0.2 is a factor of 1.22).

    Example:
        >>> log_depth(torch.tensor([100.0, 100.0, 100.0, 100.0, 1.0])).argmax().item()
        4
    """
    return robust_depth(sizes.clamp(min=0.1).log(), floor)


def spawn(rng: Generator) -> Generator:
    """Return a new generator seeded by a draw from `rng`, so that streams stay independent."""
    seed = int(torch.randint(2**62, (1,), generator=rng).item())
    return torch.Generator().manual_seed(seed)


def called(net: nn.Module, x: Tensor) -> Tensor:
    """Return what a net says of a batch, which may be on another device than its weights."""
    if all(p.device == x.device for p in net.parameters()):
        return cast(Tensor, net(x))
    weights = {name: t.to(x.device) for name, t in net.state_dict(keep_vars=True).items()}
    return cast(Tensor, functional_call(net, weights, (x,)))


@contextmanager
def seeded(rng: Generator, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generator by a draw from `rng`, and put it back as it was afterwards.

    For what cannot be handed a generator: dropout, initialization, kornia.
    """
    seed, kind = int(torch.randint(2**62, (1,), generator=rng).item()), torch.device(device).type
    with torch.random.fork_rng(devices=[device] if kind == "cuda" else []):
        apple = torch.mps.get_rng_state() if kind == "mps" else None
        try:
            torch.manual_seed(seed)
            yield
        finally:
            if apple is not None:
                torch.mps.set_rng_state(apple)


def wilson(hits: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a binomial share; (0, 1) without trials.

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
