"""Carve: a soft search finds where a trigger may lie, then its pixels move and grow fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.tensors import STEP
from gifthorse.core.types import Candidate, Goal, Inversion, Progress, Samples, Subject
from gifthorse.search import CostController, PatchInit, Search, SearchConfig, SignedPixels
from gifthorse.search.objective import Objective, RandomFlip
from gifthorse.search.start import under

FORM = SignedPixels("clip")


@method
class Carve:
    """Minimize the loss over a set of pixels that is pruned and regrown, ever smaller.

    A short search with a size penalty, PixelBackdoor's, gives a first set of pixels. Then, round by
    round, the changes of the set are fitted without a penalty; the pixels of least first-order
    importance (gradient times change) leave; pixels of the largest gradient join; and whenever the
    trigger meets the bar with fewer pixels than before, the set shrinks. The exchanged share falls
    along a cosine. Assumes a trigger that changes few pixels, the same way in every image;
    needs clean images and gradients. The size of a trigger is its number of changed pixels.

    Attributes:
        initial: Weight of the size in the first search.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        soft: Steps and stopping of the first search.
        shrink: Share of the pixels that the set loses when the bar is met, at least one.
        turn: Share of the set that is exchanged in the first round.
        strength: Change that a pixel joins with, towards where the loss falls.
        mirror: Whether to fit on mirrored images as well (wrong for signs and digits).
        config: Steps and rounds on the set; `patience` rounds without a gain end it.
        probe: Where to start; None starts at random.

    Source: ours; the first search is Tao et al., PixelBackdoor, CVPR 2022, eqs. 3, 5 and 6, and the
    exchange of pixels is that of weights in Evci et al., Rigging the Lottery, ICML 2020.
    """

    initial: Annotated[float, NotNegative] = 0.05
    patience: Annotated[int, AtLeast(1)] = 3
    up: Annotated[float, Positive] = 1.5
    soft: SearchConfig = SearchConfig(
        batch=32, success_threshold=0.9, steps=3, rounds=60, min_rounds=30, patience=10,
        min_improvement=0.05, bf16=True,
    )  # fmt: skip
    shrink: Annotated[float, Share] = 0.06
    turn: Annotated[float, Share] = 0.15
    strength: Annotated[float, Share] = 0.5
    mirror: bool = False
    config: SearchConfig = SearchConfig(
        batch=50, success_threshold=0.9, steps=4, min_steps=4, rounds=80, patience=30,
        loss="prob", bf16=True,
    )  # fmt: skip
    probe: PatchInit | None = None

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion over sets of pixels, one arm a goal."""
        return CarveInversion(self, subject, clean, goals, rng)


class CarveInversion:
    """Two searches: arms begin in the soft one and move on to the fine one, each at its own time.

    Attributes:
        carving: Which arms have moved on, `(A,)` bool.
        wanted: Pixels that the set of each arm may have, `(A,)` int64.
        missed: Rounds since the last gain, `(A,)` int64.
    """

    def __init__(
        self,
        method: Carve,
        subject: Subject,
        clean: Samples,
        goals: Sequence[Goal],
        rng: Generator,
    ) -> None:
        self.method, arms = method, len(goals)
        cost = CostController.rising(arms, method.initial, method.patience, method.up)
        soft = Objective(FORM, cost, init=method.probe)
        flip = RandomFlip() if method.mirror else None
        fine = Objective(FORM, CostController.fixed(arms), input_transform=flip)
        self._soft = Search(subject, clean, goals, rng, soft, method.soft)
        self._fine = Search(subject, clean, goals, rng, fine, method.config)
        self.carving = torch.zeros(arms, dtype=torch.bool)
        self.wanted = torch.zeros(arms, dtype=torch.int64)
        self.missed = self.wanted.clone()

    def step(self, arms: Tensor, /) -> None:
        """Run one round of whichever search each of these arms is in."""
        moved = self.carving[arms]
        soft, fine = arms[~moved], arms[moved]
        if len(soft):
            self._soft.step(soft)
            ready = soft[self._soft.done[soft] & self._soft.feasible.cpu()[soft]]
            if len(ready):
                self._move_on(ready)
        if len(fine):
            self._fine.step(fine)
            self._shrink(fine)
            self._exchange(fine)

    def _move_on(self, arms: Tensor) -> None:
        """Hand the soft search's triggers over and shrink them for the first time."""
        parts = self._soft.stored(arms)
        self._fine.put(arms, parts)
        self._fine.offer(arms, parts)
        self.carving[arms] = True
        self._shrink(arms)
        self._exchange(arms)

    def _shrink(self, arms: Tensor) -> None:
        """Ask for fewer pixels than the best trigger has, wherever that is not asked for yet."""
        size = self._fine.progress.size[arms].long()
        gained = (size <= self.wanted[arms]) | (self.wanted[arms] == 0)
        fewer = torch.minimum(size - 1, (size * (1 - self.method.shrink)).round().long())
        self.wanted[arms] = torch.where(gained, fewer.clamp(min=1), self.wanted[arms])
        self.missed[arms] = torch.where(gained, 0, self.missed[arms] + 1)

    def _exchange(self, arms: Tensor) -> None:
        """Let the least important pixels of these arms leave and promising ones join."""
        parts = self._fine.decoded(arms)
        slopes = self._fine.gradient(parts, arms)
        worth = -(slopes[0] * parts[0] + slopes[1] * parts[1]).sum(1)  # (a, H, W)
        used = (parts[0] - parts[1]).abs().amax(1) >= STEP
        # A change goes where the loss falls, so only negative slopes promise anything.
        pull = ((-slopes[0]).relu() + (-slopes[1]).relu()).sum(1)
        joining = self._joining(arms)
        plus, minus = (v.clone() for v in parts)
        live = torch.zeros_like(used)
        for row, wanted in enumerate(self.wanted[arms].tolist()):
            join = min(int(joining[row]), wanted - 1)
            keep = _top(worth[row], used[row], wanted - join)
            new = _top(pull[row], ~used[row], wanted - int(keep.sum()))
            live[row] = keep | new
            for part, slope in ((plus, slopes[0]), (minus, slopes[1])):
                start = self.method.strength * (slope[row] < 0).to(part)
                part[row] = torch.where(new, start, part[row] * keep)
        self._fine.narrow(arms, live.unsqueeze(1))
        self._fine.put(arms, (plus, minus))

    def _joining(self, arms: Tensor) -> Tensor:
        """Return how many pixels of each arm are exchanged in this round, `(a,)`."""
        done = (self._fine.rounds.cpu()[arms] / self.method.config.rounds).clamp(max=1)
        share = self.method.turn * (1 + torch.cos(math.pi * done)) / 2
        count = (share * self.wanted[arms]).round()
        stuck = (self.missed[arms] > 0) & (self.method.turn > 0)
        return torch.maximum(count, stuck.to(count)).long()

    @property
    def done(self) -> Tensor:
        """Which arms have used their rounds, gain no more, or never had a trigger."""
        tired = (self.missed >= self.method.config.patience) & (self.method.config.patience > 0)
        fine = self._fine.progress
        done = (fine.rounds >= self.method.config.rounds) | tired | (fine.size <= 1)
        never = self._soft.done & ~self._soft.feasible.cpu()
        return torch.where(self.carving, done, never)

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round."""
        a, b = self._soft.progress, self._fine.progress
        return Progress(
            a.rounds + b.rounds,
            torch.where(self.carving, b.success, a.success),
            torch.where(self.carving, b.penalty, a.penalty),
            torch.where(self.carving, b.size, a.size),
            a.turned,
        )

    @property
    def image_steps(self) -> float:
        """Images that went forward and back; forward alone counts a half."""
        return self._soft.image_steps + self._fine.image_steps

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The smallest trigger of each arm that met the bar."""
        rounds = self.progress.rounds.tolist()
        found = zip(self._soft.best, self._fine.best, self.carving.tolist(), strict=True)
        chosen = (fine if moved else soft for soft, fine, moved in found)
        return tuple(replace(c, rounds=r) for c, r in zip(chosen, rounds, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Everything that the inversion goes on from, by name."""
        kept = {name: getattr(self, name).clone() for name in ("carving", "wanted", "missed")}
        for name, search in (("soft", self._soft), ("fine", self._fine)):
            kept |= {f"{name}.{key}": value for key, value in search.state().items()}
        return kept

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        for name in ("carving", "wanted", "missed"):
            setattr(self, name, state[name].clone())
        for name, search in (("soft.", self._soft), ("fine.", self._fine)):
            search.restore(under(state, name))


def _top(value: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Return the `count` allowed pixels of largest value, or all of them, `(H, W)` bool."""
    order = value.masked_fill(~allowed, -torch.inf).flatten()
    chosen = order.topk(min(max(0, count), int(allowed.sum()))).indices
    return torch.zeros_like(allowed).flatten().index_fill(0, chosen, True).view_as(allowed)
