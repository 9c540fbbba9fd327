"""ONNX files, parsed as data in the process that can only read: a graph, and its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.isolated.transport import DTYPES
from gifthorse.models.graphs.graph import Graph, Operation, Setting, check_graph
from gifthorse.models.graphs.layers import KNOWN
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.headers import TENSORS, clean

OLDEST = 7  # opset: before, additions said with settings how they broadcast
FLAT = 13  # opset before which a softmax runs over all axes from its own on
DOMAINS = ("", "ai.onnx")
EXTERNAL = 1  # TensorProto.EXTERNAL
# TensorProto.DataType by number; widths in bytes. Others cannot be searched.
_TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 4), 2: ("uint8", 1), 3: ("int8", 1), 4: ("uint16", 2), 5: ("int16", 2),
    6: ("int32", 4), 7: ("int64", 8), 9: ("bool", 1), 10: ("float16", 2), 11: ("float64", 8),
    12: ("uint32", 4), 13: ("uint64", 8), 16: ("bfloat16", 2),
}  # fmt: skip
# AttributeProto.AttributeType by number, and the field that holds the value.
_FIELDS: Mapping[int, str] = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor as the file has it, and the entry that it is in a list of the file's tensors."""

    entry: CheckpointEntry
    proto: Any


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """What an ONNX file says.

    Attributes:
        graph: The net.
        entries: Its constants.
        full: Bytes of all of them.
        beside: Name of the file of the same folder that holds the numbers of large ones; empty if
            they are in the file itself.
        metadata: The file's claims, cleaned.
    """

    graph: Graph
    entries: tuple[CheckpointEntry, ...]
    full: int
    beside: str
    metadata: Mapping[str, str]
    stored: tuple[_Stored, ...]


def parse(stream: IO[bytes]) -> OnnxFile:
    """Read a graph and the places of its tensors.

    Raises:
        UnreadableModel: `FS003` if it is damaged, `FS004` if it is larger than any net, `FS006` if
            it names a file out of its folder, `FS009` if it is of a kind that is not known here.
    """
    stream.seek(0)
    model = _model(stream.read())
    graph = model.graph
    if not graph.node:
        raise _unknown("an ONNX file without a graph")
    if model.functions:
        names = ", ".join(shown(f.name, 40) for f in model.functions[:4])
        raise _unknown(
            f"an ONNX graph with functions of its own ({names}): write them out with "
            "onnx.inliner.inline_local_functions"
        )
    opset = max((o.version for o in model.opset_import if o.domain in DOMAINS), default=1)
    if opset < OLDEST:
        raise _unknown(f"an ONNX graph of opset {opset}: export it again with opset 13 or later")
    stored = {t.name: _stored(t.name, t) for t in graph.initializer}
    if len(stored) != len(graph.initializer):
        raise UnreadableModel("the ONNX graph names a tensor twice", rule="FS003")
    operations = tuple(step for node in graph.node for step in _operations(node, opset, stored))
    if len(stored) > TENSORS:
        raise UnreadableModel(f"the ONNX graph has more than {TENSORS:,} tensors", rule="FS004")
    entry, shape = _entry(graph, stored)
    found = Graph(operations, entry, shape, tuple(o.name for o in graph.output))
    check_graph(found, dict.fromkeys(KNOWN), tuple(stored))
    entries = tuple(s.entry for s in stored.values())
    full = sum(math.prod(e.shape or ()) * _width(e.type) for e in entries)
    claims = {_text(p.key): _text(p.value) for p in model.metadata_props}
    made = f"{_text(model.producer_name)} {_text(model.producer_version)}"
    told = {"producer": made.strip(), **claims}
    metadata = clean({k: v for k, v in told.items() if v})
    return OnnxFile(found, entries, full, _beside(stored), metadata, tuple(stored.values()))


def _model(data: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto
    except ImportError as error:
        raise _unknown(
            "an ONNX graph: run pip install 'gifthorse[onnx]' to open it, or export the weights of "
            "the network as safetensors"
        ) from error
    try:
        return ModelProto.FromString(data)
    except DecodeError as error:
        raise _unknown(f"no whole ONNX graph, or of a form not known here ({error})") from error


def _unknown(what: str) -> UnreadableModel:
    return UnreadableModel(f"the file is {what}", rule="FS009")


def _width(word: str) -> int:
    return next((width for name, width in _TYPES.values() if name == word), 1)


# 1. Tensors -----------------------------------------------------------------------------------


def _check_texts(*names: object) -> None:
    """Refuse names that are no text, which protobuf hands over as bytes."""
    if not all(isinstance(name, str) for name in names):
        raise UnreadableModel("the ONNX graph has a name that is no text", rule="FS003")


def _text(told: str | bytes) -> str:
    """Return a claim, which decides nothing, as text; protobuf hands over as bytes what is none."""
    return told.decode(errors="replace") if isinstance(told, bytes) else told


def _stored(name: str, proto: Any) -> _Stored:
    _check_texts(name)
    word, _ = _TYPES.get(proto.data_type, (f"ONNX data type {proto.data_type}", 1))
    shape = tuple(proto.dims)
    if any(not 0 <= n < 2**48 for n in shape) or math.prod(n or 1 for n in shape) >= 2**60:
        raise UnreadableModel(f"{shown(name)!r} has a shape that no memory holds", rule="FS003")
    return _Stored(CheckpointEntry((name,), word, shape), proto)


def _beside(stored: Mapping[str, _Stored]) -> str:
    """Return the one file that holds numbers beside the graph.

    Raises:
        UnreadableModel: If there are several, or it is not in the same folder.
    """
    places = {_place(s.proto)[0] for s in stored.values() if s.proto.data_location == EXTERNAL}
    odd = next(
        (p for p in places if PurePath(p).name != p or not p.isprintable() or p[:1] in ("", ".")),
        None,
    )
    if odd is not None:
        raise UnreadableModel(
            f"the ONNX graph takes numbers from {shown(odd)!r}, which is no file of its folder",
            rule="FS006",
        )
    if len(places) > 1:
        raise _unknown(
            f"an ONNX graph whose tensors lie in {len(places)} other files: save it as one, with "
            "onnx.save_model(model, path, save_as_external_data=False)"
        )
    return next(iter(places), "")


def _place(proto: Any) -> tuple[str, int, int]:
    """Return file, offset and length of numbers that are stored beside the graph."""
    _check_texts(*(text for pair in proto.external_data for text in (pair.key, pair.value)))
    told = {pair.key: pair.value for pair in proto.external_data}
    numbers = [told.get("offset", "0"), told.get("length", "-1")]
    if not all(re.fullmatch(r"-?\d{1,18}", n, re.ASCII) for n in numbers):
        raise UnreadableModel("a tensor of the ONNX graph has no valid place", rule="FS003")
    return told.get("location", ""), int(numbers[0]), int(numbers[1])


def read(stream: IO[bytes], beside: IO[bytes] | None) -> tuple[list[Any], list[Tensor]]:
    """Return the facts and the numbers of all constants, see `child.tensors`.

    Raises:
        UnreadableModel: If numbers are missing, or are not as many as a shape says.
    """
    facts, found = [], []
    for kept in parse(stream).stored:
        plain = kept.entry.type in DTYPES
        facts.append(
            [
                list(kept.entry.path),
                kept.entry.type,
                list(kept.entry.shape or ()) if plain else None,
            ]
        )
        if plain:
            found.append(_numbers(kept, beside))
    return facts, found


def _numbers(kept: _Stored, beside: IO[bytes] | None) -> Tensor:
    entry, proto = kept.entry, kept.proto
    shape, dtype = entry.shape or (), DTYPES[entry.type]
    size = math.prod(shape) * dtype.itemsize
    name = shown(entry.path[0])
    if proto.data_location == EXTERNAL:
        _, offset, length = _place(proto)
        if beside is None or offset < 0 or length not in (-1, size):
            raise UnreadableModel(
                f"the numbers of {name!r} are not where they should be", rule="FS003"
            )
        beside.seek(offset)
        raw = beside.read(size)
    elif proto.HasField("raw_data"):
        raw = proto.raw_data
    else:
        raw = _typed(proto)
    if len(raw) != size:
        raise UnreadableModel(
            f"{name!r} has {len(raw)} bytes, not those of its shape", rule="FS003"
        )
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(dtype).view(shape)


def _typed(proto: Any) -> bytes:
    """Return the bytes of numbers that are stored in a field of their own type."""
    from onnx.numpy_helper import to_array

    try:
        return bytes(np.ascontiguousarray(to_array(proto)).tobytes())
    except (ValueError, TypeError) as error:
        raise UnreadableModel(
            f"a tensor of the ONNX graph is damaged: {error}", rule="FS003"
        ) from error


# 2. Operations --------------------------------------------------------------------------------


def _entry(graph: Any, stored: Mapping[str, _Stored]) -> tuple[str, tuple[int, ...]]:
    """Return the name of the images and their shape, 0 where it is open."""
    _check_texts(*(value.name for value in (*graph.input, *graph.output)))
    inputs = [i for i in graph.input if i.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(shown(i.name, 40) for i in inputs[:4]) or "none"
        raise _unknown(f"an ONNX graph with {len(inputs)} inputs ({names}): expected images alone")
    dims = inputs[0].type.tensor_type.shape.dim
    return inputs[0].name, tuple(d.dim_value if d.dim_value > 0 else 0 for d in dims)


def _operations(node: Any, opset: int, stored: dict[str, _Stored]) -> Iterator[Operation]:
    """Yield the operation that a node is; a constant is stored instead."""
    named = (attribute.name for attribute in node.attribute)
    _check_texts(node.op_type, node.domain, node.name, *node.input, *node.output, *named)
    if not node.output:
        raise UnreadableModel("an operation of the ONNX graph gives nothing", rule="FS003")
    op = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
    settings = dict(_settings(node))
    inputs, outputs = list(node.input), tuple(node.output)
    tensors = _tensors(node)
    if op == "Constant" and tensors:
        if outputs[0] in stored:
            raise UnreadableModel("the ONNX graph names a tensor twice", rule="FS003")
        stored[outputs[0]] = _stored(outputs[0], _tensor(node, tensors[0]))
        return
    for name in tensors:  # the value of ConstantOfShape
        stored[f"{outputs[0]}: {name}"] = _stored(f"{outputs[0]}: {name}", _tensor(node, name))
        inputs.append(f"{outputs[0]}: {name}")
    if op == "Split":
        settings["parts"] = len(outputs)
    if op in ("Softmax", "LogSoftmax") and opset < FLAT:
        settings = {"axis": 1, **settings, "flat": 1}
    yield Operation(op, node.name, tuple(inputs), outputs, settings)


def _settings(node: Any) -> Iterator[tuple[str, Setting]]:
    for told in node.attribute:
        name = _FIELDS.get(told.type)
        if name is None:
            continue
        value = getattr(told, name)
        if isinstance(value, bytes):
            yield told.name, value.decode(errors="replace")
        elif isinstance(value, int | float):
            yield told.name, value
        else:
            texts = (v.decode(errors="replace") if isinstance(v, bytes) else v for v in value)
            yield told.name, tuple(texts)


def _tensors(node: Any) -> Sequence[str]:
    """Return the names of the attributes that are tensors."""
    kinds = {a.name: a.type for a in node.attribute if a.type not in _FIELDS}
    odd = next((name for name, kind in kinds.items() if kind != 4), None)
    if odd is not None:
        raise _unknown(
            f"an ONNX graph with {shown(node.op_type, 60)}, which holds a graph or a table of its "
            "own: only plain operations are known here"
        )
    return tuple(kinds)


def _tensor(node: Any, name: str) -> Any:
    return next(a.t for a in node.attribute if a.name == name)
