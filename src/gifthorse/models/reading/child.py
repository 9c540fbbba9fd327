"""What is done with a model file in the process that can only read: surveyed, opened, listed."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.isolated.tensors import listed
from gifthorse.core.isolated.transport import apart
from gifthorse.models.reading import blocks, keras_files, onnx_files, values
from gifthorse.models.reading.entries import PLAIN, shown
from gifthorse.models.reading.files import size_of, sniff_stream
from gifthorse.models.reading.survey import INERT, survey

DEPTH = 100
LEAVES = 200_000

# All that torch's restricted reader has been seen to raise on odd pickles.
REFUSALS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError),
    *(AssertionError, OverflowError, pickle.UnpicklingError, struct.error),
)


def surveyed(stream: IO[bytes], name: str) -> tuple[Any, list[Tensor]]:
    """Return what the bytes of a file say, see `survey`."""
    return asdict(survey(stream, name)), []


def checkpoint(stream: IO[bytes], name: str, wanted: Sequence[str]) -> tuple[Any, list[Tensor]]:
    """Return a dictionary of plain values and tensors, see `values.checkpoint`."""
    tensors: list[Tensor] = []
    return apart(values.checkpoint(stream, name, wanted), tensors), tensors


def sniffed(stream: IO[bytes], ending: str) -> tuple[Any, list[Tensor]]:
    """Return what a file is by its bytes, see `sniff_stream`."""
    return sniff_stream(stream, size_of(stream), ending), []


def tensors(stream: IO[bytes], *rest: Any) -> tuple[Any, list[Tensor]]:
    """Open a checked file by the library that it is for.

    Args:
        stream: The file.
        rest: A file of numbers beside it, if there is one; then its reader, see `Survey.reader`.

    Returns:
        Path, data type (or a type's name) and shape of each leaf, None if it is no plain tensor;
        and the plain tensors in this order.

    Raises:
        UnreadableModel: If the library refuses it.
    """
    *beside, reader = rest
    try:
        if reader == "onnx":
            return onnx_files.read(stream, next(iter(beside), None))
        if reader in ("keras", "hdf5"):
            return keras_files.read(stream, reader)
        if reader == "safetensors":
            told, found = listed(stream)
            return told["tensors"], found
        return read_inert(stream) if reader == INERT else read_pickle(stream)
    except REFUSALS as error:
        if "alloc" in str(error) or "memory" in str(error) or isinstance(error, RecursionError):
            raise
        raise UnreadableModel(
            f"the file cannot be read: {shown(str(error), 500)}", rule="FS003"
        ) from error


def read_inert(stream: IO[bytes]) -> tuple[Any, list[Tensor]]:
    """Read tensors by the opcodes of a pickle whose code is left alone; see `tensors`."""
    entries, found = blocks.read_tensors(stream)
    plain = [e.shape if e.type in PLAIN else None for e in entries]
    return [[list(e.path), e.type, s] for e, s in zip(entries, plain, strict=True)], found


def read_pickle(stream: IO[bytes]) -> tuple[Any, list[Tensor]]:
    """Open a state dict with torch's restricted reader; see `tensors`."""
    stream.seek(0)
    with torch.serialization.safe_globals(numpy_scalars()):
        loaded = torch.load(stream, map_location="cpu", weights_only=True)
    facts: list[tuple[list[str], str, list[int] | None]] = []
    found: list[Tensor] = []
    for keys, value in flatten(loaded):
        kind = type_of(value)
        plain = isinstance(value, Tensor) and kind in PLAIN
        if plain:
            found.append(value)
        facts.append((keys, kind, list(value.shape) if plain else None))
    return facts, found


def numpy_scalars() -> list[Any]:
    """Return what the restricted reader must know to read NumPy's numbers and plain arrays."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(code))
        for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]
    }
    array = np.zeros(0).__reduce__()[0]
    makers = [
        (make, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for make, name in ((scalar, "scalar"), (array, "_reconstruct"))
    ]
    return [*makers, (np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray"), *kinds]


def flatten(value: Any) -> Iterator[tuple[list[str], Any]]:
    """Yield the keys and the value of each leaf of nested dictionaries, lists and tuples.

    Raises:
        ValueError: If it is nested too deeply or has too many leaves.
    """
    stack: list[tuple[list[str], Any]] = [([], value)]
    count = 0
    while stack:
        path, part = stack.pop()
        count += 1
        if count > LEAVES or len(path) > DEPTH:
            raise ValueError(f"more than {LEAVES} values or {DEPTH} levels")
        if type(part) in (dict, OrderedDict):
            pairs = [(_key(key), item) for key, item in part.items()]
        elif type(part) in (list, tuple):
            pairs = [(str(i), item) for i, item in enumerate(part)]
        else:
            yield path, part
            continue
        stack.extend(([*path, key], item) for key, item in reversed(pairs))


def _key(key: Any) -> str:
    return str(key) if type(key) in (str, int, float, bool) else "<key>"


def type_of(value: Any) -> str:
    """Name a leaf's data type: `float32`, `quantized qint8`, `sparse`, `meta`, or its class."""
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_quantized:
        return f"quantized {str(value.dtype).removeprefix('torch.')}"
    if value.layout is not torch.strided:
        return "sparse"
    return "meta" if value.is_meta else str(value.dtype).removeprefix("torch.")
