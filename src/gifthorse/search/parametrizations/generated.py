"""A change made by a small generator net, one net an arm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images, Shape, Trigger
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.triggers import Additive, Patch

NOISE, MIDDLE, KERNEL = 100, 32, 5  # length of z, channels between the convolutions, their side


@dataclass(frozen=True)
class GeneratedChange:
    """A change g `(C, H, W)` that a generator makes of a class vector u and fixed noise z.

    `[relu(u), z] -> linear -> norm -> relu -> 5x5 (32) -> norm -> relu -> 5x5 (C) -> tanh`, both
    convolutions transposed with padding 2. The variables are the weights of the generator.

    The linear layer is folded into its bias, whatever it is wide. What it reads does not change,
    so the gradient of column j is its input j times the bias's, and Adam's step does not depend on
    a gradient's scale: all columns move with the bias, and `1 + sum(inputs)` times its change is
    theirs together. Of 66 million numbers an arm at 32 by 32, 65 thousand are left.

    What the last layer gives is multiplied by `calm`, so that the change begins near nothing and
    stays where tanh has a slope: each of the 800 weights that make a value of it moves by Adam's
    rate in a step, and 0.01 of them at once is a change of 3.

    Attributes:
        mode: `additive` stamps `clip(x + g)`, g in (-1, 1); `zoo` puts g in (0, 1), by a sigmoid,
            in the place of the image, as TrojanZoo does.
        hidden: Length of u, what a layer makes of the one-hot class vector.
        width: Channels that the linear layer makes.
        allowance: Share of the image's pixels that the penalty lets pass; `zoo` lets none.
        classes: Classes of the one-hot vector that u stands for; sets the range of its start.
        calm: What the last layer's output is multiplied by before its tanh; 1 in mode `zoo`.
        noise: Seed of u and z.

    Source: Chen et al., DeepInspect, IJCAI 2019, in TrojanZoo's version. Differs: additive, where
    the code replaces the image; calmed; u stays as it starts, as z does, so that the layer can be
    folded, which Adam tells apart only by its epsilon; the first convolution has no bias, which the
    norm after it takes away again.
    """

    mode: Literal["additive", "zoo"] = "additive"
    hidden: int = 1000
    width: int = 64
    allowance: float = 0.01
    classes: int = 10
    calm: float = 0.02
    noise: int = 0

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Return weights in PyTorch's default ranges; of the folded layer, as its sum is spread."""
        c, h, w = shape
        area, read = KERNEL * KERNEL, self._read()

        def uniform(fan: int, *size: int) -> Tensor:
            return (torch.rand(*size, generator=rng) * 2 - 1) / math.sqrt(fan)

        # Each number is a sum over the inputs of uniform weights, and a bias.
        spread = ((1 + read.square().sum()) / (3 * len(read))).sqrt()
        return (
            torch.randn(self.width, h, w, generator=rng) * spread / (1 + read.sum()),
            torch.ones(self.width),
            torch.zeros(self.width),
            # PyTorch takes the outputs of a transposed convolution for its fan-in.
            uniform(MIDDLE * area, self.width, MIDDLE, KERNEL, KERNEL),
            torch.ones(MIDDLE),
            torch.zeros(MIDDLE),
            uniform(c * area, MIDDLE, c, KERNEL, KERNEL),
            uniform(c * area, c),
        )

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Refuse: weights cannot be worked out from a patch."""
        raise BadOption("a generator cannot start from a probed patch: set probe to null")

    def decode(self, variables: Parts) -> Parts:
        """Return g `(a, C, H, W)`."""
        bias, scale1, shift1, conv1, scale2, shift2, conv2, last = variables
        y = (1 + self._read().sum().item()) * bias  # (a, width, H, W)
        y = _convolve(_normalize(y, scale1, shift1).relu(), conv1)
        y = _convolve(_normalize(y, scale2, shift2).relu(), conv2) + last[..., None, None]
        return ((self.calm * y).tanh() if self.mode == "additive" else y.sigmoid(),)

    def _read(self) -> Tensor:
        """Return what the linear layer reads: relu(u) and z, `(hidden + 100,)`, at least 0."""
        rng, reach = Generator().manual_seed(self.noise), self.classes**-0.5
        u = (torch.rand(2, self.hidden, generator=rng) * 2 - 1).sum(0) * reach  # weight and bias
        return torch.cat([u.relu(), torch.rand(NOISE, generator=rng)])

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return g with zeros outside the live pixels: no change, or black in mode `zoo`."""
        return (parts[0] * live,)

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Return `clip(x + g, 0, 1)`, or g in the place of every image."""
        g = parts[0].unsqueeze(1)
        return (x + g).clamp(0, 1) if self.mode == "additive" else g.expand_as(x)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return what the size exceeds its allowance by; in mode `zoo` the L1 norm of g."""
        g = parts[0]
        if self.mode == "zoo":
            return g.abs().flatten(1).sum(1)
        return (self.size(parts) - self.allowance * g[0, 0].numel()).relu()

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are."""
        return parts

    def size(self, parts: Parts) -> Tensor:
        """Return the sum over pixels of the largest change of a channel."""
        return parts[0].abs().amax(1).flatten(1).sum(1)

    soft_size = size

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables."""
        return variables

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return an additive trigger, or a patch that covers the image."""
        g = parts[0]
        return Additive(g) if self.mode == "additive" else Patch(g, torch.ones_like(g[:1]))


def _normalize(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return batch normalization of a batch of one: over space, for each channel `(a, c)`."""
    return F.instance_norm(y) * scale[..., None, None] + shift[..., None, None]


def _convolve(y: Tensor, weight: Tensor) -> Tensor:
    """Return transposed convolutions of `(a, c, H, W)` with `(a, c, d, k, k)`, same size."""
    a, _, h, w = y.shape
    flat = F.conv_transpose2d(
        y.reshape(1, -1, h, w), weight.flatten(0, 1), padding=KERNEL // 2, groups=a
    )
    return flat.view(a, -1, h, w)
