"""Ends a training before it costs more accuracy than allowed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gifthorse.core.metrics import accuracy
from gifthorse.core.types import Samples, Subject
from gifthorse.data.samples import labels_of
from gifthorse.training import Callback, Recipe, eval_mode, evaluate

FALL = 1 / 3  # of the rate, after an epoch that cost too much

log = logging.getLogger("gifthorse")


class AccuracyGuard(Callback):
    """Watches accuracy on held-out images, and undoes the epoch that loses too much.

    Args:
        held: Images that the training does not see.
        drop: Accuracy that may be lost on them since the first epoch began, in [0, 1].

    Attributes:
        over: Whether the bound was passed.
        good: Epochs within it, of all trainings watched.
    """

    def __init__(self, held: Samples, drop: float) -> None:
        self.held, self.drop = held, drop
        self.labels = labels_of(held)
        self.least: float | None = None
        self.over, self.good = False, 0

    def courses(self, recipe: Recipe, falls: int) -> Iterator[Recipe]:
        """Yield recipes for trainings to watch: one, and others for what is left if it went over.

        Args:
            recipe: Its epochs are the most that are kept.
            falls: How many others there may be, each at a third of the rate of the one before.
        """
        for fall in range(falls + 1):
            self.over = False
            yield replace(recipe, epochs=recipe.epochs - self.good, lr=recipe.lr * FALL**fall)
            if not self.over:
                break
        if not self.good:
            log.warning("no epoch cost less than %.3f of accuracy: the net is unchanged", self.drop)

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Remember the weights that are within the bound."""
        if self.least is None:
            self.least = self._right(learner) - self.drop
        self.kept = {name: v.clone() for name, v in learner.net.state_dict().items()}

    def on_epoch_end(self, learner: Subject, epoch: int) -> None:
        """Go back to them if this epoch cost too much."""
        right = self._right(learner)
        if self.least is None or right >= self.least - 1e-9:
            self.good += 1
            return
        learner.net.load_state_dict(self.kept)
        self.over = True
        log.info(
            "accuracy %.3f on held-out images, under %.3f: this epoch is undone", right, self.least
        )

    def should_stop(self) -> bool:
        """Whether the bound was passed."""
        return self.over

    def state_dict(self) -> dict[str, Any]:
        """Return the bound and whether it was passed."""
        return {"least": self.least, "over": self.over, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.least, self.over, self.good = state["least"], state["over"], state["good"]

    def _right(self, learner: Subject) -> float:
        with eval_mode(learner.net):
            return accuracy(evaluate(learner, self.held), self.labels).value
