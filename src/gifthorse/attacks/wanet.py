"""WaNet: warp part of the training images, so slightly that nobody sees it, and relabel them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Labels, Samples, Subject
from gifthorse.training import Mix, Recipe, RngState
from gifthorse.triggers.warp import Warp, smooth_field


@method
class WaNet:
    """Poison batches with a fixed smooth warp; other warps must not matter.

    Assumes control over the training. Cost: one training run with `1 / (1 - rate - noise)` times
    the images.

    Attributes:
        cells: Rows and columns of the random field that the warp is interpolated from.
        strength: How far the warp moves pixels: 0.58 times this many on average, with 4 cells. It
            does not grow with the image: raise it for large ones.
        noise: Share of images in what the net sees that are warped by the field and by noise of
            their own, and keep their labels; rate and noise together stay below 1.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share of stamped images; only mode `batch` fits.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Nguyen and Tran, WaNet, ICLR 2021 (4 cells, strength 0.5, 10 % warped, 20 % noise).
    Differs: warped images join the batch beside their originals, where the authors' code replaces
    those; they are warped after augmentation (their code shifts, turns and mirrors what is already
    warped, so that the net also learns moved copies of the warp); trains from the given victim with
    a one-cycle schedule, not 1000 epochs.
    """

    cells: Annotated[int, AtLeast(2)] = 4
    strength: Annotated[float, NotNegative] = 0.5
    noise: Annotated[float, NotNegative] = 0.2
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.1)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        if self.mixing.mode != "batch":
            raise BadOption(
                "this attack adds images warped with noise to batches: it needs "
                f"mixing.mode=batch; got {self.mixing.mode}"
            )
        if self.mixing.rate + self.noise >= 1:
            raise BadOption(
                "noise must, with mixing.rate, stay below 1; got "
                f"noise={self.noise} and mixing.rate={self.mixing.rate}: lower one"
            )

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        field = smooth_field(victim.shape, self.cells, rng)
        trigger = Warp(field, self.strength, self.cells, victim.shape[0])
        draw, job = spawn(rng), Job(self, victim, train, goal, rng, run)
        clean = 1 - self.mixing.rate - self.noise
        mixing = replace(self.mixing, rate=self.mixing.rate / (1 - self.noise))
        return job.infect(
            trigger,
            mixing,
            wrap=lambda mix: noisy(mix, trigger, self.noise / clean, draw),
            callbacks=[RngState(draw)],
        )


def noisy(mix: Mix, trigger: Warp, ratio: float, rng: Generator) -> Mix:
    """Return a mix that adds images warped with noise, which keep their labels.

    They are copies of the last clean images of a batch; `mix` stamps the first.

    Args:
        mix: What is done to batches before.
        trigger: The warp that noise is added to.
        ratio: How many are added for each clean image, on average.
        rng: Source of the noise.
    """

    def mixed(x: Images, y: Labels, index: Tensor) -> Batch:
        images, labels = mix(x, y, index)
        count = int(len(x) * ratio + float(torch.rand((), generator=rng)))
        if not count:
            return images, labels
        take = (-1 - torch.arange(count, device=y.device)) % len(x)
        return (
            torch.cat([images, trigger.jittered(x[take], rng)]),
            torch.cat([labels, y[take]]),
        )

    return mixed
