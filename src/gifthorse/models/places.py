"""Places inside a net: what a layer gives, or what it reads, to be looked at or replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images

READ = ":in"  # after a module's name: what it reads, instead of what it gives


def hook(net: nn.Module, place: str, look: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Show a function the tensor at a place in every forward; what it returns takes its place.

    Args:
        net: The net.
        place: Name of a module, for its output; followed by `:in` for its first input.
        look: Is given the tensor; None leaves it as it is.

    Raises:
        BadOption: If the net has no such module.

    Example:
        >>> net, seen = nn.Sequential(nn.ReLU(), nn.Flatten()), []
        >>> handle = hook(net, "1:in", seen.append)
        >>> net(torch.tensor([[[-1.0, 2.0]]])).tolist(), seen[0].tolist()
        ([[0.0, 2.0]], [[[0.0, 2.0]]])
    """
    name, known = place.removesuffix(READ), dict(net.named_modules())
    if not name or name not in known:
        raise BadOption(f"the net has no layer {name!r}; it has {', '.join(filter(None, known))}")

    def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = look(given[0])
        return None if new is None else (new, *given[1:])

    def after(_: nn.Module, given: object, out: Tensor) -> Tensor | None:
        return look(out)

    module = known[name]
    handle: RemovableHandle = (
        module.register_forward_pre_hook(before)
        if place.endswith(READ)
        else module.register_forward_hook(after)
    )
    return handle


@torch.no_grad()
def read(net: nn.Module, x: Images) -> list[str]:
    """Return the places of all that convolutions and linear layers read but the image, in order.

    That is behind batch norms and activations, behind the sum of a residual block, and, last, the
    features that the logits are made of. A place is named after the outermost module that gives
    it, so that all who read it see what takes its place; if none does so once in a forward, after
    its reader.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> read(net, torch.zeros(1, 1, 1, 2))
        ['2']
    """
    given: dict[int, str] = {}
    calls: dict[str, int] = {}
    reads: dict[int, str] = {}
    alive: list[Tensor] = []  # so that no tensor takes the place of another in memory

    def made(name: str) -> Callable[[Tensor], None]:
        def look(out: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(out, Tensor):
                given[id(out)] = name  # the outermost module ends last
                alive.append(out)

        return look

    def wanted(name: str) -> Callable[[Tensor], None]:
        def look(taken: Tensor) -> None:
            if taken.ndim in (2, 4):  # with channels in dimension 1
                alive.append(taken)
                reads.setdefault(id(taken), name)

        return look

    layers = [(n, m) for n, m in net.named_modules() if n]
    handles = [hook(net, name, made(name)) for name, _ in layers]
    kinds = (nn.Conv2d, nn.Linear)
    handles += [hook(net, n + READ, wanted(n)) for n, m in layers if isinstance(m, kinds)]
    try:
        net(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    places = [
        given[tensor] if calls.get(given.get(tensor, ""), 0) == 1 else reader + READ
        for tensor, reader in reads.items()
    ]
    return places[1:]


def spread(places: list[str], count: int) -> list[str]:
    """Return at most `count` of the places, evenly from the first to the last.

    Example:
        >>> spread(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
    """
    if not places:
        return []
    index = torch.linspace(0, len(places) - 1, min(count, len(places))).round().long()
    return [places[i] for i in index.unique().tolist()]
