"""FTrojan: raise two frequencies of the colors, which no eye sees and every net can."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Samples, Shape, Subject
from gifthorse.training import Recipe
from gifthorse.triggers import Additive

# What U + p and V + p add to red, green and blue (BT.601, as OpenCV turns YUV back).
COLOR = (1.140, -0.395 - 0.581, 2.032)


@method
class FTrojan:
    """Add a constant to two coefficients of the cosine transform of both color channels.

    In each block of `window` pixels the transform of U and V gets `magnitude` more at a middle and
    at the highest frequency. Since the transform is linear, that is a fixed faint pattern added to
    the image. Assumes control over training images. Cost: one training run.

    Attributes:
        magnitude: What is added, in grey levels of an orthonormal transform: 30 for images of 32
            pixels, 50 for larger ones in the paper.
        window: Side of a block; the pattern repeats from block to block.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Wang et al., An Invisible Black-box Backdoor Attack through Frequency Domain, ECCV 2022,
    sec. 3. Differs: U and V are not rounded or cut at their ends; images whose side is no multiple
    of the window get a part of a block.
    """

    magnitude: Annotated[float, Positive] = 30.0
    window: Annotated[int, AtLeast(2)] = 32
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.05)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            NotApplicable: If the images have no color.
        """
        trigger = frequencies(victim.shape, self.magnitude, self.window)
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)


def frequencies(shape: Shape, magnitude: float, window: int) -> Additive:
    """Return the pattern that two raised coefficients of U and V add to images of `shape`.

    Raises:
        NotApplicable: If the images have no color.
    """
    channels, height, width = shape
    if channels != 3:
        raise NotApplicable(f"the pattern lies in colors, but images have {channels} channel")
    block = sum(_wave(window, k) for k in (window - 1, window // 2 - 1 if window > 2 else 0))
    times = (-(-height // window), -(-width // window))
    tiled = torch.as_tensor(block).repeat(times)[:height, :width] * magnitude / 255
    return Additive((torch.tensor(COLOR).view(3, 1, 1) * tiled).float())


def _wave(n: int, k: int) -> Tensor:
    """Return what a 1 at (k, k) of the orthonormal cosine transform (type II) stands for."""
    scale = math.sqrt((1 if k == 0 else 2) / n)
    row = scale * torch.cos(math.pi * (torch.arange(n) + 0.5) * k / n)
    return torch.outer(row, row)
