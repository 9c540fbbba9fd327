"""A checkpoint as plain values: read from its opcodes, no part of it is unpickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading import archives
from gifthorse.models.reading.blocks import strided
from gifthorse.models.reading.calls import NUMPY_TYPES, Storage
from gifthorse.models.reading.files import size_of, sniff_stream
from gifthorse.models.reading.opcodes import Node, trace
from gifthorse.models.reading.pickles import contents, weigh
from gifthorse.models.reading.ratings import (
    ARRAYS,
    ORDERED,
    PARAMETER,
    SCALARS,
    STRIDED,
    imports,
    refuse_code,
)
from gifthorse.models.reading.survey import SLACK, SWELL, refusal, survey

VALUES = 2_000_000  # of the tree; a dictionary of 50,000 images by path has about 500,000


def checkpoint(copy: IO[bytes], file: str, wanted: Collection[str] = ()) -> dict[Any, Any]:
    """Return the dictionary in a zip of torch.save: numbers, texts, lists, arrays and tensors.

    It is read from its opcodes; no part of it is unpickled, in any process. What else a state dict
    may hold (devices, sets) comes out as None.

    Args:
        copy: The bytes of the file, open.
        file: Its name.
        wanted: Keys to return, if they are there; all if empty.

    Raises:
        UnsafeModel: If it asks for anything but tensors, arrays and plain values.
        UnreadableModel: If it is damaged, or no dictionary.
    """
    size = size_of(copy)
    if sniff_stream(copy, size, Path(file).suffix.lower()) != "pytorch":
        raise refusal(survey(copy, file)) or UnreadableModel(
            "the file is no zip of torch.save", rule="FS003"
        )
    with archives.directory(copy, size) as archive:
        found = archives.pickled(archive)
        refuse_code(found)
        archives.check_names(archive.infolist())
        archives.check_layout(copy, archive, size)
        archives.check_sums(archive)
        reader, top = _traced(archive, size)
        keys = [k for k in reader.pairs(top) if not wanted or k in wanted]
        return {k: reader.value(reader.pairs(top)[k]) for k in keys}


def _traced(archive: ZipFile, size: int) -> tuple[_Reader, Node]:
    """Return a reader of a checked archive, and the symbol of the dictionary in it."""
    name = next(n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
    data = archives.read(archive, name, archives.PICKLE)
    stream = BytesIO(data)
    traced = trace(stream)
    refuse_code(imports(traced, name))
    known = contents(replace(traced, result=None))
    if known.largest > SWELL * size + SLACK or weigh(traced.result) > VALUES:
        raise UnreadableModel("the file unfolds to far more than its size", rule="FS004")
    front = name.partition("/")[0]
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    whole = all(sizes.get(f"{front}/data/{s.key}") == s.size for s in known.storages.values())
    order = f"{front}/byteorder"
    if order in sizes and archive.read(order) != b"little":
        raise UnreadableModel("its numbers are big-endian: save it again", rule="FS003")
    if not whole or stream.tell() != len(data):
        raise UnreadableModel("its index does not fit its records: it is damaged", rule="FS003")
    if not isinstance(traced.result, Node):
        raise UnreadableModel("the file holds no dictionary", rule="FS003")
    return _Reader(archive, front, known.storages), traced.result


@dataclass(frozen=True)
class _Reader:
    archive: ZipFile
    front: str
    storages: Mapping[str, Storage]

    def pairs(self, node: Node) -> dict[Any, object]:
        """Return what a dictionary holds, still symbols."""
        if node.kind != "dict" and node.callee != ORDERED:
            raise UnreadableModel("the file holds no dictionary", rule="FS003")
        keys = [self.value(key) for key in node.items[::2]]
        plain = [k if isinstance(k, str | int) else str(k) for k in keys]
        return dict(zip(plain, node.items[1::2], strict=True))

    def value(self, part: object) -> Any:
        """Return what a symbol stands for."""
        if isinstance(part, tuple):
            return [self.value(item) for item in part]
        if not isinstance(part, Node):
            return part
        if part.kind == "list":
            return [self.value(item) for item in part.items]
        if part.kind == "dict" or part.callee == ORDERED:
            return {key: self.value(item) for key, item in self.pairs(part).items()}
        return self._called(part, part.args if isinstance(part.args, tuple) else ())

    def block(self, storage: Storage) -> bytes:
        """Return the numbers of a storage."""
        return self.archive.read(f"{self.front}/data/{storage.key}")

    def _called(self, part: Node, args: tuple[Any, ...]) -> Any:
        try:
            if part.callee in SCALARS:
                return np.frombuffer(_raw(args[1]), _dtype(args[0]))[0].item()
            if part.callee in ARRAYS:
                return _array(part.states)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise UnreadableModel(f"it holds a malformed array: {error}", rule="FS003") from error
        if part.callee in STRIDED:
            return strided(part, self.block)
        return self.value(args[0]) if part.callee == PARAMETER and args else None


def _dtype(node: Any) -> np.dtype[Any]:
    code = node.args[0]
    if node.callee != "numpy.dtype" or code not in NUMPY_TYPES:
        raise ValueError("its numbers are of an unusual type")
    if any(state[1] not in ("<", "|") for state in node.states):
        raise ValueError("its numbers are big-endian")
    return np.dtype(str(code))


def _raw(part: Any) -> bytes:
    if isinstance(part, Node) and part.callee == "_codecs.encode":
        return bytes(part.args[0].encode("latin1"))  # type: ignore[index]
    if not isinstance(part, bytes):
        raise ValueError("it has no bytes")
    return part


def _array(states: list[Any]) -> NDArray[Any]:
    _, shape, dtype, fortran, raw = states[0]
    flat = np.frombuffer(_raw(raw), _dtype(dtype))
    return flat.reshape(shape, order="F" if fortran else "C")
