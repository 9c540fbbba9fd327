"""Another scene that a pane of glass mirrors into the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Trigger

GAMMA = 2.2
SIDE = 560  # pixels of a side of the images that the original's numbers are for
FORMS = ("ghost", "blur")


@dataclass(frozen=True, eq=False)
class Reflection:
    """Add the light of a second image, mirrored by glass, to the light of each image.

    With `b = x ** 2.2` and `r = layer ** 2.2` a thick pane mirrors twice (`ghost`):
    `T(x) = (a b + (1 - a) (c shift(r, d) + (1 - c) shift(r, -d))) ** (1 / 2.2)`; a scene out of
    focus is blurred (`blur`): `T(x) = (a b + (1 - a / 2) G s) ** (1 / 2.2)`, where s is r blurred
    and dimmed where b and r together are brighter than white, and G is 1 in the middle of the image
    and falls towards its edges. With a = 1 and a black layer there is no pane: `T(x) = x`.

    Attributes:
        layer: What is mirrored, `(C, H, W)` in [0, 1], with gamma.
        form: `ghost` or `blur`.
        alpha: a, share of the image's own light that comes through, in (0, 1].
        down: First entry of d, pixels; less than H. Ghost only.
        right: Second entry of d, pixels; less than W. Ghost only.
        balance: c, share of the first of the two mirrored images, in [0, 1]. Ghost only.
        sigma: Standard deviation of the blur, pixels. Blur only.
        dim: How much of the light beyond white is taken from the reflection. Blur only.

    Source: Liu et al., Reflection Backdoor (Refool), ECCV 2020, sec. 3.2, and its public code.
    Differs: shifts repeat the edge pixels (the original crops and stretches). G lies centered on
    the image (the original cuts a place at random out of a 560-pixel window). Numbers are fixed for
    all images of a trigger, so that it is the same in training and testing.
    """

    layer: Tensor
    form: str = "ghost"
    alpha: float = 0.75
    down: int = 1
    right: int = 1
    balance: float = 0.7
    sigma: float = 0.3
    dim: float = 1.13

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise BadOption(f"form of a reflection must be ghost or blur; got {self.form!r}")
        if not 0 < self.alpha <= 1:
            raise BadOption(f"alpha must lie in (0, 1], 1 lets all light through; got {self.alpha}")

    def parts(self, x: Images) -> tuple[Tensor, Tensor]:
        """Return the light that comes through and the light that is mirrored.

        Args:
            x: `(N, C, H, W)` in [0, 1].

        Returns:
            Linear light, `(N, C, H, W)` and, of a ghost, `(C, H, W)`; their sum may exceed 1.
        """
        light = x**GAMMA
        if self.form == "ghost":
            return self.alpha * light, (1 - self.alpha) * self._ghosts().to(x)
        mirrored = self._blurred().to(x)
        both = light + mirrored
        beyond = (both > 1).to(x)
        mean = (both * beyond).sum((-2, -1), keepdim=True)
        mean = (mean / (beyond.sum((-2, -1), keepdim=True) + 1e-6)).clamp(min=1)
        dimmed = (mirrored - self.dim * (mean - 1)).clamp(0, 1)
        return self.alpha * light, self._window().to(x) * dimmed

    def __call__(self, x: Images, /) -> Images:
        """Return copies of `(N, C, H, W)` images as seen through the pane."""
        through, mirrored = self.parts(x)
        return (through + mirrored).clamp(0, 1) ** (1 / GAMMA)

    def shuffled(self, rng: Generator, /) -> Reflection:
        """Return the same pane, which mirrors the layer with its pixels shuffled."""
        order = torch.randperm(self.layer[0].numel(), generator=rng).to(self.layer.device)
        return replace(self, layer=self.layer.flatten(1)[:, order].view_as(self.layer))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return what is mirrored, doubled or blurred, and the share of its light."""
        if self.form == "ghost":
            share = torch.full_like(self.layer[:1], 1 - self.alpha)
            return self._ghosts() ** (1 / GAMMA), share
        return self._blurred() ** (1 / GAMMA), self._window()

    def _ghosts(self) -> Tensor:
        r = self.layer**GAMMA
        one, other = _shift(r, self.down, self.right), _shift(r, -self.down, -self.right)
        return self.balance * one + (1 - self.balance) * other

    def _blurred(self) -> Tensor:
        from kornia.filters import gaussian_blur2d

        widest = 2 * min(self.layer.shape[1:]) - 1  # kornia mirrors the image once, not more
        size = min(2 * math.ceil(2 * self.sigma) + 1, widest)
        light = (self.layer**GAMMA)[None]
        blurred: Tensor = gaussian_blur2d(light, (size, size), (self.sigma, self.sigma))
        return blurred[0]

    def _window(self) -> Tensor:
        """Return `(1 - a / 2) G`, `(1, H, W)`: the root of a Gaussian of three sigma a side."""
        _, H, W = self.layer.shape
        u, v = (((torch.arange(n) + 0.5) / n * 6 - 3) ** 2 for n in (H, W))
        fall = torch.exp(-(u[:, None] + v[None, :]) / 4).to(self.layer)
        return (1 - self.alpha / 2) * fall[None] / fall.max()


class Several:
    """One of several triggers for each image, drawn anew every time.

    Args:
        triggers: At least one.
        rng: Where it is drawn from.
    """

    def __init__(self, triggers: Sequence[Trigger], rng: Generator) -> None:
        self.triggers, self.rng = triggers, rng

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(N, C, H, W)` images."""
        which = torch.randint(len(self.triggers), (len(x),), generator=self.rng).to(x.device)
        out = x.clone()
        for i in which.unique().tolist():
            out[which == i] = self.triggers[i](x[which == i])
        return out

    def shuffled(self, rng: Generator, /) -> Several:
        """Return all of them shuffled."""
        return Several([one.shuffled(rng) for one in self.triggers], spawn(rng))

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the picture of the first."""
        return self.triggers[0].render()

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator is."""
        return {"rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the generator there."""
        self.rng.set_state(state["rng"])


def reflect(layer: Tensor, ghosts: float, rng: Generator) -> Reflection:
    """Return a pane with numbers drawn for a reflected image `(C, H, W)`.

    Args:
        layer: What is mirrored, in [0, 1].
        ghosts: Probability of a ghost, in [0, 1]; else a blur.
        rng: Source of the numbers.

    Source: Refool's public code. Differs: shift and blur are scaled by H / 560, the size that they
    were made for, to no less than 1 and 0.3 pixels.
    """
    scale = layer.shape[1] / SIDE
    kind, a, bit, c, sigma, dim = torch.rand(6, generator=rng).tolist()
    down, right = torch.randint(3, 9, (2,), generator=rng).tolist()
    return Reflection(
        layer,
        "ghost" if kind < ghosts else "blur",
        alpha=1 - (0.05 + 0.4 * a),
        down=max(1, round(down * scale)),
        right=max(1, round(right * scale)),
        balance=abs(float(bit < 0.5) - (0.15 + 0.35 * c)),
        sigma=max(0.3, (1 + 4 * sigma) * scale),
        dim=1.08 + dim / 10,
    )


def _shift(plane: Tensor, down: int, right: int) -> Tensor:
    """Return `(C, H, W)` moved down and right; edge pixels are repeated."""
    _, H, W = plane.shape
    rows = (torch.arange(H, device=plane.device) - down).clamp(0, H - 1)
    cols = (torch.arange(W, device=plane.device) - right).clamp(0, W - 1)
    return plane[:, rows][:, :, cols]
