"""Small pure helpers on tensors that several parts need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

STEP = 1 / 255  # the smallest change that an 8-bit image can show
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
