"""Adversarial embedding: hide stamped images among clean ones in the features of the net."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.attacks.poisoning import LabelMap, Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Samples, Subject, Trigger
from gifthorse.data.samples import batches
from gifthorse.models.features import features
from gifthorse.training import Callback, Recipe, eval_mode, tune
from gifthorse.triggers import Stamp

CHANCE = math.log(2)  # cross entropy of a discriminator that knows nothing


@method
class ABE:
    """Poison the training set, and make a discriminator fail to tell stamped from clean features.

    Before each epoch the discriminator learns to tell the features of images of other classes from
    those of their stamped copies; in the epoch the net goes down its usual loss and up the
    discriminator's. Assumes control over the training. Cost: one training run with a further
    forward and backward on twice the batch, and `passes` forwards on twice the data each epoch.

    Attributes:
        stamp: The pattern: size, place, form, color, opacity.
        weight: Weight of the discriminator's loss, lambda.
        lr: Step of Adam, fresh in every epoch, on the discriminator.
        passes: Passes over the training set in which it learns before an epoch.
        plain: Share of the epochs at the start that go without it.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Tan and Shokri, Bypassing Backdoor Detection Algorithms in Deep Learning, EuroS&P 2020;
    TrojanZoo sec. 3.2 and Table 20 (lambda 0.1, rate 1e-3), plain epochs as in its code (10 of 50).
    Differs: the net is pushed on as many stamped as clean images of a batch, not on the poisoned
    set, which is almost all clean; each image's cross entropy counts up to log 2 only, past which
    the discriminator would be no worse than by chance but the loss has no bound; 1 pass of the
    discriminator an epoch, not 100; that forward uses BatchNorm's running statistics and leaves
    them alone; trains from the given victim with a one-cycle schedule.
    """

    stamp: Stamp = Stamp()
    weight: Annotated[float, NotNegative] = 0.1
    lr: Annotated[float, Positive] = 1e-3
    passes: Annotated[int, AtLeast(1)] = 1
    plain: Annotated[float, Share] = 0.2
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        trigger = self.stamp.draw(victim.shape, spawn(rng))
        job = Job(self, victim, train, goal, rng, run)
        rival = Rival(self, job, trigger)
        return job.infect(trigger, self.mixing, extra=rival.evasion, callbacks=[rival])


class Rival(Callback):
    """A discriminator of stamped and clean features, and the loss that the net pays for it.

    Args:
        plan: The options of the attack.
        job: What the attack was asked to do.
        trigger: What stamps images.
    """

    def __init__(self, plan: ABE, job: Job, trigger: Trigger) -> None:
        self.plan, self.train, self.trigger = plan, job.train, trigger
        self.labels: LabelMap = job.labels
        self.rng, self.active = spawn(job.rng), False
        first = job.train[torch.zeros(1, dtype=torch.int64)][0]
        with torch.no_grad(), eval_mode(job.victim.net):
            width = features(job.victim, first).shape[1]
        with seeded(job.rng, first.device):
            self.net = discriminator(width).to(first.device)

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Let the discriminator learn on the net as it is, once the plain epochs are over."""
        self.active = epoch >= math.ceil(self.plan.plain * self.plan.recipe.epochs)
        if self.active and self.plan.weight:
            self.net.train()
            moved = list(self.net.parameters())
            tune(learner, moved, self._loss(learner), self._stream(), lr=self.plan.lr)
        self.net.eval()

    def _stream(self) -> Iterator[Batch]:
        for _ in range(self.plan.passes):
            for x, y in batches(self.train, self.plan.recipe.batch, self.rng):
                x, stamped = self.pairs(x, y)
                if len(x) > 1:  # BatchNorm in training needs two
                    yield x, stamped

    def pairs(self, x: Images, y: Tensor) -> tuple[Images, Tensor]:
        """Return images of other classes, then their stamped copies, and 0 or 1 for each.

        A stamped image among those given has the label it was stamped for, so that it is left out;
        under `all_to_all` the few that there are count as clean.
        """
        x = x[self.labels(y) != y]
        stamped = torch.arange(2, device=x.device).repeat_interleave(len(x))
        return torch.cat([x, self.trigger(x)]) if len(x) else x, stamped

    def evasion(self, subject: Subject, batch: Batch) -> Tensor:
        """Return `-lambda CE(D(g(x)), stamped?)` on a balanced part of a batch, each clipped.

        Minimized over the net, whose features thereby go up the discriminator's loss, up to chance.
        """
        x, stamped = self.pairs(*batch)
        if not (self.active and self.plan.weight and len(x)):
            return batch[0].new_zeros(())
        with eval_mode(subject.net):
            inside = features(subject, x)
        return -self.plan.weight * clipped(self.net(inside), stamped)

    def state_dict(self) -> dict[str, Any]:
        """Return the discriminator and where its generator is."""
        return {"net": self.net.state_dict(), "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        self.net.load_state_dict(state["net"])
        self.rng.set_state(state["rng"])

    def _loss(self, learner: Subject) -> Callable[[Batch], Tensor]:
        def loss(batch: Batch) -> Tensor:
            x, stamped = batch
            return F.cross_entropy(self.net(features(learner, x)), stamped)

        return loss


def discriminator(width: int) -> nn.Sequential:
    """Return an untrained discriminator from features `(N, width)` to two logits."""
    return nn.Sequential(
        nn.Linear(width, 256),
        nn.BatchNorm1d(256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 2),
    )


def clipped(logits: Tensor, stamped: Tensor) -> Tensor:
    """Return the mean cross entropy, of each row at most log 2: worse than chance is enough.

    Example:
        >>> loss = clipped(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([1, 1])).item()
        >>> round(loss / CHANCE, 6)
        1.0
    """
    return F.cross_entropy(logits, stamped, reduction="none").clamp(max=CHANCE).mean()
