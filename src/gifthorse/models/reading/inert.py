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
from gifthorse.models.reading.ratings import DICTS, HARMLESS, META, PARAMETER, SPARSE, STRIDED

PROGRAM = "__torch__."  # begins what TorchScript calls its classes
LAYERS = 20_000
SETTINGS = 40  # of a layer
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
    """Return what a careless loader would run: classes and functions, and how often each."""
    made = (_kind(node) or NAMELESS for node in nodes if node.kind == "call")
    return dict(Counter(_unmangled(name) for name in made if name not in HARMLESS).most_common())


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
        kind, state = _kind(stub), _state(stub)
        if id(stub) in self.around or not _is_module(kind, state):
            return  # a module that knows the one it is in, or none
        self.note((*path, *front.split(".")))
        self.layer(kind, state, ".".join((*path, front.rstrip("."))).strip("."))
        if "quantized" in kind.split("."):
            self.entries.append(CheckpointEntry((*path, f"{front}weight"), f"quantized {kind}", ()))
            self.tensors.append(None)
            return
        self.around.add(id(stub))
        tensors, below = _members(kind, state)
        for name, value in tensors.items():
            tensor = _tensor(value)
            if tensor is not None:
                self.note(path)
                self.add(tensor, (*path, front + name))
        for name, child in below.items():
            if isinstance(child, Node) and child.kind == "call":
                self.module(child, path, f"{front}{name}.")
        self.around.discard(id(stub))

    def layer(self, kind: str, state: Mapping[str, object], name: str) -> None:
        """Add what a module's stub shows."""
        plain = {k: v for k, v in state.items() if not k.startswith("_") and _plain(v)}
        kept = dict(list(plain.items())[:SETTINGS])
        if len(self.layers) < LAYERS and len(name) < 10 * LONGEST:
            self.layers.append(Layer(name, shown(_unmangled(kind)), kept))


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


def _is_module(kind: str, state: Mapping[str, object]) -> bool:
    named = all(key in state for key in _MODULE)
    return named or kind.startswith(PROGRAM) or ".nn.quantized." in f".{kind}"


def _members(
    kind: str, state: Mapping[str, object]
) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """Return what may be tensors of a module, and what may be modules below it."""
    if kind.startswith(PROGRAM):  # which keeps them all together
        return state, {k: v for k, v in state.items() if _tensor(v) is None}
    passing = {key for key, _ in _texts(state.get("_non_persistent_buffers_set"))}
    buffers = {k: v for k, v in _table(state.get("_buffers")).items() if k not in passing}
    return {**_table(state.get("_parameters")), **buffers}, _table(state.get("_modules"))


def _table(value: object) -> Mapping[str, object]:
    return dict(items_of(value) or ())


def _texts(value: object) -> list[tuple[str, object]]:
    """Return the texts in a set, whatever protocol wrote it."""
    if not isinstance(value, Node):
        return []
    args = value.args if isinstance(value.args, tuple) else ()
    given = [i for a in args if isinstance(a, Node) for i in a.items]
    return [(item, None) for item in (*given, *value.items) if isinstance(item, str)]


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
