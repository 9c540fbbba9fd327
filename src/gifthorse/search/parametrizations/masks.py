"""Forms of a trigger whose variables are still free: how it is made, stamped and measured.

A form holds no tensors. Its variables have a leading arm dimension `a`; `decode` turns them into
the parts of a trigger (mask and pattern, or added and removed light), again one row an arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.tensors import STEP, from_box, to_box
from gifthorse.core.types import Images, Shape, Trigger
from gifthorse.triggers import Additive, Patch

Parts: TypeAlias = tuple[Tensor, ...]
CLEAR = 3.4e-4  # opacity of a mask that begins with nothing: (1 + tanh(-4)) / 2
FAINT, OPAQUE = 1e-3, 0.99  # most and least opacity off and on a square to start from
SEED = 0.95  # strength of a seeded patch: strong, yet where tanh still has a slope


class Parametrization(Protocol):
    """A family of triggers as the search sees it."""

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Random variables for one arm, without the arm dimension."""
        ...

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Variables `(a, ...)` that start with a pattern `(a, C, H, W)` on its support."""
        ...

    def decode(self, variables: Parts) -> Parts:
        """The parts of the trigger, differentiable."""
        ...

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Stamp `(a, B, C, H, W)` images, each arm with its own trigger."""
        ...

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """The differentiable size, `(a,)`, of variables and what they decode to."""
        ...

    def project(self, variables: Parts) -> Parts:
        """The nearest variables that are allowed, after a step."""
        ...

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """The parts with nothing left outside the live pixels `(a, 1, H, W)`."""
        ...

    def postprocess(self, parts: Parts) -> Parts:
        """The parts after the method's own post-processing."""
        ...

    def size(self, parts: Parts) -> Tensor:
        """The size that counts, `(a,)`, in pixels."""
        ...

    def soft_size(self, parts: Parts) -> Tensor:
        """A finer size to break ties with, `(a,)`."""
        ...

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """The variables that a search goes on from after it stored `parts`, one row an arm."""
        ...

    def to_trigger(self, parts: Parts) -> Trigger:
        """A trigger from the parts of one arm, without the arm dimension."""
        ...


@dataclass(frozen=True)
class MaskPattern:
    """A mask m `(1, H, W)` and a pattern p `(C, H, W)`, stamped as `(1 - m) x + m p`.

    Attributes:
        norm: The penalty: `l1`, the sum of m over one channel, or `l2`, the root of its squares.
        jitter: Half-width of the noise added to mask and pattern whenever a best is stored, as the
            Neural Cleanse variant behind PixelBackdoor's baseline does; 0 for none.
        clear: Begin with a mask that is all but transparent, instead of a random one.
        hard: A finished trigger is opaque where its mask is one half or more, and only there.
        square: Side of a nearly opaque square in the middle that the mask starts from, transparent
            elsewhere, as a share of the image's; 0 starts at random. As in K-Arm's released code.
        one_color: Whether all pixels share one color.

    Source: Wang et al., Neural Cleanse, S&P 2019, eqs. 2 and 3; PixelBackdoor eqs. 1 and 2.
    """

    norm: Literal["l1", "l2"] = "l1"
    jitter: float = 0.0
    clear: bool = False
    hard: bool = False
    square: float = 0.0
    one_color: bool = False

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Mask and pattern uniform in [0, 1], or the square, through the inverse of the box map."""
        c, h, w = shape
        mask = torch.rand(1, h, w, generator=rng)
        if self.clear:
            mask = torch.full_like(mask, CLEAR)
        if self.square:
            mask *= FAINT
            rows, columns = (slice(round(n * (1 - self.square) / 2), None) for n in (h, w))
            high, wide = (max(1, round(n * self.square)) for n in (h, w))
            mask[:, rows, columns][:, :high, :wide] = OPAQUE
        size = (c, 1, 1) if self.one_color else (c, h, w)
        return to_box(mask), to_box(torch.rand(size, generator=rng))

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Return variables that show the pattern almost opaquely on its support."""
        mask, colors = variables
        mask = torch.where(support, to_box(torch.full_like(mask, SEED)), mask)
        if self.one_color:
            inside = (pattern * support).sum((-2, -1), keepdim=True)
            return mask, to_box(inside / support.sum((-2, -1), keepdim=True), 1 - SEED)
        return mask, torch.where(support, to_box(pattern, 1 - SEED), colors)

    def decode(self, variables: Parts) -> Parts:
        """Return mask and pattern in (0, 1)."""
        mask, pattern = variables
        colors = from_box(pattern)
        return from_box(mask), colors.expand(*colors.shape[:-2], *mask.shape[-2:])

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Return `(1 - m) x + m p`."""
        mask, pattern = (part.unsqueeze(1) for part in parts)
        return x + mask * (pattern - x)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the mask's norm."""
        mask = parts[0].flatten(1)
        return mask.sum(1) if self.norm == "l1" else mask.square().sum(1).sqrt()

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return a mask that is transparent outside the live pixels."""
        return parts[0] * live, parts[1]

    def postprocess(self, parts: Parts) -> Parts:
        """Return the parts as they are, or with a mask of zeros and ones."""
        mask, pattern = parts
        return ((mask >= 0.5).to(mask) if self.hard else mask), pattern

    def size(self, parts: Parts) -> Tensor:
        """Return the mask's L1 norm over one channel (MLN)."""
        return parts[0].flatten(1).sum(1)

    soft_size = size

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Return the variables, or a jittered restart from the stored mask and pattern."""
        if not self.jitter:
            return variables
        mask, colors = parts
        before = (mask, colors[..., :1, :1]) if self.one_color else (mask, colors)
        noise = (torch.rand(p.shape, generator=rng).to(p) * 2 - 1 for p in before)
        return tuple(to_box(p + self.jitter * n) for p, n in zip(before, noise, strict=True))

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return a patch."""
        return Patch(pattern=parts[1], mask=parts[0])


@dataclass(frozen=True)
class SignedPixels:
    """Light to add, P+, and to remove, P-, each `(C, H, W)`, stamped as `clip(x + P+ - P-)`.

    Attributes:
        mode: `tanh` (eq. 4) or `clip` (eq. 6): how raw variables become values in [0, 1].
        gamma: Divides the variables in the size loss (eq. 5).
        spread: `tanh` is the size loss of eq. 5; `plain` sums the changes themselves (Table 6).
        ties: Channels that tie for a pixel's maximum `share` the gradient, or the `first` takes it.

    Source: Tao et al., Better Trigger Inversion Optimization in Backdoor Scanning, CVPR 2022
    (PixelBackdoor), eqs. 4 to 6. Differs: ties between channels share the gradient (`amax`); what
    is added and removed at once, and differs by less than 1/255, is dropped too.
    """

    mode: Literal["tanh", "clip"] = "tanh"
    gamma: float = 10.0
    spread: Literal["tanh", "plain"] = "tanh"
    ties: Literal["share", "first"] = "share"

    def start(self, shape: Shape, rng: Generator) -> Parts:
        """Both variables uniform in [0, 1), as published for either mode."""
        return torch.rand(shape, generator=rng), torch.rand(shape, generator=rng)

    def init_from(self, variables: Parts, pattern: Tensor, support: Tensor) -> Parts:
        """Return variables that push pixels to the pattern on its support."""
        pushes = (pattern, 1 - pattern)
        raw = [to_box(q, 1 - SEED) for q in pushes] if self.mode == "tanh" else list(pushes)
        plus, minus = (torch.where(support, q, b) for q, b in zip(raw, variables, strict=True))
        return plus, minus

    def decode(self, variables: Parts) -> Parts:
        """Return P+ and P- in [0, 1]."""
        if self.mode == "tanh":
            return tuple(from_box(b) for b in variables)
        return tuple(b.clamp(0, 1) for b in variables)

    def stamp(self, parts: Parts, x: Images) -> Images:
        """Return `clip(x + P+ - P-, 0, 1)`."""
        plus, minus = parts
        return (x + (plus - minus).unsqueeze(1)).clamp(0, 1)

    def penalty(self, variables: Parts, parts: Parts) -> Tensor:
        """Return the size loss of eq. 5; the maximum is taken first, since tanh is monotone."""
        over = parts if self.spread == "plain" else variables
        tops = [b.amax(1) if self.ties == "share" else b.max(1).values for b in over]
        if self.spread == "tanh":
            tops = [from_box(top / self.gamma) for top in tops]
        return tops[0].flatten(1).sum(1) + tops[1].flatten(1).sum(1)

    def project(self, variables: Parts) -> Parts:
        """Return the variables: all are allowed."""
        return variables

    def restrict(self, parts: Parts, live: Tensor) -> Parts:
        """Return changes of live pixels only."""
        return parts[0] * live, parts[1] * live

    def postprocess(self, parts: Parts) -> Parts:
        """Drop changes below 1/255, in each sign and in their difference."""
        plus, minus = (p * (p >= STEP) for p in parts)
        keep = (plus - minus).abs() >= STEP - 1e-6
        return plus * keep, minus * keep

    def size(self, parts: Parts) -> Tensor:
        """Return the number of pixels that change in any channel."""
        plus, minus = parts
        return ((plus - minus).abs() >= STEP - 1e-6).any(1).flatten(1).sum(1).to(plus)

    def soft_size(self, parts: Parts) -> Tensor:
        """Return the sum over pixels of the largest change of a channel."""
        plus, minus = parts
        return (plus - minus).abs().amax(1).flatten(1).sum(1)

    def restart(self, parts: Parts, variables: Parts, rng: Generator) -> Parts:
        """Snap: go on from the truncated trigger, which lifts sunken variables back to the edge."""
        if self.mode == "tanh":
            return tuple(to_box(p, 1e-3) for p in parts)
        return parts

    def to_trigger(self, parts: Parts) -> Trigger:
        """Return an additive trigger."""
        plus, minus = parts
        return Additive(plus - minus)
