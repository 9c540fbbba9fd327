"""The bandit on scripted inversions, where every size of every round is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from tests.toys import band_images, bands
from torch import Generator, Tensor

from gifthorse.core.types import Candidate, Goal, Progress
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import Exhaustive, SearchConfig
from gifthorse.search.k_arm import KArm
from gifthorse.triggers import Patch

Curve = Callable[[int], float]  # rounds so far -> size after them


class Script:
    """Arms whose size, success and life are given; stepping one that may not step is an error."""

    def __init__(
        self,
        sizes: Sequence[Curve],
        *,
        success: Sequence[float] | None = None,
        lives: Sequence[int] | None = None,
        turned: bool = False,
        side: int = 224,
    ) -> None:
        self.sizes, self.side, self.turned = sizes, side, turned
        self.rates = success or [1.0] * len(sizes)
        self.lives = lives or [10**9] * len(sizes)
        self.rounds = [0] * len(sizes)
        self.log: list[int] = []

    def step(self, arms: Tensor, /) -> None:
        (arm,) = arms.tolist()
        assert self.rounds[arm] < self.lives[arm], "stepped an arm that had settled"
        self.log.append(arm)
        self.rounds[arm] += 1

    @property
    def done(self) -> Tensor:
        return torch.tensor([r >= n for r, n in zip(self.rounds, self.lives, strict=True)])

    @property
    def progress(self) -> Progress:
        n = len(self.sizes)
        best = [self.size(k) for k in range(n)]
        return Progress(
            torch.tensor(self.rounds),
            torch.tensor([s if r else 0.0 for s, r in zip(self.rates, self.rounds, strict=True)]),
            torch.tensor(best),
            torch.tensor(best),
            torch.full((n,), self.turned),
        )

    def size(self, arm: int) -> float:
        """The best so far: the whole image without a success or a round."""
        rounds = self.rounds[arm] if self.rates[arm] >= 0.99 else 0
        return min([float(self.side**2)] + [self.sizes[arm](r) for r in range(1, rounds + 1)])

    image_steps = 0.0

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        raise AssertionError

    @property
    def best(self) -> tuple[Candidate, ...]:
        blank = Patch(torch.zeros(1, self.side, self.side), torch.zeros(1, self.side, self.side))
        return tuple(
            Candidate(Goal(k), blank, self.size(k), 1.0, r) for k, r in enumerate(self.rounds)
        )


def falling(start: float, every: int = 1, factor: float = 0.99) -> Curve:
    """A size that becomes smaller by a factor in every so many rounds."""
    return lambda r: start * factor ** (r // every)


def run(scheduler: KArm, hunt: Script) -> list[Progress]:
    return list(scheduler(hunt))


def test_one_arm_alone_is_plain_inversion() -> None:
    inverter = NeuralCleanse(
        warmup=0, initial=0.01, patience=3, config=SearchConfig(success_threshold=0.9, rounds=25)
    )
    ends = []
    for scheduler in (Exhaustive(), KArm(patience=10**6)):
        inversion = inverter(bands(2), band_images(), [Goal(2)], Generator().manual_seed(3))
        path = [s.size.item() for s in scheduler(inversion)]
        (found,) = inversion.best
        ends.append((path, found.rounds, found.asr, torch.cat(found.trigger.render())))
    assert ends[0][:3] == ends[1][:3]
    assert len(set(ends[0][0])) > 3  # it did shrink
    assert torch.equal(ends[0][3], ends[1][3])


def test_warm_up_gives_every_arm_two_gains_in_order() -> None:
    hunt = Script([falling(9000, 2), falling(8000, 3), falling(7000)])
    run(KArm(mode="pair", rounds=9), hunt)
    # A gain of an arm comes with its first size and then once in 2, 3 and 1 rounds.
    assert hunt.log == [0, 0, 1, 1, 1, 2, 2, *hunt.log[7:]]
    assert [hunt.size(k) for k in range(3)] == pytest.approx(
        [9000 * 0.99 ** (hunt.rounds[0] // 2), 8000 * 0.99, 7000 * 0.99 ** hunt.rounds[2]]
    )


def test_the_bandit_takes_the_largest_v_plus_beta_over_size() -> None:
    """The rule once more, in plain numbers, on arms that gain in every round."""
    starts = [1900.0, 400.0, 1500.0, 900.0]
    hunt = Script([falling(s, factor=0.97) for s in starts])
    rules = KArm(mode="pair", rounds=60, random=0.0)
    run(rules, hunt)
    rounds, expected = [2] * 4, []
    for _ in range(60 - 8):
        sizes = [s * 0.97**r for s, r in zip(starts, rounds, strict=True)]
        worth = [
            (2500 - s) / (r + r / 2) + 1e4 / s for s, r in zip(sizes, rounds, strict=True)
        ]  # n = T: every round is a gain
        arm = max(range(4), key=lambda k: worth[k])
        expected.append(arm)
        rounds[arm] += 1
    assert hunt.log[8:] == expected
    assert len(set(expected)) == 4


def test_an_arm_keeps_its_turn_until_it_gains() -> None:
    hunt = Script([falling(9000.0, 4)] * 3)
    run(KArm(mode="pair", rounds=200, random=1.0), hunt)
    changes = [i for i in range(12, len(hunt.log) - 1) if hunt.log[i] != hunt.log[i + 1]]
    assert len(changes) > 10
    assert all(hunt.log[: i + 1].count(hunt.log[i]) % 4 == 0 for i in changes)


@pytest.mark.parametrize("side", [32, 64])
def test_the_image_size_does_not_matter(side: int) -> None:
    scale = side**2 / 224**2
    logs = []
    for s, one in ((224, 1.0), (side, scale)):
        arms = [falling(a * one, factor=0.97) for a in (1900.0, 400.0, 1500.0, 900.0)]
        hunt = Script(arms, side=s)
        run(KArm(mode="pair", rounds=150), hunt)
        logs.append(hunt.log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("where", [0, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_truly_small_arm_gets_the_largest_share(where: int, seed: int) -> None:
    arms = [falling(20000, 2, 0.995) for _ in range(6)]
    arms[where] = falling(3000, 1, 0.95)  # smaller and quicker
    hunt = Script(arms)
    run(KArm(mode="pair", rounds=1000, seed=seed), hunt)
    others = [r for k, r in enumerate(hunt.rounds) if k != where]
    assert hunt.rounds[where] > max(others)
    assert sum(hunt.rounds) < 300  # beside 6000 for all arms to the end


def test_a_random_arm_gets_its_share() -> None:
    arms = [falling(100.0, factor=0.999), *[falling(20000.0, factor=0.999)] * 3]
    hunt = Script(arms)
    run(KArm(mode="pair", rounds=2008, random=0.3, gains=10**6), hunt)
    away = sum(arm != 0 for arm in hunt.log[8:]) / 2000
    assert away == pytest.approx(0.3 * 3 / 4, abs=4 * math.sqrt(0.225 * 0.775 / 2000))


@pytest.mark.parametrize(("success", "rounds"), [(0.0, 11), (0.2, 21), (0.7, 201)])
def test_a_hopeless_pair_is_given_up(success: float, rounds: int) -> None:
    hunt = Script([falling(9000.0)] * 3, success=[1.0, success, 1.0])
    run(KArm(mode="pair", rounds=1000, gains=20), hunt)
    assert hunt.rounds[1] == rounds
    last = max(i for i, arm in enumerate(hunt.log) if arm == 1)
    assert hunt.log[last - rounds + 1 : last + 1] == [1] * rounds
    assert hunt.log[last + 1] == 2  # the one that never succeeded is next


@pytest.mark.parametrize(
    ("mode", "success", "rounds"),
    [("pair", 0.9, 500), ("back", 0.0, 201), ("back", 0.98, 201), ("global", 0.0, 500)],
)
def test_what_is_hopeless_depends_on_the_mode(mode: str, success: float, rounds: int) -> None:
    hunt = Script([falling(9000.0)], success=[success])
    run(KArm(mode=mode, rounds=500), hunt)  # type: ignore[arg-type]
    assert hunt.rounds == [rounds]


def test_all_hopeless_arms_end_the_race() -> None:
    hunt = Script([falling(9000.0)] * 4, success=[0.0] * 4)
    run(KArm(mode="pair"), hunt)
    assert hunt.rounds == [11] * 4


def test_too_many_gains_of_the_smallest_arm_end_the_race() -> None:
    hunt = Script([falling(500.0, factor=0.999), falling(20000.0)])
    run(KArm(mode="pair", random=0.0), hunt)
    assert hunt.rounds == [61, 2]
    assert hunt.log[-1] == 0


def test_too_many_gains_of_another_arm_only_stop_that_one() -> None:
    hunt = Script([lambda r: 2000.0 - r, falling(1500.0, 40, 0.999)])  # the second is smaller
    run(KArm(mode="pair", random=0.0), hunt)
    assert hunt.rounds == [61, 939]
    assert hunt.log[-100:] == [1] * 100


def test_with_an_arm_a_class_the_end_of_the_smallest_is_not_that_of_the_others() -> None:
    hunt = Script([falling(500.0, factor=0.999), falling(20000.0), falling(9000.0, 2)])
    run(KArm(mode="every"), hunt)  # 61 gains stop an arm; one gains in every other round
    assert hunt.rounds == [61, 61, 120]


def test_with_an_arm_a_class_the_limit_grows_with_the_arms() -> None:
    for rounds, each, want in ((10, 20, 60), (70, 20, 70)):
        hunt = Script([falling(9000.0)] * 3)
        run(KArm(mode="every", rounds=rounds, each=each, gains=10**6), hunt)
        assert sum(hunt.rounds) == want


def test_with_an_arm_a_class_a_hopeless_one_does_not_hold_up_the_others() -> None:
    hunt = Script([falling(9000.0)] * 3, success=[1.0, 0.0, 1.0])
    run(KArm(mode="every"), hunt)
    assert hunt.rounds == [61, 11, 61]


@pytest.mark.parametrize(("turned", "rounds"), [(True, 16), (False, 300)])
def test_a_global_arm_without_gains_stops_once_its_weight_has_turned(
    turned: bool, rounds: int
) -> None:
    hunt = Script([lambda r: 1000.0 - min(r, 5)], turned=turned)  # 5 gains, then none
    run(KArm(mode="global", rounds=300), hunt)
    assert hunt.rounds == [rounds]


def test_a_pair_without_gains_goes_on() -> None:
    hunt = Script([lambda r: 1000.0 - min(r, 5)], turned=True)
    run(KArm(mode="pair", rounds=300), hunt)
    assert hunt.rounds == [300]


@pytest.mark.parametrize("seed", range(5))
def test_settled_and_stopped_arms_are_never_stepped(seed: int) -> None:
    # The settled arm would win the objective every time: it is by far the smallest.
    arms = [falling(9000.0), falling(50.0, factor=0.9), falling(9000.0, 2), falling(9000.0)]
    hunt = Script(arms, lives=[400, 12, 400, 0], success=[1.0, 1.0, 1.0, 1.0])
    run(KArm(mode="pair", rounds=700, seed=seed), hunt)  # Script.step fails if it is
    assert hunt.rounds[1] == 12
    assert hunt.rounds[3] == 0
    assert min(hunt.rounds[0], hunt.rounds[2]) > 12


def test_a_settled_inversion_is_not_stepped() -> None:
    assert run(KArm(), Script([falling(9.0)] * 3, lives=[0] * 3)) == []


@pytest.mark.parametrize("mode", ["global", "pair"])
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_it_ends_within_the_limit_and_reports_every_round(mode: str, limit: int) -> None:
    hunt = Script([falling(9000.0)] * 5)
    seen = run(KArm(mode=mode, rounds=limit, gains=10**6), hunt)  # type: ignore[arg-type]
    assert [int(s.rounds.sum()) for s in seen] == list(range(1, limit + 1))


def test_the_seed_decides_and_nothing_else_is_random() -> None:
    logs = []
    for unrelated, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(unrelated)
        hunt = Script([falling(9000.0 + k) for k in range(6)])
        run(KArm(mode="pair", rounds=120, seed=seed), hunt)
        logs.append(hunt.log)
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]
