"""The ensemble filter with triggers that are given, so that only the mixing is judged."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.filtering.points import Points, reader, seeded
from tests.toys import BLOB_CLASSES, QUICK, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks import BadNet
from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Candidate,
    Goal,
    Implant,
    Inversion,
    Progress,
    Samples,
    Subject,
    Trigger,
)
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import STRIP, Ensemble
from gifthorse.filtering.scoring import judge
from gifthorse.inversion import NeuralCleanse
from gifthorse.triggers import Patch


@dataclass
class Over:
    """An inversion that knows its candidates after one round."""

    best: tuple[Candidate, ...]
    rounds: int = 0

    def step(self, arms: Tensor, /) -> None:
        self.rounds += 1

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.best),), self.rounds > 0)

    @property
    def progress(self) -> Progress:
        sizes = torch.tensor([c.size for c in self.best])
        return Progress(torch.ones(len(sizes)).long(), sizes, sizes, sizes, sizes > 0)

    @property
    def image_steps(self) -> float:
        return 10.0 * self.rounds

    def state(self) -> dict[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        self.rounds = int(state["rounds"])


@dataclass(frozen=True)
class Told:
    """An inverter that is given a trigger and its size for each class; size 0 is not feasible."""

    triggers: tuple[Trigger, ...]
    sizes: tuple[float, ...]

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        assert [g.target for g in goals] == list(range(subject.classes))
        rows = zip(goals, self.triggers, self.sizes, strict=True)
        return Over(tuple(Candidate(g, t, s, 1.0, 1, s > 0) for g, t, s in rows))


def painted(*pattern: float) -> Patch:
    """Replace all that a point is."""
    return Patch(torch.tensor(pattern).view(1, 1, -1), torch.ones(1, 1, len(pattern)))


@cache
def implant() -> Implant:
    method = vary(BadNet(mixing=Mixing(0.1)), {"stamp.ink": "checker"})
    recipe = {f"recipe.{name}": value for name, value in describe(QUICK).items()}
    return vary(method, recipe)(blobs(), blob_images(), Goal(2), seeded(), Run())


CLEAN, TEST = blob_images(each=30, seed=2), blob_images(each=12, seed=1)


def both() -> tuple[InMemory, InMemory]:
    """Clean test images, and those of them stamped that are not of the target class."""
    x, y = whole(TEST)
    stamped = implant().trigger(x[y != 2])
    return TEST, InMemory((stamped * 255).round().byte(), y[y != 2], BLOB_CLASSES)


def auroc(method: Ensemble | STRIP, seed: int = 0) -> float:
    low, high = (method(implant().subject, CLEAN, s, seeded(seed), Run()) for s in both())
    return judge(low, high, low).auroc


def only(trigger: Trigger) -> Ensemble:
    return Ensemble(Told((trigger,) * BLOB_CLASSES, (9.0, 9.0, 1.0, 9.0, 9.0)))


def test_the_score_is_the_spread_of_entropies_by_hand() -> None:
    """Two classes, logits are the points; every partner is painted over, so all are alike."""
    clean = Points(torch.rand(5, 2), torch.zeros(5).long())
    suspects = Points(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.zeros(2).long())
    weights, rival = (0.25, 0.5, 1.0), (0.0, 2.0)
    told = Told((painted(9.0, 9.0), painted(*rival)), (7.0, 3.0))  # the smaller one counts
    scores = Ensemble(told, weights=weights, partners=3)(
        reader(2), clean, suspects, seeded(), Run()
    )
    for x, score in zip(suspects.points.tolist(), scores.tolist(), strict=True):
        entropies = []
        for w in weights:
            gap = w * (x[0] - x[1]) + (1 - w) * (rival[0] - rival[1])
            p = 1 / (1 + math.exp(-gap))
            entropies.append(-p * math.log(p) - (1 - p) * math.log(1 - p))
        mean = sum(entropies) / 3
        spread = math.sqrt(sum((h - mean) ** 2 for h in entropies) / 3)
        assert score == pytest.approx(-spread, abs=1e-6)


def test_spreads_are_taken_for_each_partner_before_they_are_averaged() -> None:
    clean = Points(torch.tensor([[0.0, 1.0], [4.0, 0.0]]), torch.zeros(2).long())
    suspects = Points(torch.tensor([[1.0, 0.0]]), torch.zeros(1).long())
    nothing = Patch(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    method = Ensemble(Told((nothing,) * 2, (1.0, 2.0)), partners=1)
    alone = [
        method(reader(2), Subset(clean, i[None]), suspects, seeded(), Run())
        for i in torch.arange(2)
    ]
    pair = replace(method, partners=2)(reader(2), clean, suspects, seeded(), Run())
    assert torch.allclose(pair, (alone[0] + alone[1]) / 2)
    assert abs(alone[0] - alone[1]) > 0.01


def test_one_weight_has_no_spread() -> None:
    method = replace(only(implant().trigger), weights=(0.5,))
    scores = method(implant().subject, CLEAN, TEST, seeded(), Run())
    assert torch.equal(scores, torch.zeros(len(TEST)))


def test_the_true_trigger_separates_better_than_a_found_one_and_than_strip() -> None:
    config = {"rounds": 15, "steps": 2, "min_steps": 2, "batch": 16, "success_threshold": 0.9}
    options = {"initial": 0.02, "patience": 3, "warmup": 0} | {
        f"config.{k}": v for k, v in config.items()
    }
    truth, found = auroc(only(implant().trigger)), auroc(Ensemble(vary(NeuralCleanse(), options)))
    assert truth > 0.99
    assert truth > found > 0.8
    assert truth > auroc(STRIP(8)) + 0.1


def test_scores_do_not_depend_on_the_batch() -> None:
    method, subject = only(implant().trigger), implant().subject
    every = method(subject, CLEAN, TEST, seeded(), Run())
    for part in (torch.arange(23), torch.arange(23, len(TEST))):
        got = method(subject, CLEAN, Subset(TEST, part), seeded(), Run())
        assert got.shape == part.shape
        assert torch.allclose(got, every[part], atol=1e-5)


def test_strip_takes_over_where_no_class_has_a_trigger(caplog: pytest.LogCaptureFixture) -> None:
    none = Told((implant().trigger,) * BLOB_CLASSES, (0.0,) * BLOB_CLASSES)
    draw, other = seeded(), seeded()
    with caplog.at_level(logging.WARNING, "gifthorse"):
        got = Ensemble(none, partners=5)(implant().subject, CLEAN, TEST, draw, Run())
    assert "STRIP alone" in caplog.text
    spawn(other)  # what the search drew
    assert torch.equal(got, STRIP(5)(implant().subject, CLEAN, TEST, other, Run()))


def test_a_search_that_is_stopped_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    config = {"rounds": 8, "steps": 1, "min_steps": 1, "batch": 8, "success_threshold": 0.5}
    quick = Ensemble(vary(NeuralCleanse(), {f"config.{k}": v for k, v in config.items()}))
    few, subject = Subset(TEST, torch.arange(10)), implant().subject
    spent = Run()
    whole_run = quick(subject, CLEAN, few, seeded(), run=spent)
    first = Run(budget=int(spent.image_steps / 4), store=tmp_path / "run")
    with pytest.raises(Incomplete, match="not all images were scored: the budget"):
        quick(subject, CLEAN, few, seeded(), run=first)
    second = Run(store=tmp_path / "run")
    assert torch.equal(quick(subject, CLEAN, few, seeded(), run=second), whole_run)
    assert second.image_steps == pytest.approx(spent.image_steps, abs=1)


def test_too_few_clean_images_are_refused() -> None:
    few = Subset(CLEAN, torch.arange(7))
    with pytest.raises(NotApplicable, match="8 clean images are needed, but there are 7"):
        only(implant().trigger)(implant().subject, few, TEST, seeded(), Run())
