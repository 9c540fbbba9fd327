"""What a reader says: one JSON value, and tensors as raw numbers; nothing is unpickled."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

MOST = 64 << 20  # bytes of JSON that are believed
ALIGN = 64
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
        *(torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.uint16, torch.uint32, torch.uint64),  # of NumPy's arrays
    )
}


class BrokenAnswer(Exception):
    """What a reader said is not of the form that it must have."""


def write(file: IO[bytes], value: object, tensors: Sequence[Tensor]) -> None:
    """Write tensors one after another, then the JSON, then its length in 8 bytes.

    Raises:
        ValueError: If the JSON is longer than is believed.
    """
    placed = []
    for tensor in tensors:
        file.write(bytes(-file.tell() % ALIGN))
        name = str(tensor.dtype).removeprefix("torch.")
        placed.append([name, list(tensor.shape), file.tell()])
        plain = tensor.detach().contiguous().reshape(-1)
        if plain.numel():
            file.write(plain.view(torch.uint8).numpy().data)
    text = json.dumps({"value": value, "tensors": placed}).encode()
    if len(text) > MOST:
        raise MemoryError(f"it lists more than {MOST:,} bytes")
    file.write(text + len(text).to_bytes(8, "little"))
    file.flush()


def read(file: IO[bytes]) -> tuple[Any, list[Tensor]]:
    """Return what `write` wrote: a JSON value, and tensors that share the memory of the file.

    Raises:
        BrokenAnswer: If lengths, data types or places do not fit.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MOST, size - 8):
        raise BrokenAnswer("it is cut off")
    file.seek(size - 8 - length)
    try:
        told = json.loads(file.read(length))
        value, placed = told["value"], told["tensors"]
        shared = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) if placed else None
        return value, [_tensor(shared, size - 8 - length, *place) for place in placed]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BrokenAnswer(f"it is malformed: {error}") from error


def _tensor(shared: mmap.mmap | None, end: int, name: str, shape: list[int], at: int) -> Tensor:
    dtype, count = DTYPES[name], math.prod(shape)
    plain = all(type(n) is int and n >= 0 for n in (*shape, at))
    if not plain or at + count * dtype.itemsize > end or shared is None:
        raise ValueError("a tensor is not where it should be")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(shared, dtype=dtype, count=count, offset=at).view(shape)


# Nested values --------------------------------------------------------------------------------


def apart(value: object, tensors: list[Tensor]) -> Any:
    """Return nested lists, tuples and dictionaries as JSON; tensors and arrays are put on a list.

    Raises:
        TypeError: If anything else is inside.

    Example:
        >>> together(apart({1: (2, [None])}, []), [])
        {1: (2, [None])}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor", len(tensors) - 1]
    if isinstance(value, np.ndarray):
        tensors.append(torch.from_numpy(value.copy()))
        return ["array", len(tensors) - 1]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(apart(item, tensors) for item in value)]
    if isinstance(value, dict):
        pairs = [[apart(k, tensors), apart(v, tensors)] for k, v in value.items()]
        return ["dict", *pairs]
    raise TypeError(f"a {type(value).__name__} cannot be handed over")


def together(told: Any, tensors: Sequence[Tensor]) -> Any:
    """Return what `apart` took apart.

    Raises:
        BrokenAnswer: If it was something else.
    """
    if not isinstance(told, list):
        return told
    try:
        kind, *items = told
        if kind == "tensor":
            return tensors[items[0]]
        if kind == "array":
            return tensors[items[0]].numpy()
        if kind == "dict":
            return {together(k, tensors): together(v, tensors) for k, v in items}
        made = [together(item, tensors) for item in items]
        return {"list": made, "tuple": tuple(made)}[kind]
    except (ValueError, TypeError, LookupError) as error:
        raise BrokenAnswer(f"it is malformed: {error}") from error
