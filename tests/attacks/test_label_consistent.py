"""Label-consistent: hard images stay near the given ones, and are harder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.toys import GRAY, QUICK, Bands, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks.label_consistent import LabelConsistent
from gifthorse.attacks.training import Job
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import whole
from gifthorse.training import fit

TRAIN, GOAL = blob_images(each=40), Goal(2)
SHORT = LabelConsistent(steps=5, recipe=replace(QUICK, epochs=2))


@pytest.fixture(scope="module")
def trained() -> Subject:
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


def loss(subject: Subject, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(subject(x), y).item()


@pytest.mark.parametrize("eps", [4 / 255, 16 / 255])
def test_hard_images_are_near_and_harder(eps: float, trained: Subject, rng: Generator) -> None:
    x, y = whole(TRAIN)
    weights = {k: v.clone() for k, v in trained.net.state_dict().items()}
    hard = LabelConsistent(eps=eps, steps=20).harden(trained, (x, y), rng)
    assert hard.dtype == torch.uint8
    distance = (hard.float() - (x * 255).round()).abs().max().item()
    assert 0.9 * eps * 255 < distance <= eps * 255 + 1e-3
    noise = (x + (torch.rand(x.shape, generator=rng) * 2 - 1).sign() * eps).clamp(0, 1)
    assert loss(trained, hard.float() / 255, y) > 1.5 * loss(trained, noise, y)
    assert all(torch.equal(v, weights[k]) for k, v in trained.net.state_dict().items())
    assert all(p.requires_grad for p in trained.net.parameters())


def test_on_a_linear_net_every_pixel_goes_all_the_way_against_its_weight(rng: Generator) -> None:
    """The worst change of a linear net within the bound is known: eps against the class's band."""
    subject = Subject(Bands().eval(), (1, 18, 18), 6)
    subject.net.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    x, y = torch.full((1, 1, 18, 18), GRAY), torch.tensor([4])
    hard = LabelConsistent(eps=10 / 255, steps=40, stride=1 / 255).harden(subject, (x, y), rng)
    change = hard.float().view(18, 18) - 128
    assert torch.equal(change[12:15], torch.full((3, 18), -10.0))
    others = torch.cat([change[:12], change[15:]])
    assert torch.equal(others, torch.full((15, 18), 10.0))


@pytest.mark.parametrize("surrogate", ["auto", "victim", "fitted"])
def test_who_images_are_made_hard_for(surrogate: str, trained: Subject) -> None:
    attack = replace(SHORT, surrogate=surrogate)  # type: ignore[arg-type]
    for victim, fresh in ((blobs(), surrogate != "victim"), (trained, surrogate == "fitted")):
        job = Job(attack, victim, TRAIN, GOAL, Generator().manual_seed(0), Run())
        assert (attack._judge(job, Generator().manual_seed(0)) is not victim) == fresh


def test_an_interrupted_attack_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole_run = SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):  # two epochs of the clean net, one of the training
        SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store, 3))
    made = SHORT(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run(store=store))
    expected = whole_run.subject.net.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in made.subject.net.state_dict().items())
    assert made.poisoned is not None
    assert (TRAIN.labels[made.poisoned] == 2).all()
