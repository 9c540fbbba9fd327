"""What the SSIM term of USB costs, beside kornia's function and a step of a small net.

Forward and gradient on the stamped images of ten arms; all three in turn, medians of the ratios.

    python benchmarks/similarity.py
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.metrics import ssim
from torch import Tensor

from gifthorse.models import NETS
from gifthorse.models.folding import frozen
from gifthorse.search.losses import Similarity, Step
from setting import machine

ARMS, BATCH, SIDE, TIMES = 10, 32, 32, 8


def gradient(value: Callable[[Tensor], Tensor], stamped: Tensor) -> Callable[[], Tensor]:
    """Return a call that computes a value and its gradient."""

    def call() -> Tensor:
        x = stamped.clone().requires_grad_()
        (found,) = torch.autograd.grad(value(x).sum(), x)
        return found

    return call


def main() -> None:
    """Time the three in turn and print the ratios."""
    rng = torch.Generator().manual_seed(0)
    x, stamped = (torch.rand(ARMS, BATCH, 3, SIDE, SIDE, generator=rng) for _ in range(2))
    some = torch.zeros(ARMS, dtype=torch.int64)
    net = frozen(NETS["tiny"](10, 3).eval())

    def ours(s: Tensor) -> Tensor:
        logits = torch.zeros(ARMS, BATCH, 10)
        return Similarity()(Step(x, some, s, logits, some, some, (s, s), net))

    def theirs(s: Tensor) -> Tensor:
        a, b = (F.pad(v.flatten(0, 1), [5] * 4) for v in (x, s))
        return -ssim(a, b, 11, eps=0.0, padding="valid").view(ARMS, -1).mean(1)

    ways = {"ours": ours, "kornia": theirs, "net": lambda s: net(s.flatten(0, 1))}
    calls = {name: gradient(value, stamped) for name, value in ways.items()}
    gap = (calls["ours"]() - calls["kornia"]()).abs().max() / calls["kornia"]().abs().max()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMES):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    print(f"kornia takes {middle['kornia'] / middle['ours']:.1f} x as long as ours")
    print(f"ours takes {middle['ours'] / middle['net']:.2f} of the net's forward and gradient")
    print(f"gradients differ by {gap:.1e} of the largest at most")
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
