"""Manifold projection: an autoencoder brings every image near to clean ones before the net."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded
from gifthorse.core.types import Batch, Images, Samples, Subject
from gifthorse.remedies.down_up import Reformed
from gifthorse.training import Recipe, fit


@method
class Projection:
    """Train an autoencoder on noisy clean images and let the net see what it makes of images.

    Changes no weight of the net. Cost: `recipe.epochs` passes over the clean images through a tiny
    net, which ask nothing of the classifier; one forward through it for every image later.

    The result is not a bare net behind a normalization: its weights alone, in a file, would not
    say how the autoencoder is built.

    Attributes:
        width: Channels of the two hidden maps.
        noise: Standard deviation of the noise that is learned to be taken away, on the 0-1 scale.
        pool: Whether the second hidden map has half the height and width.
        recipe: How the autoencoder is trained.

    Source: Meng and Chen, MagNet, CCS 2017, the reformer; TrojanZoo Table 21 (noise
    0.1, structure [32]). Differs: Gaussian noise and a sigmoid at the end, as the papers have
    them (the code of TrojanZoo adds noise of positive mean and ends in a ReLU); trained with
    momentum, not by Adam, for 50 epochs; images are not shifted or mirrored.
    """

    width: Annotated[int, AtLeast(1)] = 32
    noise: Annotated[float, NotNegative] = 0.1
    pool: bool = False
    recipe: Recipe = Recipe(epochs=50, lr=1.0, decay=0.0, pad=0, flip=False)

    def __post_init__(self) -> None:
        if self.recipe.part != "full":
            raise BadOption(
                "an autoencoder has no classifier to train apart; got recipe.part="
                f"{self.recipe.part}: use full"
            )

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the classifier behind an autoencoder trained on the clean images.

        An interrupted training goes on from what the run kept of it.

        Raises:
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        with seeded(rng):
            net = DenoisingAutoencoder(subject.shape[0], self.width, self.noise, self.pool)
        start = replace(subject, net=net.to(subject.device))
        reform = fit(start, clean, self.recipe, rng, loss=missing, run=run).net
        reform.requires_grad_(False)
        return replace(subject, net=Reformed(reform, deepcopy(subject.net)).eval())


class DenoisingAutoencoder(nn.Module):
    """Three 3x3 convolutions from images `(N, C, H, W)` in [0, 1] to images of the same shape.

    In training mode Gaussian noise is added first and cut to [0, 1]; in evaluation mode none is.

    Attributes:
        encode: Convolution, norm and ReLU.
        inner: The same; at half the size, if `pool` says so.
        decode: Convolution and sigmoid.
        noise: Standard deviation of the noise.
        pool: Whether the inner map has half the height and width.
    """

    def __init__(self, channels: int, width: int, noise: float, pool: bool) -> None:
        super().__init__()
        self.noise, self.pool = noise, pool
        self.encode, self.inner = (
            nn.Sequential(nn.Conv2d(cin, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for cin in (channels, width)
        )
        self.decode = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def forward(self, x: Images) -> Images:
        """Return the images as they should have been."""
        noisy = (x + self.noise * torch.randn_like(x)).clamp(0, 1) if self.training else x
        inside = self.encode(noisy)
        if self.pool:
            half = self.inner(F.avg_pool2d(inside, 2, ceil_mode=True))
            inside = F.interpolate(half, inside.shape[2:], mode="nearest")
        else:
            inside = self.inner(inside)
        out: Tensor = self.decode(inside)
        return out


def missing(reformer: Subject, batch: Batch) -> Tensor:
    """Return the mean squared difference between images and what is made of their noisy copies."""
    return F.mse_loss(reformer(batch[0]), batch[0])
