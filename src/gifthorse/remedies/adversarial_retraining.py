"""Adversarial retraining: go on training, on images moved to where the net is most wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.errors import BadOption
from gifthorse.session import Ledger, fingerprint
from gifthorse.tensors import spawn
from gifthorse.training import (
    Dice,
    Player,
    Recipe,
    Together,
    charged,
    descend,
    fit,
    still,
    usual_loss,
)
from gifthorse.types import Batch, Samples, Session, Subject


@dataclass(frozen=True)
class AdversarialRetraining:
    """Train on `argmax CE(f(x + d), y)` over `|d| <= eps`, found anew for every batch.

    Assumes many clean images: with a few hundred it costs much of the accuracy. Cost: `steps` more
    passes, forward and back, for every pass of the training.

    Attributes:
        steps: Steps of projected gradient descent for each batch; 0 only adds noise within `eps`.
        size: Length of a step, on the 0-1 scale.
        eps: How far a channel of a pixel may move, on the 0-1 scale.
        recipe: How the net is trained.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018,
    sec. 2.1; TrojanZoo Table 21 (2/255, 8/255, 7 steps, learning rate 0.01, 50
    epochs). Differs: the rate falls along a cosine; from a random start, seven steps and one update
    of the net, as Madry et al. have it, where TrojanZoo's code updates the net after each step and
    once more on the clean images; the net is in evaluation mode while the images move.
    """

    steps: int = 7
    size: float = 2 / 255
    eps: float = 8 / 255
    recipe: Recipe = Recipe(epochs=50, lr=0.01, decay=2e-4, schedule="cosine")

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise BadOption(f"steps must be 0 or more; got {self.steps}")
        for name in ("size", "eps"):
            if not 0 < getattr(self, name) <= 1:
                raise BadOption(f"{name} must lie in (0, 1], like 2/255; got {getattr(self, name)}")

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        session: Session | None = None,
    ) -> Subject:
        """Return the retrained net; `subject` and `clean` stay as they were.

        An interrupted training goes on from what the session kept of it.

        Raises:
            Incomplete: If the session is over before the last epoch; what was learned is kept.
        """
        key = fingerprint(self, subject, clean, rng) if session else ""
        plain, draw = usual_loss(self.recipe), spawn(rng)

        def loss(learner: Subject, batch: Batch) -> Tensor:
            x, y = batch
            return plain(learner, (x + self.worst(learner, batch, draw), y))

        return fit(
            subject,
            clean,
            self.recipe,
            rng,
            loss=charged(loss, session, float(self.steps)),
            company=[Dice(draw)],
            ledger=Ledger(session, key) if session else None,
        )

    def worst(self, subject: Subject, batch: Batch, rng: Generator) -> Tensor:
        """Return a change `(N, C, H, W)` within `eps` that makes the net wrong more often.

        Changed images stay in [0, 1]. The net is in evaluation mode meanwhile.
        """
        x, y = batch
        low, high = (-x).clamp(min=-self.eps), (1 - x).clamp(max=self.eps)
        noise = torch.rand(x.shape, generator=rng).to(x) * 2 - 1
        change = torch.clamp(noise * self.eps, low, high).requires_grad_()

        def ease(batch: Batch) -> Tensor:
            return -F.cross_entropy(subject(x + change), y)

        def move(value: Tensor, sign: Tensor) -> Tensor:
            return torch.clamp(value - self.size * sign, low, high)

        with still(subject):
            player = Player((change,), ease, Signed([change], move))
            deque(descend([player], repeat(batch, self.steps)), maxlen=0)
        return change.detach()


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
