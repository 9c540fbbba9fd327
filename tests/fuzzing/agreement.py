"""Our reader against PyTorch's restricted one and the safetensors library, on the same bytes."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading import child
from gifthorse.models.reading.survey import refusal, survey

REFUSALS = (*child.REFUSALS, MemoryError, SafetensorError)


def theirs(name: str, content: bytes) -> dict[tuple[str, ...], Tensor] | None:
    """What the libraries read, by path; None if they refuse."""
    try:
        if name.endswith(".safetensors"):
            return {(key,): tensor for key, tensor in load(content).items()}
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        leaves = child.flatten(loaded)
        return {tuple(keys): leaf for keys, leaf in leaves if isinstance(leaf, Tensor)}
    except REFUSALS:
        return None


def ours(name: str, content: bytes) -> tuple[dict[tuple[str, ...], Tensor] | None, str]:
    """What we read, by path; or None, and the rule by which we refuse."""
    stream = io.BytesIO(content)
    try:
        found = survey(stream, name)
        if (reason := refusal(found)) is not None:
            raise reason
        if found.full > 1 << 24:
            return None, "FS004"
        told, tensors = child.tensors(stream, found.reader)
    except UnreadableModel as error:
        return None, error.rule
    left = iter(tensors)
    read = {tuple(keys): next(left) for keys, _, shape in told if shape is not None}
    listed = {e.path: e for e in found.entries if e.shape is not None}
    for path, tensor in read.items():
        entry = listed[path]
        assert (f"torch.{entry.type}", entry.shape) == (str(tensor.dtype), tuple(tensor.shape)), (
            path
        )
    return read, ""


def compared(name: str, content: bytes) -> str:
    """Return how the readers agree: `both`, `neither`, `ours alone`, or why we alone refuse.

    Raises:
        AssertionError: If both read a file, but not the same tensors.
    """
    mine, rule = ours(name, content)
    other: Any = theirs(name, content)
    if mine is None or other is None:
        if mine is not None:
            return "ours alone"
        return "neither" if other is None else f"theirs alone, we say {rule}"
    for path, tensor in mine.items():
        assert path in other, f"{path} is ours alone"
        alike = tensor.dtype == other[path].dtype and tensor.shape == other[path].shape
        assert alike, f"{path}: {tensor.dtype} {tensor.shape}"
        flat = (
            t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other[path])
        )
        assert torch.equal(*flat), f"{path} has other numbers"
    return "both"
