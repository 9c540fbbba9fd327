"""Ends a training before it costs more accuracy than allowed."""

from __future__ import annotations

import logging
from typing import Any

import torch

from gifthorse.data.samples import batches
from gifthorse.metrics import accuracy
from gifthorse.training import Company, evaluate, settled
from gifthorse.types import Samples, Subject

log = logging.getLogger("gifthorse")


class Guard(Company):
    """Watches accuracy on held-out images, and undoes the epoch that loses too much.

    Args:
        held: Images that the training does not see.
        drop: Accuracy that may be lost on them since the first epoch began, in [0, 1].
    """

    def __init__(self, held: Samples, drop: float) -> None:
        self.held, self.drop = held, drop
        self.labels = torch.cat([y for _, y in batches(held, 1024)])
        self.least: float | None = None
        self.over = False

    def before(self, learner: Subject, epoch: int) -> None:
        """Remember the weights that are within the bound."""
        if self.least is None:
            self.least = self._right(learner) - self.drop
        self.kept = {name: v.clone() for name, v in learner.net.state_dict().items()}

    def after(self, learner: Subject, epoch: int) -> None:
        """Go back to them if this epoch cost too much."""
        right = self._right(learner)
        if self.least is None or right >= self.least - 1e-9:
            return
        learner.net.load_state_dict(self.kept)
        self.over = True
        words = "the net is unchanged: lower recipe.lr" if epoch == 0 else "that epoch is undone"
        log.warning("accuracy %.3f after epoch %d is too low; %s", right, epoch + 1, words)

    def enough(self) -> bool:
        """Whether the bound was passed."""
        return self.over

    def state_dict(self) -> dict[str, Any]:
        """Return the bound and whether it was passed."""
        return {"least": self.least, "over": self.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.least, self.over = state["least"], state["over"]

    def _right(self, learner: Subject) -> float:
        with settled(learner.net):
            return accuracy(evaluate(learner, self.held), self.labels).value
