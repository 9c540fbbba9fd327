"""What a pickle of weights calls and holds, read from its opcodes; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.opcodes import Node, Trace
from gifthorse.models.reading.ratings import (
    ARRAYS,
    CALLS,
    DICTS,
    META,
    ORDERED,
    PARAMETER,
    SPARSE,
    STORAGES,
    STRIDED,
)

DEPTH = 100
VALUES = 4_000_000  # of the tree when shared parts are counted each time

WIDTHS = {dtype: width for dtype, width in STORAGES.values() if dtype != "untyped"} | {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
_NUMPY = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1"
NUMPY_TYPES = frozenset(_NUMPY.split())
OPEN_LEAVES = 200_000
LARGEST = 2**48  # of a number that counts bytes, or anything in memory

# 1. Tensors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """A block of numbers that tensors of a pickle are views of.

    Attributes:
        key: Its name.
        dtype: Its data type.
        size: Bytes of all numbers.
        width: Bytes of one number.
    """

    key: str
    dtype: str
    size: int
    width: int


@dataclass(frozen=True)
class Contents:
    """What a pickle of weights holds.

    Attributes:
        entries: Its leaves.
        storages: The blocks of numbers it asks for, by key.
        largest: Bytes of all its tensors once each is written out in full.
    """

    entries: tuple[CheckpointEntry, ...]
    storages: Mapping[str, Storage]
    largest: int


def contents(trace: Trace) -> Contents:
    """Check a traced pickle of weights and return what it holds.

    Raises:
        UnreadableModel: `FS003` if it is malformed or does what a state dict never does, `FS004`
            if it is a resource bomb.
    """
    if trace.fault is not None:
        raise trace.fault
    weigh(trace.result)
    if trace.foreign:
        raise UnreadableModel(
            f"its pickle is of protocol {trace.protocol} ({', '.join(trace.foreign[:3])}), and the "
            "safe reader of torch knows protocol 2 as torch.save writes it: save it again without "
            "pickle_protocol, best as safetensors",
            rule="FS009",
        )
    storages: dict[str, Storage] = {}
    largest = 0
    for node in trace.nodes:
        if node.kind == "storage":
            new = _storage(node)
            if storages.setdefault(new.key, new).size != new.size:
                raise _malformed(f"storage {shown(new.key)!r} has two sizes")
        _check_state(node)
        if node.kind == "call":
            largest += _check_call(node)
    return Contents(tuple(_leaves(trace.result, (), [0])), storages, largest)


def weigh(value: object) -> int:
    """Return how many values a symbol stands for, counting shared parts each time.

    Raises:
        UnreadableModel: `FS004` above `VALUES` values or `DEPTH` levels, `FS003` for a cycle.
    """
    known: dict[int, tuple[int, int]] = {}

    def visit(part: object, depth: int) -> tuple[int, int]:
        """Return how many values a part stands for, and how many levels it has."""
        if id(part) not in known:
            children = _children(part)
            if not children:
                return 1, 0
            _check_depth(depth)
            known[id(part)] = 0, 0
            below = [visit(child, depth + 1) for child in children]
            known[id(part)] = 1 + sum(n for n, _ in below), 1 + max(levels for _, levels in below)
        count, levels = known[id(part)]
        if count == 0:
            raise _malformed("a value holds itself")
        if count > VALUES:
            raise UnreadableModel(f"its pickle unfolds to more than {VALUES} values", rule="FS004")
        _check_depth(depth + levels)
        return count, levels

    return visit(value, 0)[0]


def _check_depth(depth: int) -> None:
    if depth > DEPTH:
        raise UnreadableModel(f"its pickle nests deeper than {DEPTH} levels", rule="FS004")


def _children(part: object) -> tuple[object, ...]:
    if isinstance(part, tuple):
        return part
    if isinstance(part, Node):
        args = part.args if isinstance(part.args, tuple) else ()
        return (*args, *part.items, *part.states)
    return ()


def _malformed(why: str) -> UnreadableModel:
    return UnreadableModel(f"its pickle is malformed: {why}", rule="FS003")


def _storage(node: Node) -> Storage:
    pid = node.args
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise _malformed("it asks for something stored that is no storage")
    kind, key, size = pid[1], pid[2], pid[4]
    name = kind.name if isinstance(kind, Node) else ""
    if (
        name not in STORAGES
        or not isinstance(key, str)
        or not _count(size)
        or pid[5:] not in ((), (None,))
    ):
        raise _malformed("it asks for a storage of an unknown kind, key or size")
    dtype, width = STORAGES[name]
    return Storage(key, dtype, size * width, width)


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < LARGEST


def _counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_count, values))


def _check_state(node: Node) -> None:
    """Allow `__setstate__` on dictionaries, plain NumPy types and arrays only."""
    if node.states and node.callee == "numpy.dtype":
        state = node.states[0]
        if len(node.states) > 1 or not _plain_state(state):
            raise _unusual("a NumPy type of its own")
    elif node.callee in ARRAYS:
        _check_array(node)
    elif node.states and node.callee not in DICTS:
        raise _malformed(f"it sets the state of {shown(node.callee) or 'a plain value'}")


def _plain_state(state: object) -> bool:
    """Whether a NumPy type is little-endian and has no parts: `(3, "<", None, None, None, ...)`."""
    plain = (3, None, None, None, -1, -1, 0)
    if not isinstance(state, tuple) or len(state) != 1 + len(plain):
        return False
    rest = (state[0], *state[2:])
    return all(type(v) is type(p) and v == p for v, p in zip(rest, plain, strict=True)) and (
        isinstance(state[1], str) and state[1] in ("<", "|")
    )


def _check_array(node: Node) -> None:
    """Allow arrays of plain numbers whose bytes are as many as their shape and type say."""
    args = node.args if isinstance(node.args, tuple) else ()
    kind = args[0].name if args and isinstance(args[0], Node) else ""
    state = node.states[0] if len(node.states) == 1 else None
    if kind != "numpy.ndarray" or not isinstance(state, tuple) or len(state) != 5:
        raise _unusual("an array that is made in an unusual way")
    version, shape, dtype, fortran, raw = state
    code = dtype.args[0] if isinstance(dtype, Node) and isinstance(dtype.args, tuple) else ""
    if not isinstance(code, str) or code not in NUMPY_TYPES:
        raise _unusual("an array of other things than numbers")
    if version != 1 or not _counts(shape) or not isinstance(fortran, bool):
        raise _unusual("an array that is made in an unusual way")
    if _bytes_in(raw) != math.prod(shape) * int(code[1:]):
        raise _malformed("an array has more bytes than its shape says, or fewer")


def _bytes_in(raw: object) -> int:
    """Return the length of bytes, also of those that protocol 2 encodes as a text."""
    if isinstance(raw, Node) and raw.callee == "_codecs.encode" and isinstance(raw.args, tuple):
        raw = raw.args[0] if raw.args else None
    return len(raw) if isinstance(raw, bytes | str) else -1


def _unusual(what: str) -> UnreadableModel:
    return UnreadableModel(
        f"its pickle holds {what} (NumPy): only arrays of plain numbers are read; save the weights "
        "alone",
        rule="FS009",
    )


def _check_call(node: Node) -> int:
    """Return the bytes of the tensor that a call makes, written out in full; 0 for others."""
    name, args = node.callee, node.args
    if name not in CALLS or not isinstance(args, tuple):
        raise _malformed(f"it calls {shown(name) or 'a value'}, which makes no weights")
    if name == "_codecs.encode" and not _latin(args):
        raise _malformed("it encodes a text in an unusual way")
    if name == "numpy.dtype" and not (args and isinstance(args[0], str) and len(args) < 4):
        raise _malformed("it makes an unusual NumPy type")
    if name == "numpy.dtype" and args[0] not in NUMPY_TYPES:
        raise _unusual(f"values of the type {shown(str(args[0]))!r}")
    return _full_size(node) if name in STRIDED else 0


def _latin(args: tuple[object, ...]) -> bool:
    """Whether these are a text and the encoding that keeps bytes as they are."""
    texts = len(args) == 2 and all(isinstance(a, str) for a in args)
    return texts and args[1] in ("latin1", "latin-1")


def _full_size(node: Node) -> int:
    """Return a tensor's bytes written out in full, after checking that it lies in its storage."""
    args = node.args
    assert isinstance(args, tuple)
    if not 4 <= len(args) <= STRIDED[node.callee]:
        raise _malformed(f"a tensor is made from {len(args)} values")
    if not (isinstance(args[0], Node) and args[0].kind == "storage"):
        raise _malformed("a tensor has no storage")
    _, offset, shape, stride = args[:4]
    if not _count(offset) or not _counts(shape) or not _counts(stride):
        raise _malformed("a tensor has an unusual offset, shape or stride")
    if len(shape) != len(stride):
        raise _malformed("a tensor has more sizes than strides, or fewer")
    width = WIDTHS.get(_dtype(node), 1)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
    if 0 not in shape and last * width > _storage(args[0]).size:
        raise _malformed("a tensor reaches beyond the end of its storage")
    return math.prod(shape) * width


def _dtype(node: Node) -> str:
    assert isinstance(node.args, tuple)
    if node.callee.endswith("_v3") and len(node.args) > 6 and isinstance(node.args[6], Node):
        return node.args[6].name.removeprefix("torch.")
    assert isinstance(node.args[0], Node)
    return _storage(node.args[0]).dtype


# 4. Leaves ------------------------------------------------------------------------------------


def _leaves(value: object, path: tuple[str, ...], seen: list[int]) -> Iterator[CheckpointEntry]:
    seen[0] += 1
    if seen[0] > OPEN_LEAVES:
        raise UnreadableModel(f"the file holds more than {OPEN_LEAVES} values", rule="FS004")
    items = _items(value)
    if items is None:
        yield _leaf(value, path)
        return
    for key, item in items:
        yield from _leaves(item, (*path, key), seen)


def _items(value: object) -> list[tuple[str, object]] | None:
    """Return the keys and values of a dictionary, list or tuple; None for a leaf."""
    if isinstance(value, tuple):
        return [(str(i), item) for i, item in enumerate(value)]
    if not isinstance(value, Node):
        return None
    if value.kind == "list":
        return [(str(i), item) for i, item in enumerate(value.items)]
    if value.kind != "dict" and value.callee != ORDERED:
        return None
    flat = [*_given(value.args), *value.items]
    table: dict[object, tuple[str, object]] = {}
    for key, item in zip(flat[::2], flat[1::2], strict=False):
        plain = isinstance(key, str | int | float)
        table[key if plain else id(key)] = _key(key), item
    return list(table.values())


def _key(key: object) -> str:
    """Return a key as `child.flatten` writes it; a number of thousands of digits has no text."""
    if isinstance(key, int) and abs(key) >= LARGEST:
        raise UnreadableModel("its pickle has a number that is too large for a key", rule="FS004")
    return str(key) if isinstance(key, str | int | float) else f"<{type(key).__name__}>"


def _given(args: object) -> list[object]:
    """Return what an ordered dictionary was made from: a list of pairs, as by Python 2."""
    pairs = args[0].items if isinstance(args, tuple) and args and isinstance(args[0], Node) else []
    return [part for pair in pairs for part in (pair.items if isinstance(pair, Node) else ())]


def _leaf(value: object, path: tuple[str, ...]) -> CheckpointEntry:
    if not isinstance(value, Node):
        return CheckpointEntry(path, type(value).__name__)
    args = value.args if isinstance(value.args, tuple) else ()
    if value.callee == PARAMETER and args:
        return _leaf(args[0], path)
    if value.callee in STRIDED:
        shape = args[2]
        quantized = "quantized " * value.callee.endswith("qtensor")
        assert isinstance(shape, tuple)
        assert isinstance(args[0], Node)
        place = f"{_storage(args[0]).key} {args[1]} {args[3]}"
        return CheckpointEntry(path, quantized + _dtype(value), shape, place)
    if value.callee in ARRAYS:
        return CheckpointEntry(path, "ndarray")
    if value.callee in (SPARSE, META):
        return CheckpointEntry(path, "sparse" if value.callee == SPARSE else "meta", ())
    return CheckpointEntry(path, (value.callee or value.name).rpartition(".")[2] or value.kind)
