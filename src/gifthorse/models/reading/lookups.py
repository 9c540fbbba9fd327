"""Attributes that a pickle looks up: `getattr(Net, "forward")` is `Net.forward`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gifthorse.models.reading.opcodes import Node, Trace

Name = tuple[str, str]

LOOKUP: Name = ("builtins", "getattr")  # how pickles write methods of classes and of objects


def looked_up(trace: Trace) -> tuple[Name, ...] | None:
    r"""Return the names that all lookups of a pickle amount to.

    Returns:
        Module and dotted name of each; None if a lookup is not of a named attribute of a class, or
        of an object of a class, that the pickle names outright.

    Example:
        >>> from io import BytesIO
        >>> from gifthorse.models.reading.opcodes import trace
        >>> looked_up(trace(BytesIO(b"cbuiltins\ngetattr\n(cnets\nNet\nS'run'\ntR.")))
        (('nets', 'Net.run'),)
        >>> looked_up(trace(BytesIO(b"cbuiltins\ngetattr\n(S'a'\nS'run'\ntR.")))
    """
    getter, named = ".".join(LOOKUP), {".".join(pair): pair for pair in trace.names}
    calls = [node for node in trace.nodes if node.callee == getter]
    if _kept(trace, getter):
        return None
    found = [_attribute(node.args, named) for node in calls]
    names = tuple(pair for pair in found if pair is not None and pair != LOOKUP)
    return names if len(names) == len(calls) else None


def _attribute(args: object, named: dict[str, Name]) -> Name | None:
    """Return the name that a lookup with these arguments amounts to; None if that is not known."""
    if not isinstance(args, tuple) or len(args) != 2 or not isinstance(args[0], Node):
        return None
    owner, attribute = args[0].name or args[0].callee, args[1]
    plain = isinstance(attribute, str) and attribute.isidentifier()
    if owner not in named or not plain or attribute.startswith("__"):
        return None
    module, name = named[owner]
    return (module, f"{name}.{attribute}") if named[owner] != LOOKUP else None


def _kept(trace: Trace, name: str) -> bool:
    """Whether a function stands anywhere but where it is called: others may call it then."""
    seen: set[int] = set()
    parts: Iterable[object] = (p for node in trace.nodes for p in _held(node))
    return any(
        isinstance(part, Node) and part.name == name
        for whole in (*parts, trace.result)
        for part in _flat(whole, seen)
    )


def _held(node: Node) -> tuple[object, ...]:
    heads = () if node.kind in ("call", "global") else (node.head,)
    return (*heads, node.args, *node.items, *node.states)


def _flat(value: object, seen: set[int]) -> Iterator[object]:
    """Yield a value, or what its tuples hold, each tuple once."""
    stack = [value]
    while stack:
        part = stack.pop()
        if not isinstance(part, tuple):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            stack.extend(part)
