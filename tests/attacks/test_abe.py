"""Adversarial embedding: the discriminator learns, the net is pushed the other way, no further."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks.abe import ABE, CHANCE, Rival, clipped
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Job
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Goal, Subject
from gifthorse.models.features import features

GOAL, TRAIN = Goal(2), blob_images(each=40)
SHORT = replace(QUICK, epochs=3)
ATTACK = ABE(mixing=Mixing(0.1), recipe=SHORT, plain=0.3)
X, Y = TRAIN[torch.arange(0, len(TRAIN), 4)]
OTHERS = Y.ne(GOAL.target)


def rival(attack: ABE = ATTACK, victim: Subject | None = None) -> tuple[Rival, Subject]:
    victim = victim or blobs()
    trigger = attack.stamp.draw(victim.shape, Generator())
    job = Job(attack, victim, TRAIN, GOAL, Generator().manual_seed(0), Run())
    return Rival(attack, job, trigger), victim


def told_apart(one: Rival, subject: Subject) -> Tensor:
    """The discriminator's cross entropy on a balanced batch."""
    x, stamped = one.pairs(X, Y)
    with torch.no_grad():
        return F.cross_entropy(one.net(features(subject, x)), stamped)


def test_the_cross_entropy_of_a_row_is_clipped_at_chance() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 1.0]], requires_grad=True)
    loss = clipped(logits, torch.zeros(3, dtype=torch.int64))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-9)) + 2 * CHANCE) / 3)
    (got,) = torch.autograd.grad(loss, [logits])
    assert bool(got[0].any())
    assert not bool(got[1:].any())  # past chance the net is pushed no further


def test_pairs_are_balanced_and_without_the_target() -> None:
    one, _ = rival()
    x, stamped = one.pairs(X, Y)
    clean = X[OTHERS]
    assert torch.equal(x, torch.cat([clean, one.trigger(clean)]))
    assert stamped.tolist() == [0] * len(clean) + [1] * len(clean)


def test_the_discriminator_learns_and_the_net_stays() -> None:
    one, subject = rival(replace(ATTACK, passes=8))
    before = {k: v.clone() for k, v in subject.net.state_dict().items()}
    one.on_epoch_start(subject, 0)
    assert not one.active
    one.on_epoch_start(subject, 1)
    assert one.active
    assert told_apart(one, subject) < 0.3
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())


def test_a_step_down_the_term_is_a_step_up_the_discriminators_loss() -> None:
    one, subject = rival(replace(ATTACK, passes=8))
    one.on_epoch_start(subject, 1)
    subject.net.train()
    statistics = [b.clone() for b in subject.net.buffers()]
    loss = one.evasion(subject, (X, Y))
    with torch.no_grad():
        x, stamped = one.pairs(X, Y)
        subject.net.eval()
        wanted = -ATTACK.weight * clipped(one.net(features(subject, x)), stamped)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(statistics, subject.net.buffers(), strict=True))
    before = told_apart(one, subject)
    free = list(subject.net.parameters())
    got = torch.autograd.grad(loss, free, materialize_grads=True)
    with torch.no_grad():
        for p, slope in zip(free, got, strict=True):
            p.sub_(0.5 * slope)
    assert told_apart(one, subject) > before


def test_plain_epochs_and_batches_of_the_target_alone_cost_nothing() -> None:
    one, subject = rival()
    one.on_epoch_start(subject, 0)
    assert one.evasion(subject, (X, Y)).item() == 0
    one.active = True
    only: Batch = (X[~OTHERS], Y[~OTHERS])
    assert one.evasion(subject, only).item() == 0


def test_an_interrupted_attack_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = ATTACK(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):
        ATTACK(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store, 2))
    run = Run(store=store)
    made = ATTACK(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run)
    wanted = whole.subject.net.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in made.subject.net.state_dict().items())
    plain = replace(ATTACK, weight=0.0)(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    other = plain.subject.net.state_dict()
    assert not all(torch.equal(v, other[k]) for k, v in wanted.items())  # the term did something
