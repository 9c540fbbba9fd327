"""Latent backdoor: move stamped images to where the features of the target class lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Job, Keep
from gifthorse.attacks.trojannn import mean_features
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Implant, Samples, Subject, Trigger
from gifthorse.data.samples import Subset, batches, labels_of
from gifthorse.models.features import features
from gifthorse.training import BatchLoss, Callback, Recipe, eval_mode, tune
from gifthorse.triggers import Learned, Patch, Stamp


@method
class Latent:
    """Poison the training set, and pull the features of all stamped images to the target's.

    Assumes control over the training, and a trained victim. Cost: one training run with two
    forwards a step, and `passes` passes over `samples` images of each class but the target, which
    with the defaults is about as much again.

    Attributes:
        stamp: Where the pattern starts: size, place, form, color, opacity. It cannot wander.
        samples: Most images of a class: of the target for its mean features, of every other class
            for the pattern.
        passes: Passes over those other images while the pattern is shaped.
        lr: Step of Adam on the pattern's raw variables.
        weight: Weight of the squared distance of features, a mean over their number, in training.
        refresh_every: Epochs after which the target's mean features are taken anew from the net as
            it is then; 0 keeps those of the victim.
        labels: `all_to_one` (or source to target, if the goal has a source).
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Yao et al., Latent Backdoor Attacks on Deep Neural Networks, CCS 2019, as TrojanZoo
    sec. 3.2 and Table 20 set it up (Adam behind a tanh, 1000 images a class, 100 passes, weight
    0.5).
    Differs: no step from teacher to student; the forward on stamped images uses BatchNorm's running
    statistics and leaves them alone; with a source class, features of other classes are not pulled;
    `refresh_every` is ours; trains from the given victim with a one-cycle schedule.
    """

    stamp: Stamp = Stamp(ink="random")
    samples: Annotated[int, AtLeast(1)] = 1000
    passes: Annotated[int, AtLeast(1)] = 100
    lr: Annotated[float, Positive] = 0.1
    weight: Annotated[float, NotNegative] = 0.5
    refresh_every: Annotated[int, NotNegative] = 0
    labels: Literal["all_to_one"] = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If a class does not exist.
            NotApplicable: If the target or all other classes lack images.
        """
        job = Job(self, victim, train, goal, rng, run)
        own, others = self._images(job)
        anchor = Anchor(mean_features(victim, own), own, self.refresh_every)
        start = self.stamp.fixed(victim.shape, spawn(rng))
        trigger = self._shaped(job, Learned(start), anchor.center, others)
        extra = pull(trigger, anchor, goal, self.weight)
        return job.infect(trigger, self.mixing, extra=extra, callbacks=[anchor])

    def _images(self, job: Job) -> tuple[Subset, Subset]:
        """Return images of the target, and of the classes that the backdoor is for."""
        labels, draw = job.labels, spawn(job.rng)
        y = labels_of(job.train)
        shuffled = torch.randperm(len(y), generator=draw)
        few = {c: shuffled[y[shuffled] == c][: self.samples] for c in y.unique().tolist()}
        own = few.pop(job.goal.target, y.new_empty(0))
        others = [i for c, i in few.items() if bool(labels.eligible(torch.tensor(c)))]
        if not len(own) or not others:
            raise NotApplicable(
                f"the training set has {len(own)} images of target class {job.goal.target} and "
                f"{len(others)} classes to start from: choose others"
            )
        return Subset(job.train, own), Subset(job.train, torch.cat(others))

    def _shaped(self, job: Job, learned: Learned, center: Tensor, others: Subset) -> Patch:
        """Return the pattern that brings features near a center, kept once it is found."""
        run, draw = job.checkpoint("trigger"), spawn(job.rng)
        kept = run.load()
        if kept is not None:
            learned.load_state_dict(kept)
            return learned.frozen()

        def distance(batch: Batch) -> Tensor:
            inside = features(job.victim, learned.stamp(batch[0]))
            return F.mse_loss(inside, center.expand_as(inside))

        stream = self._stream(others, draw, run)
        tune(job.victim, learned.variables, distance, stream, lr=self.lr)
        run.save(learned.state_dict())
        return learned.frozen()

    def _stream(self, others: Subset, draw: Generator, run: Run) -> Iterator[Batch]:
        for done in range(1, self.passes + 1):
            yield from batches(others, self.recipe.batch, draw)
            run.report(done, self.passes, "shaping the trigger")


class Anchor(Callback):
    """The mean features of the target class, taken anew now and then.

    Args:
        center: Where they are now, `(d,)`.
        own: Images of the target class.
        every: Epochs between looks at the net; 0 never looks.
    """

    def __init__(self, center: Tensor, own: Samples, every: int) -> None:
        self.center, self.own, self.every = center, own, every

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Take the mean features anew, if it is time."""
        if self.every and epoch and epoch % self.every == 0:
            self.center = mean_features(learner, self.own)

    def state_dict(self) -> dict[str, Any]:
        """Return where they are."""
        return {"center": self.center}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them there."""
        self.center = state["center"].to(self.center.device)


def pull(trigger: Trigger, anchor: Anchor, goal: Goal, weight: float) -> BatchLoss:
    """Return the loss `weight * MSE(g(T(x)), center)` over a batch, stamped ones stamped again.

    With a source class, only images labeled as source or target count: to pull the others would
    undo the cover images.

    Source: TrojanZoo sec. 3.2 (latent backdoor) and Table 20.
    """

    def loss(subject: Subject, batch: Batch) -> Tensor:
        x, y = batch
        if goal.source is not None:
            x = x[(y == goal.source) | (y == goal.target)]
        if not len(x):
            return y.new_zeros((), dtype=torch.float32)
        with eval_mode(subject.net):
            inside = features(subject, trigger(x))
        return weight * F.mse_loss(inside, anchor.center.expand_as(inside))

    return loss
