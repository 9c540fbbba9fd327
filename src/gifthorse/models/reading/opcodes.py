"""A pickle machine on symbols: follows the opcodes of a pickle and runs nothing."""

from __future__ import annotations

import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TypeGuard

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import shown

EXTENSION = "copyreg-extension"  # module we give to names from copyreg's extension registry
NAMELESS = "?"  # module and name of an import whose name is computed
OPCODES = 1_000_000  # of all pickles of a file; fickling's limit, too
BITS = 4096  # of an integer
NAME = 500  # characters of a module or a name; no import is that long


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """A symbol for a value: `global`, `call`, `list`, `dict`, `storage` or `opaque`."""

    kind: str
    head: object = None
    args: object = ()
    items: list[object] = field(default_factory=list)
    states: list[object] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Full name of a global; empty for all others."""
        return self.head if self.kind == "global" and isinstance(self.head, str) else ""

    @property
    def callee(self) -> str:
        """Full name of the global that a call calls; empty for all others."""
        return self.head.name if self.kind == "call" and isinstance(self.head, Node) else ""


@dataclass(eq=False, slots=True)
class Machine:
    """State of the pickle machine."""

    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    names: dict[tuple[str, str], str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    foreign: dict[str, None] = field(default_factory=dict)
    protocol: int = 0
    count: int = 0

    def pop(self) -> object:
        """Take the top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a value is missing on the stack")
        return self.stack.pop()

    def top(self) -> object:
        """Look at the top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("a value is missing on the stack")
        return self.stack[-1]

    def slice(self) -> list[object]:
        """Take everything down to the last mark."""
        at = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if at is None:
            raise ValueError("a mark is missing on the stack")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def push(self, kind: str, head: object = None, args: object = ()) -> Node:
        """Put a new symbol on the stack."""
        node = Node(kind, head, args)
        self.nodes.append(node)
        self.stack.append(node)
        return node

    def name(self, module: object, name: object) -> None:
        """Note an import and put its symbol on the stack."""
        pair = (module, name) if _named(module) and _named(name) else (NAMELESS, NAMELESS)
        if pair in NAME_MAPPING:
            pair = NAME_MAPPING[pair]
        pair = (IMPORT_MAPPING.get(pair[0], pair[0]), pair[1])
        self.push("global", self.names.setdefault(pair, ".".join(pair)))

    def extend(self, items: list[object], kind: str) -> None:
        """Add to the container on top of the stack, as to one of a kind."""
        node = self.top()
        if not isinstance(node, Node) or node.kind in ("global", "storage"):
            raise ValueError("items are added to what is no container")
        if (node.kind == "list") != (kind == "list"):
            self.foreign[f"{kind} items of a {node.kind}"] = None
        node.items.extend(items)


_MARK = object()


def _named(part: object) -> TypeGuard[str]:
    return isinstance(part, str) and len(part) <= NAME


def _reduce(m: Machine, _: object) -> None:
    args, head = m.pop(), m.pop()
    m.push("call", head, args)


def _newobj_ex(m: Machine, _: object) -> None:
    options, args, head = m.pop(), m.pop(), m.pop()
    m.push("call", head, args).items.append(options)


def _instance(m: Machine, arg: object) -> None:
    args = m.slice()
    if arg is None:
        if not args:
            raise ValueError("a class is missing on the stack")
        head, args = args[0], args[1:]
    else:
        _global(m, arg)
        head = m.pop()
    m.push("call", head, tuple(args))


def _global(m: Machine, arg: object) -> None:
    module, _, name = str(arg).partition(" ")
    m.name(module, name)


def _stack_global(m: Machine, _: object) -> None:
    name, module = m.pop(), m.pop()
    m.name(module, name)


def _extension(m: Machine, arg: object) -> None:
    m.name(EXTENSION, str(arg))


def _build(m: Machine, _: object) -> None:
    state, node = m.pop(), m.top()
    if not isinstance(node, Node):
        raise ValueError("a state is given to what is no object")
    node.states.append(state)


def _setitem(m: Machine, _: object) -> None:
    value, key = m.pop(), m.pop()
    m.extend([key, value], "dict")


def _append(m: Machine, _: object) -> None:
    value = m.pop()
    m.extend([value], "list")


def _long(m: Machine, arg: object) -> None:
    if isinstance(arg, int) and arg.bit_length() > BITS:
        raise UnreadableModel(
            f"its pickle holds an integer of {arg.bit_length():,} bits, as no weights need",
            rule="FS004",
        )
    m.stack.append(arg)


def _proto(m: Machine, arg: object) -> None:
    m.protocol = max(m.protocol, arg if isinstance(arg, int) else 0)


def _stored(m: Machine, _: object) -> None:
    """Put a storage on the stack; a class that is kept with its source counts as named."""
    key = m.pop()
    classes = isinstance(key, tuple) and len(key) == 4 and key[0] == "module"
    named = key[1] if classes and isinstance(key, tuple) else None
    if isinstance(named, Node) and named.name:
        m.stack.append(named)
    else:
        m.push("storage", None, key)


def _filled(kind: str) -> Callable[[Machine, object], None]:
    def handle(m: Machine, _: object) -> None:
        items = m.slice()
        m.push(kind).items.extend(items)

    return handle


def _short_tuple(length: int) -> Callable[[Machine, object], None]:
    def handle(m: Machine, _: object) -> None:
        items = [m.pop() for _ in range(length)]
        m.stack.append(tuple(reversed(items)))

    return handle


def _get(m: Machine, arg: object) -> None:
    index = int(str(arg))
    if index not in m.memo:
        raise ValueError(f"nothing was remembered as {index}")
    m.stack.append(m.memo[index])


def _constant(value: object) -> Callable[[Machine, object], None]:
    return lambda m, _: m.stack.append(value)


def _put(m: Machine, arg: object) -> None:
    m.memo[len(m.memo) if arg is None else int(str(arg))] = m.top()


_HANDLERS: Mapping[str, Callable[[Machine, object], object]] = {
    "MARK": _constant(_MARK),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_TUPLE": _constant(()),
    "LONG4": _long,
    "PROTO": _proto,
    "EMPTY_LIST": lambda m, _: m.push("list"),
    "EMPTY_SET": lambda m, _: m.push("opaque"),
    "EMPTY_DICT": lambda m, _: m.push("dict"),
    "LIST": _filled("list"),
    "DICT": _filled("dict"),
    "FROZENSET": _filled("opaque"),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.slice())),
    "TUPLE1": _short_tuple(1),
    "TUPLE2": _short_tuple(2),
    "TUPLE3": _short_tuple(3),
    "APPEND": _append,
    "APPENDS": lambda m, _: m.extend(m.slice(), "list"),
    "ADDITEMS": lambda m, _: m.extend(m.slice(), "set"),
    "SETITEM": _setitem,
    "SETITEMS": lambda m, _: m.extend(m.slice(), "dict"),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "INST": _instance,
    "OBJ": _instance,
    "BUILD": _build,
    "BINPERSID": _stored,
    "PERSID": lambda m, arg: m.push("opaque", None, arg),
    "NEXT_BUFFER": lambda m, _: m.push("opaque"),
    "POP": lambda m, _: m.stack.pop() if m.stack else m.pop(),
    "POP_MARK": lambda m, _: m.slice(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
}

# What the reader of torch.load(weights_only=True) knows; it refuses all others anyway.
_KNOWN = (
    "GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 "
    "BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 "
    "PROTO STOP"
)
KNOWN = frozenset(_KNOWN.split())


@dataclass(frozen=True, eq=False)
class Trace:
    """What a pickle does, up to its end or its first fault.

    Attributes:
        names: Module and name of every import, in order.
        nodes: Every symbol that was made, also those thrown away again.
        result: Symbol of the unpickled value; None after a fault.
        foreign: Opcodes that `torch.load(weights_only=True)` does not know.
        fault: Why the trace ends early.
        protocol: The highest version of the pickle format that it says it is of, or that any of
            its opcodes belongs to.
        count: How many opcodes were followed.
    """

    names: tuple[tuple[str, str], ...]
    nodes: tuple[Node, ...]
    result: object
    foreign: tuple[str, ...]
    fault: UnreadableModel | None = None
    protocol: int = 0
    count: int = 0


def trace(stream: IO[bytes], *, limit: int = OPCODES) -> Trace:
    r"""Follow one pickle from the stream's position to its STOP, at most `limit` opcodes far.

    Example:
        >>> from io import BytesIO
        >>> trace(BytesIO(b"cos\nsystem\n(S'ls'\ntR.")).names
        (('os', 'system'),)
    """
    m, result, fault = Machine(), None, None
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in names
            result = _follow(m, stream, limit)
    except UnreadableModel as error:
        fault = error
    except ValueError as error:
        digits = "integer string conversion" in str(error)
        fault = UnreadableModel(
            "its pickle holds an integer of thousands of digits, which Python refuses"
            if digits
            else f"its pickle is damaged: {shown(str(error))}",
            rule="FS004" if digits else "FS003",
        )
    return Trace(
        tuple(m.names), tuple(m.nodes), result, tuple(m.foreign), fault, m.protocol, m.count
    )


def _follow(m: Machine, stream: IO[bytes], limit: int) -> object:
    for op, arg, _ in pickletools.genops(stream):
        m.count += 1
        if m.count > limit:
            raise UnreadableModel(f"its pickles have more than {OPCODES:,} opcodes", rule="FS004")
        name = op.name
        if name not in KNOWN:
            m.foreign[name] = None
        m.protocol = max(m.protocol, op.proto)
        if name == "STOP":
            return m.pop()
        handle = _HANDLERS.get(name)
        if handle is not None:
            handle(m, arg)
        elif op.stack_after and not op.stack_before:  # a number or a text
            m.stack.append(arg)
    raise ValueError("no STOP")
