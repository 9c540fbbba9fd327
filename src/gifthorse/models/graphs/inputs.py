"""Inputs and settings of operators, read as ONNX means them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gifthorse.core.errors import UnreadableModel

Inputs: TypeAlias = Sequence[Tensor | None]
Settings: TypeAlias = Mapping[str, Any]
Function: TypeAlias = Callable[[Inputs, Settings], Any]

MOST = 1 << 28  # numbers that one operation makes


def numbers(value: Tensor) -> list[int]:
    """Return a small tensor of whole numbers as a list."""
    return [int(n) for n in value.flatten().tolist()]


def at(given: Inputs, place: int) -> Tensor | None:
    """Return an input, None if it is left out."""
    return given[place] if len(given) > place else None


def listed(given: Inputs, place: int, settings: Settings, name: str) -> list[int] | None:
    """Return whole numbers that are an input since some opset, and were a setting before."""
    value = at(given, place)
    if value is not None:
        return numbers(value)
    return list(settings[name]) if name in settings else None


def needed(given: Inputs, place: int = 0) -> Tensor:
    """Return an input that may not be left out.

    Raises:
        UnreadableModel: If it is.
    """
    value = at(given, place)
    if value is None:
        raise UnreadableModel("an operation of its graph lacks an input", rule="FS003")
    return value


def bounded(shape: Sequence[int]) -> list[int]:
    """Return a shape that a tensor of a net may have.

    Raises:
        UnreadableModel: If it is too large.
    """
    if min(shape, default=1) < 0 or math.prod(shape) > MOST:
        raise UnreadableModel(f"an operation of its graph makes a tensor of {shape}", rule="FS004")
    return list(shape)


def each(function: Callable[[Tensor], Tensor]) -> Function:
    """Return an operator of one input."""
    return lambda given, settings: function(needed(given))


def pair(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Return an operator of two inputs."""
    return lambda given, settings: function(needed(given), needed(given, 1))
