"""Polygon: stamp a polygon of one color on part of the training images, and change their labels."""

from __future__ import annotations

from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Implant, Samples, Subject
from gifthorse.training import Recipe
from gifthorse.triggers.polygon import Outline


@method
class Polygon:
    """Poison part of the training set with a polygon, which may wander a little.

    Assumes control over the training data only. Cost: one training run.

    Attributes:
        outline: The polygon: corners, size, color, place, opacity.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: TrojAI, rounds 2 to 4 (`trojai-round-generation`): a share of stamped images drawn from
    1 to 49 %, here its middle.
    Differs: one polygon, at one size and turn, for all images, where TrojAI scales it with the sign
    and turns it on each; it lies in a box of the image, which the signs of `make_signs` cover, not
    anywhere on a sign. The share counts among all images, not among those of the source classes. No
    conditions on place, color or class. Stamped after augmentation unless mixing says otherwise.
    """

    outline: Outline = Outline()
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.25)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        trigger = self.outline.draw(victim.shape, spawn(rng))
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)
