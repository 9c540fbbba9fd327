"""Refool: poison with the reflection of another scene in a pane of glass."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.reflection import Trials, check, contest
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Images, Implant, Samples, Subject
from gifthorse.data.samples import labels_of
from gifthorse.training import Recipe
from gifthorse.triggers.reflection import GAMMA, Reflection, reflect

log = logging.getLogger("gifthorse")

SIMILAR = (0.7, 0.85)  # SSIM that a reflection may leave: seen, yet not conspicuous
TRIES = 20  # draws for each candidate that is wanted


@method
class Refool:
    """Poison with images that look as if taken through a pane that mirrors another image.

    Reflections are drawn from training images of other classes and kept if they can be seen but do
    not stand out. A few at a time are drawn by weight and tried together in one short training;
    what was not tried is taken to be as good as the median of what was. The best of the last round
    is the trigger. Assumes control over the training data and a clean net. Cost: `rounds` short
    trainings and a full one.

    Attributes:
        candidates: Reflections to choose from.
        selected: How many of them are tried in a round.
        rounds: Rounds of the choice.
        judge: Training images, kept out of the trials, that a candidate is judged by.
        ghosts: Share of doubled reflections among those drawn; the others are blurred.
        search: How a net is trained in a trial; the last epoch is judged.
        labels: `all_to_one` (or source to target, if the goal has a source), `all_to_all`, or, as
            in the paper, `clean_label`. BackdoorBench and BackdoorBox change labels, too; the
            latter reports little effect of clean ones.
        mixing: Share (of all images) and mode of poisoning, in trials and in the training.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Liu et al., Reflection Backdoor, ECCV 2020, sec. 3 and Algorithm 1; TrojanZoo Table 20
    (50, 10, 5, 5 epochs). Differs: reflections are training images, not Pascal VOC; dirty labels by
    default; one reflection is the trigger, not a set; judged by training images kept aside; where
    too few pass the bounds, those nearest to them in SSIM fill up.
    """

    candidates: Annotated[int, AtLeast(1)] = 50
    selected: Annotated[int, AtLeast(1)] = 10
    rounds: Annotated[int, AtLeast(1)] = 5
    judge: Annotated[int, AtLeast(1)] = 1000
    ghosts: Annotated[float, Share] = 0.49
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
            NotApplicable: If all images are of one class, or no reflection can be seen on them.
        """
        job, dice = Job(self, victim, train, goal, rng, run), spawn(rng)
        known = self._draw(train, goal, dice)
        trials = Trials(job, replace(self, recipe=self.search, keep=Keep()), self.judge)
        chosen = contest(
            len(known),
            self.rounds,
            lambda picked: trials([known[i] for i in picked.tolist()], self.mixing),
            lambda weights: roulette(weights, self.selected, dice),
        )
        return job.infect(known[chosen], self.mixing)

    def _draw(self, train: Samples, goal: Goal, dice: Generator) -> list[Reflection]:
        own = labels_of(train) == goal.target
        below = own if self.labels == "clean_label" else torch.ones_like(own)
        passed: list[Reflection] = []
        others: list[tuple[float, Reflection]] = []
        for _ in range(self.candidates * TRIES):
            pane = reflect(_one(train, ~own, dice)[0], self.ghosts, dice)
            near, plausible = quality(pane, _one(train, below, dice))
            if plausible and SIMILAR[0] < near < SIMILAR[1]:
                passed.append(pane)
            elif plausible:
                others.append((max(SIMILAR[0] - near, near - SIMILAR[1]), pane))
            if len(passed) == self.candidates:
                return passed
        others.sort(key=lambda one: one[0])
        log.warning("%d of %d reflections are within bounds", len(passed), self.candidates)
        found = passed + [pane for _, pane in others[: self.candidates - len(passed)]]
        if not found:
            raise NotApplicable("no reflection can be seen on these images: are they all black?")
        return found


def quality(pane: Reflection, x: Images) -> tuple[float, bool]:
    """Return the SSIM of images seen through a pane with and without reflection.

    And whether the reflection is darker than the rest (0.8 of it), and the outcome not black.
    """
    from kornia.metrics import ssim

    through, mirrored = pane.parts(x)
    out = pane(x)
    reflection = float((mirrored ** (1 / GAMMA)).mean())
    window = min(11, min(x.shape[2:]) // 2 * 2 - 1)
    near = float(ssim(out, through ** (1 / GAMMA), window).mean())
    darker = reflection < 0.8 * (float(out.mean()) - reflection)
    return near, darker and float(out.max()) > 0.1


def roulette(weights: Tensor, count: int, rng: Generator) -> Tensor:
    """Draw candidates without repetition, each with a chance in proportion to its weight."""
    some = weights + 1e-6  # none is ever out of the game, and at first all are alike
    return torch.multinomial(some, min(count, len(weights)), generator=rng)


def _one(train: Samples, among: Tensor, dice: Generator) -> Images:
    """Return one image `(1, C, H, W)` of those."""
    index = among.nonzero().flatten()
    if not len(index):
        raise NotApplicable("a reflection needs training images of the target and of another class")
    return train[index[torch.randint(len(index), (1,), generator=dice)]][0]
