"""Invisible: the change stays in its ball, shrinks the loss, and its radius is bisected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator

from gifthorse.attacks import invisible
from gifthorse.attacks.invisible import Invisible, PerturbationCallback, figures
from gifthorse.attacks.poisoning import AllToOne, Mixing
from gifthorse.attacks.training import Job
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject
from gifthorse.data.samples import whole
from gifthorse.training import fit, predict
from gifthorse.triggers import Additive

TRAIN, GOAL = blob_images(each=40), Goal(2)
SHORT = Invisible(
    eps=1.0, start=5, steps=3, mixing=Mixing(0.1), recipe=replace(QUICK, epochs=3, bf16=False)
)


@pytest.fixture(scope="module")
def trained() -> Subject:
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


@pytest.mark.parametrize(("eps", "left"), [(0.3, 0.95), (2.0, 0.3)])
def test_the_change_stays_in_its_ball_and_goes_down_the_loss(
    eps: float, left: float, trained: Subject, rng: Generator
) -> None:
    plan = replace(SHORT, start=30, steps=25, delta_lr=0.02)
    shaping = PerturbationCallback(plan, AllToOne(2), TRAIN, eps, rng)
    weights = {k: v.clone() for k, v in trained.net.state_dict().items()}
    x, y = whole(TRAIN)
    x = x[y != 2]
    wanted = torch.full((len(x),), 2)
    before = F.cross_entropy(predict(trained, x), wanted).item()
    for epoch in range(4):
        shaping.on_epoch_start(trained, epoch)
        assert shaping.trigger.delta.norm().item() <= eps * (1 + 1e-5)
        assert not shaping.trigger.delta.requires_grad
    after = F.cross_entropy(predict(trained, shaping.trigger(x)), wanted).item()
    assert after < left * before
    assert shaping.trigger.delta.norm().item() > 0.9 * eps  # nothing holds it back any more
    assert all(torch.equal(v, weights[k]) for k, v in trained.net.state_dict().items())


def test_the_first_change_is_as_small_as_half_of_the_images_allow(
    trained: Subject, rng: Generator
) -> None:
    shaping = PerturbationCallback(
        replace(SHORT, start=200, delta_lr=0.02), AllToOne(2), TRAIN, 20.0, rng
    )
    shaping.on_epoch_start(trained, 0)
    made = Implant(trained, shaping.trigger, GOAL)
    assert 0.2 < figures(made, TRAIN, AllToOne(2))[0] < 0.8
    assert shaping.trigger.delta.norm() < 10


def test_the_trained_change_is_in_the_ball_and_the_seed_makes_it() -> None:
    runs = [SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(s), Run()) for s in (0, 0, 1)]
    deltas = [made.trigger.delta for made in runs if isinstance(made.trigger, Additive)]
    assert all(0.05 < d.norm().item() <= 1 + 1e-5 for d in deltas)
    assert torch.equal(deltas[0], deltas[1])
    assert not torch.equal(deltas[0], deltas[2])


@pytest.mark.parametrize(
    ("eps", "radii", "best"),
    [
        (2.0, [2.0, 1.0, 1.5, 1.25, 1.375], 1.375),
        (0.5, [0.5, 1.0, 2.0, 1.5, 1.25], 1.5),
        (0.01, [0.01, 0.02, 0.04, 0.08, 0.16], 0.16),
    ],
)
def test_the_radius_is_bisected(
    eps: float, radii: list[float], best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A radius of 1.3 or more is dictated to be good enough."""
    tried: list[float] = []

    def within(self: Invisible, job: Job, radius: float, stage: str) -> Implant:
        tried.append(radius)
        return Implant(blobs(), Additive(torch.full((3, 12, 12), radius)), GOAL)

    def dictated(made: Implant, samples: object, labels: object) -> tuple[float, float]:
        return float(made.trigger.render()[1].max() >= 1.3), 0.9

    monkeypatch.setattr(Invisible, "_within", within)
    monkeypatch.setattr(invisible, "figures", dictated)
    made = replace(SHORT, eps=eps, stages=5)(
        blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run()
    )
    assert tried == pytest.approx(radii)
    assert made.trigger.render()[1].max().item() == pytest.approx(best)


def test_figures_count_other_classes_and_right_answers() -> None:
    made = Implant(blobs(), Additive(torch.zeros(3, 12, 12)), GOAL)
    x, y = whole(TRAIN)
    said = made.subject(x).argmax(1)
    success, right = figures(made, TRAIN, AllToOne(2))
    assert success == pytest.approx((said[y != 2] == 2).float().mean().item())
    assert right == pytest.approx((said == y).float().mean().item())


def test_an_interrupted_attack_goes_on_to_the_same_change(tmp_path: Path) -> None:
    expected = SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):
        SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store))
    made = SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run(store=store))
    assert torch.equal(made.trigger.render()[0], expected.trigger.render()[0])
    weights = expected.subject.net.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in made.subject.net.state_dict().items())
