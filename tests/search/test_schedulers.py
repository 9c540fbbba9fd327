"""Which arms move, on a scripted hunt whose sizes are known for every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from gifthorse.core.types import Candidate, Goal, Inversion, Progress
from gifthorse.search import Exhaustive, Scheduler, SuccessiveHalving
from gifthorse.triggers import Patch

BLANK = Patch(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))


class Script:
    """Arms that shrink to `ends[k]` by `1 / rounds` and settle after `lives[k]` rounds."""

    def __init__(self, ends: Sequence[float], lives: Sequence[int]) -> None:
        self.ends, self.lives = ends, lives
        self.rounds = [0] * len(ends)
        self.log: list[list[int]] = []

    def step(self, arms: Tensor, /) -> None:
        self.log.append(arms.tolist())
        for arm in arms.tolist():
            assert self.rounds[arm] < self.lives[arm], "stepped an arm that had settled"
            self.rounds[arm] += 1

    @property
    def done(self) -> Tensor:
        return torch.tensor([r >= n for r, n in zip(self.rounds, self.lives, strict=True)])

    @property
    def progress(self) -> Progress:
        none = torch.zeros(len(self.ends))
        size = [end + 1.0 / (1 + r) for end, r in zip(self.ends, self.rounds, strict=True)]
        return Progress(torch.tensor(self.rounds), none, none, torch.tensor(size), none > 0)

    @property
    def image_steps(self) -> float:
        return float(sum(self.rounds))

    def state(self) -> dict[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        self.rounds = state["rounds"].tolist()

    @property
    def best(self) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(Goal(k), BLANK, float(size), 1.0, r)
            for k, (size, r) in enumerate(zip(self.progress.size, self.rounds, strict=True))
        )


def run(scheduler: Scheduler, inversion: Inversion) -> list[Progress]:
    return list(scheduler(inversion))


def test_exhaustive_steps_every_arm_until_it_settles() -> None:
    hunt = Script([5.0, 6.0, 7.0], [2, 4, 1])
    yields = run(Exhaustive(), hunt)
    assert hunt.log == [[0, 1, 2], [0, 1], [1], [1]]
    assert yields[-1].rounds.tolist() == [2, 4, 1]
    assert len(yields) == 4


def test_halving_pauses_the_larger_half_twice() -> None:
    sizes = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]  # nothing stands out
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    hunt = Script([sizes[k] for k in order], [100] * 8)
    run(SuccessiveHalving(first=10, second=30, keep=2), hunt)
    assert [hunt.rounds[order.index(rank)] for rank in range(8)] == [100] * 2 + [30] * 2 + [10] * 4


def test_halving_always_finishes_a_few_arms() -> None:
    hunt = Script([20.0, 21.0, 22.0, 23.0], [100] * 4)
    run(SuccessiveHalving(first=10, second=30, keep=3), hunt)
    assert hunt.rounds == [100, 100, 100, 10]


def test_before_an_alarm_the_arms_around_the_median_are_finished() -> None:
    hunt = Script([1.0, *range(20, 29)], [100] * 10)
    run(SuccessiveHalving(first=10, second=30, keep=2, reach=0.0), hunt)
    assert hunt.rounds[0] == 100
    assert hunt.rounds[3:8] == [100] * 5  # ranks K / 2 - 2 to K / 2 + 2
    assert hunt.rounds[8:] == [10, 10]


@pytest.mark.parametrize(("reach", "finished"), [(0.0, 9), (1.5, 12), (50.0, 14)])
def test_so_are_those_that_make_the_deviation(reach: float, finished: int) -> None:
    # Four win the race and five are in the middle; of the others, 24 and 29 to 30 lie within 1.5
    # robust deviations of the median log size, 200 and 300 far off.
    hunt = Script([1.0, *range(20, 31), 200.0, 300.0], [100] * 14)
    run(SuccessiveHalving(first=10, second=30, keep=1, reach=reach), hunt)
    assert sum(r == 100 for r in hunt.rounds) == finished
    assert hunt.rounds[0] == 100


@pytest.mark.parametrize(("smallest", "alarmed"), [(15.0, False), (13.0, True)])
def test_the_alarm_is_in_deviations_of_log_size(smallest: float, alarmed: bool) -> None:
    # Equal sizes have the least deviation, 0.2: log(20.5 / 15) is 1.6 of it, log(20.5 / 13) 2.3.
    hunt = Script([smallest, *[20.5] * 9], [200] * 10)
    run(SuccessiveHalving(first=10, second=30, keep=1, alarm=2.0), hunt)
    assert (sum(r == 200 for r in hunt.rounds) > 3) == alarmed


def test_arms_that_settle_early_are_left_alone() -> None:
    hunt = Script([20.0, 21.0, 22.0, 23.0], [5, 15, 100, 100])
    run(SuccessiveHalving(first=10, second=30, keep=3), hunt)
    assert hunt.rounds == [5, 15, 100, 10]


@pytest.mark.parametrize("scheduler", [Exhaustive(), SuccessiveHalving(first=3, second=6)])
def test_every_round_is_reported(scheduler: Scheduler) -> None:
    hunt = Script([20.0, 21.0, 22.0, 23.0, 4.0], [9] * 5)
    seen = [int(progress.rounds.sum()) for progress in scheduler(hunt)]
    assert seen == [sum(map(len, hunt.log[: i + 1])) for i in range(len(hunt.log))]


def test_a_inversion_that_has_settled_is_not_stepped() -> None:
    for scheduler in (Exhaustive(), SuccessiveHalving()):
        assert run(scheduler, Script([1.0, 2.0, 3.0], [0, 0, 0])) == []


class Late(Script):
    """Arms that seem large until they had 60 rounds; arm 0 is small soon."""

    seeming = (1000.0, 150.0)  # in turn

    @property
    def progress(self) -> Progress:
        seen = super().progress
        large = torch.tensor([self.seeming[k % 2] for k in range(len(self.ends))])
        size = torch.where((seen.rounds < 60) & (seen.size > 30), large, seen.size)
        return Progress(seen.rounds, seen.success, seen.penalty, size, seen.turned)


def test_arms_that_were_paused_too_early_hide_no_outlier() -> None:
    """Their sizes make any spread look wide: 20 is then 1.6 deviations below the median."""
    hunt = Late([20.0, *range(60, 102)], [100] * 43)
    run(SuccessiveHalving(first=30, second=45), hunt)
    assert hunt.progress.size.argmin() == 0
    assert hunt.progress.size.median() < 102  # arms that ran to their end make the median


def test_without_an_outlier_a_quarter_runs_to_its_end() -> None:
    hunt = Late([58.0, *range(60, 102)], [100] * 43)
    hunt.seeming = (80.0, 85.0)
    run(SuccessiveHalving(first=30, second=45), hunt)
    assert sum(r == 100 for r in hunt.rounds) == 11


def test_arms_that_were_paused_too_early_make_no_outlier() -> None:
    """Those that ran to their end are alike, and far below all others as these were left."""
    hunt = Late([58.0, *range(60, 102)], [100] * 43)
    hunt.seeming = (1000.0, 1000.0)
    run(SuccessiveHalving(first=30, second=45), hunt)
    assert hunt.progress.size.median() < 102
