"""The cost controller against its pseudo-code, one arm at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gifthorse.search.cost import CostController


@dataclass
class Loop:
    """The controller of Neural Cleanse as its code spells it: plain numbers, plain branches."""

    initial: float
    settle: int
    patience: int
    up: float
    down: float

    def __post_init__(self) -> None:
        self.a = 0.0 if self.settle else self.initial
        self.s = self.u = self.d = 0
        self.rose = self.fell = False

    def after(self, ok: bool) -> None:
        if self.a == 0 and ok:
            self.s += 1
            if self.s >= self.settle:
                self.a, self.u, self.d, self.rose, self.fell = self.initial, 0, 0, False, False
        else:
            self.s = 0
        self.u, self.d = (self.u + 1, 0) if ok else (0, self.d + 1)
        if self.u >= self.patience:
            self.u, self.a, self.rose = 0, self.a * self.up, True
        elif self.d >= self.patience:
            self.d, self.a, self.fell = 0, self.a / self.down, True


streaks = st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=12).map(
    lambda runs: [ok for ok, length in runs for _ in range(length)]
)


@given(streaks, st.sampled_from([0, 1, 2, 5]), st.sampled_from([1, 2, 5, 10]))
def test_one_arm_follows_the_pseudo_code(rounds: list[bool], settle: int, patience: int) -> None:
    loop = Loop(1e-3, settle, patience, 1.5, 1.5**1.5)
    cost = CostController.start(1, initial=1e-3, patience=patience, warmup=settle)
    for ok in rounds:
        loop.after(ok)
        cost = cost.after(torch.tensor([ok]), torch.tensor([0]))
        assert cost.weight.item() == pytest.approx(loop.a, rel=1e-4)
        assert (bool(cost.rose), bool(cost.fell)) == (loop.rose, loop.fell)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 3), min_size=1), st.integers(0, 15)), max_size=60),
    st.sampled_from([0, 2]),
)
def test_many_arms_are_many_controllers(rounds: list[tuple[set[int], int]], settle: int) -> None:
    loops = [Loop(1e-3, settle, 2, 2.0, 2.0**1.5) for _ in range(4)]
    cost = CostController.start(4, initial=1e-3, patience=2, up=2.0, down=2.0**1.5, warmup=settle)
    for arms, bits in rounds:
        order = sorted(arms, reverse=bits % 2 == 0)  # the order of arms must not matter
        ok = [bool(bits >> arm & 1) for arm in order]
        cost = cost.after(torch.tensor(ok), torch.tensor(order))
        for arm, good in zip(order, ok, strict=True):
            loops[arm].after(good)
    assert cost.weight.tolist() == pytest.approx([loop.a for loop in loops], rel=1e-4)
    assert cost.rose.tolist() == [loop.rose for loop in loops]
    assert cost.fell.tolist() == [loop.fell for loop in loops]


@given(streaks)
def test_arms_that_do_not_step_keep_their_state(rounds: list[bool]) -> None:
    start = cost = CostController.start(3, patience=2)
    for ok in rounds:
        cost = cost.after(torch.tensor([ok]), torch.tensor([1]))
    for f in fields(CostController):
        before, after = getattr(start, f.name), getattr(cost, f.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before[[0, 2]], after[[0, 2]])


def test_a_state_is_never_changed_in_place() -> None:
    cost = CostController.start(2, initial=1.0, patience=1)
    cost.after(torch.tensor([True, False]), torch.tensor([0, 1]))
    assert cost.weight.tolist() == [1.0, 1.0]
    assert cost.met.tolist() == [0, 0]


def test_trajectory_of_neural_cleanse() -> None:
    # Five successes bring the weight in, five more double it, five failures divide by 2 ** 1.5.
    cost, arm = (
        CostController.start(1, patience=5, up=2.0, down=2.0**1.5, warmup=5),
        torch.tensor([0]),
    )
    weights = []
    for ok in [True] * 10 + [False] * 5:
        cost = cost.after(torch.tensor([ok]), arm)
        weights.append(cost.weight.item())
    assert weights == pytest.approx([0] * 4 + [1e-3] * 4 + [2e-3] * 6 + [2e-3 / 2**1.5])


# Other ways to start, and to go on ---------------------------------------------------------------

TENSORS = ("weight", "streak", "met", "missed", "rose", "fell")


@given(streaks, st.sampled_from([0, 2]), st.sampled_from([1, 5]), st.sampled_from([1.5, 2.0]))
def test_a_rising_weight_falls_by_the_power_of_one_and_a_half(
    rounds: list[bool], settle: int, wait: int, up: float
) -> None:
    loop = Loop(1e-3, settle, wait, up, up**1.5)
    cost = CostController.rising(1, 1e-3, wait, up, warmup=settle)
    for ok in rounds:
        loop.after(ok)
        cost = cost.after(torch.tensor([ok]), torch.tensor([0]))
        assert cost.weight.item() == pytest.approx(loop.a, rel=1e-4)


@given(streaks, st.sampled_from([0.0, 0.25]), st.sampled_from([1, 3]))
def test_a_fixed_weight_never_moves(rounds: list[bool], weight: float, patience: int) -> None:
    cost = CostController.fixed(2, weight, patience=patience)
    for ok in rounds:
        cost = cost.after(torch.tensor([ok, not ok]), torch.tensor([0, 1]))
        assert cost.weight.tolist() == [weight, weight]


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_fixed_weight_has_turned_after_hits_and_misses_enough(weight: float) -> None:
    cost, arm = CostController.fixed(1, weight, patience=2), torch.tensor([0])
    turned = []
    for ok in [True, False, True, True, False, True, False, False]:
        cost = cost.after(torch.tensor([ok]), arm)
        turned.append((bool(cost.rose), bool(cost.fell)))
    assert turned == [(False, False)] * 3 + [(True, False)] * 4 + [(True, True)]


@given(streaks, streaks, st.sampled_from([0, 2]))
def test_a_restored_state_goes_on_as_if_nothing_had_happened(
    first: list[bool], then: list[bool], settle: int
) -> None:
    arms = torch.tensor([1, 0])
    cost = CostController.rising(2, 1e-3, 2, 2.0, warmup=settle)
    for ok in first:
        cost = cost.after(torch.tensor([ok, not ok]), arms)
    kept = {f"cost.{name}": value.clone() for name, value in cost.state().items()}
    again = CostController.rising(2, 1e-3, 2, 2.0, warmup=settle).restored(kept, "cost.")
    for ok in then:
        cost, again = (c.after(torch.tensor([ok, not ok]), arms) for c in (cost, again))
    assert cost.state().keys() == set(TENSORS)
    for name in TENSORS:
        assert torch.equal(cost.state()[name], again.state()[name])


def test_a_restored_state_holds_its_own_tensors() -> None:
    kept = CostController.start(2, initial=1.0).state()
    again = CostController.start(2, initial=1.0).restored(kept)
    kept["weight"][0] = 9.0
    assert again.weight.tolist() == [1.0, 1.0]


def test_a_state_moves_as_a_whole() -> None:
    moved = CostController.start(2, patience=7).to("meta")
    assert {value.device.type for value in moved.state().values()} == {"meta"}
    assert moved.patience == 7
