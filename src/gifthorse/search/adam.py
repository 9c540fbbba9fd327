"""Adam for variables with an arm dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def adam(
    variables: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: list[list[Tensor]],
    steps: Tensor,
    rate: Tensor,
    betas: tuple[float, float],
) -> None:
    """Step in place, with a step count an arm, so that arms may start and pause at any time.

    Args:
        variables: What moves, `(a, ...)` each.
        gradients: The same shapes.
        moments: First and second moments, a list of the same shapes each; changed in place.
        steps: Number of this step for every arm, from 1, `(a,)`.
        rate: Learning rate of every arm, `(a,)`.
        betas: Decay rates of the moments.

    Source: Kingma and Ba, Adam, ICLR 2015, algorithm 1.
    """
    b1, b2 = betas
    for i, (v, g) in enumerate(zip(variables, gradients, strict=True)):
        first, second = moments[0][i], moments[1][i]
        first.lerp_(g, 1 - b1)
        second.mul_(b2).addcmul_(g, g, value=1 - b2)
        shape = (-1, *([1] * (v.ndim - 1)))
        t, lr = steps.view(shape).to(v), rate.view(shape).to(v)
        scale = second.div(1 - b2**t).sqrt_().add_(1e-8)
        # In place: a new tensor of millions of numbers costs more than the sum.
        v.sub_((lr / (1 - b1**t) * first).div_(scale))
