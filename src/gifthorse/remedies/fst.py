"""Feature shift tuning: learn the last layer anew, away from where it was."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Samples, Subject
from gifthorse.models.features import head
from gifthorse.training import BatchLoss, Callback, Recipe, fit, usual_loss


@method
class FST:
    """Fine-tune from a new last layer that is pushed away from the old one.

    Plain fine-tuning keeps the features that the trigger wakes, since the last layer already
    separates clean images by them. With another last layer of the same length they must shift.
    Cost: `recipe.epochs` passes over the clean images.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        weight: How much the inner product of the new and the old last layer counts. The paper takes
            0.1 for CIFAR-10 and 0.001 for GTSRB and Tiny ImageNet.
        recipe: How the net is tuned.

    Source: Min et al., Towards Stable Backdoor Purification through Feature Shift Tuning, NeurIPS
    2023, eq. 3 and algorithm 1. Differs: the length of the last layer is set back before and after
    every epoch; Nesterov momentum.
    """

    weight: Annotated[float, NotNegative] = 0.1
    recipe: Recipe = Recipe(epochs=10, lr=0.01, schedule="constant", decay=0.0)

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net.

        An interrupted training goes on from what the run kept of it.

        Raises:
            NotApplicable: If the net has no last layer.
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        start = replace(subject, net=deepcopy(subject.net))
        old = _last(subject).detach().clone()
        with torch.no_grad():
            _last(start).copy_(torch.randn(old.shape, generator=rng).to(old))
        same = _Length(float(old.norm()))
        same.set_back(start)
        return fit(start, clean, self.recipe, rng, run, loss=self.loss(old), callbacks=[same])

    def loss(self, old: Tensor) -> BatchLoss:
        """Return the usual loss plus `weight` times the inner product with the old last layer."""
        plain = usual_loss(self.recipe)

        def loss(learner: Subject, batch: Batch) -> Tensor:
            return plain(learner, batch) + self.weight * (_last(learner) * old).sum()

        return loss


class _Length(Callback):
    """Keeps the last layer at its length."""

    def __init__(self, length: float) -> None:
        self.length = length

    def set_back(self, learner: Subject) -> None:
        weight = _last(learner)
        with torch.no_grad():
            weight.mul_(self.length / weight.norm().clamp_min(1e-12))

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Set the length back before an epoch."""
        self.set_back(learner)

    def on_epoch_end(self, learner: Subject, epoch: int) -> None:
        """Set the length back after it."""
        self.set_back(learner)


def _last(subject: Subject) -> Tensor:
    weight: Tensor = subject.net.get_submodule(head(subject.net)).weight  # type: ignore[assignment]
    return weight
