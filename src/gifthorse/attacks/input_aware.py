"""Input-aware dynamic backdoor: a trigger of its own for each image, worthless on the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, NotNegative, Positive, PositiveShare, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Labels, Samples, Subject
from gifthorse.training import Callback, Mix, Recipe, fit
from gifthorse.triggers.generated import Autoencoder, Generated, sharpened

EPSILON = 1e-7


@method
class Masking:
    """How the net that places triggers is trained, before everything else.

    Attributes:
        epochs: Passes over the training set.
        lr: Step of Adam; a tenth after 2/5 of the epochs, a hundredth after 4/5.
        diversity: Weight of the term that makes masks differ as their images do. The public code
            has 1, on images divided by their standard deviation: about 4 on values in [0, 1].
        density: Opacity above which a mask is penalized, in [0, 1].
        weight: Weight of the mean opacity above it.

    Source: Nguyen and Tran, NeurIPS 2020, and its public code. Differs: each image is compared with
    its neighbor in the batch, so that the net sees a batch once.
    """

    epochs: Annotated[int, AtLeast(1)] = 25
    lr: Annotated[float, Positive] = 0.01
    diversity: Annotated[float, NotNegative] = 4.0
    density: Annotated[float, Share] = 0.032
    weight: Annotated[float, NotNegative] = 100.0


@method
class InputAware:
    """Train a net and a generator of triggers that are good for one image each.

    Assumes control over the training. Cost: one training run with `1 / (1 - 2 rate)` times the
    images and a small net beside it, and before that `masking.epochs` passes of such a net.

    Attributes:
        masking: How the net that places triggers is trained.
        lr: Step of Adam for the net that paints them; it falls to a tenth after 1/3, 1/2, 2/3 and
            5/6 of the epochs.
        diversity: Weight of the term that makes patterns differ as their images do.
        opacity: Opacity of the trigger where a mask is 1.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share of stamped images, at most 0.25; only mode `batch` fits. As many carry the
            trigger of another image and keep their labels.
        recipe: How the net is trained.
        keep: Which epoch is kept, of net and generator.

    Source: Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, and its public
    code (trigger generator, diversity loss, cross-trigger mode).
    Differs: gradients of the generator are forgotten at each step (the code sums them
    up); stamped images join the batch beside their originals, where the code replaces those; other
    images come from the same batch, not from a second one, and diversity is measured among them;
    trains from the given victim with a one-cycle schedule, not 600 epochs.
    """

    masking: Masking = Masking()
    lr: Annotated[float, Positive] = 0.01
    diversity: Annotated[float, NotNegative] = 1.0
    opacity: Annotated[float, PositiveShare] = 1.0
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.1)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        if self.mixing.rate > 0.25 or self.mixing.mode != "batch":
            raise BadOption(
                "this attack adds images with triggers of others to batches: it needs mixing.rate "
                f"of at most 0.25 and mixing.mode=batch; got {self.mixing.rate} and "
                f"{self.mixing.mode}"
            )

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        job = Job(self, victim, train, goal, rng, run)
        parts = job.hold_out()
        masks, patterns = (self._net(victim, planes, rng) for planes in (1, victim.shape[0]))
        self._place(job, masks, parts[1])
        example = parts[1][torch.zeros(1, dtype=torch.long)][0][0].cpu()
        order = torch.arange(example[0].numel())
        trigger = Generated(patterns, masks, example, order, self.opacity)
        crossing = Crossing(trigger, self.recipe)
        made = job.infect(
            trigger,
            replace(self.mixing, rate=self.mixing.rate / (1 - self.mixing.rate)),
            extra=lambda subject, batch: self.diversity * crossing.sameness,
            wrap=crossing.wrap,
            parts=parts,
            callbacks=[Beside(patterns, self.lr, self.recipe.epochs, (1 / 3, 1 / 2, 2 / 3, 5 / 6))],
        )
        for net in (patterns, masks):
            net.eval().requires_grad_(False).cpu()
        return made

    def _net(self, victim: Subject, planes: int, rng: Generator) -> Autoencoder:
        with seeded(rng):
            net = Autoencoder.fitting(victim.shape, planes)
        return net.eval().to(victim.device)

    def _place(self, job: Job, masks: nn.Module, train: Samples) -> None:
        """Train the net that places triggers: masks that are small, and differ as images do."""
        wanted = self.masking

        def loss(subject: Subject, batch: Batch) -> Tensor:
            x, _ = batch
            m = sharpened(masks(x).to(x.dtype))
            dense = F.relu(m - wanted.density).mean()
            return wanted.diversity * sameness(x, m) + wanted.weight * dense

        # The classifier only waits: what moves is the net that joins.
        recipe = replace(self.recipe, epochs=wanted.epochs, schedule="constant")
        beside = Beside(masks, wanted.lr, wanted.epochs, (2 / 5, 4 / 5))
        run, draw = job.checkpoint("masks"), spawn(job.rng)
        masks.train()
        fit(job.victim, train, recipe, draw, loss=loss, callbacks=[beside], run=run)
        masks.eval().requires_grad_(False)


class Beside(Callback):
    """A net that trains beside the classifier, by Adam.

    Args:
        net: It is moved in place.
        lr: First step.
        epochs: How many there are.
        drops: Shares of the epochs after which the step falls to a tenth.
    """

    def __init__(self, net: nn.Module, lr: float, epochs: int, drops: Sequence[float]) -> None:
        self.net, self.lr = net, lr
        self.drops = [round(share * epochs) for share in drops]
        self.optimizer = Adam(net.parameters(), lr, (0.5, 0.9))

    def extra_optimizers(self, learner: Subject) -> list[Adam]:
        """Return the optimizer."""
        return [self.optimizer]

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Set the step of the epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * 0.1 ** sum(epoch >= drop for drop in self.drops)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the net."""
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the weights of the net."""
        self.net.load_state_dict(state)


class Crossing:
    """Batches in which triggers go with their images, and others in which they do not.

    The net that paints is in training mode only while it paints for a batch.

    Args:
        trigger: Its `patterns` are trained; its `masks` stay.
        recipe: Says in which precision.
    """

    def __init__(self, trigger: Generated, recipe: Recipe) -> None:
        self.trigger, self.recipe, self.sameness = trigger, recipe, torch.zeros(())

    def wrap(self, mix: Mix) -> Mix:
        """Return a mix that adds as many images with triggers of others as `mix` stamps.

        They keep their labels. How much the patterns are the same is left in `sameness`.
        """

        def mixed(x: Images, y: Labels, index: Tensor) -> Batch:
            self.trigger.patterns.train()
            with self.recipe.precision(x.device):  # training does not see to what mixes batches
                made = self._crossed(*mix(x, y, index), x, y)
            self.trigger.patterns.eval()
            return made

        return mixed

    def _crossed(self, images: Images, labels: Labels, x: Images, y: Labels) -> Batch:
        n = len(images) - len(x)
        self.sameness = x.new_zeros(())
        if not n:
            return images, labels
        bearers = (torch.arange(n) + n) % len(x)
        others = (bearers[0] + (n % len(x) or 1) + torch.arange(max(n, 2))) % len(x)
        donors = x[others]
        patterns, masks = self.trigger.pattern(donors), self.trigger.mask(donors)
        self.sameness = sameness(donors, patterns)
        crossed = torch.lerp(x[bearers], patterns[:n], masks[:n])
        return torch.cat([images, crossed]), torch.cat([labels, y[bearers]])


def sameness(x: Images, made: Tensor) -> Tensor:
    """Return how far images lie apart beside what was made for them, the mean over neighbors.

    Args:
        x: `(N, C, H, W)`; each is compared with the one before, the first with the last.
        made: Patterns or masks, `(N, c, H, W)`.

    Source: Input-Aware Dynamic, diversity loss; distances are root mean squares.
    """
    return (_apart(x) / (_apart(made) + EPSILON)).mean()


def _apart(planes: Tensor) -> Tensor:
    gap = (planes - planes.roll(1, 0)).flatten(1)
    length: Tensor = torch.linalg.vector_norm(gap, dim=1)  # its slope is 0, not nan, at 0
    return length / math.sqrt(gap.shape[1])
