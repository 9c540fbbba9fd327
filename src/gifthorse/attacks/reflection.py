"""Reflection backdoor as a patch: the edges of an image of the target class, chosen by trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import AttackOptions, Job, Keep
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.fields import AtLeast, method
from gifthorse.core.run import Run
from gifthorse.core.stats import median
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Images, Implant, Samples, Subject, Trigger
from gifthorse.data.samples import Subset, batches, labels_of
from gifthorse.training import Recipe, frozen_eval
from gifthorse.triggers import Patch, Stamp
from gifthorse.triggers.reflection import Several


@method
class ReflectionPatch:
    """Poison with a patch that shows the edges of a training image of the target class.

    Many images are tried: a few at a time, each with a short training; what was not tried is taken
    to be as good as the median of what was. Assumes control over the training data and a clean net.
    Cost: `rounds * selected` short trainings and a full one (250 and `recipe.epochs` epochs).

    Attributes:
        stamp: Size, place, form and opacity of the patch; `ink` makes no difference.
        candidates: Images of the target class to choose from; all, if there are fewer.
        selected: How many of them are tried in a round.
        rounds: Rounds of the choice.
        judge: Training images, kept out of the trials, that a candidate is judged by.
        search: How a net is trained in a trial; the last epoch is judged.
        labels: `all_to_one` (or source to target, if the goal has a source), `all_to_all` or
            `clean_label`.
        mixing: Share and mode of poisoning, in trials and in the training.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: TrojanZoo sec. 3.1 (RB), Table 20 (50, 10, 5, 5 epochs), and its 2021 code; the choice
    is Liu et al., Refool, ECCV 2020, Algorithm 1. Differs: candidates are judged by training images
    kept aside, not by test images; of equal candidates any may be tried next, not always the same.
    """

    stamp: Stamp = Stamp()
    candidates: Annotated[int, AtLeast(1)] = 50
    selected: Annotated[int, AtLeast(1)] = 10
    rounds: Annotated[int, AtLeast(1)] = 5
    judge: Annotated[int, AtLeast(1)] = 1000
    search: Recipe = Recipe(epochs=5)
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        check(self.candidates, self.selected)

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If the patch is not seen.
            NotApplicable: If the target class has no images, or the patch does not fit.
        """
        job, dice = Job(self, victim, train, goal, rng, run), spawn(rng)
        start = self.stamp.fixed(victim.shape, dice)
        own = (labels_of(train) == goal.target).nonzero().flatten()
        if not len(own):
            raise NotApplicable(f"no training image is of the target class {goal.target}")
        own = own[torch.randperm(len(own), generator=dice)[: self.candidates]]
        shown = etched(train[own][0], start)
        trials = Trials(job, replace(self, recipe=self.search, keep=Keep()), self.judge)

        def tried(picked: Tensor) -> Tensor:
            return torch.cat([trials([shown[i]], self.mixing) for i in picked.tolist()])

        chosen = contest(len(own), self.rounds, tried, lambda w: top(w, self.selected, dice))
        return job.infect(shown[chosen], self.mixing)


def edges(x: Images, size: tuple[int, int]) -> Tensor:
    """Return the Laplacian of gray images, clipped to [0, 1] and resized: `(N, 1, h, w)`."""
    from kornia.color import rgb_to_grayscale
    from kornia.filters import filter2d

    gray: Tensor = rgb_to_grayscale(x) if x.shape[1] == 3 else x.mean(1, keepdim=True)
    kernel = torch.tensor([[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]])
    found: Tensor = filter2d(gray, kernel, border_type="constant").clamp(0, 1)
    return F.interpolate(found, size, mode="bilinear", antialias=True).clamp(0, 1)


def etched(images: Images, start: Patch) -> list[Patch]:
    """Return the patch once for each image, with the image's edges within its bounds."""
    support = start.mask > 0
    rows, cols = (support[0].any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        raise BadOption("stamp.opacity is 0: there is nothing to show a reflection on")
    top, left = int(rows[0]), int(cols[0])
    h, w = int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left
    patches = []
    for seen in edges(images, (h, w)):
        pattern = torch.zeros_like(start.pattern)
        pattern[:, top : top + h, left : left + w] = seen
        patches.append(Patch(pattern * support, start.mask))
    return patches


@dataclass(frozen=True, eq=False)
class _Trial(Job):
    """A training on the way, kept where the whole attack is kept."""

    def checkpoint(self, stage: str) -> Run:
        """Return the run of the attack itself, opened at a stage."""
        return self.run.checkpoint(stage)


class Trials:
    """Short trainings, each of which says how well some triggers do; none is run twice.

    Args:
        job: The attack.
        plan: Its options, with the recipe of the trials.
        judge: How many images, at most half, are kept out of training to judge by.
    """

    def __init__(self, job: Job, plan: AttackOptions, judge: int) -> None:
        self.job, self.plan, self.rng = job, plan, spawn(job.rng)
        order = torch.randperm(len(job.train), generator=self.rng)
        held, rest = order.tensor_split([min(judge, len(order) // 2)])
        self.held, self.rest = Subset(job.train, held), Subset(job.train, rest)
        self.run = job.checkpoint("scores")
        self.done: list[list[float]] = self.run.load() or []
        self.count = 0

    def __call__(self, triggers: Sequence[Trigger], mixing: Mixing) -> Tensor:
        """Train on all these triggers mixed; return the success of each, in [0, 1]."""
        self.count += 1
        rng, stage = spawn(self.rng), f"trial {self.count}"
        if self.count > len(self.done):
            job = self.job
            trial = _Trial(self.plan, job.victim, self.rest, job.goal, rng, self.run)
            made = trial.infect(Several(triggers, spawn(rng)), mixing, stage=stage).subject
            self.done.append([self._success(made, one) for one in triggers])
            self.run.save(self.done)
            self.run.checkpoint(stage).save(None)  # the nets of all trials would fill the disk
        return torch.tensor(self.done[self.count - 1])

    def _success(self, subject: Subject, trigger: Trigger) -> float:
        hits = trials = 0
        with frozen_eval(subject), torch.no_grad():
            for x, y in batches(self.held, 512):
                wanted = self.job.labels(y)
                use = wanted != y
                if bool(use.any()):
                    stamped = trigger(x[use])
                    hits += int((subject(stamped).argmax(1) == wanted[use]).sum())
                    trials += int(use.sum())
        return hits / max(trials, 1)


def contest(
    count: int,
    rounds: int,
    tried: Callable[[Tensor], Tensor],
    pick: Callable[[Tensor], Tensor],
) -> int:
    """Return which of `count` candidates did best in the last round.

    Args:
        count: How many there are.
        rounds: Rounds, at least one.
        tried: Scores for candidates that are named by an index vector.
        pick: Whom to try next, given the weights `(count,)` of all; at first they are 0.
    """
    weights = torch.zeros(count)
    for _ in range(rounds):
        picked = pick(weights)
        weights = reweighted(weights, picked, tried(picked))
    return int(picked[weights[picked].argmax()])


def reweighted(weights: Tensor, picked: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of those that were picked, and their median for all others."""
    return torch.full_like(weights, float(median(scores))).index_copy(0, picked, scores)


def top(weights: Tensor, count: int, rng: Generator) -> Tensor:
    """Return who has the largest weights, in order; among equals, any."""
    shuffled = torch.randperm(len(weights), generator=rng)
    return shuffled[weights[shuffled].argsort(descending=True, stable=True)[:count]]


def check(candidates: int, selected: int) -> None:
    """Refuse to select more than there are.

    Raises:
        BadOption: If more are selected than there are candidates.
    """
    if selected > candidates:
        raise BadOption(f"selected must be at most candidates ({candidates}); got {selected}")
