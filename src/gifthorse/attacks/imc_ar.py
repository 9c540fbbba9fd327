"""What IMC adds to survive adversarial retraining: adversarial images in place of clean ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.errors import BadOption
from gifthorse.training import Player, Together, descend, still
from gifthorse.types import Batch, Images, Subject


@dataclass(frozen=True)
class AgainstAR:
    """Train on adversarial images in place of clean ones, beside the stamped ones.

    Attributes:
        steps: Steps of projected gradient descent for each batch; 0 turns it off, TrojanZoo uses 7.
        size: Length of a step, on the 0-1 scale.
        radius: How far a pixel may move.

    Source: TrojanZoo sec. 6.3 (IMC adapted to AR); Madry et al., ICLR 2018. Differs: one step of
    the net a batch, not one for each step of the images; the net is in evaluation mode while the
    images move.
    """

    steps: int = 0
    size: float = 2 / 255
    radius: float = 8 / 255

    def __post_init__(self) -> None:
        if self.steps < 0 or self.size <= 0 or self.radius <= 0:
            raise BadOption(
                "ar.steps must be at least 0, ar.size and ar.radius positive; got "
                f"{self.steps}, {self.size}, {self.radius}"
            )

    def moved(self, subject: Subject, clean: Batch, rng: Generator) -> Images:
        """Return images within `radius` of clean ones that the net gets wrong more often."""
        x, y = clean
        noise = torch.rand(x.shape, generator=rng).to(x)
        change = ((2 * noise - 1) * self.radius).requires_grad_()

        def gain(_: Batch) -> Tensor:
            return -F.cross_entropy(subject((x + change).clamp(0, 1)), y)

        def move(value: Tensor, sign: Tensor) -> Tensor:
            return (value - self.size * sign).clamp(-self.radius, self.radius)

        with still(subject):
            player = Player((change,), gain, Signed([change], move))
            deque(descend([player], repeat(clean, self.steps)), maxlen=0)
        return (x + change.detach()).clamp(0, 1)


class Signed(Together):
    """An optimizer that knows only the signs of gradients.

    Args:
        variables: What moves, in place.
        move: Returns the new value for a value and the signs of its gradient.
    """

    def __init__(
        self, variables: Sequence[Tensor], move: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(())
        self.variables, self.move = variables, move

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for v in self.variables:
            v.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move all variables."""
        for v in self.variables:
            if v.grad is not None:
                v.copy_(self.move(v, v.grad.sign()))
