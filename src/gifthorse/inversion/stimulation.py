"""Force single neurons up and see which class that speaks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gifthorse.core.types import Images, Labels, Logits
from gifthorse.models.places import hook


@dataclass(frozen=True)
class SuspectNeuron:
    """A neuron that raises one class on nearly all images.

    Attributes:
        neuron: Channel of the layer's output.
        label: The class it raises.
        score: Least lead, in logits, over the class that comes second, among the images that agree.
    """

    neuron: int
    label: int
    score: float


def few(x: Images, y: Labels, each: int) -> tuple[Images, Labels]:
    """Return the first `each` images of every class.

    Example:
        >>> few(torch.zeros(5, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1]), 2)[1].tolist()
        [0, 0, 1, 1]
    """
    rows = [(y == label).nonzero().flatten()[:each] for label in y.unique().tolist()]
    chosen = torch.cat(rows)
    return x[chosen], y[chosen]


@torch.no_grad()
def stimulate(
    net: nn.Module,
    place: str,
    x: Images,
    y: Labels,
    *,
    samples: int = 5,
    reach: float = 8.0,
    share: float = 0.75,
    chunk: int = 1024,
) -> tuple[list[SuspectNeuron], float]:
    """Return the suspects at a place, strongest first, and the image-steps that took.

    Every channel is set to `samples` constants, from 0 to nearly `reach` times the place's largest
    value. An image's elevation of a class is the most that the class's logit rises above its
    value at 0; the image speaks for the class of highest elevation, its own left out.

    Args:
        net: A frozen net on raw images.
        place: Where channels are held, as `models.places` names it; they are in dimension 1.
        x: Clean images, `(N, C, H, W)`.
        y: Their labels, `(N,)`.
        samples: Values that a channel is forced to.
        reach: Scale of the values.
        share: Least share of images that must speak for the same class.
        chunk: Most images in one forward.

    Source: Liu et al., ABS, CCS 2019, secs. 4.1 and 4.2, constants of TrojanZoo.
    """
    seen: list[Tensor] = []
    handle = hook(net, place, seen.append)
    net(x)
    handle.remove()
    channels, top = seen[0].shape[1], seen[0].max().item()
    n, found = len(x), []
    together = max(1, chunk // n)
    for some in torch.arange(channels).split(together):
        logits = torch.stack(
            [
                _forced(net, place, x, some, reach * k * top / samples).view(len(some), n, -1)
                for k in range(samples)
            ]
        )
        elevation = logits[1:].amax(0) - logits[0]  # (c, N, K)
        found += _agreeing(elevation, y, some, share)
    work = 0.5 * n * (1 + channels * samples)
    return sorted(found, key=lambda s: -s.score), work


def _forced(net: nn.Module, place: str, x: Images, some: Tensor, value: float) -> Logits:
    """Return logits `(c * N, K)` with one channel a copy of the images held at a value."""

    def hold(out: Tensor) -> Tensor:
        held = out.clone().unflatten(0, (len(some), len(x)))
        held[torch.arange(len(some)), :, some] = value
        forced: Tensor = held.flatten(0, 1)
        return forced

    handle = hook(net, place, hold)
    try:
        logits: Tensor = net(x.repeat(len(some), 1, 1, 1))
    finally:
        handle.remove()
    return logits


def _agreeing(elevation: Tensor, y: Labels, some: Tensor, share: float) -> list[SuspectNeuron]:
    """Return the channels whose images agree on a class, from elevations `(c, N, K)`."""
    own = nn.functional.one_hot(y, elevation.shape[-1]).bool()
    ranked = elevation.masked_fill(own, -torch.inf).topk(2, dim=-1)
    best, lead = ranked.indices[..., 0], ranked.values[..., 0] - ranked.values[..., 1]
    out = []
    for row, neuron in enumerate(some.tolist()):
        label = int(best[row].mode().values)
        agree = best[row] == label
        # Images of the class itself cannot speak for it.
        if agree.sum() >= share * (y != label).sum() and (lead[row][agree] > 0).all():
            out.append(SuspectNeuron(neuron, label, lead[row][agree].min().item()))
    return out
