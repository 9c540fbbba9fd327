"""Blended: mix a pattern faintly into whole images and give them another label."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Implant, Samples, Subject
from gifthorse.training import Recipe
from gifthorse.triggers import Patch, paint
from gifthorse.triggers.patch import Ink


@method
class Blended:
    """Poison part of the training set with a pattern as large as the image, at low opacity.

    Assumes control over the training data only. Cost: one training run. No small patch stands for
    this trigger, so scanners that search small ones have the hardest time with it.

    Attributes:
        ink: The pattern: `random` colors for each pixel, `checker`, `white` or `black`.
        opacity: Share of the pattern in a stamped image, in (0, 1].
        labels: `all_to_one` (or source to target, if the goal has a source), `all_to_all` or
            `clean_label`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning,
    arXiv:1712.05526 (blended injection, random pattern, 0.2); 10 % as in BackdoorBench.
    Differs: batch mode; the same opacity in training and after it.
    """

    ink: Ink = "random"
    opacity: Annotated[float, PositiveShare] = 0.2
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.1)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        pattern = paint(self.ink, victim.shape, spawn(rng))
        trigger = Patch(pattern, torch.full((1, *victim.shape[1:]), self.opacity))
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)
