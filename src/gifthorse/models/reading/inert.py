"""Pickles that bring code, read without it: tensors as they are, all else as labeled stubs.

What a pickle names beyond the parts of tensors is neither imported nor called. A class becomes a
label, and what its object would be given as its state is kept; so whole modules can be walked to
the names that their own `state_dict` gives.

Source: PyTorch, `Module.state_dict`, for the names; `torch/csrc/jit/serialization` for programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.calls import Storage, check_call, malformed, storage
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.opcodes import NAMELESS, Node, Trace
from gifthorse.models.reading.pickles import (
    DEPTH,
    OPEN_LEAVES,
    Contents,
    Layer,
    items_of,
    leaf,
)
from gifthorse.models.reading.ratings import CODE, DICTS, HARMLESS, META, PARAMETER, SPARSE, STRIDED

PROGRAM = "__torch__."  # begins what TorchScript calls its classes
COMPILED_NET = "torch._dynamo.eval_frame.OptimizedModule"
LAYERS = 20_000
SETTINGS = 40  # of a layer
TABLES = ("config", "pretrained_cfg")  # attributes that say how a net was made
MOST_CLASSES = 10_000
LONGEST = 100  # characters of a setting
WORDS = 8  # numbers of one

# Ways to make an object that say its class first.
_MAKERS = ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__")
# Calls around a tensor that leave its numbers as they are.
_AROUND = (PARAMETER, "torch._utils._rebuild_parameter_with_state")
_TYPED = "torch._tensor._rebuild_from_type_v2"
_MODULE = ("_parameters", "_buffers", "_modules")
_TENSORS = (*STRIDED, SPARSE, META)


def inert(trace: Trace) -> Contents:
    """Return the tensors of a traced pickle, whatever else is in it, and what its stubs show.

    Raises:
        UnreadableModel: `FS003` if a tensor is malformed, `FS004` if it is a resource bomb.
    """
    if trace.fault is not None:
        raise trace.fault
    storages: dict[str, Storage] = {}
    for node in trace.nodes:
        if node.kind == "storage":
            new = storage(node)
            if storages.setdefault(new.key, new).size != new.size:
                raise malformed(f"storage {shown(new.key)!r} has two sizes")
    walk = _Walk()
    walk.visit(trace.result, ())
    return Contents(
        tuple(walk.entries),
        storages,
        walk.largest,
        tuple(walk.tensors),
        tuple(walk.layers),
        _calls(trace.nodes),
    )


def _calls(nodes: Iterable[Node]) -> Mapping[str, int]:
    """Return what a careless loader would run, and how often; what is not torch's own first."""
    made = (_kind(node) or NAMELESS for node in nodes if node.kind == "call")
    counts = Counter(_unmangled(name) for name in made if name not in HARMLESS)
    return dict(sorted(counts.items(), key=lambda c: (c[0].startswith(CODE[:2]), -c[1])))


def _kind(node: Node) -> str:
    """Return the name of what a call calls, or of the class that it makes an object of."""
    args = node.args if isinstance(node.args, tuple) else ()
    if node.callee in _MAKERS and args and isinstance(args[0], Node) and args[0].name:
        return args[0].name
    return node.callee


@dataclass(eq=False)
class _Walk:
    """The way through a pickled value, each part by the names that lead to it.

    A module is looked into wherever it stands, as its `state_dict` does; all else once, since
    objects may know each other in rings.
    """

    entries: list[CheckpointEntry] = field(default_factory=list)
    tensors: list[Node | None] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    largest: int = 0
    around: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    known: dict[int, _Members] = field(default_factory=dict)
    count: int = 0

    def visit(self, value: object, path: tuple[str, ...]) -> None:
        """List the tensors in a value that lies at `path`."""
        self.note(path)
        tensor = _tensor(value)
        if tensor is not None:
            self.add(tensor, path)
        elif isinstance(value, Node) and value.kind == "call" and value.callee not in DICTS:
            self.stub(value, path)
        else:
            self.inside(value, path)

    def note(self, path: tuple[str, ...]) -> None:
        """Count a value.

        Raises:
            UnreadableModel: `FS004` if there are too many, or too many levels.
        """
        self.count += 1
        if self.count > OPEN_LEAVES or len(path) > DEPTH:
            raise UnreadableModel(
                f"the file holds more than {OPEN_LEAVES} values or {DEPTH} levels", rule="FS004"
            )

    def add(self, tensor: Node, path: tuple[str, ...]) -> None:
        """Add a tensor."""
        self.largest += check_call(tensor)
        self.entries.append(leaf(tensor, path))
        self.tensors.append(tensor)

    def inside(self, value: object, path: tuple[str, ...]) -> None:
        """Look into a container; what is none is a leaf."""
        items = items_of(value)
        if items is None:
            kind = value.kind if isinstance(value, Node) else type(value).__name__
            named = value.name.rpartition(".")[2] if isinstance(value, Node) else ""
            self.entries.append(CheckpointEntry(path, named or kind))
            self.tensors.append(None)
        elif id(value) not in self.seen:
            self.seen.add(id(value))
            for key, item in items:
                self.visit(item, (*path, key))

    def stub(self, stub: Node, path: tuple[str, ...]) -> None:
        """Look into an object whose class is not known: its state, and what it contains."""
        kind, state = _kind(stub), _state(stub)
        if _is_module(kind, state):
            self.module(stub, path, "")
            return
        before = len(self.entries)
        if id(stub) not in self.seen:
            self.seen.add(id(stub))
            self.note(path)
            for key, item in (*state.items(), *_contained(stub)):
                self.visit(item, (*path, key))
        if not any(e.shape is not None for e in self.entries[before:]):
            del self.entries[before:], self.tensors[before:]
            self.entries.append(CheckpointEntry(path, shown(kind.rpartition(".")[2]) or "call"))
            self.tensors.append(None)

    def module(self, stub: Node, path: tuple[str, ...], front: str) -> None:
        """List the tensors of a module, by the names of its `state_dict` behind `front`."""
        if id(stub) not in self.known:
            self.known[id(stub)] = _members(stub)
        inside = self.known[id(stub)]
        if id(stub) in self.around or not inside.module:
            return  # a module that knows the one it is in, or none
        self.note((*path, *front.split(".")))
        self.layer(inside, ".".join((*path, front.rstrip("."))).strip("."))
        if "quantized" in inside.kind.split("."):
            kind = f"quantized {shown(inside.kind)}"
            self.entries.append(CheckpointEntry((*path, f"{front}weight"), kind, ()))
            self.tensors.append(None)
            return
        self.around.add(id(stub))
        for name, tensor in inside.tensors.items():
            self.note(path)
            self.add(tensor, (*path, front + name))
        for name, child in inside.below.items():
            self.module(child, path, f"{front}{name}.")
        self.around.discard(id(stub))

    def layer(self, inside: _Members, name: str) -> None:
        """Add what a module's stub shows."""
        if len(self.layers) < LAYERS and len(name) < 10 * LONGEST:
            kind = shown(_unmangled(inside.kind))
            first = {k: table for k, table in inside.tables.items() if id(table) not in self.seen}
            tables = {k: self.table(table) for k, table in first.items()}
            self.layers.append(Layer(name, kind, {**inside.settings, **tables}, inside.names))

    def table(self, value: object, depth: int = 0) -> object:
        """Return the plain values in a list, a table or an object's state; None for all others."""
        self.note(())
        if not isinstance(value, Node | tuple):
            return value if _plain(value) else None
        items = items_of(value)
        if isinstance(value, Node) and items is None and value.kind == "call":
            items = list(_state(value).items())
        if items is None or depth >= WORDS:
            return None
        if isinstance(value, tuple) or value.kind == "list":
            return [self.table(item, depth + 1) for _, item in items]
        self.seen.add(id(value))
        own = {k: v for k, v in items if not k.startswith("_") and len(k) <= LONGEST}
        made = {k: self.table(v, depth + 1) for k, v in own.items()}
        return {k: v for k, v in made.items() if v is not None or own[k] is None}


def _unmangled(kind: str) -> str:
    """Return the name that a class of a program had where it was written.

    Example:
        >>> _unmangled("__torch__.nets.___torch_mangle_3.Net")
        'nets.Net'
    """
    parts = kind.removeprefix(PROGRAM).split(".")
    return ".".join(part for part in parts if not part.startswith("___torch_mangle"))


def _plain(value: object) -> bool:
    """Whether a setting is a number, a short text, or a few numbers."""
    if isinstance(value, tuple):
        return len(value) <= WORDS and all(isinstance(v, int | float) for v in value)
    short = isinstance(value, str) and len(value) <= LONGEST
    return short or isinstance(value, bool | int | float)


def _class_names(value: object) -> tuple[str, ...]:
    """Return the texts of a list, or of a table by numbers from 0; nothing of all else."""
    items = items_of(value) if isinstance(value, Node) else None
    if not items or len(items) > MOST_CLASSES or [k for k, _ in items] != _counted(len(items)):
        return ()
    names = tuple(shown(name, LONGEST) for _, name in items if isinstance(name, str))
    return names if len(names) == len(items) else ()


def _counted(count: int) -> list[str]:
    return [str(i) for i in range(count)]


@dataclass(frozen=True)
class _Members:
    """What a stub is and holds: tensors and modules by name if it is a module."""

    kind: str
    module: bool
    tensors: Mapping[str, Node]
    below: Mapping[str, Node]
    settings: Mapping[str, object]
    names: tuple[str, ...]
    tables: Mapping[str, Node]


def _members(stub: Node) -> _Members:
    kind, state = _kind(stub), _state(stub)
    module = _is_module(kind, state)
    tensors, below = state, state
    if not kind.startswith(PROGRAM):  # which keeps them all together
        passing = _texts(state.get("_non_persistent_buffers_set"))
        buffers = _table(state.get("_buffers"))
        kept = {name: buffer for name, buffer in buffers.items() if name not in passing}
        tensors, below = {**_table(state.get("_parameters")), **kept}, _table(state.get("_modules"))
    own = {k: v for k, v in state.items() if not k.startswith("_")}
    plain = [(k, v) for k, v in own.items() if _plain(v)]
    return _Members(
        kind,
        module,
        {name: t for name, value in tensors.items() if (t := _tensor(value)) is not None},
        {name: n for name, n in below.items() if isinstance(n, Node) and n.kind == "call"},
        dict(plain[:SETTINGS]),
        _class_names(state.get("names")),
        {k: v for k in TABLES if isinstance(v := own.get(k), Node)},
    )


def _is_module(kind: str, state: Mapping[str, object]) -> bool:
    named = all(key in state for key in _MODULE)
    return named or kind.startswith(PROGRAM) or ".nn.quantized." in f".{kind}"


def _table(value: object) -> Mapping[str, object]:
    return dict(items_of(value) or ())


def _texts(value: object) -> set[str]:
    """Return the texts in a set, whatever protocol wrote it."""
    if not isinstance(value, Node):
        return set()
    args = value.args if isinstance(value.args, tuple) else ()
    given = [i for a in args if isinstance(a, Node) for i in a.items]
    return {item for item in (*given, *value.items) if isinstance(item, str)}


def _tensor(value: object) -> Node | None:
    """Return the call that makes a tensor, without what is around it; None for all else."""
    for _ in range(DEPTH):
        args = value.args if isinstance(value, Node) else None
        if not isinstance(value, Node) or not isinstance(args, tuple):
            return None
        if value.callee in _TENSORS:
            return value
        if value.callee == _TYPED and len(args) == 4:  # function, class, arguments, state
            value = Node("call", args[0], args[2])
        else:
            value = args[0] if value.callee in _AROUND and args else None
    return None


def _state(stub: Node) -> Mapping[str, object]:
    """Return what an object would be given as its attributes, those of slots among them."""
    found: dict[str, object] = {}
    if stub.callee == COMPILED_NET and isinstance(stub.args, tuple) and stub.args:
        inside = Node("dict", items=["_orig_mod", stub.args[0]])  # given to it, not its state
        return dict.fromkeys(_MODULE) | {"_modules": inside}
    for state in stub.states:
        slotted = isinstance(state, tuple) and len(state) == 2
        parts = state if slotted and isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Node) and (part.kind == "dict" or part.callee in DICTS):
                found |= dict(items_of(part) or ())
    return found


def _contained(stub: Node) -> list[tuple[str, object]]:
    """Return what an object of a class like a list or a dictionary contains."""
    items = stub.items
    if len(items) % 2 == 0 and all(isinstance(key, str) for key in items[::2]):
        return list(zip(map(str, items[::2]), items[1::2], strict=True))
    return [(str(i), item) for i, item in enumerate(items)]
