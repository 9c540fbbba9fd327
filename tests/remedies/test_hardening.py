"""Hardening: what is stamped, when triggers are searched, when it ends, and what it achieves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.remedies.badnet import dotted, planted, right, same, state, success
from tests.toys import Bands, band_images, bands, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.analysis import distances, increase
from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.metrics import accuracy
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Candidate, Goal, Inversion, Samples, Subject, Trigger
from gifthorse.data.samples import InMemory, split, whole
from gifthorse.inversion import UAP, NeuralCleanse, PixelBackdoor
from gifthorse.remedies import REMEDIES, hardening
from gifthorse.remedies.foes import AdversarialTriggers
from gifthorse.remedies.guard import AccuracyGuard
from gifthorse.remedies.hardening import Hardening
from gifthorse.search import Search, SearchConfig
from gifthorse.training import Recipe, evaluate, fit
from gifthorse.triggers import Additive

CLEAN = blob_images(each=20, seed=2)
PIXEL = PixelBackdoor(
    mode="clip", initial=0.02, patience=3, config=SearchConfig(success_threshold=0.99, rounds=60)
)
MASKS = NeuralCleanse(
    warmup=0,
    initial=0.02,
    patience=3,
    jitter=0.01,
    config=SearchConfig(success_threshold=0.99, rounds=40),
)
RECIPE = Recipe(epochs=6, batch=20, lr=0.01, schedule="constant", pad=1, bf16=False)
TOY = Hardening(PIXEL, every=2, later=20, held=0.2, drop=0.3, recipe=RECIPE)

# What moves a class away from the others within six epochs, where it is one pixel from them.
CLOSE: dict[str, object] = {
    "every": 1, "later": 10, "inverter.config.rounds": 30, "drop": 0.1, "recipe.lr": 0.003,
}  # fmt: skip


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def natural() -> Subject:
    """A net before hardening."""
    return planted().subject


@cache
def hardened() -> Subject:
    return TOY(natural(), CLEAN, rng(), Run())


# 1. Class distances grow --------------------------------------------------------------------------


def course(seed: int) -> tuple[float, ...]:
    """What hardening does to a net: growth of distances, without stamps too; success; accuracy."""
    pairs = [Goal(2, i) for i in (0, 1, 3)]
    meter = PixelBackdoor(
        mode="clip", initial=0.05, patience=3, config=SearchConfig(success_threshold=0.9, rounds=40)
    )
    unseen, method = blob_images(each=20, seed=7), vary(TOY, CLOSE)
    given, trigger = dotted(seed).subject, dotted(seed).trigger
    made, tuned = method(given, CLEAN, rng(), Run()), fit(given, CLEAN, method.recipe, rng(), Run())
    before, plain, after = (
        distances(s, unseen, pairs, meter, rng(3), Run(), restarts=1) for s in (given, tuned, made)
    )
    assert before.failures == 0
    lost = right(given) - right(made)
    growth = increase(before, after), increase(before, plain)
    return *growth, success(given, trigger), success(made, trigger), lost


def test_a_class_that_is_close_to_others_lies_far_from_them_afterwards() -> None:
    # Distances of a few pixels differ by one from net to net, and by rounding: hence the median.
    courses = torch.tensor([course(seed) for seed in range(3)])
    grown, plain, before, after, lost = courses.median(0).values.tolist()
    assert grown >= 0.5
    assert plain <= 0.2
    assert after <= 0.1 <= before
    assert lost <= 0.1


# 2. What is stamped -------------------------------------------------------------------------------


@dataclass
class Given:
    """An inversion that is over at once, with candidates that were given."""

    best: tuple[Candidate, ...]

    def step(self, arms: Tensor, /) -> None:
        raise AssertionError("nothing is left to do")

    @property
    def done(self) -> Tensor:
        return torch.ones(len(self.best), dtype=torch.bool)

    @property
    def progress(self) -> object:
        raise AssertionError("nobody asks")

    @property
    def image_steps(self) -> float:
        return 0.0

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: object, /) -> None:
        return


@dataclass(frozen=True)
class Told:
    """Knows a mark for each class, and what net and images it was asked with.

    Attributes:
        size: Size that it claims.
        feasible: Whether it claims success.
    """

    size: float = 1.0
    feasible: bool = True
    asked: list[tuple[int, ...]] = field(default_factory=list, hash=False, compare=False)
    seen: list[tuple[set[int], int]] = field(default_factory=list, hash=False, compare=False)
    modes: list[bool] = field(default_factory=list, hash=False, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.asked.append(tuple(g.target for g in goals))
        labels = clean[torch.arange(len(clean))][1]
        self.seen.append((set(labels.tolist()), len(labels)))
        self.modes.append(any(m.training for m in subject.net.modules()))
        self.modes.append(any(p.requires_grad for p in subject.net.parameters()))
        return Given(  # type: ignore[return-value]
            tuple(Candidate(g, mark(g.target), self.size, 1, 1, self.feasible) for g in goals)
        )


def mark(target: int) -> Trigger:
    """Turns pixel (0, target) white."""
    delta = torch.zeros(3, 12, 12)
    delta[:, 0, target] = 1
    return Additive(delta)


def stamped(inverter: Told, **options: object) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Five mixed batches of black images: images, labels out, labels in."""
    method = vary(Hardening(inverter), options)
    adversarial = AdversarialTriggers(method, CLEAN, rng(), Run())
    adversarial.on_epoch_start(natural(), 0)
    y = torch.arange(40) % 5
    x = torch.zeros(40, 3, 12, 12)
    out = [(*adversarial.mix(x, y, y), y) for _ in range(5)]
    assert (x == 0).all()
    return out


def test_half_of_the_other_classes_is_stamped_and_all_labels_stay_true() -> None:
    batches = stamped(told := Told(), every=2)
    for (x, after, y), known in zip(batches, (1, 1, 2, 2, 3), strict=True):
        on = x[:, 0, 0, :5] == 1
        assert on.sum(1).max() == 1
        assert set(on.any(0).nonzero().flatten().tolist()) == set(range(known))
        assert 12 <= int(on.sum()) <= 20  # of about 32 images of other classes than their trigger's
        assert not on[torch.arange(40), y].any()
        assert torch.equal(after, y)
    assert int(batches[0][0].any((1, 2, 3)).sum()) == 16
    assert told.asked == [(0,), (1,), (2,)]  # before batches 1, 3 and 5


@dataclass(frozen=True)
class Failing(Told):
    """Finds nothing for a class when it is asked for it again."""

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        told = Told(feasible=len(self.asked) < 5, asked=self.asked)
        return told(subject, clean, goals, rng)


def test_a_class_whose_search_failed_has_no_trigger_until_its_next_turn() -> None:
    adversarial = AdversarialTriggers(Hardening(Failing(), every=1), CLEAN, rng(), Run())
    adversarial.on_epoch_start(natural(), 0)
    y = torch.arange(40) % 5
    for known in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4]):
        x, _ = adversarial.mix(torch.zeros(40, 3, 12, 12), y, y)
        assert (x[:, 0, 0, :5] == 1).any(0).nonzero().flatten().tolist() == known


def test_searched_once_each_image_draws_a_trigger_of_another_class() -> None:
    used = set()
    for x, after, y in stamped(told := Told(), every=0, share=0.5):
        on = x[:, 0, 0, :5] == 1
        assert on.sum(1).max() == 1
        assert 8 <= int(on.sum()) <= 20
        assert not on[torch.arange(40), y].any()
        assert torch.equal(after, y)
        used |= set(on.any(0).nonzero().flatten().tolist())
    assert told.asked == [(0, 1, 2, 3, 4)]
    assert used == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("inverter", "largest", "works"),
    [
        (Told(36), 0.25, True),
        (Told(37), 0.25, False),
        (Told(144), 1.0, True),
        (Told(feasible=False), 1.0, False),
    ],
)
def test_what_was_not_found_or_is_too_large_is_not_stamped(
    inverter: Told, largest: float, works: bool
) -> None:
    for x, _, _ in stamped(inverter, largest=largest):
        assert bool(x.any()) == works


def test_a_search_sees_a_few_images_of_every_other_class_and_a_net_at_rest() -> None:
    told = Told()
    made = vary(TOY, {"every": 3, "each": 4, "recipe.epochs": 4})
    Hardening(told, made.every, 1, made.each, held=0.2, recipe=made.recipe)(
        natural(), CLEAN, rng(), Run()
    )
    assert told.asked == [
        (k % 5,) for k in range(8)
    ]  # twice in each of four epochs of four batches
    for (classes, count), (target,) in zip(told.seen, told.asked, strict=True):
        assert classes == {0, 1, 2, 3, 4} - {target}
        assert count == 16
    assert not any(told.modes)


# 3. The net around a search -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "inverter", [PIXEL, MASKS, UAP(config=SearchConfig(success_threshold=0, rounds=3))]
)
def test_a_search_leaves_mode_flags_and_statistics_of_the_net(inverter: PixelBackdoor) -> None:
    net = natural()
    learner = Subject(blobs().net, net.shape, net.classes)
    learner.net.load_state_dict(net.net.state_dict())
    learner.net.train()
    weights = list(learner.net.parameters())
    weights[0].requires_grad_(False)
    before = state(learner)
    adversarial = AdversarialTriggers(
        vary(Hardening(inverter), {"inverter.config.rounds": 3}),
        CLEAN,
        rng(),
        Run(),
    )
    adversarial.on_epoch_start(learner, 0)
    y = torch.arange(5)
    adversarial.mix(torch.rand(5, 3, 12, 12), y, y)
    assert all(m.training for m in learner.net.modules())
    assert [p.requires_grad for p in weights] == [False] + [True] * (len(weights) - 1)
    assert all(p.grad is None for p in weights)
    assert all(torch.equal(v, before[k]) for k, v in state(learner).items())


def test_batchnorm_keeps_its_statistics_while_its_weights_train() -> None:
    for name, value in natural().net.named_buffers():
        assert torch.equal(value, hardened().net.get_buffer(name)), name
    for name in ("net.1.weight", "net.1.bias"):
        one, other = (s.net.get_parameter(name) for s in (natural(), hardened()))
        assert not torch.equal(one, other), name


# 4. From the last trigger of the class ------------------------------------------------------------


def looking(target: int) -> Search:
    inversion = PixelBackdoor(
        mode="clip",
        initial=0.02,
        patience=3,
        config=SearchConfig(batch=8, success_threshold=0.9, rounds=60),
    )(bands(), band_images(), [Goal(target), Goal(5)], rng())
    assert isinstance(inversion, Search)
    return inversion


def test_a_search_follows_the_triggers_of_another_and_nothing_else() -> None:
    arms = torch.arange(2)
    first, fresh, second = (looking(0) for _ in range(3))
    for _ in range(30):
        first.step(arms)
    second.follow(first.state())
    for mine, kept in zip(second.decoded(arms), first.stored(arms), strict=True):
        assert torch.equal(mine, kept)
    assert torch.equal(second.cost.weight, fresh.cost.weight)
    assert second.rounds.tolist() == [0, 0]
    assert not second.feasible.any()
    for inversion in (second, fresh):
        for _ in range(8):
            inversion.step(arms)
    ours, theirs = ([c.size for c in inversion.best] for inversion in (second, fresh))
    assert [2 * a < b for a, b in zip(ours, theirs, strict=True)] == [True, True]


class Deaf(Bands):
    """Nothing ever comes out as class 5."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1e3 * torch.eye(6)[5]


def test_an_arm_that_had_found_nothing_keeps_its_own_start() -> None:
    never = Subject(Deaf().eval(), (1, 18, 18), 6)
    config = SearchConfig(batch=8, success_threshold=0.9, rounds=20)
    first = PixelBackdoor(mode="clip", config=config)(
        never, band_images(), [Goal(0), Goal(5)], rng(4)
    )
    for _ in range(10):
        first.step(torch.arange(2))
    second = looking(0)
    before = [v.clone() for v in second.variables]
    second.follow(first.state())
    for mine, old in zip(second.variables, before, strict=True):
        assert not torch.equal(mine[0], old[0])
        assert torch.equal(mine[1], old[1])


@dataclass(frozen=True)
class Watched:
    """An inverter whose inversions are remembered."""

    inverter: PixelBackdoor = PIXEL
    hunts: list[Inversion] = field(default_factory=list, hash=False, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.hunts.append(self.inverter(subject, clean, goals, rng))
        return self.hunts[-1]


def test_further_searches_of_a_class_are_shorter() -> None:
    adversarial = AdversarialTriggers(
        vary(
            Hardening(watched := Watched()),
            {"every": 1, "later": 7, "inverter.inverter.config.rounds": 9},
        ),
        CLEAN,
        rng(),
        Run(),
    )
    adversarial.on_epoch_start(natural(), 0)
    y = torch.arange(5)
    for _ in range(7):
        adversarial.mix(torch.zeros(5, 3, 12, 12), y, y)
    assert [h.best[0].rounds for h in watched.hunts] == [9] * 5 + [7] * 2
    assert [h.best[0].goal.target for h in watched.hunts] == [0, 1, 2, 3, 4, 0, 1]


# 5. When it ends ----------------------------------------------------------------------------------


def test_the_epoch_that_costs_too_much_is_undone_and_is_the_last() -> None:
    held, train = blob_images(each=10, seed=5), blob_images(each=20, seed=2)
    seen: list[Tensor] = []

    def wrong(x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Right labels for two epochs, then others."""
        seen.append(index)
        return x, y if len(seen) <= 10 else (y + 1) % 5

    recipe = vary(RECIPE, {"lr": 0.05, "epochs": 6})
    guarded = fit(
        natural(), train, recipe, rng(), Run(), mix=wrong, callbacks=[AccuracyGuard(held, 0.1)]
    )
    assert len(seen) == 15  # three epochs of five batches, not six
    seen.clear()
    two = fit(natural(), train, vary(recipe, {"epochs": 2}), rng(), Run(), mix=wrong)
    assert same(guarded, two)
    assert accuracy(evaluate(guarded, held), held.labels).value >= 0.9


def test_an_epoch_that_costs_too_much_is_undone_and_the_rate_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    courses: list[tuple[float, int]] = []

    def noted(victim: Subject, train: Samples, recipe: Recipe, draw: Generator, **more: Any) -> Any:
        courses.append((recipe.lr, recipe.epochs))
        return fit(victim, train, recipe, draw, **more)

    monkeypatch.setattr(hardening, "fit", noted)
    method = vary(TOY, {"recipe.lr": 0.9, "recipe.epochs": 3, "drop": 0.25, "falls": 5})
    out = method(natural(), CLEAN, rng(), Run())
    (first, wanted), *others = courses
    assert (first, wanted) == (0.9, 3)
    assert others
    assert [lr for lr, _ in courses] == pytest.approx([0.9 / 3**k for k in range(len(courses))])
    assert all(left <= 3 for _, left in others)
    assert not same(out, natural())
    held, _ = split(CLEAN, TOY.held, spawn(rng()))  # what the method itself holds out
    lost = [accuracy(evaluate(s, held), whole(held)[1]).value for s in (natural(), out)]
    assert lost[0] - lost[1] <= 0.25 + 1e-6


def test_a_net_that_no_rate_hardens_is_returned_as_it_was_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = vary(TOY, {"recipe.lr": 5000.0, "drop": 0.05})(natural(), CLEAN, rng(), Run())
    assert same(out, natural())
    assert "the net is unchanged" in caplog.text
    assert not out.net.training


# 6. Repeated and interrupted ----------------------------------------------------------------------


def test_the_same_seed_gives_the_same_net_and_inputs_stay() -> None:
    pixels, before = CLEAN.images.clone(), state(natural())
    torch.manual_seed(7)
    assert same(TOY(natural(), CLEAN, rng(), Run()), hardened())
    assert not same(vary(TOY, {"recipe.epochs": 1})(natural(), CLEAN, rng(1), Run()), hardened())
    assert all(torch.equal(v, before[k]) for k, v in natural().net.state_dict().items())
    assert torch.equal(CLEAN.images, pixels)


@pytest.mark.parametrize(("every", "lr"), [(0, 0.01), (4, 0.01), (4, 0.9)])
def test_a_run_that_is_stopped_goes_on_to_the_same_net(
    every: int, lr: float, tmp_path: Path
) -> None:
    options = {"every": every, "recipe.epochs": 3, "recipe.lr": lr, "inverter.config.rounds": 15}
    method = vary(TOY, options)
    straight = method(natural(), CLEAN, rng(), Run())
    store, stops = tmp_path / "run", 0
    for budget in range(900, 60000, 700):
        try:
            made = method(natural(), CLEAN, rng(), run=Run(budget=budget, store=store))
            break
        except Incomplete:
            stops += 1
    assert stops >= 2
    assert same(made, straight)
    again = Run(store=store)
    assert same(method(natural(), CLEAN, rng(), run=again), straight)


def test_work_is_counted() -> None:
    run = Run()
    vary(TOY, {"recipe.epochs": 1, "every": 4})(natural(), CLEAN, rng(), run=run)
    # One search of 60 rounds with a batch of 32 (of 40 images), then 80 images trained on.
    assert 60 * 32 + 80 <= run.image_steps <= 60 * (32 + 20) + 80


# 7. Options ---------------------------------------------------------------------------------------


def test_too_few_images_are_refused() -> None:
    one = InMemory(CLEAN.images[:1], CLEAN.labels[:1], 5)
    with pytest.raises(NotApplicable, match="are held out"):
        TOY(natural(), one, rng(), Run())


def test_the_rows_of_the_table_differ_as_the_paper_says() -> None:
    rows = {k: v for k, v in REMEDIES.items() if isinstance(v, Hardening)}
    assert set(rows) == {f"hardening_{k}" for k in ("uap", "nc", "nc_iterative", "pixel")}
    assert {k for k, row in rows.items() if row.every == 0} == {"hardening_nc"}
    kinds = {k: type(row.inverter) for k, row in rows.items()}
    assert kinds["hardening_uap"] is UAP
    assert kinds["hardening_nc"] is kinds["hardening_nc_iterative"] is NeuralCleanse
    assert kinds["hardening_pixel"] is PixelBackdoor


def test_nets_without_batchnorm_can_be_hardened_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 5))
    plain = fit(Subject(net, (3, 12, 12), 5), CLEAN, RECIPE, rng(), Run())
    made = vary(TOY, {"recipe.epochs": 1})(plain, CLEAN, rng(), Run())
    assert not same(made, plain)
