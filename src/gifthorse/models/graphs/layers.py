"""Operations of a graph as modules of torch: weights in layers, everything else a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.graphs.inputs import Inputs, at
from gifthorse.models.graphs.operators import FUNCTIONS
from gifthorse.models.graphs.windows import average_pool, convolution, max_pool

# Makes a layer of settings, of the constant ones among its inputs (None for others), and of the
# rank of the first; None where a function has to do.
Maker: TypeAlias = Callable[[Mapping[str, Any], Inputs, int], nn.Module | None]

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}  # by rank of what they read


class Applied(nn.Module):
    """An operator as a layer: its constants are kept, its other inputs come by forward.

    Tensors of numbers among the constants are parameters. Single numbers stay as they are, and so
    do whole ones, which are places and sizes: on the CPU, where they can be read without waiting.

    Args:
        op: The operator.
        settings: Its attributes.
        given: Its constants; None for what forward gives, and for what is left out.
        free: Which inputs forward gives.
    """

    def __init__(
        self, op: str, settings: Mapping[str, Any], given: Inputs, free: Sequence[int]
    ) -> None:
        super().__init__()
        self.op, self.settings, self.free = op, dict(settings), tuple(free)
        self.count = len(given)
        self.whole = {i: v for i, v in enumerate(given) if v is not None and not _real(v)}
        self.real: list[int] = []
        for place, value in enumerate(given):
            if value is None or not _real(value):
                continue
            self.real.append(place)
            if value.numel() > 1 and value.isfinite().all():  # masks of attention are infinite
                self.register_parameter(f"constant{place}", nn.Parameter(value))
            else:
                self.register_buffer(f"constant{place}", value)

    def forward(self, *given: Tensor) -> Any:
        """Return what the operator makes of the inputs that are no constants, in order."""
        known = dict(self.whole)
        known.update((place, getattr(self, f"constant{place}")) for place in self.real)
        known.update(zip(self.free, given, strict=True))
        together = _together([known.get(i) for i in range(self.count)])
        return FUNCTIONS[self.op](together, self.settings)

    def extra_repr(self) -> str:
        """Return the operator, for `print(net)`."""
        return self.op


def _together(given: Inputs) -> Inputs:
    """Bring numbers to the device of the image: what is made of sizes alone is on the CPU."""
    device = next((t.device for t in given if t is not None and t.device.type != "cpu"), None)
    if device is None:
        return given
    return [
        t.to(device) if t is not None and t.ndim and t.dtype is not torch.int64 else t
        for t in given
    ]


def _real(value: Tensor) -> bool:
    return value.is_floating_point() and value.ndim > 0


def _convolution(settings: Mapping[str, Any], given: Inputs, rank: int) -> nn.Module | None:
    if rank != 4:
        raise UnreadableModel(
            f"a convolution of its graph reads tensors of {rank} dimensions: only images (4) are "
            "known here",
            rule="FS009",
        )
    return convolution(settings, _weights(given, 1), at(given, 2))


def _weights(given: Inputs, place: int) -> Tensor:
    value = at(given, place)
    if value is None:
        raise _computed()
    return value


def _computed() -> UnreadableModel:
    return UnreadableModel(
        "a layer of its graph computes its weights from the image, or reads no image: only nets "
        "with weights of their own are known here",
        rule="FS009",
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a linear layer with weights `(out, in)`."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def _gemm(settings: Mapping[str, Any], given: Inputs, rank: int) -> nn.Module | None:
    weight, bias, fixed = at(given, 1), at(given, 2), at(given, 0)
    if weight is None or weight.ndim != 2 or settings.get("transA") or fixed is not None:
        return None
    weight = weight if settings.get("transB") else weight.t()
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]):
            return None
        bias = settings.get("beta", 1.0) * bias
        bias = bias.flatten() if bias.numel() == len(weight) else bias.expand(len(weight)).clone()
    return _linear(settings.get("alpha", 1.0) * weight, bias)


def _matmul(settings: Mapping[str, Any], given: Inputs, rank: int) -> nn.Module | None:
    weight = at(given, 1)
    return _linear(weight.t(), None) if weight is not None and weight.ndim == 2 else None


def _batch_norm(settings: Mapping[str, Any], given: Inputs, rank: int) -> nn.Module | None:
    gain, shift, mean, variance = (_weights(given, place) for place in range(1, 5))
    if rank not in NORMS or settings.get("training_mode"):
        raise UnreadableModel(
            "a batch norm of its graph reads no images, or is in training mode: export the net in "
            "eval mode",
            rule="FS009",
        )
    layer = NORMS[rank](len(gain), settings.get("epsilon", 1e-5))
    layer.weight, layer.bias = nn.Parameter(gain), nn.Parameter(shift)
    layer.running_mean, layer.running_var = mean.clone(), variance.clone()
    return layer


def _layer_norm(settings: Mapping[str, Any], given: Inputs, rank: int) -> nn.Module | None:
    gain, shift = _weights(given, 1), at(given, 2)
    if settings.get("axis", -1) % rank != rank - gain.ndim:
        raise UnreadableModel("a layer norm of its graph does not fit its weights", rule="FS009")
    layer = nn.LayerNorm(list(gain.shape), settings.get("epsilon", 1e-5), bias=shift is not None)
    layer.weight = nn.Parameter(gain)
    if shift is not None:
        layer.bias = nn.Parameter(shift)
    return layer


MAKERS: Mapping[str, Maker] = {
    "AveragePool": lambda settings, given, rank: average_pool(settings),
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda settings, given, rank: (
        nn.AdaptiveAvgPool2d(1) if rank == 4 else None
    ),
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": lambda settings, given, rank: max_pool(settings),
    "Relu": lambda settings, given, rank: nn.ReLU(),
    "Sigmoid": lambda settings, given, rank: nn.Sigmoid(),
}
KNOWN: frozenset[str] = frozenset(FUNCTIONS) | frozenset(MAKERS)


def layer_of(
    op: str, settings: Mapping[str, Any], given: Inputs, free: Sequence[int], rank: int
) -> nn.Module:
    """Return the module that runs an operation.

    Args:
        op: The operator.
        settings: Its attributes.
        given: Its constants, None for the inputs that are none.
        free: Places of the inputs that are none.
        rank: Dimensions of what the first of these has.

    Raises:
        UnreadableModel: If there is none for such settings.
    """
    made = MAKERS[op](settings, given, rank) if op in MAKERS and tuple(free) == (0,) else None
    if made is not None:
        return made
    if op not in FUNCTIONS:
        raise _computed()
    return Applied(op, settings, given, free)
