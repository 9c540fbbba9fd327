"""A graph as a net of torch: its operations in order, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class GraphNet(nn.Module):
    """Runs the operations of a graph in order.

    Args:
        layers: A module an operation.
        steps: Names of its inputs and outputs, in the same order.
        entry: Name of the images.
        exits: Names of what comes out.
        order: How images `(N, C, H, W)` come to be laid out as the graph reads them; None for as
            they are.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        steps: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
        entry: str,
        exits: tuple[str, ...],
        order: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        self.entry, self.exits, self.order = entry, exits, order
        self.steps: list[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = []
        last = {name: k for k, (reads, _) in enumerate(steps) for name in reads}
        for k, ((name, layer), (reads, gives)) in enumerate(
            zip(layers.items(), steps, strict=True)
        ):
            self.add_module(name, layer)
            over = {n for n in reads if last[n] == k and n not in exits}
            self.steps.append((name, reads, gives, tuple(over)))

    def forward(self, x: Tensor) -> Any:
        """Return logits, or several outputs by name, for images `(N, C, H, W)`."""
        values = {self.entry: _laid(x, self.order)}
        for name, reads, gives, over in self.steps:
            made = getattr(self, name)(*(values[n] for n in reads))
            parts = made if isinstance(made, tuple) else (made,)
            values.update(zip(gives, parts, strict=False))
            for gone in over:
                del values[gone]
        found = {name: values[name] for name in self.exits}
        return found if len(found) > 1 else found[self.exits[0]]


class InTurns(nn.Module):
    """A net that takes so many images at a time and no others, for any number of them."""

    def __init__(self, net: nn.Module, count: int) -> None:
        super().__init__()
        self.net, self.count = net, count

    def forward(self, x: Tensor) -> Any:
        """Return what the net says of images `(N, C, H, W)`; copies fill the last turn."""
        parts = []
        for some in x.split(self.count):
            lack = self.count - len(some)
            full = torch.cat([some, some[-1:].expand(lack, -1, -1, -1)]) if lack else some
            parts.append(_rows(self.net(full), len(some)))
        if isinstance(parts[0], dict):
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return torch.cat(parts)


def _rows(made: Any, count: int) -> Any:
    return {k: v[:count] for k, v in made.items()} if isinstance(made, dict) else made[:count]


def _laid(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    if order is None:
        return x
    return x.permute(order) if len(order) == 4 else x.squeeze(1)
