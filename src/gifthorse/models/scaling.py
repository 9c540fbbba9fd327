"""Gradients through the two branches of a residual block, weighted; what the net says stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle

from gifthorse.core.errors import BadOption
from gifthorse.models.nets.densenet import DenseLayer
from gifthorse.models.nets.resnet import BasicBlock, Bottleneck
from gifthorse.models.nets.wide import PreActBlock

# The module that ends the residual branch, and whose output only the sum reads.
_ENDS: dict[type[nn.Module], str] = {BasicBlock: "bn2", Bottleneck: "bn3", PreActBlock: "conv2"}


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0] * ctx.factor, None  # type: ignore[attr-defined]


def grad_scale(x: Tensor, factor: float) -> Tensor:
    """Return `x` to the bit; the gradient that comes back through it is `factor` times as large.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (grad_scale(x, 0.25) * 4).sum().backward()
        >>> x.grad.tolist()
        [1.0, 1.0]
    """
    out: Tensor = _Scale.apply(x, factor)
    return out


@contextmanager
def scaled(net: nn.Module, *, skip: float = 1.0, residual: float = 1.0) -> Iterator[None]:
    """Weight the gradients through skip connections and residual branches inside the context.

    A block `skip(x) + res(x)` has the gradient `skip_factor * skip'(x) + residual_factor *
    res'(x)`. In a DenseNet only the branch of new channels can be weighted: its two ReLUs pass
    the square root of the factor each. Both factors 1 change nothing.

    Args:
        net: The net; outside the context it is as it was.
        skip: Factor of the gradient through skip connections, above 0.
        residual: Factor of the gradient through residual branches, at least 0.

    Raises:
        BadOption: If a factor is out of range, or the net has no such branch.

    Source: Wu et al., Skip Connections Matter, ICLR 2020 (skip gradient method, which decays the
    residual branch); TrojanZoo RQ5 and fig. 8 (which says that skip connections decay). Differs:
    both factors are explicit, and the ReLU after the sum is not touched.
    """
    if skip <= 0 or residual < 0:
        raise BadOption(f"gradients need skip above 0, residual at least 0; got {skip}, {residual}")
    handles = [] if skip == residual == 1 else _hooked(net, skip, residual)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(net: nn.Module, skip: float, residual: float) -> list[RemovableHandle]:
    handles = []
    for module in net.modules():
        if type(module) in _ENDS:
            # The skip may be no module at all, so its factor is put on the sum and taken off the
            # other branch again.
            end = module.get_submodule(_ENDS[type(module)])
            handles += [_scaling(end, residual / skip), _scaling(module, skip)]
        elif isinstance(module, DenseLayer):
            if skip != 1:
                raise BadOption("a DenseNet joins channels and has no skip to scale: leave skip=1")
            handles += [_scaling(m, math.sqrt(residual)) for m in (module.relu1, module.relu2)]
    if not handles:
        raise BadOption("the net has no residual block known here: leave skip=1 and residual=1")
    return handles


def _scaling(module: nn.Module, factor: float) -> RemovableHandle:
    def scale(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return grad_scale(out, factor)

    return module.register_forward_hook(scale)
