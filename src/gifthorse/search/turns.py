"""Whose turn it is: which arms move next, and when the search stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gifthorse.tensors import median
from gifthorse.types import Candidate, Hunt

Stop = Callable[[], bool]


class Turns(Protocol):
    """Steps a hunt to its end, yielding the candidates after every round."""

    def __call__(self, hunt: Hunt) -> Iterator[tuple[Candidate, ...]]:
        """Step arms and yield the best so far until nothing is left to do."""
        ...


@dataclass(frozen=True)
class Exhaustive:
    """Every arm runs until it has settled."""

    def __call__(self, hunt: Hunt) -> Iterator[tuple[Candidate, ...]]:
        """Step all unsettled arms, round by round."""
        while True:
            arms = (~hunt.settled).nonzero().flatten()
            if not len(arms):
                return
            hunt.step(arms)
            yield hunt.best


@dataclass(frozen=True)
class Halving:
    """Pause the larger half of the arms twice; before an alarm, finish those around the median.

    A paused arm's size is an upper bound, which overstates how far the smallest arm lies below the
    median. So a model is only suspected after the arms around the median had their full turn.

    Attributes:
        first: Round after which the larger half pauses; an arm without a trigger counts as H * W.
        second: Round after which the larger half of the rest pauses.
        keep: Least number of arms that run to the end.
        alarm: Median over smallest size above which the arms around the median are finished.

    Source: successive halving; the re-check at the median is ours.
    """

    first: int = 60
    second: int = 150
    keep: int = 3
    alarm: float = 1.5

    def __call__(self, hunt: Hunt) -> Iterator[tuple[Candidate, ...]]:
        """Step the arms that are still in the race."""
        alive = torch.arange(len(hunt.best))
        for limit in (self.first, self.second):
            yield from _until(hunt, alive, limit)
            alive = self._smaller(hunt.best, alive)
        yield from _until(hunt, alive, None)
        sizes = torch.tensor([c.size for c in hunt.best])
        if median(sizes) >= self.alarm * sizes.min():
            middle = sizes.argsort()[max(0, len(sizes) // 2 - 2) : len(sizes) // 2 + 3]
            yield from _until(hunt, middle, None)

    def _smaller(self, best: tuple[Candidate, ...], alive: Tensor) -> Tensor:
        sizes = torch.tensor([best[a].size for a in alive.tolist()])
        count = max(self.keep, -(-len(alive) // 2))
        return alive[sizes.argsort()[:count]]


def _until(hunt: Hunt, arms: Tensor, limit: int | None) -> Iterator[tuple[Candidate, ...]]:
    """Step these arms until each has settled or had `limit` rounds."""
    while True:
        best, settled = hunt.best, hunt.settled
        more = [
            a for a in arms.tolist() if not settled[a] and (limit is None or best[a].rounds < limit)
        ]
        if not more:
            return
        hunt.step(torch.tensor(more))
        yield hunt.best
