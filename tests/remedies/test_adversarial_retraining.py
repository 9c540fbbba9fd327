"""Adversarial retraining: the worst change of a linear net, the box it stays in, what it learns."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from tests.remedies.badnet import CLEAN, TUNING, planted, right, same, state, success
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.remedies.adversarial_retraining import AdversarialRetraining
from gifthorse.training import fit, predict

EPS = 0.1
TOY = vary(
    AdversarialRetraining(), TUNING | {"eps": EPS, "size": EPS / 4, "recipe.schedule": "constant"}
)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@cache
def retrained() -> Subject:
    return TOY(planted().subject, CLEAN, rng(), Run())


def linear() -> Subject:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 12, generator=rng(3)))  # type: ignore[operator]
    return Subject(net, (3, 2, 2), 2)


def losses(subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(predict(subject, x), y, reduction="none")


def test_the_worst_change_of_a_linear_net_is_a_corner_of_the_box() -> None:
    subject = linear()
    x = torch.rand(8, 3, 2, 2, generator=rng())
    x[0, 0], x[1, 1] = 0.03, 0.99  # here the range of pixels ends before the box does
    y = torch.arange(8) % 2
    weight = subject.net.get_parameter("1.weight").detach()
    uphill = (weight[1 - y] - weight[y]).sign().view_as(x)
    expected = (x + EPS * uphill).clamp(0, 1) - x
    change = AdversarialRetraining(steps=21, size=EPS / 10, eps=EPS).worst(subject, (x, y), rng())
    assert torch.allclose(change, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_changes_stay_within_the_bound_and_images_are_images(steps: int) -> None:
    x, y = whole(CLEAN)
    change = vary(TOY, {"steps": steps, "size": 0.08}).worst(planted().subject, (x, y), rng())
    assert change.abs().max() <= EPS
    assert 0 <= (x + change).min() <= (x + change).max() <= 1
    assert not change.requires_grad


def test_steps_raise_the_loss_and_leave_the_net_alone() -> None:
    subject, (x, y) = planted().subject, whole(CLEAN)
    before, modes = state(subject), [m.training for m in subject.net.modules()]
    raised = [
        losses(subject, x + vary(TOY, {"steps": n}).worst(subject, (x, y), rng()), y).mean()
        for n in (0, 1, 7)
    ]
    assert losses(subject, x, y).mean() < raised[1] < raised[2]
    assert raised[0] < raised[1]
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
    assert [m.training for m in subject.net.modules()] == modes
    assert all(p.requires_grad for p in subject.net.parameters())


def robust(subject: Subject) -> float:
    """Accuracy on the worst images that many small steps find."""
    x, y = whole(CLEAN)
    change = AdversarialRetraining(20, EPS / 8, EPS).worst(subject, (x, y), rng(9))
    return float((predict(subject, x + change).argmax(1) == y).float().mean())


def test_a_retrained_net_resists_where_a_tuned_one_does_not() -> None:
    made = planted().subject
    tuned = fit(made, CLEAN, TOY.recipe, rng(), Run())
    assert robust(retrained()) >= robust(tuned) + 0.2
    assert right(retrained()) >= 0.9
    assert success(retrained()) <= 0.5 <= success(tuned)


def test_the_same_seed_gives_the_same_net_and_inputs_stay() -> None:
    made, pixels = planted().subject, CLEAN.images.clone()
    before, again = state(made), vary(TOY, {})
    torch.manual_seed(7)
    assert same(again(made, CLEAN, rng(), Run()), retrained())
    assert not same(again(made, CLEAN, rng(1), Run()), retrained())
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    assert torch.equal(CLEAN.images, pixels)
    assert not retrained().net.training
