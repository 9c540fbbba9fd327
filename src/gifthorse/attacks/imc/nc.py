"""What IMC adds to be hard to see, and to hide from Neural Cleanse: a small or a faint mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import NotNegative, OpenShare, method
from gifthorse.core.types import Implant, Labels, Logits
from gifthorse.search import CostController
from gifthorse.triggers import Learned, Patch, Stamp
from gifthorse.triggers.learned import Opacity


@method
class Fidelity:
    """How hard a trigger is to see: at a wanted confidence, as faint or as small as can be.

    A small mask is what Neural Cleanse looks for; the net has to change less for a mask that is
    optimized with it, and only measuring tells whether that hides it.

    Attributes:
        opacity: `fixed` as the stamp has it, one free number for all pixels (`shared`), or one for
            each (`free`).
        weight: Weight of the mean opacity at the start, where it is free.
        patience: Steps in a row on one side of the wanted confidence after which the weight is
            multiplied or divided by 1.5; 0 holds it.
        efficacy: Wanted mean confidence in the target, of stamped training images.
        shrink: Whether to look for the smallest square that reaches it: one attack for each side
            tried, by bisection from the stamp's size down.

    Source: Pang et al., IMC, CCS 2020, eq. 15 and secs. 5.2 and 5.3.2. Differs: the mask's norm
    counts as mean opacity with an adaptive weight (the paper multiplies it by the number of
    pixels); the paper does not say how it optimizes size.
    """

    opacity: Opacity = "fixed"
    weight: Annotated[float, NotNegative] = 1.0
    patience: Annotated[int, NotNegative] = 5
    efficacy: Annotated[float, OpenShare] = 0.95
    shrink: bool = False


class Price:
    """The weight of opacity: raised while the net is sure of stamped images, lowered while not."""

    def __init__(self, fidelity: Fidelity) -> None:
        self.fidelity = fidelity
        self.cost = CostController.fixed(1, fidelity.weight)
        if fidelity.patience:
            self.cost = CostController.start(
                1, initial=fidelity.weight, patience=fidelity.patience, up=1.5, down=1.5
            )

    def of(self, learned: Learned, logits: Logits, wanted: Labels) -> Tensor:
        """Return the weighted mean opacity, after one look at what the net says of a batch."""
        if self.fidelity.opacity == "fixed":
            return logits.new_zeros(())
        ok = confidence(logits.detach(), wanted) >= self.fidelity.efficacy
        self.cost = self.cost.after(torch.tensor([ok]), torch.zeros(1, dtype=torch.int64))
        dense = learned.mask.sum() / learned.support.sum()
        return self.cost.weight[0].to(logits) * dense.to(logits)

    def state_dict(self) -> dict[str, Any]:
        """Return where the weight is."""
        return self.cost.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the weight there."""
        self.cost = self.cost.restored(state)


def confidence(logits: Logits, wanted: Labels) -> float:
    """Return the mean probability of the wanted classes: an attack's efficacy.

    Example:
        >>> confidence(torch.tensor([[9.0, 9.0], [0.0, 99.0]]), torch.tensor([0, 1]))
        0.75
    """
    return logits.softmax(1).gather(1, wanted[:, None]).mean().item()


def smallest(
    attempt: Callable[[Patch, int], tuple[Implant, float]],
    stamp: Stamp,
    start: Patch,
    rng: Generator,
    efficacy: float,
) -> Implant:
    """Return the implant with the smallest square whose confidence is high enough, by bisection.

    Args:
        attempt: Attacks with a trigger of a size; returns the implant and its confidence.
        stamp: The square to try first; smaller ones have the colors of the last one that did.
        start: The trigger that it makes.
        rng: Where the place of a smaller square is drawn from, if it is drawn.
        efficacy: Confidence that is enough; if the first has less, it is returned.
    """
    c, h, w = start.pattern.shape
    best, sure = attempt(start, stamp.size)
    low, high = 0 if sure >= efficacy else stamp.size, stamp.size
    while high - low > 1:
        side = (low + high) // 2
        square = replace(stamp, size=side).fixed((c, h, w), rng)
        made, sure = attempt(middle(Patch(*best.trigger.render()), square), side)
        if sure >= efficacy:
            best, high = made, side
        else:
            low = side
    return best


def middle(large: Patch, small: Patch) -> Patch:
    """Return a smaller square with the colors from the middle of a larger one."""
    (top, left), side = _corner(large)
    (y, x), n = _corner(small)
    k = (side - n) // 2
    pattern = torch.zeros_like(small.pattern)
    pattern[:, y : y + n, x : x + n] = large.pattern[
        :, top + k : top + k + n, left + k : left + k + n
    ]
    return Patch(pattern, small.mask)


def _corner(square: Patch) -> tuple[tuple[int, int], int]:
    """Return top and left of a square, and its side."""
    places = square.mask[0].nonzero()
    top, left = places.amin(0).tolist()
    return (top, left), int(places[:, 0].max()) - top + 1
