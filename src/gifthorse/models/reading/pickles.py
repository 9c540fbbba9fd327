"""What a pickle would import, call and hold, read from its opcodes; nothing is run."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, TypeAlias, TypeGuard

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from gifthorse.core.errors import UnreadableModel, UnsafeModel
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.opcodes import EXTENSION, NAMELESS, Node, Trace

Safety: TypeAlias = Literal["harmless", "class", "unknown", "dangerous"]

DEPTH = 100
VALUES = 10_000_000  # of the tree when shared parts are counted each time

# 1. Names -------------------------------------------------------------------------------------

STORAGES: Mapping[str, tuple[str, int]] = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
    "torch.ComplexFloatStorage": ("complex64", 8),
    "torch.ComplexDoubleStorage": ("complex128", 16),
    "torch.QInt8Storage": ("qint8", 1),
    "torch.QUInt8Storage": ("quint8", 1),
    "torch.QInt32Storage": ("qint32", 4),
    "torch.storage.UntypedStorage": ("untyped", 1),
}
# Rebuilding functions, with the most arguments they get: more would be metadata of other devices.
STRIDED: Mapping[str, int] = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
    "torch._utils._rebuild_qtensor": 7,
}
PARAMETER = "torch._utils._rebuild_parameter"
SPARSE = "torch._utils._rebuild_sparse_tensor"
META = "torch._utils._rebuild_meta_tensor_no_storage"
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
ORDERED = "collections.OrderedDict"
DICTS = (ORDERED, "collections.Counter")
CALLS = frozenset(
    (
        *(*STRIDED, PARAMETER, SPARSE, META, *SCALARS, *DICTS, "numpy.dtype", "torch.Size"),
        *("torch.device", "torch.serialization._get_layout", "_codecs.encode"),
        *("builtins.set", "builtins.complex"),
    )
)
DTYPES = (
    "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool "
    "uint16 uint32 uint64 qint8 quint8 qint32 float8_e4m3fn float8_e5m2 per_tensor_affine "
    "per_channel_affine"
)
HARMLESS = CALLS | STORAGES.keys() | {f"torch.{name}" for name in DTYPES.split()}

# Beside picklescan's deny-list; anything on neither list is still only `unknown`, so refused.
_DANGEROUS = (
    "builtins os posix nt sys subprocess importlib runpy pty socket ctypes shutil pickle _pickle "
    "marshal types functools operator _operator code codeop multiprocessing threading pip http "
    "urllib requests webbrowser signal tempfile pathlib io _io cloudpickle dill joblib"
)
DANGEROUS = frozenset((*_DANGEROUS.split(), EXTENSION, NAMELESS))
WIDTHS = {dtype: width for dtype, width in STORAGES.values() if dtype != "untyped"} | {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
}
_NUMPY = "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1"
NUMPY_TYPES = frozenset(_NUMPY.split())
OPEN_LEAVES = 200_000
WHAT_TO_DO = (
    "Where the file is trusted, open it as its author does and keep the weights alone: "
    'from safetensors.torch import save_file; save_file(model.state_dict(), "weights.safetensors") '
    "- or, if weights are shared, "
    'torch.save(model.state_dict(), "weights.pt")'
)
TRUSTED_CODE = ("torch.nn.", "torchvision.", "timm.")


@dataclass(frozen=True)
class Import:
    """A name that a pickle asks for.

    Attributes:
        module: As written, after Python 2 names were translated.
        name: Of a function or class of that module.
        safety: `harmless` for the parts of a state dict, `class` for library modules,
            `dangerous` for known ways to run code, else `unknown`.
        record: Part of the file in which it stands.
    """

    module: str
    name: str
    safety: Safety
    record: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def rate(module: str, name: str) -> Safety:
    """Say how dangerous it is to import and call a name.

    Example:
        >>> rate("collections", "OrderedDict"), rate("os", "system"), rate("my_nets", "Net")
        ('harmless', 'dangerous', 'unknown')
    """
    full = f"{module}.{name}"
    if full in HARMLESS:
        return "harmless"
    loads = name.rpartition(".")[2] in ("load", "loads", "load_state_dict_from_url")
    if module.split(".")[0] in DANGEROUS or full.startswith("torch.hub.") or loads:
        return "dangerous"
    return "class" if full.startswith(TRUSTED_CODE) else "unknown"


# 2. Imports -----------------------------------------------------------------------------------


def imports(trace: Trace, record: str = "", data: bytes = b"") -> tuple[Import, ...]:
    """Return what a traced pickle imports, each name rated.

    Args:
        trace: The pickle.
        record: Name of the part of the file it stands in.
        data: Its bytes, if picklescan is to be asked for a second opinion, which can only make
            a rating worse.
    """
    worse = _second_opinion(data) if data else set()
    found = dict.fromkeys((*trace.names, *sorted(worse - set(trace.names))))
    return tuple(
        Import(module, name, "dangerous" if (module, name) in worse else rate(module, name), record)
        for module, name in found
    )


def _second_opinion(data: bytes) -> set[tuple[str, str]]:
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # we report, it need not
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in names
            result = scan_pickle_bytes(BytesIO(data), "pickle")
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OSError):
        return set()  # a parser's failure is no rating; ours refuses what it cannot follow
    return {(g.module, g.name) for g in result.globals if g.safety is SafetyLevel.Dangerous}


def refuse_code(found: tuple[Import, ...]) -> None:
    """Raise if any name needs code other than that of a state dict.

    Raises:
        UnsafeModel: `FS001` for names that are known to run commands, `FS002` for classes.
    """
    for rule, kinds in (("FS001", ("dangerous",)), ("FS002", ("class", "unknown"))):
        bad = [i for kind in kinds for i in found if i.safety == kind]
        names = ", ".join(dict.fromkeys(shown(str(i)) for i in bad[:5]))
        where = shown(bad[0].record) if bad else ""
        if bad and rule == "FS001":
            raise UnsafeModel(
                f"the file would run code when opened: it asks for {names} (in {where}); nothing "
                "was run. Do not open it with anything else; get the weights from a source you "
                "trust, best as safetensors",
                rule=rule,
            )
        if bad:
            raise UnsafeModel(
                f"the file holds {_whole(found)}, not weights alone: it asks for {names} (in "
                f"{where}), and opening it would run code that comes with it. {WHAT_TO_DO}",
                rule=rule,
            )


def _whole(found: tuple[Import, ...]) -> str:
    modules = any(i.module.startswith("torch.nn.modules.") for i in found)
    return "a whole pickled model" if modules else "Python objects"


# 3. Tensors -----------------------------------------------------------------------------------


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
    if trace.foreign:
        raise UnreadableModel(
            f"its pickle uses {', '.join(trace.foreign[:3])}, which the safe reader of torch does "
            "not know: save it again with torch.save's default protocol",
            rule="FS003",
        )
    weigh(trace.result)
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
    known: dict[int, int] = {}

    def visit(part: object, depth: int) -> int:
        children = _children(part)
        if not children:
            return 1
        if depth > DEPTH:
            raise UnreadableModel(f"its pickle nests deeper than {DEPTH} levels", rule="FS004")
        if id(part) not in known:
            known[id(part)] = 0
            known[id(part)] = 1 + sum(visit(child, depth + 1) for child in children)
        elif known[id(part)] == 0:
            raise _malformed("a value holds itself")
        if known[id(part)] > VALUES:
            raise UnreadableModel(f"its pickle unfolds to more than {VALUES} values", rule="FS004")
        return known[id(part)]

    return visit(value, 0)


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
    return isinstance(value, int) and value >= 0


def _counts(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_count, values))


def _check_state(node: Node) -> None:
    """Allow `__setstate__` on dictionaries and plain NumPy types only."""
    if node.states and node.callee == "numpy.dtype":
        state = node.states[0]
        rest = (None, None, None, -1, -1, 0)
        if len(node.states) > 1 or state not in ((3, "<", *rest), (3, "|", *rest)):
            raise _malformed("a NumPy type has an unusual state")
    elif node.states and node.callee not in DICTS:
        raise _malformed(f"it sets the state of {shown(node.callee) or 'a plain value'}")


def _check_call(node: Node) -> int:
    """Return the bytes of the tensor that a call makes, written out in full; 0 for others."""
    name, args = node.callee, node.args
    if name not in CALLS or not isinstance(args, tuple):
        raise _malformed(f"it calls {shown(name) or 'a value'}, which makes no weights")
    if name == "_codecs.encode" and args[1:] not in (("latin1",), ("latin-1",)):
        raise _malformed("it encodes a text in an unusual way")
    if name == "numpy.dtype" and (not args or args[0] not in NUMPY_TYPES or len(args) > 3):
        raise _malformed("it makes an unusual NumPy type")
    return _full_size(node) if name in STRIDED else 0


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
        table[key if plain else id(key)] = str(key) if plain else f"<{type(key).__name__}>", item
    return list(table.values())


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
        return CheckpointEntry(path, quantized + _dtype(value), shape)
    if value.callee in (SPARSE, META):
        return CheckpointEntry(path, "sparse" if value.callee == SPARSE else "meta", ())
    return CheckpointEntry(path, (value.callee or value.name).rpartition(".")[2] or value.kind)
