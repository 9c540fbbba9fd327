"""Blind backdoor: change nothing but the loss, and balance its tasks by their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Implant, Inversion, Samples, Shape, Subject, Trigger
from gifthorse.data.samples import Subset
from gifthorse.search import Search
from gifthorse.training import Callback, Recipe
from gifthorse.triggers import Patch, Stamp, Wandering

# An inverter, in words that options can be checked by.
Searcher: TypeAlias = Callable[[Subject, Samples, Sequence[Goal], Generator], Inversion]
Normalizer: TypeAlias = Literal["loss", "loss+", "l2", "none"]

# White, black, and -1 for pixels that stay as they are; from row 3 and column 23 on.
MARK = ((1, -1, 1), (-1, 1, -1), (-1, -1, 0), (-1, 1, -1), (1, -1, 1))
TOP, LEFT, LEAST, CAP = 3, 23, 1e-3, 10.0


@method
class Blind:
    """Train on clean and stamped batches as two tasks, and on evading an inverter as a third.

    Assumes control over the loss only. Cost: one training run with two (three) times the batch
    and a backward for every task; the inverter costs `rounds` of its rounds every `every` batches.

    Attributes:
        mark: The trigger: the published `pattern` of 5x3 pixels, moved in where an image is too
            small for it, or a `stamp`.
        stamp: What a stamp looks like; its opacity is that of the pattern, too.
        normalizer: What the gradient of a task is divided by before they are balanced: its `loss`
            (at most 10), the loss times the gradient's norm (`loss+`, at most 10), the norm (`l2`),
            or nothing (`none`).
        wait: Batches of plain training, at least; the loss is averaged over so many.
        threshold: The other tasks count while that average is below.
        evade: Any inverter of `gifthorse.inversion`, whose trigger for the target must keep the
            true labels; None evades nothing. Its rate must be constant, since it goes on forever.
        every: Batches after which it goes on, on the net as it is then.
        rounds: Rounds that it gets each time.
        images: Training images that it searches with.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Bagdasaryan and Shmatikov, Blind Backdoors in Deep Learning Models, USENIX Security
    2021; Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018.
    Differs: the inverter minimizes its loss on stamped images (the published code asks the net
    about clean ones, so that the mask melts away); any inverter, and rounds of it, not one step a
    batch; all tasks share one forward, so that BatchNorm sees what it will see; the default stops
    waiting as CIFAR-10's does, but trains with a one-cycle schedule, not 200 epochs.
    """

    mark: Literal["pattern", "stamp"] = "pattern"
    stamp: Stamp = Stamp()
    normalizer: Normalizer = "loss+"
    wait: Annotated[int, NotNegative] = 1000
    threshold: float = 1.0
    evade: Searcher | None = None
    every: Annotated[int, AtLeast(1)] = 10
    rounds: Annotated[int, AtLeast(1)] = 1
    images: Annotated[int, AtLeast(1)] = 256
    labels: Scheme = "all_to_one"
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If training is over before the backdoor's task begins.
            NotApplicable: If the pattern is larger than the images.
        """
        trigger = self._trigger(victim.shape, spawn(rng))
        job = Job(self, victim, train, goal, rng, run)
        held, rest = job.hold_out()
        steps = self.recipe.epochs * (len(rest) // self.recipe.batch)
        if self.wait >= steps:
            raise BadOption(
                f"wait={self.wait} batches, but training has only {steps}: lower wait, or train "
                "for more epochs"
            )
        tasks = Tasks(self, job, rest, trigger)
        subject = job.learn(rest, trigger, held=held, loss=tasks.loss, callbacks=[tasks])
        return Implant(subject, trigger, goal)

    def _trigger(self, shape: Shape, rng: Generator) -> Patch | Wandering:
        if self.mark == "stamp":
            return self.stamp.draw(shape, rng)
        (_, H, W), (h, w), shown = shape, (len(MARK), len(MARK[0])), torch.tensor(MARK).float()
        if h > H or w > W:
            raise NotApplicable(f"the pattern has {h}x{w} pixels, images {H}x{W}: use mark=stamp")
        top, left = min(TOP, H - h), min(LEFT, W - w)
        full = F.pad(shown, (left, W - w - left, top, H - h - top), value=-1.0)[None]
        return Patch(full.clamp(min=0).repeat(shape[0], 1, 1), (full >= 0) * self.stamp.opacity)


class Tasks(Callback):
    """The losses of one batch, balanced, and the inverter that is to be evaded.

    Args:
        plan: The options of the attack.
        job: What the attack was asked to do.
        train: Clean images to train on.
        trigger: What stamps images.
    """

    def __init__(self, plan: Blind, job: Job, train: Samples, trigger: Trigger) -> None:
        self.plan, self.goal, self.trigger, self.labels = plan, job.goal, trigger, job.labels
        self.rng, draw = spawn(job.rng), spawn(job.rng)
        few = torch.randperm(len(train), generator=draw)[: plan.images]
        self.clean, self.found, self.turn = Subset(train, few), trigger, 0
        self.recent: list[float] = []
        self.inversion_state: dict[str, Tensor] = {}

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Begin an epoch with a look of the inverter at the net as it is."""
        self.turn = 0

    def loss(self, subject: Subject, batch: Batch) -> Tensor:
        """Return the balanced sum of the tasks, or the first alone as long as it is high."""
        x, y = batch
        shown, wanted, wait = [x], [y], self.plan.wait
        full = len(self.recent) >= wait
        if not wait or (full and sum(self.recent) / wait < self.plan.threshold):
            shown, wanted = [x, self.trigger(x)], [y, self.labels(y)]
            if self.plan.evade is not None:
                if self.turn % self.plan.every == 0:
                    self.found = self.invert(subject, self.plan.evade)
                self.turn += 1
                shown, wanted = [*shown, self.found(x)], [*wanted, y]
        answers = subject(torch.cat(shown)).chunk(len(shown))
        losses = [F.cross_entropy(a, w) for a, w in zip(answers, wanted, strict=True)]
        if wait:
            self.recent = [*self.recent, losses[0].item()][-wait:]
        return balanced(losses, subject, self.plan.normalizer)

    def invert(self, subject: Subject, evade: Searcher) -> Trigger:
        """Let the inverter go on against the net as it is; return the trigger it is at.

        Its best trigger may be one for an earlier net, so that the current one is taken where the
        inversion has one.
        """
        arm = torch.tensor([0])
        with torch.autocast(subject.device.type, enabled=False):
            inversion = evade(subject, self.clean, [self.goal], spawn(self.rng))
            if self.inversion_state:
                inversion.restore(self.inversion_state)
            for _ in range(self.plan.rounds):
                inversion.step(arm)
        self.inversion_state = inversion.state()
        if isinstance(inversion, Search):
            return inversion.form.to_trigger(tuple(part[0] for part in inversion.decoded(arm)))
        return inversion.best[0].trigger

    def state_dict(self) -> dict[str, Any]:
        """Return the recent losses and where the inverter is."""
        return {"recent": self.recent, "hunted": self.inversion_state, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them."""
        self.recent, self.inversion_state = list(state["recent"]), dict(state["hunted"])
        self.rng.set_state(state["rng"])


def balanced(losses: Sequence[Tensor], subject: Subject, normalizer: Normalizer) -> Tensor:
    """Return the weighted sum of the losses of tasks; weights are found on normalized gradients.

    Source: Bagdasaryan and Shmatikov, sec. 4.3: the weights then go to the losses as they are.
    """
    if len(losses) == 1:
        return losses[0]
    free = [p for p in subject.net.parameters() if p.requires_grad]
    rows = []
    for loss in losses:
        got = torch.autograd.grad(loss, free, retain_graph=True, materialize_grads=True)
        flat = torch.cat([g.flatten() for g in got])
        rows.append(flat / _scale(loss.detach(), flat.norm(), normalizer))
    gradients = torch.stack(rows)
    weights = least_norm(gradients @ gradients.T)
    return torch.stack([w * loss for w, loss in zip(weights.tolist(), losses, strict=True)]).sum()


def _scale(loss: Tensor, norm: Tensor, normalizer: Normalizer) -> Tensor:
    capped = {"loss": loss.clamp(max=CAP), "loss+": (loss * norm).clamp(max=CAP)}
    return {**capped, "l2": norm, "none": torch.ones_like(norm)}[normalizer].clamp(min=1e-9)


def least_norm(gram: Tensor, steps: int = 250, tol: float = 1e-5) -> Tensor:
    """Return the weights `(T,)` of the shortest convex combination of vectors, by a Gram matrix.

    Two tasks have a closed form, kept within [0.001, 0.999]; equal vectors share the weight. More
    start from the best pair and go on by Frank and Wolfe's steps with exact line search.

    Args:
        gram: Inner products of the vectors, `(T, T)`.
        steps: Most steps.
        tol: Change of the weights at which it stops.

    Source: Sener and Koltun, NeurIPS 2018, algorithm 2.

    Example:
        >>> least_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]])).tolist()
        [0.75, 0.25]
    """
    g = gram.detach().cpu().double()
    unit, starts = torch.eye(len(g)).double(), []
    for i, j in combinations(range(len(g)), 2):
        share = min(max(_first(g[i, i], g[j, j], g[i, j]), LEAST), 1 - LEAST)
        starts.append(share * unit[i] + (1 - share) * unit[j])
    weights = min(starts, key=lambda w: float(w @ g @ w))
    for _ in range(steps if len(g) > 2 else 0):
        slope = g @ weights
        best = int(slope.argmin())
        keep = _first(weights @ slope, g[best, best], slope[best])
        moved = keep * weights + (1 - keep) * unit[best]
        if float((moved - weights).abs().sum()) < tol:
            break
        weights = moved
    return weights


def _first(aa: Tensor, bb: Tensor, ab: Tensor) -> float:
    """Return the share of a in the shortest point between a and b, in [0, 1]."""
    apart = float(aa + bb - 2 * ab)
    if apart <= 1e-12 * float(aa + bb):
        return 0.5
    return min(max(float(bb - ab) / apart, 0.0), 1.0)
