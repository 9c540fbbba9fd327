"""PixelBackdoor, clip form, as a plain loop: one arm, trainable weights, nothing folded.

Written from the published description and the known defaults of the released PyTorch code, as the
baseline that our engine is measured against: batch 32, the last incomplete batch dropped, 1000
epochs, Adam(0.1, (0.5, 0.9)), the snap after each new best, and its per-step host reads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the loop found: the change `(C, H, W)`, its pixels, and (seconds, pixels) over time."""

    delta: Tensor
    pixels: int
    curve: list[tuple[float, int]]
    image_steps: int


def invert(  # noqa: PLR0915  (one plain loop, on purpose)
    net: nn.Module, x: Tensor, target: int, *, epochs: int = 1000, seed: int = 0
) -> Outcome:
    """Return the smallest change found for images `(N, C, H, W)` in [0, 1]."""
    torch.manual_seed(seed)
    net.eval()
    for weight in net.parameters():
        weight.requires_grad_(True)
    plus = torch.rand(x.shape[1:], requires_grad=True)
    minus = torch.rand(x.shape[1:], requires_grad=True)
    adam = torch.optim.Adam([plus, minus], lr=0.1, betas=(0.5, 0.9))
    alpha, up, down = 1e-3, 0, 0
    best_reg, best_pixels, best = float("inf"), float("inf"), torch.zeros(x.shape[1:])
    curve, started, image_steps = [], time.perf_counter(), 0
    y = torch.full((len(x),), target)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        regs, accs = [], []
        for i in range(len(x) // 32):
            batch = order[i * 32 : (i + 1) * 32]
            p, m = plus.clamp(0, 1), minus.clamp(0, 1)
            logits = net((x[batch] + p - m).clamp(0, 1))
            loss = F.cross_entropy(logits, y[batch])
            added, removed = (torch.tanh(b.max(0).values / 10) / (2 - 1e-7) for b in (plus, minus))
            reg = (added + 0.5).sum() + (removed + 0.5).sum()
            adam.zero_grad()
            (loss + alpha * reg).backward()  # type: ignore[no-untyped-call]
            adam.step()
            accs.append((logits.argmax(1) == y[batch]).float().mean().item())
            regs.append(float(reg.detach().cpu().numpy()))
            kept = [np.where(q < 1 / 255, 0, q) for q in (p.detach().numpy(), m.detach().numpy())]
            image_steps += len(batch)
        acc, mean_reg = float(np.mean(accs)), float(np.mean(regs))
        delta = kept[0] - kept[1]
        pixels = int((np.abs(delta) > 0).any(0).sum())
        if acc >= 0.9 and mean_reg < best_reg and pixels < best_pixels:
            best_reg, best_pixels, best = mean_reg, pixels, torch.from_numpy(delta)
            with torch.no_grad():
                plus.copy_(torch.from_numpy(kept[0]))
                minus.copy_(torch.from_numpy(kept[1]))
            curve.append((time.perf_counter() - started, pixels))
        up, down = (up + 1, 0) if acc >= 0.9 else (0, down + 1)
        if up >= 10:
            up, alpha = 0, alpha * 1.5
        elif down >= 10:
            down, alpha = 0, alpha / 1.5**1.5
    return Outcome(best, int(best_pixels), curve, image_steps)
