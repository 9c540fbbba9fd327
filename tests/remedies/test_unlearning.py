"""Unlearning: which triggers are chosen, what is stamped, and that the backdoor goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tests.remedies.badnet import CLEAN, TUNING, planted, right, same, state, success
from tests.toys import corner
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, Incomplete
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Inversion, Inverter, Progress, Samples, Subject
from gifthorse.inversion import PixelBackdoor
from gifthorse.remedies.unlearning import Unlearning, stamping
from gifthorse.training import fit
from gifthorse.triggers import Patch

SHORT = {"inverter.config.rounds": 60, "inverter.initial": 0.02, "inverter.patience": 3}
# On images of 12 x 12 the planted class has the smallest trigger, but too close to the others.
PIXELS = vary(Unlearning(PixelBackdoor(), pick="smallest"), TUNING | SHORT)


def rng() -> Generator:
    return Generator().manual_seed(0)


def candidate(size: float, target: int = 0, feasible: bool = True) -> Candidate:
    return Candidate(Goal(target), corner(), size, 1.0, 1, feasible)


# 1. Who is chosen ---------------------------------------------------------------------------------


def sizes(*values: float) -> list[Candidate]:
    return [candidate(value, k) for k, value in enumerate(values)]


@pytest.mark.parametrize(
    ("found", "outliers"),
    [
        (sizes(100, 110, 90, 105, 4), [4]),
        (sizes(3, 110, 90, 100, 105, 120, 4), [0, 6]),
        (sizes(100, 110, 90, 105, 80), []),
        (sizes(10, 1), []),  # of two, none stands out
        ([*sizes(100, 110, 90, 105), candidate(1, 4, feasible=False)], []),
    ],
)
def test_outliers_are_unlearned(found: list[Candidate], outliers: list[int]) -> None:
    assert [c.goal.target for c in Unlearning().chosen(found)] == outliers


def test_the_outlier_test_is_in_robust_deviations_of_log_size() -> None:
    """Logs 8 9 10 11 4: the median is 9, deviations from it are 1 0 1 2 5, their median 1."""
    found = sizes(*torch.tensor([8.0, 9.0, 10.0, 11.0, 10.0 - 6.0]).exp().tolist())
    depth = (9 - 4) / 1.4826
    near, far = Unlearning(threshold=depth - 0.01), Unlearning(threshold=depth + 0.01)
    assert [c.goal.target for c in near.chosen(found)] == [4]
    assert far.chosen(found) == []


def test_the_smallest_is_chosen_even_if_it_does_not_stand_out() -> None:
    some = [*sizes(100, 80, 90), candidate(1, 3, feasible=False)]
    assert Unlearning(pick="smallest").chosen(some) == [some[1]]
    assert Unlearning(classes=(0, 2)).chosen([some[0], some[2]]) == [some[0], some[2]]


# 2. What is stamped -------------------------------------------------------------------------------


def test_a_share_of_each_batch_is_stamped_and_keeps_its_labels() -> None:
    x, y = torch.full((40, 1, 18, 18), 0.25), torch.arange(40)
    white = corner()
    black = Patch(1 - white.pattern, white.mask)
    before = x.clone()
    mixed, labels = stamping([white, black], 0.3, rng())(x, y, y)
    at = mixed[:, 0, 0, 0]
    assert int((at == 1).sum()) + int((at == 0).sum()) == 12
    assert (at == 1).any()
    assert (at == 0).any()
    assert torch.equal(labels, y)
    assert torch.equal(mixed[:, :, 1:], before[:, :, 1:])
    assert torch.equal(x, before)


# 3. What comes of it ------------------------------------------------------------------------------


def test_the_backdoor_is_unlearned_where_fine_tuning_alone_leaves_it() -> None:
    made = planted().subject
    healed = PIXELS(made, CLEAN, rng(), Run())
    tuned = fit(made, CLEAN, PIXELS.recipe, rng(), Run())
    assert success(made) >= 0.9
    assert success(tuned) >= 0.9
    assert success(healed) <= 0.05
    assert right(made) - right(healed) <= 0.02
    assert not healed.net.training


@dataclass(frozen=True)
class Told:
    """An inverter that knows the answer: any of them will do."""

    planted: float = 9.0
    asked: list[Goal] = field(default_factory=list, hash=False, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.asked.extend(goals)
        trigger, sizes = planted().trigger, {2: self.planted}
        return Over(tuple(Candidate(g, trigger, sizes.get(g.target, 100), 1, 1) for g in goals))


@dataclass
class Over:
    """An inversion that is over after one round."""

    best: tuple[Candidate, ...]
    rounds: int = 0

    def step(self, arms: Tensor, /) -> None:
        self.rounds += 1

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.best),), self.rounds > 0)

    @property
    def progress(self) -> Progress:
        n = torch.zeros(len(self.best))
        return Progress(n.long(), n, n, n, n.bool())

    @property
    def image_steps(self) -> float:
        return 10.0 * self.rounds

    def state(self) -> dict[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        self.rounds = int(state["rounds"])


def told(inverter: Inverter, **options: object) -> Unlearning:
    return vary(Unlearning(inverter), TUNING | options)


def test_any_inverter_will_do_and_only_the_given_classes_are_searched() -> None:
    inverter = Told()
    healed = told(inverter, classes=(2,))(planted().subject, CLEAN, rng(), Run())
    assert inverter.asked == [Goal(2)]
    assert success(healed) <= 0.05


def test_what_stands_out_is_unlearned() -> None:
    inverter = Told()
    healed = told(inverter)(planted().subject, CLEAN, rng(), Run())
    assert inverter.asked == [Goal(k) for k in range(5)]
    assert success(healed) <= 0.05


def test_a_net_in_which_nothing_stands_out_stays_bit_for_bit_the_same() -> None:
    made = planted().subject
    out = told(Told(planted=99.0))(made, CLEAN, rng(), Run())
    assert same(out, made)
    assert out.net is not made.net


def test_inputs_stay_and_the_same_seed_gives_the_same_net() -> None:
    made, pixels, flags = planted().subject, CLEAN.images.clone(), torch.get_rng_state()
    before, nets = state(made), []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        nets.append(told(Told(), classes=(2,))(made, CLEAN, rng(), Run()))
    assert same(*nets)
    assert not same(nets[0], told(Told(), classes=(2,))(made, CLEAN, rng().manual_seed(5), Run()))
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    assert torch.equal(CLEAN.images, pixels)
    torch.set_rng_state(flags)


def test_a_run_that_is_stopped_goes_on_to_the_same_net(tmp_path: Path) -> None:
    made, few = planted().subject, vary(PIXELS, {"inverter.config.rounds": 20})
    calls: list[tuple[int, int, str]] = []
    whole = few(made, CLEAN, rng(), run=Run(lambda *call: calls.append(call)))
    assert calls[0][2].startswith("0 of 5 done, smallest")
    assert calls[-1][2].startswith("loss")
    first = Run(budget=500, store=tmp_path / "run")
    with pytest.raises(Incomplete, match="budget of 500 image-steps is spent before the triggers"):
        few(made, CLEAN, rng(), run=first)
    second = Run(store=tmp_path / "run")
    assert same(few(made, CLEAN, rng(), run=second), whole)
    assert second.image_steps > 500


def test_classes_that_do_not_exist_are_refused() -> None:
    with pytest.raises(BadOption, match="classes must be 0 to 4; got 5"):
        Unlearning(classes=(5,))(planted().subject, CLEAN, rng(), Run())
