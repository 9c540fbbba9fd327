"""A filter over the whole image whose numbers are still free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images, Shape, Trigger
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.triggers.developed import Developed, developed, rings

START = 0.005
MEAN, SPREAD = 0.5, 1 / 12  # of a color that is uniform in [0, 1]
APART = 0.01  # variance of what a neighbor's color differs by


@dataclass(frozen=True)
class FreeFilter:
    """A kernel K `(C, C, 3, 3)`, a bias b `(C,)` and a vignette v `(C,)`; see `Developed`.

    Its size is `H W` times the RMS change, before clipping, of colors that are uniform in [0, 1],
    each by itself, in an image whose neighbors differ by a variance of 0.01. That is a quadratic
    form of the numbers, so that it depends on no image and is the same for all classes.

    Attributes:
        shape: Height and width of an image.
    """

    shape: tuple[int, int] = (32, 32)

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Faint noise: with no change at all, the size has no slope."""
        c = shape[0]
        sizes = ((c, c, 3, 3), (c,), (c,))
        kernel, bias, vignette = (torch.randn(s, generator=rng) * START for s in sizes)
        return kernel / 9, bias, vignette

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Refuse: a patch is no filter."""
        raise BadOption("a filter cannot start from a probed patch: set probe to null")

    def decode(self, variables: Parts) -> Parts:
        """Return the numbers."""
        return variables

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Return filtered images."""
        return developed(x, *parts)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the size."""
        return self.size(parts)

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return the parts: a filter has no places."""
        return parts

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are."""
        return parts

    def size(self, parts: Parts) -> Tensor:
        """Return `H W rms`.

        With D the sum of K over its taps, a color x changes by `u_i = D x + b` and `v_i r x_i`:
        `E u^2 = (D m + b)^2 + |D|^2 s`, `E u x_i = m (D m + b) + s D_ii`, `E x_i^2 = m^2 + s`.
        """
        kernel, bias, vignette = parts
        taps = kernel.sum((3, 4))  # (a, C, C)
        ring = rings(*self.shape).to(bias)
        shift = MEAN * taps.sum(2) + bias
        plain = shift.square() + SPREAD * taps.square().sum(2)
        along = MEAN * shift + SPREAD * taps.diagonal(dim1=1, dim2=2)
        turned = 2 * vignette * ring.mean() * along
        turned = turned + vignette.square() * ring.square().mean() * (MEAN**2 + SPREAD)
        fine = APART * (kernel.square().sum((2, 3, 4)))
        area = self.shape[0] * self.shape[1]
        return area * ((plain + turned + fine).mean(1) + 1e-12).sqrt()

    soft_size = size

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables."""
        return variables

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return a filter."""
        kernel, bias, vignette = parts
        return Developed(kernel, bias, vignette, *self.shape)
