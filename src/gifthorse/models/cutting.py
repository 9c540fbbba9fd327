"""A net in two halves: what comes in the middle, and what the rest makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.types import Images, Logits, Shape
from gifthorse.models.outputs import agree

TRIED = 24  # places to cut that are tried, nearest to the middle first
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True, eq=False)
class Cut:
    """A place in a net that everything goes through.

    Attributes:
        net: The whole net.
        name: The module whose output is in the middle.
        shape: Of that output, without the batch.
        positive: Whether no value of it is below 0, as after a ReLU.
        depth: Share of the layers with weights that come before it, in (0, 1).
        image: One image that the first half is run on, to no effect.
    """

    net: nn.Module
    name: str
    shape: tuple[int, ...]
    positive: bool
    depth: float
    image: Images

    def __call__(self, inside: Tensor) -> Logits:
        """Return the logits `(N, K)` that the second half gives for `(N, *shape)`."""
        return _through(self.net, self.name, inside, self.image.expand(len(inside), -1, -1, -1))


def halfway(net: nn.Module, shape: Shape) -> Cut:
    """Return the cut of a net that is nearest to half of its layers.

    A module counts that is called once and gives one tensor, and past which nothing goes: with its
    output for one image put in, the net says of another image what it says of the first. Of two as
    near, one whose output is never negative is taken.

    Args:
        net: In evaluation mode.
        shape: Channels, height and width of its images.

    Raises:
        NotApplicable: If there is none, as of a net with one layer.
    """
    device = next((t.device for t in net.parameters()), torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, *shape, generator=noise).to(device) for _ in range(2))
    with torch.no_grad():
        said, rows = _walk(net, one)
        total = max((depth for _, depth, _ in rows), default=0)
        rows = [row for row in rows if 0 < row[1] < total]
        rows.sort(key=lambda row: (abs(2 * row[1] - total), bool((row[2] < 0).any())))
        for name, depth, inside in rows[:TRIED]:
            if agree(said, _through(net, name, inside, other)):
                positive = not bool((inside < 0).any())
                size = tuple(inside.shape[1:])
                return Cut(net, name, size, positive, depth / total, other[:1])
    raise NotApplicable("the net cannot be cut in two: nothing in it is passed by everything")


def _walk(net: nn.Module, x: Images) -> tuple[Logits, list[tuple[str, int, Tensor]]]:
    """Return logits, and each module called once, with the layers before it and its output."""
    depth, calls, rows = 0, Counter[str](), list[tuple[str, int, Tensor]]()

    def seen(name: str, module: nn.Module, out: object) -> None:
        nonlocal depth
        depth += isinstance(module, WEIGHTED)
        calls[name] += 1
        if isinstance(out, Tensor) and out.ndim > 1 and len(out) == len(x):
            rows.append((name, depth, out.detach().clone()))

    hooks = [
        module.register_forward_hook(lambda m, _, out, name=name: seen(name, m, out))
        for name, module in net.named_modules()
        if name
    ]
    try:
        said: Logits = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return said, [row for row in rows if calls[row[0]] == 1]


def _through(net: nn.Module, name: str, inside: Tensor, x: Images) -> Logits:
    """Return what a net says of images if a module in it gives this instead."""
    hook = net.get_submodule(name).register_forward_hook(lambda *_: inside)
    try:
        out: Logits = net(x)
    finally:
        hook.remove()
    return out
