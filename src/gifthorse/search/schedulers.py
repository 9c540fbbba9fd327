"""Whose turn it is: which arms move next, and when the search stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.stats import log_depth, log_sizes, mad, median
from gifthorse.core.types import Inversion, Progress


class Scheduler(Protocol):
    """Steps an inversion to its end, yielding how the arms stand after every round."""

    def __call__(self, inversion: Inversion) -> Iterator[Progress]:
        """Step arms and yield how they stand until nothing is left to do."""
        ...


@dataclass(frozen=True)
class Exhaustive:
    """Every arm runs until it is done."""

    def __call__(self, inversion: Inversion) -> Iterator[Progress]:
        """Step all arms that are not done, round by round."""
        while True:
            arms = (~inversion.done).nonzero().flatten()
            if not len(arms):
                return
            inversion.step(arms)
            yield inversion.progress


@method
class SuccessiveHalving:
    """Pause the larger half of the arms twice; before an alarm, finish those around the median.

    A paused arm's size is an upper bound, which overstates how far the smallest arm lies below the
    median. So a model is only suspected after the arms around the median had their full turn.

    Attributes:
        first: Round after which the larger half pauses; an arm without a trigger counts as H * W.
        second: Round after which the larger half of the rest pauses.
        keep: Least number of arms that run to the end.
        alarm: Robust deviations of log size (at least 0.2 each) that the smallest arm must lie
            below the median before the arms around the median are finished: the median of all, or
            that of the arms that ran to their end, since those that were paused early may make
            any spread look wide.
        reach: Arms this many robust deviations of log size around the median are finished with
            the five in the middle, until all that lie there are.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016 (successive
    halving). Differs: the re-check at the median, since this race is about the gap, not the winner.
    """

    first: Annotated[int, NotNegative] = 60
    second: Annotated[int, NotNegative] = 150
    keep: Annotated[int, AtLeast(1)] = 3
    alarm: float = 2.0
    reach: Annotated[float, NotNegative] = 1.5

    def __call__(self, inversion: Inversion) -> Iterator[Progress]:
        """Step the arms that are still in the race."""
        alive = torch.arange(len(inversion.done))
        for limit in (self.first, self.second):
            yield from _until(inversion, alive, limit)
            alive = self._smaller(inversion.progress.size, alive)
        yield from _until(inversion, alive, None)
        size = inversion.progress.size
        if not (self._alarming(size) or self._alarming(size[alive])):
            return
        # Arms shrink as they are finished, and others come to lie in the middle.
        while not inversion.done[middle := self._middle(inversion.progress.size)].all():
            yield from _until(inversion, middle, None)

    def _alarming(self, size: Tensor) -> bool:
        return bool(log_depth(size).max() >= self.alarm)

    def _middle(self, size: Tensor) -> Tensor:
        """Return the arms whose sizes make the median and its deviation, sorted."""
        five = size.argsort()[max(0, len(size) // 2 - 2) : len(size) // 2 + 3]
        logs = log_sizes(size)
        near = (logs - median(logs)).abs() <= self.reach * mad(logs)
        middle: Tensor = torch.cat([five, near.nonzero().flatten()]).unique()
        return middle

    def _smaller(self, size: Tensor, alive: Tensor) -> Tensor:
        count = max(self.keep, -(-len(alive) // 2))
        return alive[size[alive].argsort()[:count]]


def _until(inversion: Inversion, arms: Tensor, limit: int | None) -> Iterator[Progress]:
    """Step these arms until each is done or had `limit` rounds."""
    while True:
        more = ~inversion.done[arms]
        if limit is not None:
            more &= inversion.progress.rounds[arms] < limit
        if not more.any():
            return
        inversion.step(arms[more])
        yield inversion.progress
