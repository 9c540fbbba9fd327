"""An inversion that begins where another one ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gifthorse.core.types import Candidate, Inversion, Progress, WithStart

First = TypeVar("First", bound=Inversion)
PORTION = 16  # arms that are taken to the end of the first one before the next ones begin


class Swept(Generic[First]):
    """A first inversion, stepped to its end as the start of the second.

    Args:
        first: What comes first; every arm of it runs until it is done.
        then: Makes the second one, with the same arms, when the first is done.
    """

    def __init__(self, first: First, then: Callable[[First], Inversion]) -> None:
        self.first, self._then = first, then
        self._second: Inversion | None = None

    @property
    def _whole(self) -> float:
        return float(self.first.best[0].trigger.render()[1].numel())  # H * W

    @property
    def second(self) -> Inversion:
        """The inversion proper; the start is taken to its end if nobody has."""
        for _ in self.start():
            pass
        assert self._second is not None
        return self._second

    def start(self) -> Iterator[str]:
        """Do what is left of the first inversion, some arms at a time, each to its end.

        Which arms step together does not depend on where an earlier run was stopped.
        """
        if self._second is not None:
            return
        for part in torch.arange(len(done := self.first.done)).split(PORTION):
            while len(arms := part[~self.first.done[part]]):
                self.first.step(arms)
                yield f"start: {int(self.first.done.sum())} of {len(done)} swept"
        self._second = self._then(self.first)
        if isinstance(self._second, WithStart):
            yield from self._second.start()

    def step(self, arms: Tensor, /) -> None:
        """Run one round of the second inversion for these arms."""
        self.second.step(arms)

    @property
    def done(self) -> Tensor:
        """Which arms need no further round, `(A,)` bool; none before the start is done."""
        return self.first.done & False if self._second is None else self._second.done

    @property
    def progress(self) -> Progress:
        """How every arm did in its last round; before the start is done it had none."""
        if self._second is not None:
            return self._second.progress
        success = torch.zeros_like(self.first.progress.success)
        size = torch.full_like(success, self._whole)
        return Progress(success.long(), success, success + torch.inf, size, success.bool())

    @property
    def image_steps(self) -> float:
        """Image-steps of both."""
        return self.first.image_steps + (self._second.image_steps if self._second else 0.0)

    @property
    def best(self) -> tuple[Candidate, ...]:
        """One candidate an arm; before the start is done none is feasible."""
        if self._second is not None:
            return self._second.best
        return tuple(replace(c, size=self._whole, feasible=False) for c in self.first.best)

    def state(self) -> dict[str, Tensor]:
        """Everything that both go on from, by name."""
        kept = {f"first.{name}": value for name, value in self.first.state().items()}
        if self._second is not None:
            kept |= {f"second.{name}": value for name, value in self._second.state().items()}
        return kept

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Go on from what `state` returned."""
        own = {head: under(state, head) for head in ("first.", "second.")}
        self.first.restore(own["first."])
        if own["second."]:
            self._second = self._then(self.first)
            self._second.restore(own["second."])


def under(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Return the entries whose names begin so, without that beginning."""
    return {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
