"""Tensors out of the blocks of numbers of a file, without torch's own reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

import torch
from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading import archives, legacy
from gifthorse.models.reading.calls import Storage, storage
from gifthorse.models.reading.entries import PLAIN, CheckpointEntry
from gifthorse.models.reading.files import size_of, sniff_stream
from gifthorse.models.reading.inert import inert
from gifthorse.models.reading.opcodes import Node, Trace
from gifthorse.models.reading.pickles import Contents
from gifthorse.models.reading.ratings import imports, refuse_danger

Block = Callable[[Storage], bytes]  # returns the numbers of a storage


def read_tensors(stream: IO[bytes]) -> tuple[tuple[CheckpointEntry, ...], list[Tensor]]:
    """Read a checked file of `torch.save` or TorchScript whose pickles may bring code.

    Returns:
        All leaves, and the tensors of those that are plain ones, in this order.

    Raises:
        UnsafeModel: If it asks for what is known to run commands.
        UnreadableModel: If it is damaged.
    """
    size = size_of(stream)
    if sniff_stream(stream, size) == "legacy":
        found, places = legacy.index(stream, size, without_code)
        return _filled(found, lambda block: _at(stream, places[block.key], block.size))
    with archives.directory(stream, size) as archive:
        found = archives.index(archive, without_code)
        top = archives.index_name(archive).partition("/")[0]
        order = f"{top}/byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise UnreadableModel("its numbers are big-endian: save it again", rule="FS009")
        return _filled(found, lambda block: archive.read(f"{top}/data/{block.key}"))


def without_code(trace: Trace, record: str) -> Contents:
    """Return what a pickle holds whose code is left alone; see `inert`.

    Raises:
        UnsafeModel: If it asks for what is known to run commands.
        UnreadableModel: If it is damaged, or a resource bomb.
    """
    refuse_danger(imports(trace, record))
    return inert(trace)


def _at(stream: IO[bytes], place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


def _filled(found: Contents, block: Block) -> tuple[tuple[CheckpointEntry, ...], list[Tensor]]:
    kept = lru_cache(maxsize=1)(block)  # neighbors often lie in one
    plain = [
        node
        for entry, node in zip(found.entries, found.tensors, strict=True)
        if node is not None and entry.type in PLAIN
    ]
    return found.entries, [strided(node, kept) for node in plain]


def strided(node: Node, block: Block) -> Tensor:
    """Return the tensor that a checked call makes, as a copy.

    Raises:
        UnreadableModel: If its numbers are of a type that is not plain.
    """
    args: Any = node.args
    kept = storage(args[0])
    if not node.callee.endswith(("_tensor", "_v2")) or kept.dtype not in PLAIN:
        raise UnreadableModel(f"a tensor is {kept.dtype}: save the float model", rule="IN004")
    raw = bytearray(block(kept))
    dtype = getattr(torch, kept.dtype)
    if not raw:
        return torch.empty(args[2], dtype=dtype)
    view = torch.frombuffer(raw, dtype=dtype).as_strided(args[2], args[3], args[1])
    return view.clone(memory_format=torch.contiguous_format)
