"""Invisible backdoor: a small change of all pixels, shaped together with the net."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import LabelMap, Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Implant, Samples, Subject
from gifthorse.data.samples import Subset, batches, labels_of
from gifthorse.training import Callback, Recipe, frozen_eval, tune
from gifthorse.triggers import Additive

LOOK = 2000  # training images that a radius is judged by
RISE = 1.1  # factor by which the weight of size follows success, batch by batch


@method
class Invisible:
    """Poison with an additive change inside an L2 ball, which is shaped anew before each epoch.

    First the change is shaped on the given net, as small as half of the images allow; then net and
    change are trained in turn. Assumes control over the training. Cost: `start` forwards and
    backwards of a batch, and `steps` an epoch, beside each of `stages` training runs.

    Attributes:
        eps: Radius of the ball, in units of pixels in [0, 1]; 5 is meant for 3x32x32.
        start: Steps on the given net.
        steps: Steps before every further epoch.
        delta_lr: Learning rate of the change.
        stages: Training runs. More than one bisect for the smallest radius that is good enough:
            from `eps` down, or doubled until it is.
        success: Least share of other images sent to the target that is good enough.
        max_drop: Most that the share of right answers may fall below the best one seen.
        labels: `all_to_one` (or source to target, if the goal has a source), `all_to_all` or
            `clean_label`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained; its batch is that of the steps, too.
        keep: Which epoch is kept.

    Source: the universal L2 perturbation that PixelBackdoor's appendix L.2 sets up after Li et al.,
    Invisible Backdoor Attacks on Deep Neural Networks via Steganography and Regularization,
    TDSC 2020.
    Differs: neither paper's constants are known; no neurons are amplified; projection onto a ball
    in place of a penalty while training; radii are judged by training images.
    """

    eps: Annotated[float, Positive] = 5.0
    start: Annotated[int, NotNegative] = 500
    steps: Annotated[int, NotNegative] = 20
    delta_lr: Annotated[float, Positive] = 0.01
    stages: Annotated[int, AtLeast(1)] = 1
    success: Annotated[float, Share] = 0.99
    max_drop: Annotated[float, Share] = 0.02
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.1)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        job = Job(self, victim, train, goal, rng, run)
        few = Subset(job.train, torch.randperm(len(train), generator=spawn(rng))[:LOOK])
        nothing = Implant(victim, Additive(torch.zeros(victim.shape)), goal)
        low, high, radius = 0.0, math.inf, self.eps
        best, known = nothing, figures(nothing, few, job.labels)[1]
        for stage in range(self.stages):
            made = self._within(job, radius, f"radius {stage}")
            success, right = figures(made, few, job.labels)
            known = max(known, right)
            if success >= self.success and right >= known - self.max_drop:
                best, high = made, radius
            else:
                low = radius
                best = made if high == math.inf else best
            radius = 2 * low if high == math.inf else (low + high) / 2
        return best

    def _within(self, job: Job, radius: float, stage: str) -> Implant:
        parts = job.hold_out()
        callback = PerturbationCallback(self, job.labels, parts[1], radius, spawn(job.rng))
        made = job.infect(
            callback.trigger, self.mixing, parts=parts, callbacks=[callback], stage=stage
        )
        return replace(made, trigger=Additive(callback.trigger.delta.clone()))


class PerturbationCallback(Callback):
    """An additive change that goes down the backdoor's loss before each epoch, inside a ball.

    Args:
        plan: How many steps, and how long.
        labels: What stamped images are to become.
        train: Clean images to shape it on.
        radius: Most that its L2 norm may be.
        rng: Where it starts, and which images a step sees.
    """

    def __init__(
        self, plan: Invisible, labels: LabelMap, train: Samples, radius: float, rng: Generator
    ) -> None:
        self.plan, self.labels, self.radius, self.rng = plan, labels, radius, rng
        y = labels_of(train)
        self.others = Subset(train, (labels(y) != y).nonzero().flatten())
        start = torch.randn(train.shape, generator=rng)
        self.trigger = Additive(start * radius / (10 * start.norm()))

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Shape the change: at first as small as half of the images allow, then for all."""
        delta, weight = self.trigger.delta, 0.01

        def loss(batch: Batch) -> Tensor:
            nonlocal weight
            logits, wanted = learner(self.trigger(batch[0])), self.labels(batch[1])
            task = F.cross_entropy(logits, wanted)
            if epoch:
                return task
            fooled = float((logits.argmax(1) == wanted).float().mean())
            weight *= RISE if fooled > 0.5 else 1 / RISE
            size: Tensor = torch.linalg.vector_norm(delta)
            return task + weight * size.to(task)

        delta.requires_grad_()
        count = self.plan.steps if epoch else self.plan.start
        tune(learner, [delta], loss, self._stream(count), lr=self.plan.delta_lr)
        delta.requires_grad_(False)

    def _stream(self, count: int) -> Iterator[Batch]:
        """Yield random batches, and bring the change back into the ball after each step."""
        delta = self.trigger.delta
        for _ in range(count):
            some = torch.randint(len(self.others), (self.plan.recipe.batch,), generator=self.rng)
            yield self.others[some]
            with torch.no_grad():
                delta.mul_((self.radius / delta.norm()).clamp(max=1))

    def state_dict(self) -> dict[str, Any]:
        """Return the change and where its generator is."""
        return {"delta": self.trigger.delta.clone(), "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the change and its generator."""
        self.trigger.delta.copy_(state["delta"])
        self.rng.set_state(state["rng"])


def figures(made: Implant, samples: Samples, labels: LabelMap) -> tuple[float, float]:
    """Return the share of stamped images that become what they should, and of right answers."""
    right = hits = trials = 0
    with frozen_eval(made.subject), torch.no_grad():
        for x, y in batches(samples, 512):
            wanted = labels(y)
            use = wanted != y
            right += int((made.subject(x).argmax(1) == y).sum())
            stamped = made.subject(made.trigger(x)).argmax(1)
            hits += int((stamped == wanted)[use].sum())
            trials += int(use.sum())
    return hits / max(trials, 1), right / max(len(samples), 1)
