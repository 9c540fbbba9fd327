"""An inversion from first to last step: limits, charges and states reach its start, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tests.toys import wired, wired_images
from torch import Generator, Tensor

from gifthorse.core.errors import Incomplete
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Candidate, Goal, Inversion, Inverter, Progress
from gifthorse.inversion import ABS, USB, PixelBackdoor
from gifthorse.inversion import suspects as abs_module
from gifthorse.inversion.deepfool import DeepFoolInversion
from gifthorse.search import Exhaustive, Search, finish, found
from gifthorse.search.k_arm import KArm
from gifthorse.search.start import PORTION
from gifthorse.triggers import Additive

PLANTED = 1
SWEPT = vary(
    USB(),
    {"start.success_threshold": 1.0, "start.bound": 0.02, "start.max_pass": 3, "config.rounds": 4},
)
STIMULATED = vary(ABS(), {"layers": ["look", "norm"], "share": 0.3, "config.rounds": 4})
METHODS: list[Inverter] = [SWEPT, STIMULATED]
both = pytest.mark.parametrize("method", METHODS, ids=["USB", "ABS"])


def step_to_the_end(
    method: Inverter, run: Run, *, wide: bool = False
) -> tuple[Inversion, Run, str]:
    """One command: the same method on the same net, images and seed."""
    net = wired(PLANTED, (3, 6, 22), 20) if wide else wired(PLANTED)
    clean = wired_images(2, shape=(3, 6, 22), classes=20) if wide else wired_images(6)
    rng = Generator().manual_seed(0)
    own = run.keyed(method, net, clean, rng)
    inversion = method(net, clean, [Goal(k) for k in range(net.classes)], spawn(rng))
    return inversion, own, finish(inversion, Exhaustive(), own)


def alike(one: Inversion, two: Inversion) -> bool:
    """Whether two inversions ended bit for bit alike."""
    pairs = list(zip(one.best, two.best, strict=True))
    figures = [[(c.goal, c.size, c.asr, c.rounds, c.feasible) for c in pair] for pair in pairs]
    pictures = [[torch.cat(c.trigger.render()) for c in pair] for pair in pairs]
    return all(a == b for a, b in figures) and all(torch.equal(a, b) for a, b in pictures)


@both
@pytest.mark.parametrize("wide", [False, True], ids=["4 goals", "20 goals"])
def test_stopped_after_every_portion_it_ends_as_if_it_never_was(
    method: Inverter, wide: bool, tmp_path: Path
) -> None:
    whole, run, stopped = step_to_the_end(method, Run(), wide=wide)
    assert stopped == ""
    assert run.image_steps == whole.image_steps > 0
    words: list[str] = []
    for _ in range(200):
        again = Run(lambda *at: words.append(at[2]), seconds=0, store=tmp_path / "state")
        inversion, own, stopped = step_to_the_end(method, again, wide=wide)
        if not stopped:
            break
        assert stopped == "the time limit of 0 s is reached"
    begun = [line for line in words if "swept" in line or "stimulated" in line]
    assert len(begun) >= 2  # it was stopped within its start, and kept
    assert len(words) > len(begun)
    assert alike(inversion, whole)
    assert own.image_steps == inversion.image_steps == whole.image_steps  # nothing twice


@both
def test_a_budget_is_asked_after_every_portion_of_the_start(
    method: Inverter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    step = Search.step

    def counting(self: Search, arms: Tensor, /) -> None:
        rounds.append(1)
        step(self, arms)

    monkeypatch.setattr(Search, "step", counting)
    inversion, run, stopped = step_to_the_end(method, Run(budget=1, store=tmp_path / "state"))
    assert stopped == "the budget of 1 image-steps is spent"
    assert run.image_steps == inversion.image_steps >= 1
    assert (rounds, bool(inversion.done.any()), int(inversion.progress.rounds.sum())) == (
        [],
        False,
        0,
    )
    assert not any(c.feasible for c in inversion.best)
    first = run.image_steps
    inversion, run, stopped = step_to_the_end(method, Run(budget=1, store=tmp_path / "state"))
    assert stopped
    assert (
        run.image_steps == inversion.image_steps > first
    )  # it went on, and counts what was before


@both
def test_ctrl_c_keeps_the_start(method: Inverter, tmp_path: Path) -> None:
    def pressed(done: int, total: int, words: str) -> None:
        raise KeyboardInterrupt

    whole, _, _ = step_to_the_end(method, Run())
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            step_to_the_end(method, Run(pressed, store=tmp_path / "state"))
    words: list[str] = []
    again = Run(lambda *at: words.append(at[2]), store=tmp_path / "state")
    inversion, own, _ = step_to_the_end(method, again)
    every: list[str] = []
    step_to_the_end(method, Run(lambda *at: every.append(at[2])))
    assert words == every[3:]
    assert alike(inversion, whole)
    assert own.image_steps == whole.image_steps


def test_layers_are_stimulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    stimulate = abs_module.stimulate  # type: ignore[attr-defined]

    def asking(net, layer, *a, **k):  # type: ignore[no-untyped-def]
        asked.append(layer)
        return stimulate(net, layer, *a, **k)

    monkeypatch.setattr(abs_module, "stimulate", asking)
    for _ in range(4):
        step_to_the_end(STIMULATED, Run(seconds=0, store=tmp_path / "state"))
    assert asked == ["look", "norm"]


def test_arms_are_swept_in_portions_each_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[list[int]] = []
    step = DeepFoolInversion.step

    def watched(self: DeepFoolInversion, arms: Tensor, /) -> None:
        stepped.append(arms.tolist())
        step(self, arms)

    monkeypatch.setattr(DeepFoolInversion, "step", watched)
    step_to_the_end(SWEPT, Run(), wide=True)
    second = [arms for arms in stepped if max(arms) >= PORTION]
    assert stepped[0] == list(range(PORTION))
    assert second[0] == list(range(PORTION, 20))
    assert stepped == [arms for arms in stepped if max(arms) < PORTION] + second


class Counted:
    """An inversion that needs five rounds an arm, and has a start of two portions."""

    def __init__(self, arms: int = 2) -> None:
        self.rounds, self.begun = torch.zeros(arms).long(), 0

    def start(self) -> Iterator[str]:
        while self.begun < 2:
            self.begun += 1
            yield f"portion {self.begun}"

    def step(self, arms: Tensor, /) -> None:
        assert self.begun == 2
        self.rounds[arms] += 1

    @property
    def done(self) -> Tensor:
        return self.rounds >= 5

    @property
    def progress(self) -> Progress:
        size = 10.0 - self.rounds
        return Progress(self.rounds.clone(), size / size, size, size, size > 0)

    @property
    def image_steps(self) -> float:
        return 0.5 * self.begun + float(self.rounds.sum())

    @property
    def best(self) -> tuple[Candidate, ...]:
        nothing = Additive(torch.zeros(1, 4, 4))
        rows = enumerate(self.rounds.tolist())
        return tuple(Candidate(Goal(k), nothing, 10.0 - r, 1.0, r) for k, r in rows)

    def state(self) -> dict[str, Tensor]:
        return {"rounds": self.rounds.clone(), "begun": torch.tensor(self.begun)}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        assert set(state) == {"rounds", "begun"}
        self.rounds, self.begun = state["rounds"].clone(), int(state["begun"])


def kept(store: Path, **limits: float) -> Run:
    return Run(store=store, **limits).keyed(  # type: ignore[arg-type]
        "counted", wired(), wired_images(1), Generator().manual_seed(0)
    )


def test_start_and_rounds_are_reported_charged_and_limited() -> None:
    said: list[tuple[int, int, str]] = []
    run = Run(lambda *at: said.append(at), budget=6)
    hunt = Counted()
    stopped = finish(hunt, Exhaustive(), run)
    assert stopped == "the budget of 6 image-steps is spent"
    assert hunt.rounds.tolist() == [3, 3]  # 1 for the start, then 2 a round
    assert run.image_steps == 7
    assert said == [
        (0, 1, "portion 1"),
        (0, 1, "portion 2"),
        (1, 3, "0 of 2 done, smallest 9 px"),
        (1, 3, "0 of 2 done, smallest 8 px"),
        (1, 3, "0 of 2 done, smallest 7 px"),
    ]


def test_a_budget_of_several_runs_is_one(tmp_path: Path) -> None:
    for budget, spent in ((0.5, 0.5), (1, 1.0), (2, 3.0), (3, 5.0), (100, 11.0)):
        run, hunt = kept(tmp_path / "state", budget=budget), Counted()
        stopped = finish(hunt, Exhaustive(), run)
        assert bool(stopped) == (budget < 100)
        assert run.image_steps == hunt.image_steps == spent


def test_what_was_kept_at_its_end_is_not_stepped_again(tmp_path: Path) -> None:
    for _ in range(2):
        hunt, run = Counted(), kept(tmp_path / "state", budget=11)
        # Of the bandit nothing is kept: begun anew, it would give arms further rounds.
        assert finish(hunt, KArm(rounds=6, warmup=1), run) == ""
        assert int(hunt.rounds.sum()) == 6
        assert run.image_steps == 7


def test_a_few_rounds_more_are_no_end(tmp_path: Path) -> None:
    for rounds in (2, 4, 5, 5):
        hunt = Counted()
        finish(hunt, Exhaustive(), kept(tmp_path / "state"), rounds=2)
        assert hunt.rounds.tolist() == [rounds] * 2


def test_who_needs_all_triggers_is_told_that_they_are_missing() -> None:
    with pytest.raises(Incomplete, match="nothing was unlearned: the budget of 1 image-steps"):
        found(Counted(), Exhaustive(), Run(budget=1), "nothing was unlearned")


def test_a_limit_is_obeyed_within_a_step(tmp_path: Path) -> None:
    net, clean = wired(PLANTED), wired_images(6)
    goals = [Goal(k) for k in range(net.classes)]
    method = vary(PixelBackdoor(), {"config.max_batch": 4, "config.batch": 4, "config.steps": 1})

    def begun(run: Run) -> tuple[Search, Run]:
        rng = Generator().manual_seed(0)
        own = run.keyed(method, net, clean, rng)
        inversion = method(net, clean, goals, spawn(rng))
        assert isinstance(inversion, Search)
        return inversion, own

    inversion, own = begun(Run(seconds=0, store=tmp_path / "state"))
    assert finish(inversion, Exhaustive(), own) == "the time limit of 0 s is reached"
    assert inversion.rounds.tolist() == [1] + [0] * (len(goals) - 1)  # one arm, and it is kept
    again, own = begun(Run(seconds=0, store=tmp_path / "state"))
    finish(again, Exhaustive(), own)
    assert again.rounds.sum() == 2
