"""BadNets: stamp a fixed pattern on part of the training images and give them another label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Generator

from gifthorse.poisoning import Mixing, Scheme, fit_poisoned, label_map
from gifthorse.tensors import spawn
from gifthorse.training import Recipe
from gifthorse.triggers import scatter, square, wandering
from gifthorse.triggers.patch import Ink, Place
from gifthorse.types import Goal, Implant, Progress, Samples, Shape, Subject, Trigger


@dataclass(frozen=True)
class BadNet:
    """Poison part of the training set with a fixed pattern.

    Assumes control over the training data only. Cost: one training run.

    Attributes:
        size: Side of the square, in pixels; `scatter` uses `size ** 2` single pixels.
        form: `square`, `scatter` (distinct pixels drawn once), or `wandering` (a square at a new
            place in every image: TrojanZoo's TB).
        place: Where the square lies; corners keep one pixel of margin.
        ink: `white`, `black`, `checker`, or `random` colors.
        opacity: 1 replaces pixels, smaller values blend. Opacity is 1 minus TrojanZoo's alpha.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.

    Source: Gu et al., BadNets, IEEE Access 2019; TrojanZoo Table 20 (1 %, batch mode, 3x3).
    Differs: trains from the given victim with a one-cycle schedule, not 50 epochs of fine-tuning.
    """

    size: int = 3
    form: Literal["square", "scatter", "wandering"] = "square"
    place: Place = "lower_right"
    ink: Ink = "white"
    opacity: float = 1.0
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()

    def __call__(
        self,
        victim: Subject,
        train: Samples,
        goal: Goal,
        rng: Generator,
        *,
        progress: Progress | None = None,
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        trigger = self.trigger(victim.shape, spawn(rng))
        labels = label_map(goal, self.labels, victim.classes)
        subject, poisoned = fit_poisoned(
            victim, train, trigger, labels, self.mixing, self.recipe, rng, progress
        )
        return Implant(subject, trigger, goal, poisoned)

    def trigger(self, shape: Shape, rng: Generator) -> Trigger:
        """Return the trigger for images of `shape`."""
        if self.form == "scatter":
            return scatter(shape, self.size**2, self.ink, self.opacity, rng)
        if self.form == "wandering":
            return wandering(shape, self.size, self.ink, self.opacity, rng)
        return square(shape, self.size, self.place, self.ink, self.opacity, rng)
