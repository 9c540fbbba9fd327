"""Tensors out of files of safetensors and states of runs, read in a process that can only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gifthorse.core.errors import UsageError
from gifthorse.core.files import open_regular
from gifthorse.core.isolated import readers
from gifthorse.core.isolated.confinement import Limits
from gifthorse.core.isolated.transport import DTYPES, apart, together

MOST = Limits(2 << 30, 60.0)

Named = tuple[dict[str, Tensor], dict[str, str]]

_WORDS = {
    **dict(F64="float64", F32="float32", F16="float16", BF16="bfloat16", BOOL="bool"),
    **dict(I64="int64", I32="int32", I16="int16", I8="int8", U8="uint8"),
}


def from_file(path: Path, what: str) -> Named:
    """Return the tensors and the metadata of a safetensors file, by name.

    Raises:
        UsageError: If it is no file, cannot be opened, is damaged, or exhausts its reader; `what`
            begins the sentence.
    """
    with open_regular(path) as stream:
        return _named(stream, what)


def from_bytes(data: bytes, what: str) -> Named:
    """Return the tensors and the metadata of safetensors, by name.

    Raises:
        UsageError: If they are damaged, or exhaust their reader.
    """
    with readers.scratch() as stream:
        stream.write(data)
        stream.flush()
        return _named(stream, what)


def _named(stream: IO[bytes], what: str) -> Named:
    told, tensors = readers.call(
        listed, (), what=what, error=UsageError, limits=MOST, streams=[stream]
    )
    plain = [name for (name,), _, shape in told["tensors"] if shape is not None]
    return dict(zip(plain, tensors, strict=True)), told["metadata"]


def from_state(kept: Tensor, what: str) -> Any:
    """Return nested values and tensors out of the bytes that `torch.save` made of them.

    Raises:
        UsageError: If they are damaged, or exhaust their reader.
    """
    with readers.scratch() as stream:
        stream.write(kept.numpy().data)
        stream.flush()
        told, tensors = readers.call(
            unpacked, (), what=what, error=UsageError, limits=MOST, streams=[stream]
        )
    return together(told, tensors)


# In the reader --------------------------------------------------------------------------------


def unpacked(stream: IO[bytes]) -> tuple[Any, list[Tensor]]:
    """Return what torch's restricted reader finds, taken apart."""
    tensors: list[Tensor] = []
    stream.seek(0)
    return apart(torch.load(stream, map_location="cpu", weights_only=True), tensors), tensors


def listed(stream: IO[bytes]) -> tuple[dict[str, Any], list[Tensor]]:
    """Let the safetensors library check a file.

    Returns:
        Metadata, and for each tensor its name (as a path), data type and shape, which is None if
        it is of an unusual type; and the others in this order.

    Raises:
        ValueError: If the library refuses it.
    """
    from safetensors import SafetensorError, deserialize

    stream.seek(0)
    data = stream.read()
    try:
        names = [name for name, _ in deserialize(data)]
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    length = 8 + int.from_bytes(data[:8], "little")
    header: Mapping[str, Any] = json.loads(data[8:length])
    facts, found = [], []
    for name in names:
        told = header[name]
        word = _WORDS.get(told["dtype"], told["dtype"])
        facts.append([[name], word, told["shape"] if word in DTYPES else None])
        if word in DTYPES:
            begin, end = (length + at for at in told["data_offsets"])
            raw = torch.from_numpy(np.frombuffer(data[begin:end], np.uint8).copy())
            found.append(raw.view(DTYPES[word]).view(told["shape"]))
    return {"tensors": facts, "metadata": header.get("__metadata__", {})}, found
