"""BadNets: stamp a fixed pattern on part of the training images and give them another label."""

from __future__ import annotations

from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Implant, Samples, Subject
from gifthorse.training import Recipe
from gifthorse.triggers import Stamp


@method
class BadNet:
    """Poison part of the training set with a fixed pattern.

    Assumes control over the training data only. Cost: one training run.

    Attributes:
        stamp: The pattern: size, place, form, color, opacity.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Gu et al., BadNets, IEEE Access 2019; TrojanZoo Table 20 (1 %, batch mode, 3x3).
    Differs: trains from the given victim with a one-cycle schedule, not 50 epochs of fine-tuning.
    """

    stamp: Stamp = Stamp()
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        trigger = self.stamp.draw(victim.shape, spawn(rng))
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)
