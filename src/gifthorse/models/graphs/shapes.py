"""Operators that move numbers, and those that compute with sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gifthorse.models.graphs.inputs import (
    MOST,
    Function,
    Inputs,
    Settings,
    at,
    bounded,
    listed,
    needed,
    numbers,
)


def _flatten(given: Inputs, settings: Settings) -> Tensor:
    x, axis = needed(given), settings.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.flatten(1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(given: Inputs, settings: Settings) -> Tensor:
    x, shape = needed(given), listed(given, 1, settings, "shape") or []
    if 0 in shape and not settings.get("allowzero"):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _transpose(given: Inputs, settings: Settings) -> Tensor:
    x = needed(given)
    return x.permute(settings.get("perm") or tuple(reversed(range(x.ndim))))


def _squeeze(given: Inputs, settings: Settings) -> Tensor:
    axes = listed(given, 1, settings, "axes")
    return needed(given).squeeze() if axes is None else needed(given).squeeze(axes)


def _unsqueeze(given: Inputs, settings: Settings) -> Tensor:
    x, axes = needed(given), listed(given, 1, settings, "axes") or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _concat(given: Inputs, settings: Settings) -> Tensor:
    parts = [needed(given, place) for place in range(len(given))]
    axis = settings.get("axis", 0)
    if (
        settings.get("rows") and parts[0].is_floating_point()
    ):  # a token for each of several images, in a graph written for one
        rows = max(len(part) for part in parts)
        parts = [p.expand(rows, *p.shape[1:]) if len(p) == 1 < rows else p for p in parts]
    return torch.cat(parts, axis)


def _slice(given: Inputs, settings: Settings) -> Tensor:
    x = needed(given)
    starts, ends = (listed(given, i, settings, n) or [] for i, n in ((1, "starts"), (2, "ends")))
    axes = listed(given, 3, settings, "axes") or list(range(len(starts)))
    steps = listed(given, 4, settings, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            places = range(*slice(start, end if end > -MOST else None, step).indices(x.shape[axis]))
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


def _split(given: Inputs, settings: Settings) -> tuple[Tensor, ...]:
    x, axis = needed(given), settings.get("axis", 0)
    sizes = listed(given, 1, settings, "split")
    parts = settings.get("num_outputs", settings["parts"])
    return tuple(x.split(sizes or -(-x.shape[axis] // parts), axis))


def _gather(given: Inputs, settings: Settings) -> Tensor:
    x, index = needed(given), needed(given, 1)
    axis = settings.get("axis", 0) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index).to(x.device)
    if not index.ndim:
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    picked = x.index_select(axis, index.flatten())
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _shape(given: Inputs, settings: Settings) -> Tensor:
    found = list(needed(given).shape)[settings.get("start", 0) : settings.get("end")]
    return torch.tensor(found, dtype=torch.int64)


def _constant(given: Inputs, settings: Settings) -> Tensor:
    """Return the numbers that stand in the settings themselves."""
    name = next(
        n for n in ("value_floats", "value_float", "value_ints", "value_int") if n in settings
    )
    kind = torch.float32 if "float" in name else torch.int64
    made = torch.tensor(settings[name], dtype=kind)
    return made.reshape(settings["shape"]) if "shape" in settings else made


def _constant_of_shape(given: Inputs, settings: Settings) -> Tensor:
    value = at(given, 1)
    shape = bounded(numbers(needed(given)))
    return torch.zeros(shape) if value is None else value.reshape(()).expand(shape).clone()


def _expand(given: Inputs, settings: Settings) -> Tensor:
    x, wanted = needed(given), bounded(numbers(needed(given, 1)))
    return x.expand(bounded(torch.broadcast_shapes(x.shape, wanted)))


def _tile(given: Inputs, settings: Settings) -> Tensor:
    x, times = needed(given), numbers(needed(given, 1))
    bounded([n * max(0, t) for n, t in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def _pad(given: Inputs, settings: Settings) -> Tensor:
    x, pads = needed(given), listed(given, 1, settings, "pads") or []
    axes = listed(given, 3, {}, "") or list(range(x.ndim))
    value = at(given, 2)
    ends = dict(zip((a % x.ndim for a in axes), zip(*_halves(pads), strict=True), strict=True))
    bounded([n + sum(ends.get(a, ())) for a, n in enumerate(x.shape)])
    last = [ends.get(a, (0, 0)) for a in reversed(range(min(ends, default=0), x.ndim))]
    while last and last[-1] == (0, 0):  # reflection knows the last axes alone
        last.pop()
    flat = [n for pair in last for n in pair]
    mode = {"edge": "replicate"}.get(settings.get("mode", "constant"), settings.get("mode"))
    if not any(flat):
        return x
    if mode in (None, "constant"):
        return F.pad(x, flat, value=settings.get("value", 0.0) if value is None else float(value))
    return F.pad(x, flat, mode=str(mode))


def _halves(pads: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return what goes before and behind, of pads as ONNX writes them."""
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def _range(given: Inputs, settings: Settings) -> Tensor:
    start, end, step = (needed(given, place).item() for place in range(3))
    bounded([max(0, math.ceil((end - start) / (step or 1)))])
    return torch.arange(start, end, step, dtype=needed(given).dtype)


def _depth_to_space(given: Inputs, settings: Settings) -> Tensor:
    x, side = needed(given), settings["blocksize"]
    if settings.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, side)
    n, c, h, w = x.shape
    parts = x.reshape(n, side, side, c // side**2, h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // side**2, h * side, w * side)


SHAPES: dict[str, Function] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda given, s: torch.tensor(needed(given).numel()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
