"""Keras files, parsed as data in the process that can only read: a configuration, and arrays.

HDF5 is read from bytes that are in memory, so that no other file can be opened, and only what is
stored in it itself: links to other files and places are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.isolated.transport import DTYPES
from gifthorse.models.graphs.graph import Graph, check_graph
from gifthorse.models.graphs.keras_models import Stored, graph_of
from gifthorse.models.graphs.layers import KNOWN
from gifthorse.models.reading import archives
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.files import size_of
from gifthorse.models.reading.headers import TENSORS

SETTINGS = 16 << 20  # bytes of a configuration
DEEP = 60  # groups within groups
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
LEGACY = "model_weights"  # the group of an older file that holds them
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False)
class KerasFile:
    """What a file of Keras says.

    Attributes:
        graph: The net.
        entries: Its tensors; those that belong to no layer of it are left out.
        full: Bytes of all of them.
        metadata: The version of Keras that it names.
    """

    graph: Graph
    entries: tuple[CheckpointEntry, ...]
    full: int
    metadata: Mapping[str, str]


def parse(stream: IO[bytes], kind: str) -> KerasFile:
    """Read a configuration and list the arrays that its layers have.

    Args:
        stream: The file.
        kind: `keras` for an archive, `hdf5` for an older file.

    Raises:
        UnsafeModel: If layers of it are code.
        UnreadableModel: If it is damaged (`FS003`), a bomb (`FS004`), points elsewhere (`FS006`) or
            is of a kind that is not known here (`FS009`).
    """
    with _whole(), _opened(stream, kind) as root:
        model, version = _described(stream, root, kind)
        place = root if kind == "keras" else root[LEGACY]
        sets = dict(_datasets(place))
        shapes = {name: tuple(int(n) for n in s.shape) for name, s in sets.items()}
        graph = graph_of(Stored(model, shapes, version, kind == "hdf5"))
        used = {name for step in graph.operations for name in step.inputs}
        own = {name: s for name, s in sets.items() if name in used}
        entries = tuple(_entry(name, s) for name, s in own.items())
        full = sum(math.prod(s.shape) * s.dtype.itemsize for s in own.values())
    check_graph(graph, dict.fromkeys(KNOWN), tuple(e.path[0] for e in entries))
    return KerasFile(graph, entries, full, {"keras": str(version)})


def read(stream: IO[bytes], kind: str) -> tuple[list[Any], list[Tensor]]:
    """Return the facts and the numbers of all tensors of the net, see `child.tensors`."""
    found = parse(stream, kind)
    facts, tensors = [], []
    with _whole(), _opened(stream, kind) as root:
        place = root if kind == "keras" else root[LEGACY]
        for entry in found.entries:
            plain = entry.type in DTYPES
            shape = list(entry.shape or ()) if plain else None
            facts.append([list(entry.path), entry.type, shape])
            if plain:
                numbers = np.ascontiguousarray(place[entry.path[0]][()])
                little = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
                tensors.append(torch.from_numpy(little.copy()))
    return facts, tensors


@contextmanager
def _whole() -> Iterator[None]:
    """Turn what the library raises on damaged files into one sentence."""
    try:
        yield
    except _DAMAGE as error:
        raise UnreadableModel(
            f"the HDF5 file is damaged ({shown(str(error), 100)}); get it again from its source",
            rule="FS003",
        ) from error


def _opened(stream: IO[bytes], kind: str) -> Any:
    """Open the arrays of a file; nothing but its bytes can be reached from them."""
    try:
        import h5py
    except ImportError as error:
        what = "a Keras archive" if kind == "keras" else "an HDF5 file (Keras, h5)"
        raise _unknown(
            f"{what}: run pip install 'gifthorse[keras]' to open it, or export the weights of the "
            "network as safetensors"
        ) from error
    stream.seek(0)
    if kind == "keras":
        with archives.directory(stream, size_of(stream)) as archive:
            data = archives.read(archive, WEIGHTS, 1 << 40)
    else:
        data = stream.read()
    try:
        return h5py.File(BytesIO(data), "r")
    except _DAMAGE as error:
        words = "of a Keras archive " if kind == "keras" else "(Keras, h5) "
        raise _unknown(f"no whole HDF5 file {words}({shown(str(error), 100)})") from error


def _unknown(what: str) -> UnreadableModel:
    return UnreadableModel(f"the file is {what}", rule="FS009")


# 1. The configuration -------------------------------------------------------------------------


def _described(stream: IO[bytes], root: Any, kind: str) -> tuple[Mapping[str, Any], int]:
    """Return the configuration of the model and the version of Keras that wrote it."""
    if kind == "keras":
        with archives.directory(stream, size_of(stream)) as archive:
            archives.check_names(archive.infolist())
            archives.check_layout(stream, archive, size_of(stream))
            archives.check_sums(archive)
            text = archives.read(archive, CONFIG, SETTINGS)
            listed = METADATA in archive.namelist()
            about = _json(archives.read(archive, METADATA, SETTINGS)) if listed else {}
        version = about.get("keras_version")
    else:
        if LEGACY not in root or "model_config" not in root.attrs:
            raise _unknown(
                "an HDF5 file of weights without their net, or one that Keras did not write: save "
                "the whole model, with model.save"
            )
        told = root.attrs["model_config"]
        text = told if isinstance(told, bytes) else str(told).encode()
        version = root.attrs.get("keras_version")
    major = _text(version).partition(".")[0]
    return _json(text), int(major) if major.isdigit() and len(major) < 4 else 2


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _json(data: bytes) -> Mapping[str, Any]:
    if len(data) > SETTINGS:
        raise UnreadableModel("the Keras configuration is larger than any net's", rule="FS004")
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableModel("the Keras configuration is no JSON", rule="FS003") from error
    if not isinstance(told, dict):
        raise UnreadableModel("the Keras configuration is no JSON object", rule="FS003")
    return told


# 2. Arrays ------------------------------------------------------------------------------------


def _datasets(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arrays below a group, by their paths.

    Raises:
        UnreadableModel: If one lies elsewhere, or there are too many.
    """
    import h5py

    stack, count = [("", root, 0)], 0
    while stack:
        path, group, depth = stack.pop()
        for name in reversed(list(group)):
            count += 1
            if count > TENSORS or depth > DEEP:
                raise UnreadableModel("the HDF5 file has more arrays than any net", rule="FS004")
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise _elsewhere(name)
            item = group[name]
            if isinstance(item, h5py.Group):
                stack.append((f"{path}{name}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise _elsewhere(name)
                yield f"{path}{name}", item


def _elsewhere(name: str) -> UnreadableModel:
    return UnreadableModel(
        f"{shown(name, 60)!r} in the HDF5 file points to another place or file; do not use it",
        rule="FS006",
    )


def _entry(name: str, dataset: Any) -> CheckpointEntry:
    word = dataset.dtype.name if dataset.dtype.kind in "fiub" else str(dataset.dtype)
    return CheckpointEntry((name,), shown(word, 40), tuple(int(n) for n in dataset.shape))
