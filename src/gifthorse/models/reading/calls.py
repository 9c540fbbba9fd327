"""What the calls in a pickle of weights may be: each function with the arguments that it takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.opcodes import Node
from gifthorse.models.reading.ratings import (
    ARRAYS,
    CALLS,
    DICTS,
    META,
    PARAMETER,
    SCALARS,
    SPARSE,
    STORAGES,
    STRIDED,
)

Arguments = tuple[object, ...]

WIDTHS = {dtype: width for dtype, width in STORAGES.values() if dtype != "untyped"} | {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
_NUMPY = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1"
NUMPY_TYPES = frozenset(_NUMPY.split())
LARGEST = 2**48  # of a number that counts bytes, or anything in memory


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


def malformed(why: str) -> UnreadableModel:
    """Return the error on a pickle that does what a state dict never does."""
    return UnreadableModel(f"its pickle is malformed: {why}", rule="FS003")


def storage(node: Node) -> Storage:
    """Return the block of numbers that a pickle asks for.

    Raises:
        UnreadableModel: If it asks for something else.
    """
    pid = node.args
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise malformed("it asks for something stored that is no storage")
    kind, key, size = pid[1], pid[2], pid[4]
    name = kind.name if isinstance(kind, Node) else ""
    if (
        name not in STORAGES
        or not isinstance(key, str)
        or not _count(size)
        or pid[5:] not in ((), (None,))
    ):
        raise malformed("it asks for a storage of an unknown kind, key or size")
    dtype, width = STORAGES[name]
    return Storage(key, dtype, size * width, width)


def _count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < LARGEST


def _counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_count, values))


def check_state(node: Node) -> None:
    """Allow `__setstate__` on dictionaries, plain NumPy types and arrays only."""
    if node.states and node.callee == "numpy.dtype":
        state = node.states[0]
        if len(node.states) > 1 or not _plain_state(state):
            raise _unusual("a NumPy type of its own")
    elif node.callee in ARRAYS:
        _check_array(node)
    elif node.states and node.callee not in DICTS:
        raise malformed(f"it sets the state of {shown(node.callee) or 'a plain value'}")


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
        raise malformed("an array has more bytes than its shape says, or fewer")


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


def check_call(node: Node) -> int:
    """Return the bytes of the tensor that a call makes, written out in full; 0 for others."""
    name, args = node.callee, node.args
    if name not in CALLS or not isinstance(args, tuple):
        raise malformed(f"it calls {shown(name) or 'a value'}, which makes no weights")
    allowed = _ARGUMENTS.get(name)
    if allowed is not None and not allowed(args):
        raise malformed(f"it calls {name} in an unusual way")
    if name == "numpy.dtype" and not (args and isinstance(args[0], str) and len(args) < 4):
        raise malformed("it makes an unusual NumPy type")
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
    if len(args) != STRIDED[node.callee]:
        raise malformed(f"a tensor is made from {len(args)} values")
    if not any(isinstance(flag, bool) for flag in args[4:6]) and len(args) > 4:
        raise malformed("a tensor does not say whether it needs a gradient")
    if not (isinstance(args[0], Node) and args[0].kind == "storage"):
        raise malformed("a tensor has no storage")
    _, offset, shape, stride = args[:4]
    if not _count(offset) or not _counts(shape) or not _counts(stride):
        raise malformed("a tensor has an unusual offset, shape or stride")
    if len(shape) != len(stride):
        raise malformed("a tensor has more sizes than strides, or fewer")
    width = WIDTHS.get(dtype_of(node), 1)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) + 1
    if 0 not in shape and last * width > storage(args[0]).size:
        raise malformed("a tensor reaches beyond the end of its storage")
    return math.prod(shape) * width


def dtype_of(node: Node) -> str:
    """Return the data type of a tensor that a checked call makes."""
    assert isinstance(node.args, tuple)
    if node.callee.endswith("_v3") and len(node.args) > 6 and isinstance(node.args[6], Node):
        return node.args[6].name.removeprefix("torch.")
    assert isinstance(node.args[0], Node)
    return storage(node.args[0]).dtype


# Keys and arguments ---------------------------------------------------------------------------

LEVELS = 5  # of tuples in a key


def check_keys(node: Node) -> None:
    """Refuse dictionaries with a key that has no value, or that Python cannot look up."""
    if node.kind != "dict" and node.callee not in DICTS:
        return
    if len(node.items) % 2 or not all(map(_hashable, node.items[::2])):
        raise malformed("a dictionary has a key that is none, or one without a value")


def _hashable(key: object, levels: int = LEVELS) -> bool:
    if isinstance(key, tuple):
        return levels > 0 and all(_hashable(part, levels - 1) for part in key)
    return not isinstance(key, Node) or key.kind == "global" or key.callee in _FIXED


_FIXED = (
    *("torch.Size", "torch.device", "numpy.dtype", "builtins.complex", "_codecs.encode"),
    *SCALARS,
)


def _collection(args: Arguments) -> bool:
    """Whether these are nothing, or one list or dictionary."""
    plain = all(isinstance(a, Node) and a.kind in ("list", "dict") for a in args)
    return len(args) < 2 and plain


def _pairs(args: Arguments) -> bool:
    """Whether these are nothing, or one list of lists of a key and a value."""
    if not args:
        return True
    pairs = args[0].items if len(args) == 1 and isinstance(args[0], Node) else [None]
    return all(
        isinstance(p, Node) and p.kind == "list" and len(p.items) == 2 and _hashable(p.items[0])
        for p in pairs
    )


def _set(args: Arguments) -> bool:
    one = args[0] if len(args) == 1 else None
    return isinstance(one, Node) and one.kind == "list" and all(map(_hashable, one.items))


def _device(args: Arguments) -> bool:
    kind, *index = args or ("",)
    known = isinstance(kind, str) and re.fullmatch(r"(cpu|cuda|mps|meta|xpu|hpu)(:\d{1,3})?", kind)
    return bool(known) and len(index) < 2 and all(map(_count, index))


def _size(args: Arguments) -> bool:
    one = args[0] if len(args) == 1 else None
    return _counts(tuple(one.items) if isinstance(one, Node) and one.kind == "list" else one)


def _parameter(args: Arguments) -> bool:
    made = (*STRIDED, SPARSE, META)
    tensor = len(args) == 3 and isinstance(args[0], Node) and args[0].callee in made
    return tensor and isinstance(args[1], bool)


def _scalar(args: Arguments) -> bool:
    kind = args[0] if len(args) == 2 else None
    code = kind.args[0] if isinstance(kind, Node) and isinstance(kind.args, tuple) else ""
    return isinstance(code, str) and code in NUMPY_TYPES and _bytes_in(args[1]) == int(code[1:])


def _complex(args: Arguments) -> bool:
    return len(args) in (1, 2) and all(isinstance(a, int | float) for a in args)


def _layout(args: Arguments) -> bool:
    one = args[0] if len(args) == 1 else None
    return isinstance(one, str) and re.fullmatch(r"torch\.(strided|sparse_\w{3})", one) is not None


_ARGUMENTS: Mapping[str, Callable[[Arguments], bool]] = {
    PARAMETER: _parameter,
    "_codecs.encode": _latin,
    "torch.device": _device,
    "torch.Size": _size,
    "torch.serialization._get_layout": _layout,
    "builtins.set": _set,
    "builtins.complex": _complex,
    "collections.OrderedDict": _pairs,
    "collections.Counter": _collection,
    **dict.fromkeys(SCALARS, _scalar),
}
