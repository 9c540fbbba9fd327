"""What a pickle of weights calls and holds, read from its opcodes; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.calls import (
    LARGEST,
    Storage,
    check_call,
    check_keys,
    check_state,
    dtype_of,
    malformed,
    storage,
)
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.opcodes import Node, Trace
from gifthorse.models.reading.ratings import (
    ARRAYS,
    META,
    ORDERED,
    PARAMETER,
    SPARSE,
    STRIDED,
    imports,
    refuse_code,
)

DEPTH = 100
VALUES = 4_000_000  # of the tree when shared parts are counted each time

OPEN_LEAVES = 200_000


@dataclass(frozen=True)
class Layer:
    """What the stub of a module shows.

    Attributes:
        name: Where it stands, with dots.
        kind: Name of its class.
        settings: Its plain attributes: numbers, short texts, few numbers; and the tables that say
            how a net was made, such as a `config`, once of all layers that have it.
        names: Of classes, in the order of their numbers, if it keeps such a table.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What a pickle holds.

    Attributes:
        entries: Its leaves.
        storages: The blocks of numbers it asks for, by key.
        largest: Bytes of all its tensors once each is written out in full.
        tensors: The symbol of each leaf that is a tensor, None for others, if they are read here.
        layers: What the stubs of its modules show.
        calls: What a careless loader would run beside what tensors need, and how often.
    """

    entries: tuple[CheckpointEntry, ...]
    storages: Mapping[str, Storage]
    largest: int
    tensors: tuple[Node | None, ...] = ()
    layers: tuple[Layer, ...] = ()
    calls: Mapping[str, int] = field(default_factory=dict)


def weights(trace: Trace, record: str) -> Contents:
    """Return what a traced pickle holds that must be weights alone.

    Raises:
        UnsafeModel: If it asks for anything else.
        UnreadableModel: See `contents`.
    """
    refuse_code(imports(trace, record))
    return contents(trace)


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
            new = storage(node)
            if storages.setdefault(new.key, new).size != new.size:
                raise malformed(f"storage {shown(new.key)!r} has two sizes")
        check_state(node)
        largest += check_call(node) if node.kind == "call" else 0
        check_keys(node)
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
            raise malformed("a value holds itself")
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


# Leaves ---------------------------------------------------------------------------------------


def _leaves(value: object, path: tuple[str, ...], seen: list[int]) -> Iterator[CheckpointEntry]:
    seen[0] += 1
    if seen[0] > OPEN_LEAVES:
        raise UnreadableModel(f"the file holds more than {OPEN_LEAVES} values", rule="FS004")
    items = items_of(value)
    if items is None:
        yield leaf(value, path)
        return
    for key, item in items:
        yield from _leaves(item, (*path, key), seen)


def items_of(value: object) -> list[tuple[str, object]] | None:
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
    return str(key) if isinstance(key, str | int | float) else "<key>"


def _given(args: object) -> list[object]:
    """Return what an ordered dictionary was made from: a list of pairs, as by Python 2."""
    pairs = args[0].items if isinstance(args, tuple) and args and isinstance(args[0], Node) else []
    return [part for pair in pairs for part in (pair.items if isinstance(pair, Node) else ())]


def leaf(value: object, path: tuple[str, ...]) -> CheckpointEntry:
    """Return the entry of what is no container; a tensor's call must have been checked."""
    if not isinstance(value, Node):
        return CheckpointEntry(path, type(value).__name__)
    args = value.args if isinstance(value.args, tuple) else ()
    if value.callee == PARAMETER and args:
        return leaf(args[0], path)
    if value.callee in STRIDED:
        shape = args[2]
        quantized = "quantized " * value.callee.endswith("qtensor")
        assert isinstance(shape, tuple)
        assert isinstance(args[0], Node)
        place = f"{storage(args[0]).key} {args[1]} {args[3]}"
        return CheckpointEntry(path, quantized + dtype_of(value), shape, place)
    if value.callee in ARRAYS:
        return CheckpointEntry(path, "ndarray")
    if value.callee in (SPARSE, META):
        return CheckpointEntry(path, "sparse" if value.callee == SPARSE else "meta", ())
    return CheckpointEntry(path, (value.callee or value.name).rpartition(".")[2] or value.kind)
