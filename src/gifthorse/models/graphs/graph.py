"""A net as data: operations in order, from an image to logits; nothing in it can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import shown

Setting: TypeAlias = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

OPERATIONS = 20_000  # of a graph that is believed
NAMED = 6  # operations that are named in words

# What chooses between values, and so makes a net's answer depend on a test of what it is shown.
_TESTS = ("Where", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or", "Not")
# About the size of what they are given, or whether it is broken, not about what it shows.
_ANSWERS = ("Shape", "Size", "IsNaN")


@dataclass(frozen=True)
class Operation:
    """One step: an operator of ONNX, what it reads and what it gives.

    Attributes:
        op: Name of the operator.
        name: Its own name in the file, or empty.
        inputs: Names of values; empty where an optional one is left out.
        outputs: Names that no other operation gives.
        settings: Its attributes.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A net as a file describes it; its constants are the file's tensors, by name.

    Attributes:
        operations: In an order in which they can be run.
        entry: Name of the images.
        shape: Of the images as the file says it, 0 where it leaves that open; with channels last
            where the last number is that of channels.
        exits: Names of what the net returns.
    """

    operations: tuple[Operation, ...]
    entry: str
    shape: tuple[int, ...]
    exits: tuple[str, ...]


def described(graph: Graph) -> str:
    """Count a graph's operators in words.

    Example:
        >>> described(Graph((Operation("Relu", "", ("x",), ("y",)),), "x", (0, 3, 8, 8), ("y",)))
        'a graph of 1 operation: Relu 1'
    """
    counts = Counter(step.op for step in graph.operations)
    told = ", ".join(f"{shown(op, 40)} {n}" for op, n in counts.most_common(NAMED))
    more = ", ..." * (len(counts) > NAMED)
    number = len(graph.operations)
    return f"a graph of {number} operation{'s' * (number != 1)}: {told}{more}"


def check_graph(graph: Graph, known: Mapping[str, object], constants: Sequence[str]) -> None:
    """Refuse a graph that cannot be run here.

    Args:
        graph: The graph.
        known: Operators that are known.
        constants: Names of the file's tensors.

    Raises:
        UnreadableModel: `FS004` if it is larger than any net, `FS009` for unknown operators,
            `FS003` if one reads what nothing gives, or gives something twice or nothing.
    """
    if len(graph.operations) > OPERATIONS:
        raise UnreadableModel(f"its graph has more than {OPERATIONS:,} operations", rule="FS004")
    strange = Counter(step.op for step in graph.operations if step.op not in known)
    if strange:
        told = ", ".join(f"{shown(op, 60)} ({n})" for op, n in strange.most_common(NAMED))
        raise UnreadableModel(
            f"its graph has operators that are not known here: {told}; export the net in eval mode "
            "for inference alone, or save its weights as safetensors",
            rule="FS009",
        )
    given = {graph.entry, *constants}
    for step in graph.operations:
        lost = next((name for name in step.inputs if name and name not in given), None)
        new = step.outputs and given.isdisjoint(step.outputs)
        if lost is not None or not new:
            what = f"reads {shown(lost)!r}, which nothing gives" if lost else "gives no new value"
            raise UnreadableModel(f"its graph is damaged: {shown(step.op)} {what}", rule="FS003")
        given |= {name for name in step.outputs if name}
    if not graph.exits or not given.issuperset(graph.exits):
        raise UnreadableModel("its graph does not give what it says it returns", rule="FS003")


def choosing(graph: Graph) -> tuple[str, ...]:
    """Name, in words, the operations that choose by what an image shows; empty if there are none.

    A classifier needs none: a branch that asks whether something is there is how a backdoor is
    built into a graph without a trace in its weights.

    Example:
        >>> steps = (Operation("Greater", "is it there", ("x", "c"), ("y",)),)
        >>> choosing(Graph(steps, "x", (0, 3, 8, 8), ("y",)))[0][:65]
        'its graph chooses by what an image shows: Greater (is it there); '
    """
    found = [
        f"{step.op} ({shown(step.name, 60)})" if step.name else step.op for step in _tests(graph)
    ]
    if not found:
        return ()
    told = ", ".join(found[:4]) + ", ..." * (len(found) > 4)
    return (
        f"its graph chooses by what an image shows: {told}; few classifiers do, and a backdoor can "
        "be built into a graph that way, so look at these operations",
    )


def _tests(graph: Graph) -> Iterator[Operation]:
    """Yield the operations that test the image, or what is made of it."""
    seen = {graph.entry}
    for step in graph.operations:
        asked = step.inputs[:1] if step.op == "Where" else step.inputs
        if step.op in _TESTS and seen.intersection(asked):
            yield step
        if seen.intersection(step.inputs) and step.op not in _ANSWERS:
            seen.update(filter(None, step.outputs))
