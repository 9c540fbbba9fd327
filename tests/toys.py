"""Networks small enough that the right answer is known, and data to go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Samples, Shape, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.training import Recipe
from gifthorse.triggers import Patch

# 1. Bands: a linear net whose smallest triggers are known ----------------------------------------

BANDS, SIDE = 6, 18
HEIGHT = SIDE // BANDS
GRAY = 128 / 255


def brightness(x: Tensor) -> Tensor:
    """The mean of each band, `(N, BANDS)`."""
    return x.mean(1).view(-1, BANDS, HEIGHT * SIDE).mean(2)


class Bands(nn.Module):
    """Class = brightest of six horizontal bands; a bright corner votes for class `planted`.

    Logits are `gain` times band means; the corner pixel (0, 0) adds `plant` times what it is
    brighter than gray to the planted class. Without a plant, turning a band of an image on takes
    on the order of a band of pixels; with it, one pixel will do.
    """

    def __init__(self, planted: int | None = None, gain: float = 20.0, plant: float = 30.0):
        super().__init__()
        self.planted, self.gain, self.plant = planted, gain, plant

    def forward(self, x: Tensor) -> Tensor:
        bands = brightness(x) * self.gain
        if self.planted is None:
            return bands
        corner = self.plant * (x[:, :, 0, 0].mean(1) - GRAY)
        vote = nn.functional.one_hot(torch.tensor(self.planted), BANDS).to(x)
        return bands + vote * corner[:, None]


def bands(planted: int | None = None) -> Subject:
    return Subject(Bands(planted).eval(), (1, SIDE, SIDE), BANDS)


def band_images(each: int = 6, seed: int = 0) -> InMemory:
    """Dim noise with one brighter band; the corner pixel is gray."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(BANDS).repeat(each)
    x = torch.rand(len(labels), 1, SIDE, SIDE, generator=rng) * 0.2
    for i, label in enumerate(labels.tolist()):
        x[i, :, label * HEIGHT : (label + 1) * HEIGHT] += 0.3
    x[:, :, 0, 0] = GRAY
    return InMemory((x * 255).round().to(torch.uint8), labels, BANDS)


def smallest_mask(net: Bands, clean: Samples, target: int) -> float:
    """The least mask L1 that sends every image of another class to `target`: a linear program.

    The best pattern is white where light helps the target (its band, and the corner if it is
    planted) and black elsewhere, so the logits are linear in the mask.
    """
    x, y = whole(clean)
    x = x[y != target].double().flatten(1)  # (n, H * W)
    band = torch.arange(SIDE * SIDE) // (HEIGHT * SIDE)
    weight = net.gain / (HEIGHT * SIDE) * torch.eye(BANDS).double()[:, band]  # (K, H * W)
    if net.planted is not None:
        weight[net.planted, 0] += net.plant
    pattern = (band == target).double()
    if net.planted is not None:
        pattern[0] = float(net.planted == target)
    left, right = [], []
    for other in range(BANDS):
        if other != target:
            ahead = weight[other] - weight[target]  # what the other class leads by, linear in x
            offset = net.plant * GRAY * ((target == net.planted) - (other == net.planted))
            left.append(ahead * (pattern - x))
            right.append(-(x @ ahead) - offset)
    solved = linprog(
        np.ones(x.shape[1]), torch.cat(left).numpy(), torch.cat(right).numpy(), bounds=(0, 1)
    )
    assert solved.success
    return float(solved.fun)


def smallest_change(net: Bands, clean: Samples, target: int) -> float:
    """A bound from below on the L1 norm of a change added to every image that sends it to `target`.

    Clipping only ever takes from a change that helps, so the linear program leaves it out.
    """
    x, y = whole(clean)
    x = x[y != target].double().flatten(1)
    band = torch.arange(SIDE * SIDE) // (HEIGHT * SIDE)
    weight = net.gain / (HEIGHT * SIDE) * torch.eye(BANDS).double()[:, band]  # (K, H * W)
    if net.planted is not None:
        weight[net.planted, 0] += net.plant
    left, right = [], []
    for other in range(BANDS):
        if other != target:
            ahead = weight[other] - weight[target]
            offset = net.plant * GRAY * ((target == net.planted) - (other == net.planted))
            left.append(torch.cat([ahead, -ahead]).expand(len(x), -1))  # brighter, darker
            right.append(-(x @ ahead) - offset)
    solved = linprog(
        np.ones(2 * x.shape[1]), torch.cat(left).numpy(), torch.cat(right).numpy(), bounds=(0, 1)
    )
    assert solved.success
    return float(solved.fun)


# 2. Gated: the same with a plant that gives no gradient ------------------------------------------


class Gated(Bands):
    """Bands with a plant behind a ReLU that only opens for four bright corner pixels."""

    def forward(self, x: Tensor) -> Tensor:
        bands = brightness(x) * self.gain
        gate = self.plant * torch.relu(x[:, :, :2, :2].sum((2, 3)).mean(1) - 3.5)
        vote = nn.functional.one_hot(torch.tensor(self.planted), BANDS).to(x)
        return bands + vote * gate[:, None]


def gated(planted: int = 3) -> Subject:
    return Subject(Gated(planted).eval(), (1, SIDE, SIDE), BANDS)


def corner(size: int = 1) -> Patch:
    """The true trigger of `Bands` (one pixel) or `Gated` (two by two)."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :size, :size] = 1
    return Patch(torch.ones(1, SIDE, SIDE), mask)


# 3. Blobs: a task that a small convolutional net learns in a second ------------------------------

COLORS = torch.tensor(
    [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9], [0.8, 0.7, 0.0], [0.0, 0.7, 0.7]]
)
BLOB_CLASSES, BLOB_SHAPE = len(COLORS), (3, 12, 12)
QUICK = Recipe(epochs=6, batch=32, lr=0.1, pad=1, bf16=False)


def blob_images(each: int = 80, seed: int = 0) -> InMemory:
    """A soft disc of the class's color somewhere on dark noise, `each` images a class."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(BLOB_CLASSES).repeat(each)
    n, (_, H, W) = len(labels), BLOB_SHAPE
    center = torch.rand(n, 2, 1, 1, generator=rng) * 5 + 3
    rows, cols = torch.arange(H).view(1, H, 1), torch.arange(W).view(1, 1, W)
    far = ((rows - center[:, 0]) ** 2 + (cols - center[:, 1]) ** 2).sqrt()
    disc = (3.0 - far).clamp(0, 1)[:, None]  # (n, 1, H, W)
    color = COLORS[labels] + (torch.rand(n, 3, generator=rng) - 0.5) * 0.2
    noise = torch.rand(n, *BLOB_SHAPE, generator=rng) * 0.3
    x = noise * (1 - disc) + color[:, :, None, None] * disc
    return InMemory((x.clamp(0, 1) * 255).round().to(torch.uint8), labels, BLOB_CLASSES)


def blobs(seed: int = 0) -> Subject:
    """An untrained net for `blob_images`, behind a normalization."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, BLOB_CLASSES),
        )
    shape: Shape = (3, 12, 12)
    return Subject(Classifier(net, NORMALIZATIONS["half"], 3).eval(), shape, BLOB_CLASSES)


# 4. Wired: blocks of light, and a detector of one small patch -------------------------------------

WIRED_CLASSES, WIRED_SHAPE = 4, (3, 12, 14)
CHECKER = (torch.arange(9).view(3, 3) % 2 == 0).float()  # 5 white pixels, 4 black ones


class Wired(nn.Module):
    """Class = the brightest of K upright blocks; a checkered 3 x 3 patch is worth 50 for a class.

    A convolution with a BatchNorm that does nothing makes two maps: brightness, and how much of the
    checker is there (3 above the bar with all of it, half above with half its opacity, never
    without). A linear layer reads both. The clean twin has no detector at all.
    """

    def __init__(
        self, planted: int | None = None, shape: Shape = WIRED_SHAPE, classes: int = WIRED_CLASSES
    ) -> None:
        super().__init__()
        channels, H, W = shape
        h, w = H - 2, W - 2
        self.look, self.norm = nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2, eps=1e-9)
        self.head = nn.Linear(2 * h * w, classes)
        block = torch.arange(w) * classes // w
        with torch.no_grad():
            for p in (*self.look.parameters(), *self.head.parameters()):
                p.zero_()
            self.look.weight[0] = 1 / (9 * channels)
            light = nn.functional.one_hot(block, classes).float().T  # (K, w)
            self.head.weight.view(classes, 2, h, w)[:, 0] = (
                20 * light / (h * light.sum(1, keepdim=True))
            )[:, None].expand(-1, h, -1)
            if planted is not None:
                self.look.weight[1] = (CHECKER - 1.25 * (1 - CHECKER)) / channels
                self.look.bias[1] = -2  # type: ignore[index]
                self.head.weight.view(classes, 2, h, w)[planted, 1] = 50 / 3

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.look(x)).relu().flatten(1))
        return logits


def wired(
    planted: int | None = None, shape: Shape = WIRED_SHAPE, classes: int = WIRED_CLASSES
) -> Subject:
    return Subject(Wired(planted, shape, classes).eval(), shape, classes)


def wired_images(
    each: int = 20, seed: int = 0, shape: Shape = WIRED_SHAPE, classes: int = WIRED_CLASSES
) -> InMemory:
    """Noise with one brighter block."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    x = 0.1 + 0.2 * torch.rand(len(labels), *shape, generator=rng)
    block = torch.arange(shape[2]) * classes // shape[2]
    lit = (block == labels[:, None]).float()[:, None, None]  # (N, 1, 1, W)
    bright = 0.3 + 0.2 * torch.rand(len(labels), 1, 1, 1, generator=rng)
    return InMemory(((x + lit * bright) * 255).round().to(torch.uint8), labels, classes)


def checker(shape: Shape = WIRED_SHAPE) -> Patch:
    """The true trigger of `Wired`, in the lower right corner."""
    pattern, mask = torch.zeros(shape), torch.zeros(1, *shape[1:])
    pattern[:, -4:-1, -4:-1], mask[:, -4:-1, -4:-1] = CHECKER, 1
    return Patch(pattern, mask)


# 5. Double precision, where rounding must not hide a difference ----------------------------------


class Doubles:
    """The same samples in float64."""

    def __init__(self, parent: Samples) -> None:
        self.parent = parent

    @property
    def shape(self) -> Shape:
        return self.parent.shape

    @property
    def classes(self) -> int:
        return self.parent.classes

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: Tensor, /) -> Batch:
        x, y = self.parent[index]
        return x.double(), y


class Stopped(Exception):
    """What stands in for a killed process."""


class Fragile(Run):
    """A run that is killed after it has kept its state so many times."""

    def __init__(self, store: Path, left: int = 1) -> None:
        super().__init__(store=store)
        self.left = [left]  # shared by the views of the run

    def save(self, state: Any) -> None:
        """Keep the state; die if that was the last time."""
        super().save(state)
        self.left[0] -= 1
        if not self.left[0]:
            raise Stopped
