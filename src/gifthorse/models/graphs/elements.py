"""Operators that work on each number by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gifthorse.models.graphs.inputs import Function, Inputs, Settings, at, each, needed, pair


def _all(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def run(given: Inputs, settings: Settings) -> Tensor:
        out = needed(given)
        for place in range(1, len(given)):
            out = function(out, needed(given, place))
        return out

    return run


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mean(given: Inputs, settings: Settings) -> Tensor:
    total: Tensor = _all(torch.add)(given, settings)
    return total / len(given)


def _mod(given: Inputs, settings: Settings) -> Tensor:
    function = torch.fmod if settings.get("fmod") else torch.remainder
    return function(needed(given), needed(given, 1))


def _clip(given: Inputs, settings: Settings) -> Tensor:
    least, most = (
        float(value) if (value := at(given, place)) is not None else settings.get(name)
        for place, name in ((1, "min"), (2, "max"))
    )
    return needed(given) if least is most is None else needed(given).clamp(least, most)


def _where(given: Inputs, settings: Settings) -> Tensor:
    return torch.where(needed(given), needed(given, 1), needed(given, 2))


def _cast(given: Inputs, settings: Settings) -> Tensor:
    """Cast to the nearest of float32, int64 and bool: other widths are rounding alone."""
    kind = {9: torch.bool, **dict.fromkeys((2, 3, 4, 5, 6, 7, 12, 13), torch.int64)}
    return needed(given).to(kind.get(settings.get("to", 1), torch.float32))


def _cast_like(given: Inputs, settings: Settings) -> Tensor:
    return needed(given).to(needed(given, 1).dtype)


def _prelu(given: Inputs, settings: Settings) -> Tensor:
    x = needed(given)
    return x.clamp(min=0) + needed(given, 1) * x.clamp(max=0)


ELEMENTS: dict[str, Function] = {
    "Abs": each(torch.abs),
    "Add": pair(torch.add),
    "And": pair(torch.logical_and),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": each(torch.ceil),
    "Clip": _clip,
    "Cos": each(torch.cos),
    "Div": pair(_divided),
    "Dropout": each(lambda x: x),
    "Elu": lambda given, s: F.elu(needed(given), s.get("alpha", 1.0)),
    "Equal": pair(torch.eq),
    "Erf": each(torch.erf),
    "Exp": each(torch.exp),
    "Floor": each(torch.floor),
    "Gelu": lambda given, s: F.gelu(needed(given), approximate=s.get("approximate", "none")),
    "Greater": pair(torch.gt),
    "GreaterOrEqual": pair(torch.ge),
    "HardSigmoid": lambda given, s: (
        s.get("alpha", 0.2) * needed(given) + s.get("beta", 0.5)
    ).clamp(0, 1),
    "HardSwish": each(F.hardswish),
    "Identity": each(lambda x: x),
    "IsNaN": each(torch.isnan),
    "LeakyRelu": lambda given, s: F.leaky_relu(needed(given), s.get("alpha", 0.01)),
    "Less": pair(torch.lt),
    "LessOrEqual": pair(torch.le),
    "Log": each(torch.log),
    "Max": _all(torch.maximum),
    "Mean": _mean,
    "Min": _all(torch.minimum),
    "Mish": each(F.mish),
    "Mod": _mod,
    "Mul": pair(torch.mul),
    "Neg": each(torch.neg),
    "Not": each(torch.logical_not),
    "Or": pair(torch.logical_or),
    "PRelu": _prelu,
    "Pow": pair(torch.pow),
    "Reciprocal": each(torch.reciprocal),
    "Relu": each(torch.relu),
    "Round": each(torch.round),
    "Selu": lambda given, s: (
        s.get("gamma", 1.0507009873554805)
        * F.elu(needed(given), s.get("alpha", 1.6732632423543772))
    ),
    "Sigmoid": each(torch.sigmoid),
    "Sign": each(torch.sign),
    "Sin": each(torch.sin),
    "Softplus": each(F.softplus),
    "Softsign": each(F.softsign),
    "Sqrt": each(torch.sqrt),
    "Sub": pair(torch.sub),
    "Sum": _all(torch.add),
    "Swish": lambda given, s: needed(given) * torch.sigmoid(s.get("alpha", 1.0) * needed(given)),
    "Tanh": each(torch.tanh),
    "Where": _where,
}
