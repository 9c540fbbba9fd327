"""From a graph and its tensors to a net: tried on images that have a shape and no pixels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.graphs.graph import Graph, Operation, choosing
from gifthorse.models.graphs.inputs import MOST
from gifthorse.models.graphs.layers import Applied, layer_of
from gifthorse.models.graphs.net import GraphNet, InTurns
from gifthorse.models.graphs.operators import FUNCTIONS
from gifthorse.models.outputs import SIDES, agree, locate, reason
from gifthorse.models.reading.entries import shown

IMAGES = 3  # on which a graph is tried
FEW = 8  # sizes of images that one is tried on
COLORS = (1, 3)  # channels by which it is told how images are laid out
LARGEST = 1024  # pixels a side
LOGGED = "the softmax at its end is taken as a logarithm: log-probabilities are logits"
_ODD = re.compile(r"\W+")
_FAILURES = (  # what operations raise on settings and shapes that do not fit
    *(RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(NotImplementedError, AssertionError),
)

Constants = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class BuiltGraph:
    """A net that a graph describes.

    Attributes:
        net: Maps images `(N, C, H, W)` to logits; in eval mode, its weights without gradient.
        classes: Number of logits.
        channels: Number of input channels.
        size: Height and width that the file says; None where it leaves them open.
        notes: What was done and seen on the way.
    """

    net: nn.Module
    classes: int
    channels: int
    size: tuple[int, int] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    """How images come into a graph: their channels, sizes to try, and how they are laid out."""

    channels: int
    sides: tuple[tuple[int, int], ...]
    order: tuple[int, ...] | None


def build_graph(graph: Graph, tensors: Constants) -> BuiltGraph:
    """Make the net that a graph describes.

    Args:
        graph: Checked by `check_graph`.
        tensors: Its constants by name; those of floating point as float32.

    Raises:
        UnreadableModel: If it cannot be run, reads no images, or takes more than a net may.
        UnfitNet: If it returns no logits.
    """
    frame = _frame(graph)
    constants = {n: t.long() if _is_whole(t) else t for n, t in tensors.items()}
    graph, notes = _rewritten(graph, constants)
    net, side, more = _of_any_number(graph, constants, frame)
    net = net.eval().requires_grad_(False)
    x = torch.rand(2, frame.channels, *side, generator=torch.Generator().manual_seed(0))
    classes = locate(net, x).classes
    size = frame.sides[0] if len(frame.sides) == 1 else None
    return BuiltGraph(net, classes, frame.channels, size, (*notes, *more, *choosing(graph)))


def _is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype is not torch.bool


# 1. Images ------------------------------------------------------------------------------------


def _frame(graph: Graph) -> _Frame:
    """Return how images come into a graph, from the shape that it says."""
    shape = graph.shape
    if len(shape) == 3:  # gray images without a place for channels
        return _Frame(1, _sides(shape[1:]), (0, 2, 3))
    if len(shape) != 4:
        raise UnreadableModel(
            f"its graph reads tensors of shape {shape}: expected images, (N, C, H, W) or "
            "(N, H, W, C)",
            rule="FS009",
        )
    last = shape[1] not in COLORS and shape[3] in COLORS
    channels = shape[3] if last else shape[1]
    sides = _sides(shape[1:3] if last else shape[2:])
    return _Frame(channels or 3, sides, (0, 2, 3, 1) if last else None)


def _sides(told: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    height, width = told
    if max(told) > LARGEST:
        raise UnreadableModel(
            f"its graph asks for images of {height}x{width}: at most {LARGEST} pixels a side are "
            "looked at",
            rule="FS004",
        )
    if height and width:
        return ((height, width),)
    return tuple((height or side, width or side) for side in SIDES[:FEW])


def _of_any_number(
    graph: Graph, constants: Constants, frame: _Frame
) -> tuple[nn.Module, tuple[int, int], tuple[str, ...]]:
    """Return a net for any number of images, the size that it ran on, and what was done for that.

    A graph that was written for one image at a time is freed of that number; it is used so only if
    it then says the same of several images as of each by itself.
    """
    count = graph.shape[0]
    if not count:
        try:
            return *_tried(graph, constants, frame, IMAGES), ()
        except UnreadableModel:
            count = 1  # it may say that it takes any number, and not do so
    net, side = _tried(graph, constants, frame, count)
    strict = InTurns(net, count)
    words = f"the graph was written for {count} image{'s' * (count > 1)} at a time"
    try:
        free, _ = _tried(graph, constants, frame, IMAGES, count)
    except UnreadableModel:
        return strict, side, (f"{words}, and is run so: a scan takes longer",)
    x = torch.rand(IMAGES, frame.channels, *side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = _agree(free(x), strict(x))
    if same:
        return free, side, (f"{words}; it says the same of several at once, and is run so",)
    return strict, side, (f"{words}, and is run so: a scan takes longer",)


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(_agree(one[name], other[name]) for name in one)
    return agree(one, other)


# 2. Operations --------------------------------------------------------------------------------


def _rewritten(graph: Graph, constants: Constants) -> tuple[Graph, tuple[str, ...]]:
    """Return the same graph with logits at its end, and with biases in layers where they belong."""
    reads = Counter(name for step in graph.operations for name in step.inputs)
    reads.update(graph.exits)
    adds = {n: s for s in graph.operations if s.op == "Add" for n in s.inputs if reads[n] == 1}
    steps: list[Operation] = []
    gone: set[int] = set()
    notes: tuple[str, ...] = ()
    for step in graph.operations:
        if id(step) in gone:
            continue
        after = adds.get(step.outputs[0]) if step.op == "MatMul" else None
        bias = _bias(step, after, constants)
        if step.op == "Softmax" and step.outputs[0] in graph.exits and reads[step.outputs[0]] == 1:
            steps.append(replace(step, op="LogSoftmax"))
            notes = (LOGGED,)
        elif after is not None and bias:
            gone.add(id(after))
            steps.append(
                replace(step, op="Gemm", inputs=(*step.inputs, bias), outputs=after.outputs)
            )
        else:
            steps.append(step)
    return replace(graph, operations=tuple(steps)), notes


def _bias(step: Operation, after: Operation | None, constants: Constants) -> str:
    """Return the name of what is added to a product with weights, if that is its bias."""
    weight = constants.get(step.inputs[-1]) if after is not None else None
    if after is None or weight is None or weight.ndim != 2:
        return ""
    name = next((n for n in after.inputs if n != step.outputs[0]), "")
    bias = constants.get(name)
    fits = bias is not None and bias.ndim == 1 and len(bias) == weight.shape[1]
    return name if fits else ""


def _tried(
    graph: Graph, constants: Constants, frame: _Frame, count: int, written: int = 0
) -> tuple[nn.Module, tuple[int, int]]:
    """Return the net and the first size of images that it runs on.

    Args:
        graph: The graph.
        constants: Its tensors.
        frame: How images come in.
        count: How many images it is tried on.
        written: How many it was written for, of which it is freed; 0 leaves it as it is.

    Raises:
        UnreadableModel: If it runs on none; says why.
    """
    failed = ""
    for side in frame.sides:
        building = _Building(dict(constants), written)
        try:
            return building.built(graph, frame, (count, frame.channels, *side)), side
        except _FAILURES as error:
            place = f" at {shown(building.at, 60)}" if building.at else ""
            failed = failed or f"on images of {side[0]}x{side[1]}{place}: {reason(error)}"
    raise UnreadableModel(f"its graph does not run {failed}", rule="FS009")


@dataclass
class _Building:
    """A net as it grows, and what its values are on images that have a shape and no pixels."""

    constants: dict[str, Tensor]
    written: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    steps: list[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    at: str = ""
    made: int = 0

    def built(self, graph: Graph, frame: _Frame, shape: tuple[int, ...]) -> nn.Module:
        """Return the net of a whole graph."""
        net = GraphNet({}, (), graph.entry, (graph.entry,), frame.order)
        self.values[graph.entry] = net(torch.empty(shape, device="meta"))
        for step in graph.operations:
            self.at = f"{step.op} ({step.name})" if step.name else step.op
            self.add(step)
        lost = [name for name in graph.exits if name not in self.values]
        if lost:
            raise UnreadableModel(
                "what its graph returns has nothing to do with images", rule="FS009"
            )
        return GraphNet(self.layers, self.steps, graph.entry, graph.exits, frame.order)

    @torch.no_grad()
    def add(self, step: Operation) -> None:
        """Run an operation: on constants once and for all, on images as a new layer."""
        free = [i for i, name in enumerate(step.inputs) if name in self.values]
        given = [self.constants.get(name) if name else None for name in step.inputs]
        if not free:
            self._fold(step, given)
            return
        if self.written:
            step = _freed(step, given, self.written)
        reads = tuple(step.inputs[i] for i in free)
        some = [self.values[name] for name in reads]
        layer = layer_of(step.op, step.settings, given, free, some[0].ndim).eval()
        made = _tuple(_shapes_alone(layer)(*some))
        _check_size(step, made)
        self.layers[self._name(step)] = layer
        self.steps.append((reads, step.outputs))
        self.values.update((n, v) for n, v in zip(step.outputs, made, strict=False) if n)

    def _fold(self, step: Operation, given: list[Tensor | None]) -> None:
        if step.op not in FUNCTIONS:
            raise UnreadableModel(f"{step.op} of its graph reads no image", rule="FS009")
        try:
            shapes = [None if t is None else t.to("meta") for t in given]
            _check_size(step, _tuple(FUNCTIONS[step.op](shapes, step.settings)))
        except (NotImplementedError, RuntimeError):
            pass  # one that looks at numbers, and bounds what it makes by itself
        made = _tuple(Applied(step.op, step.settings, given, ())())
        self.made += sum(out.numel() for out in made)
        if self.made > MOST:
            raise UnreadableModel("its graph makes more constants than a net has", rule="FS004")
        self.constants.update((n, t) for n, t in zip(step.outputs, made, strict=False) if n)

    def _name(self, step: Operation) -> str:
        """Return a name for a layer that no other has and that torch allows."""
        plain = _ODD.sub("_", step.name or step.op).strip("_")[:80] or step.op
        plain = plain if plain[:1].isalpha() and not hasattr(GraphNet, plain) else f"op_{plain}"
        taken = self.layers.keys() | {"entry", "exits", "order", "steps"}
        return plain if plain not in taken else f"{plain}_{len(self.layers)}"


def _freed(step: Operation, given: list[Tensor | None], count: int) -> Operation:
    """Free an operation of a number of images; a shape among its inputs is changed in place."""
    if step.op == "Concat":
        return replace(step, settings={**step.settings, "rows": 1})
    shape = given[1].tolist() if step.op == "Reshape" and given[1] is not None else [0]
    if shape[0] != count or 0 in shape:
        return step
    given[1] = torch.tensor([0 if -1 in shape else -1, *shape[1:]])
    return replace(step, settings={})  # without `allowzero`


def _check_size(step: Operation, made: tuple[Tensor, ...]) -> None:
    if any(out.numel() > MOST for out in made):
        largest = max(math.prod(out.shape) for out in made)
        raise UnreadableModel(
            f"{shown(step.op)} of its graph makes {largest:,} numbers of a few images", rule="FS004"
        )


def _tuple(made: Any) -> tuple[Tensor, ...]:
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _shapes_alone(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer whose weights have shapes and no numbers."""
    bare = copy(layer)
    weights, buffers, inner = (
        dict(getattr(layer, f"_{k}")) for k in ("parameters", "buffers", "modules")
    )
    bare._parameters = {
        k: None if p is None else nn.Parameter(p.to("meta")) for k, p in weights.items()
    }
    bare._buffers = {k: None if b is None else b.to("meta") for k, b in buffers.items()}
    bare._modules = {k: None if m is None else _shapes_alone(m) for k, m in inner.items()}
    return bare
