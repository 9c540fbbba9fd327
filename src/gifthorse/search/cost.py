"""The weight of the size penalty: one number an arm, adapted to how well the arm does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_TENSORS = ("weight", "streak", "met", "missed", "rose", "fell")


@dataclass(frozen=True)
class CostController:
    """Neural Cleanse's controller: raise the weight while the bar is met, lower it while it is not.

    All tensors are `(A,)`, one entry an arm; arms never touch each other's entries.

    Attributes:
        weight: lambda (Neural Cleanse) or alpha (PixelBackdoor), the weight of the size penalty.
        initial: The weight at the start, and where it comes back to from zero.
        patience: Rounds in a row that it takes to move the weight.
        up: Factor after `patience` successes.
        down: Divisor after `patience` failures.
        warmup: Successes in a row before a zero weight becomes `initial`; 0 starts at `initial`.
        streak: Successes in a row while the weight is zero.
        met: Successes in a row since the last move.
        missed: Failures in a row since the last move.
        rose: Whether the weight was ever raised since it was last set to `initial`.
        fell: Whether it was ever lowered.

    Source: Wang et al., Neural Cleanse, S&P 2019, and its released code; PixelBackdoor's code.
    """

    weight: Tensor
    initial: float
    patience: int
    up: float
    down: float
    warmup: int
    streak: Tensor
    met: Tensor
    missed: Tensor
    rose: Tensor
    fell: Tensor

    @classmethod
    def start(
        cls,
        arms: int,
        *,
        initial: float = 1e-3,
        patience: int = 10,
        up: float = 1.5,
        down: float = 1.5**1.5,
        warmup: int = 0,
    ) -> CostController:
        """Return the controller at its start for `arms` arms."""
        count = torch.zeros(arms, dtype=torch.int64)
        flag = torch.zeros(arms, dtype=torch.bool)
        weight = torch.full((arms,), 0.0 if warmup else initial)
        return cls(weight, initial, patience, up, down, warmup, count, count, count, flag, flag)

    @classmethod
    def rising(
        cls,
        arms: int,
        initial: float,
        patience: int,
        up: float,
        *,
        warmup: int = 0,
        fall: float = 1.5,
    ) -> CostController:
        """Return the controller of the papers: the weight falls by `up ** fall`."""
        return cls.start(
            arms, initial=initial, patience=patience, up=up, down=up**fall, warmup=warmup
        )

    @classmethod
    def fixed(cls, arms: int, weight: float = 0.0, *, patience: int = 1) -> CostController:
        """Return a weight that never moves; hits and misses in a row still count as turns."""
        return cls.start(arms, initial=weight, patience=patience, up=1.0, down=1.0)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors, by name."""
        return {name: getattr(self, name) for name in _TENSORS}

    def restored(self, state: Mapping[str, Tensor], prefix: str = "") -> CostController:
        """Return the controller with the tensors that `state` returned."""
        kept: dict[str, Any] = {name: state[prefix + name].clone() for name in _TENSORS}
        return replace(self, **kept)

    def to(self, device: torch.device | str) -> CostController:
        """Return the same state on another device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.state().items()}
        return replace(self, **moved)

    def after(self, ok: Tensor, arms: Tensor, /) -> CostController:
        """Return the state after a round in which arms `(a,)` met the bar or not, `(a,)` bool.

        Example:
            >>> cost = CostController.start(1, initial=1.0, patience=2)
            >>> for _ in range(2):
            ...     cost = cost.after(torch.tensor([True]), torch.tensor([0]))
            >>> cost.weight.tolist()
            [1.5]
        """
        weight, met, missed = self.weight[arms], self.met[arms], self.missed[arms]
        rose, fell = self.rose[arms], self.fell[arms]
        streak = torch.where((weight == 0) & ok, self.streak[arms] + 1, 0)
        begin = (weight == 0) & (streak >= max(1, self.warmup)) & (self.initial > 0)
        weight = torch.where(begin, self.initial, weight)
        met, missed = met.masked_fill(begin, 0), missed.masked_fill(begin, 0)
        rose, fell, streak = rose & ~begin, fell & ~begin, streak.masked_fill(begin, 0)

        met, missed = torch.where(ok, met + 1, 0), torch.where(ok, 0, missed + 1)
        rise, fall = met >= self.patience, missed >= self.patience
        weight = torch.where(rise, weight * self.up, torch.where(fall, weight / self.down, weight))
        return replace(
            self,
            weight=self.weight.index_copy(0, arms, weight),
            streak=self.streak.index_copy(0, arms, streak),
            met=self.met.index_copy(0, arms, met.masked_fill(rise, 0)),
            missed=self.missed.index_copy(0, arms, missed.masked_fill(fall, 0)),
            rose=self.rose.index_copy(0, arms, rose | rise),
            fell=self.fell.index_copy(0, arms, fell | fall),
        )
