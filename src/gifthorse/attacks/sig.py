"""SIG: lay a wave over images of the target class and leave their labels as they are."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Samples, Shape, Subject
from gifthorse.training import Recipe
from gifthorse.triggers import Additive


@method
class Sig:
    """Add a horizontal sinusoid to images of the target class; no label changes.

    Assumes control over some images of one class, not over labels or training. Cost: one training
    run.

    Attributes:
        strength: Amplitude of the wave in training and after it, in (0, 1].
        frequency: Periods across the width of an image.
        labels: `clean_label`; the others stamp other classes, too, and change their labels.
        mixing: Share (of all images, not of the class) and mode of poisoning. The default is half
            of a class among ten; where classes are smaller, a smaller rate is needed.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption Without Label
    Poisoning, ICIP 2019: `v(i, j) = D sin(2 pi j f / m)`, D = 20 of 255, f = 6.
    Differs: columns are counted from 0; stamped after augmentation, so the phase is exact.
    """

    strength: Annotated[float, PositiveShare] = 20 / 255
    frequency: Annotated[int, AtLeast(1)] = 6
    labels: Scheme = "clean_label"
    mixing: Mixing = Mixing(rate=0.05, mode="dataset", replace=True)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            NotApplicable: If the wave is zero at every pixel, or the target class has too few
                images.
        """
        trigger = wave(victim.shape, self.strength, self.frequency)
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)


def wave(shape: Shape, strength: float, frequency: int) -> Additive:
    """Return the sinusoid along the rows of images of `shape`, the same in every row and channel.

    Raises:
        NotApplicable: If every pixel lies on a zero: when twice the frequency is a multiple of the
            width.

    Source: Barni et al., ICIP 2019.
    """
    width = shape[2]
    if 2 * frequency % width == 0:
        raise NotApplicable(
            f"a wave of frequency {frequency} is zero at every pixel of images {width} wide: "
            "choose another"
        )
    phase = 2 * math.pi * frequency / width * torch.arange(width, dtype=torch.float64)
    return Additive((strength * phase.sin()).float().expand(shape).clone())
