"""Operators that sum: reductions, products, norms and softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gifthorse.models.graphs.inputs import (
    Function,
    Inputs,
    Settings,
    at,
    each,
    listed,
    needed,
    pair,
)


def _reduced(function: Callable[..., Tensor]) -> Function:
    def run(given: Inputs, settings: Settings) -> Tensor:
        x, axes = needed(given), listed(given, 1, settings, "axes")
        if not axes and settings.get("noop_with_empty_axes"):
            return x
        return function(x, axes or list(range(x.ndim)), keepdim=bool(settings.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _gemm(given: Inputs, settings: Settings) -> Tensor:
    a, b = needed(given), needed(given, 1)
    a, b = (t.t() if settings.get(k) else t for t, k in ((a, "transA"), (b, "transB")))
    out: Tensor = settings.get("alpha", 1.0) * (a @ b)
    bias = at(given, 2)
    return out if bias is None else out + settings.get("beta", 1.0) * bias


def _softmax(function: Callable[..., Tensor]) -> Function:
    """Return (log-)softmax over one axis; before opset 13, over all from that axis on."""

    def run(given: Inputs, settings: Settings) -> Tensor:
        x = needed(given)
        axis = settings.get("axis", -1) % x.ndim
        if not settings.get("flat"):
            return function(x, axis)
        return function(x.flatten(axis), axis).reshape(x.shape)

    return run


def _group_norm(given: Inputs, settings: Settings) -> Tensor:
    x, groups = needed(given), settings["num_groups"]
    gain, shift = needed(given, 1), needed(given, 2)
    if len(gain) == groups != x.shape[1]:  # of each group, before opset 21
        gain, shift = (t.repeat_interleave(x.shape[1] // groups) for t in (gain, shift))
    return F.group_norm(x, groups, gain, shift, settings.get("epsilon", 1e-5))


def _instance_norm(given: Inputs, settings: Settings) -> Tensor:
    x, gain, shift = (needed(given, place) for place in range(3))
    return F.instance_norm(x, weight=gain, bias=shift, eps=settings.get("epsilon", 1e-5))


def _lrn(given: Inputs, settings: Settings) -> Tensor:
    """Divide by the squares of neighboring channels, of which torch takes the mean as well."""
    alpha, beta, k = (
        settings.get("alpha", 1e-4),
        settings.get("beta", 0.75),
        settings.get("bias", 1.0),
    )
    return F.local_response_norm(needed(given), settings["size"], alpha, beta, k)


def _lp_norm(given: Inputs, settings: Settings) -> Tensor:
    return F.normalize(needed(given), float(settings.get("p", 2)), settings.get("axis", -1))


REDUCTIONS: dict[str, Function] = {
    "Gemm": _gemm,
    "GlobalAveragePool": each(lambda x: x.mean((2, 3), keepdim=True)),
    "GlobalMaxPool": each(lambda x: x.amax((2, 3), keepdim=True)),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_norm,
    "MatMul": pair(torch.matmul),
    "ReduceL2": _reduced(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim).sqrt()),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceProd": _reduced(_product),
    "ReduceSum": _reduced(torch.sum),
    "ReduceSumSquare": _reduced(lambda x, axes, keepdim: x.square().sum(axes, keepdim=keepdim)),
    "Softmax": _softmax(torch.softmax),
}
