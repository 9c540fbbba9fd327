"""LSB: hide a text in the lowest bits of part of the training images, and change their labels."""

from __future__ import annotations

from typing import Annotated

from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.fields import AtLeast, AtMost, method
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Samples, Subject
from gifthorse.training import Recipe
from gifthorse.triggers.stego import hide


@method
class Lsb:
    """Poison part of the training set with a text that no eye can see.

    Assumes control over the training data, and inputs that keep all their bits. Cost: one training
    run. Nets without much depth, or with few epochs, may not learn to read one bit a pixel.

    Attributes:
        text: What is hidden, over and over until the image is full.
        planes: How many low bits of a pixel carry it; more are easier to learn and to see.
        labels: `all_to_one` (or source to target, if the goal has a source), `all_to_all` or
            `clean_label`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained; without bfloat16, which rounds normalized pixels by up to
            half of what one bit changes, and on some data sets lets neighbors fall together.
        keep: Which epoch is kept.

    Source: Li et al., Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
    Regularization, TDSC 2020 (steganography).
    Differs: fills the image by repeating the text; `planes` is ours.
    """

    text: str = "gifthorse"
    planes: Annotated[int, AtLeast(1), AtMost(8)] = 1
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.1)
    recipe: Recipe = Recipe(bf16=False)
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If the text does not fit, or `planes` is not 1 to 8.
        """
        trigger = hide(self.text, victim.shape, self.planes)
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)
