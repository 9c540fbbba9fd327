"""What all defenses keep to, on a toy whose backdoor is wired by hand.

Nine invariants, (a) to (i). What the tests beside this file show of a family already is not shown
here again:

(a) runs from end to end: here, through the evaluator.
(b) same seed, same record: here; of single methods in test_filters, test_remedies, test_detectors.
(c) inputs stay as they were: there, for each family; and the evaluator refuses an outcome of
    changed weights (tests/bench/test_judge.py), so (a) shows it of the net once more.
(d) sees no test image, trigger or target: here.
(e) batches do not matter: test_remedies for what is returned; here for filters that judge image by
    image. Filters that judge images together: test_filters, by the order of the suspects.
(f) two classes, one channel, oblong images: test_filters, test_remedies; here for detectors.
(g) the clean twin is not flagged: test_detectors; here for filters, at their threshold.
(h) options go through JSON: here; as text, one by one, in test_registries.
(i) no time left: test_detectors; here for filters and remedies, and that a training goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import checker, wired, wired_images
from torch import Generator, Tensor

from gifthorse.bench.judge import evaluate
from gifthorse.bench.measures import digest
from gifthorse.bench.outcome import DefenseKind, DefenseOutcome
from gifthorse.bench.protocol import EvalConfig, Splits
from gifthorse.core.errors import Incomplete, UsageError
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Batch,
    Filter,
    Goal,
    Images,
    Implant,
    Origin,
    Remedy,
    Samples,
    Shape,
    Subject,
    Trigger,
)
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.filtering import FILTERS
from gifthorse.filtering.scoring import takes_labels
from gifthorse.remedies import REMEDIES
from gifthorse.training import predict

REGISTRIES: dict[DefenseKind, Mapping[str, Any]] = {
    "filter": FILTERS,
    "remedy": REMEDIES,
    "detector": DETECTORS,
}
ROWS = [(kind, name) for kind, registry in REGISTRIES.items() for name in sorted(registry)]

# Enough to see that a method runs, repeats and stops; what it achieves is tested elsewhere.
BRIEF: dict[str, object] = {
    "recipe.epochs": 1, "recipe.batch": 20, "epochs": 1, "rounds": 1, "steps": 4, "ascent": 0.5,
    "inverter.config.rounds": 4, "inverter.soft.rounds": 4, "inverter.hidden": 4,
    "inverter.width": 2, "scheduler.rounds": 4, "width": 8, "batch": 8, "copies": 5, "starts": 2,
    "each": 2,
}  # fmt: skip
OWN: dict[str, dict[str, object]] = {
    "neo": {"images": 10, "most": 2},
    "strip": {"partners": 20},
    "activation_clustering": {"dims": 2},
    "activation_clustering_dataset": {"dims": 2},
    "hardening_nc_iterative": {"every": 1},
}
FEW: dict[str, object] = {"partners": 4, "inverter.config.rounds": 4}

# Filters that judge suspects together; all others judge image by image.
TOGETHER = {n for n in FILTERS if n.startswith(("activation_clustering", "spectral_signatures"))}

# A class can only stand out from two others: these say so.
NEED_THREE = {n for n, m in DETECTORS.items() if isinstance(m, Inspector)} | {"gangsweep", "dltnd"}
# Features of the toy are nearly pixels, where one patch on many images is a direction of its own,
# whatever the net makes of it.
PATCHES_SHOW = {"spectral_signatures"}
AT_ONCE = {"clp", "down_up", "smoothing"}  # done before anybody could stop them

DATA = Splits(wired_images(5, 9), wired_images(8, 2), wired_images(10, 3), wired_images(8, 4))
TERMS = EvalConfig(pairs=12)

rows = pytest.mark.parametrize(("kind", "name"), ROWS)
filters = pytest.mark.parametrize("name", sorted(FILTERS))
remedies = pytest.mark.parametrize("name", sorted(REMEDIES))
detectors = pytest.mark.parametrize("name", sorted(DETECTORS))


def brief(kind: DefenseKind, name: str) -> Any:
    """A method with the shortest options that it takes."""
    method = REGISTRIES[kind][name]
    known = describe(method)
    short = BRIEF | (FEW if kind == "filter" and name != "strip" else {}) | OWN.get(name, {})
    return vary(method, {key: value for key, value in short.items() if key in known})


def seed(value: int = 0) -> Generator:
    return Generator().manual_seed(value)


# 1. A guard: whatever belongs to the attack or the judge cannot be read while a defense runs ------

RUNNING: list[object] = []


def forbid() -> None:
    if RUNNING:
        raise AssertionError("a defense read what it must not see")


@dataclass(frozen=True)
class SecretGoal(Goal):
    def __getattribute__(self, name: str) -> Any:
        if name in ("target", "source"):
            forbid()
        return super().__getattribute__(name)


class SecretTrigger:
    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger

    def __call__(self, x: Images, /) -> Images:
        forbid()
        return self.trigger(x)

    def shuffled(self, rng: Generator, /) -> Trigger:
        forbid()
        return self.trigger.shuffled(rng)

    def render(self) -> tuple[Tensor, Tensor]:
        forbid()
        return self.trigger.render()


class SecretSamples:
    def __init__(self, parent: Samples) -> None:
        self.parent = parent

    @property
    def shape(self) -> Shape:
        return self.parent.shape

    @property
    def classes(self) -> int:
        return self.parent.classes

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: Tensor, /) -> Batch:
        forbid()
        return self.parent[index]


class Guarded:
    """A defense that is watched, and what it was given."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.given: list[tuple[object, ...]] = []

    def __call__(self, *given: Any) -> Any:
        self.given.append(given[:-1])  # without the run
        RUNNING.append(self)
        try:
            return self.method(*given)
        finally:
            RUNNING.pop()


def planted() -> Implant:
    subject = replace(wired(1), origin=Origin(metadata={"gifthorse": "target 1"}))
    return Implant(subject, SecretTrigger(checker()), SecretGoal(1), torch.arange(3))


@cache
def judged(kind: DefenseKind, name: str, unrelated: int = 1) -> tuple[DefenseOutcome, Guarded]:
    method, torch_seed = Guarded(brief(kind, name)), torch.manual_seed(unrelated)
    secret = replace(DATA, test=SecretSamples(DATA.test))
    made = evaluate(planted(), method, secret, seed(), Run(), kind=kind, evaluation=TERMS)  # type: ignore[arg-type]
    assert torch_seed.initial_seed() == unrelated
    return made, method


# 2. (a) to (d) ------------------------------------------------------------------------------------

COSTS = {"fit_seconds", "peak_bytes"}


def record(made: DefenseOutcome) -> dict[str, float | None]:
    return {name: value for name, value in made.figures().items() if name not in COSTS}


def test_the_guard_bites() -> None:
    """A defense that peeks at the truth, or at the test images, does not get through."""
    made, secret = planted(), SecretSamples(DATA.test)

    def peek(what: object) -> None:
        with pytest.raises(AssertionError, match="must not see"):
            Guarded(lambda *a: what())(Run())  # type: ignore[operator]

    peek(lambda: made.goal.target)
    peek(lambda: made.trigger(torch.zeros(1, 3, 12, 14)))
    peek(lambda: made.trigger.render())
    peek(lambda: whole(secret))
    assert made.goal.target == 1


@rows
def test_a_it_runs_from_end_to_end(kind: DefenseKind, name: str) -> None:
    made = judged(kind, name)[0]
    said = made.figures()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert (said["accuracy_before"], said["asr_before"], said["asr_before_n"]) == (1, 1, 24)
    assert (said["n_fit"], said["n_calibration"], said["n_test"]) == (32, 40, 32)
    wanted = {
        "filter": {"tpr", "auroc", "acc_sys", "asr_sys", "tpr_all"},
        "remedy": {"accuracy", "asr", "ra", "ccc", "ard", "cad", "der", "rir", "fit_seconds"},
        "detector": {"score", "threshold", "fit_seconds"},
    }
    missing = {k for k in wanted[kind] if said[k] is None}
    assert not missing


@rows
def test_b_the_same_seed_gives_the_same_record(kind: DefenseKind, name: str) -> None:
    first, again = judged(kind, name)[0], judged(kind, name, 2)[0]
    assert record(again) == record(first)
    assert all(torch.equal(v, again.scores[k]) for k, v in first.scores.items())


@rows
def test_d_it_is_given_clean_images_and_a_net_without_a_past(kind: DefenseKind, name: str) -> None:
    given = judged(kind, name)[1].given  # under the accuracy guard
    assert len(given) == (3 if kind == "filter" else 1)
    for subject, clean, *rest in given:
        assert isinstance(subject, Subject)
        assert subject.origin == Origin()
        assert clean is DATA.fit
        assert isinstance(rest[-1], Generator)
        for suspects in rest[:-1]:  # labels tell nothing that the net does not
            x, y = suspects[torch.arange(len(suspects))]  # type: ignore[index, arg-type]
            assert torch.equal(y, predict(subject, x).argmax(1))


# 3. (e) to (h) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(FILTERS) - TOGETHER))
def test_e_a_filter_that_judges_image_by_image_does_so_in_any_batches(name: str) -> None:
    method: Filter = brief("filter", name)
    x, y = whole(DATA.test)
    chosen = torch.arange(0, 32, 4)
    images = (torch.cat([x[chosen], checker()(x[chosen])]) * 255).round().to(torch.uint8)
    suspects = InMemory(images, y[chosen].repeat(2), 4)

    def scores(size: int) -> Tensor:
        starts = range(0, len(suspects), size)
        ends = [min(start + size, len(suspects)) for start in starts]
        given = [Subset(suspects, torch.arange(*at)) for at in zip(starts, ends, strict=True)]
        return torch.cat([method(wired(1), DATA.fit, one, seed(), Run()) for one in given])

    at_once = scores(len(suspects))
    for size in (1, 7):
        assert torch.allclose(scores(size), at_once, rtol=1e-4, atol=1e-5)


@detectors
@pytest.mark.parametrize("classes", [2, 4])
def test_f_oblong_images_with_one_channel_will_do(name: str, classes: int) -> None:
    """Of two classes, neither can stand out: a refusal must say what is wrong."""
    shape = (1, 10, 14)
    subject, clean = wired(1, shape, classes), wired_images(8, 5, shape, classes)
    method = brief("detector", name)
    if classes == 2 and name in NEED_THREE:
        with pytest.raises(UsageError, match=r"K >= 3|two others"):
            method(subject, clean, seed(), Run())
        return
    got = method(subject, clean, seed(), Run())
    assert got.findings
    assert all(f.goal is None or 0 <= f.goal.target < classes for f in got.findings)


@filters
def test_g_the_clean_twin_is_not_flagged(name: str) -> None:
    """The trigger is a mere patch to it: stamped images are as rarely flagged as others.

    A filter of training sets gets one without stamped images: those bear a wrong label there, which
    shows whatever the net makes of the patch.
    """
    many = replace(
        DATA, calibration=wired_images(50, 3), test=wired_images(12, 4), train=wired_images(100, 9)
    )
    twin, method = Implant(wired(), checker(), Goal(1)), brief("filter", name)
    if takes_labels(method):
        said = evaluate(wired(), method, many, seed(), Run(), kind="filter").figures()
        assert said["fpr_all"] is not None
        assert said["fpr_all"] <= 0.15
        return
    got = evaluate(
        twin, method, many, seed(), Run(), kind="filter", evaluation=EvalConfig(pairs=48)
    ).figures()
    clean, stamped = got["fpr_all"], got["tpr_all"]
    assert clean is not None
    assert stamped is not None
    assert clean <= 0.15
    assert (stamped > 0.15) == (name in PATCHES_SHOW)
    assert got["pairs"] == 0


@rows
def test_h_options_go_through_json(kind: DefenseKind, name: str) -> None:
    method = REGISTRIES[kind][name]
    for one in (method, brief(kind, name)):
        read = json.loads(json.dumps(describe(one), default=lambda v: pytest.fail(str(v))))
        assert vary(method, read) == one


# 4. (i) -------------------------------------------------------------------------------------------


@filters
def test_i_a_filter_without_time_gives_no_scores(name: str) -> None:
    with pytest.raises(Incomplete, match="time limit"):
        brief("filter", name)(wired(1), DATA.fit, DATA.calibration, seed(), Run(seconds=0))


@remedies
def test_i_a_remedy_without_time_gives_all_or_nothing(name: str) -> None:
    """Those that neither train nor search are done before anybody could stop them."""
    method: Remedy = brief("remedy", name)
    run = Run(seconds=0)
    if name in AT_ONCE:
        made = method(wired(1), DATA.fit, seed(), run)
        assert digest(made.net) == digest(method(wired(1), DATA.fit, seed(), Run()).net)
        return
    with pytest.raises(Incomplete, match="time limit"):
        method(wired(1), DATA.fit, seed(), run)


@pytest.mark.parametrize(
    "name", [n for n in sorted(REMEDIES) if "recipe.epochs" in describe(REMEDIES[n])]
)
def test_i_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    name: str, tmp_path: Path
) -> None:
    """Stopped as soon as it may be, and past the middle."""
    method: Remedy = brief("remedy", name)
    method, whole_run = vary(method, {"recipe.epochs": 3}), Run()
    expected = digest(method(wired(1), DATA.fit, seed(), run=whole_run).net)
    for part in (0.01, 0.6):
        store = tmp_path / f"{part}"
        first = Run(store=store, budget=max(1, int(part * whole_run.image_steps)))
        with pytest.raises(Incomplete, match="budget"):
            method(wired(1), DATA.fit, seed(), run=first)
        assert first.image_steps < whole_run.image_steps
        made = method(wired(1), DATA.fit, seed(), Run(store=store))
        assert digest(made.net) == expected


@pytest.mark.parametrize(
    ("name", "steps"),
    [("fine_tuning", 20), ("ft_sam", 40), ("nad", 50), ("adversarial_retraining", 100)],
)
def test_a_training_is_charged_for_every_way_through_the_net(name: str, steps: float) -> None:
    """One batch of 20: twice for FT-SAM, teacher and its maps for NAD, four steps more for AR."""
    assert judged("remedy", name)[0].cost.image_steps == steps
