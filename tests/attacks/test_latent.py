"""Latent backdoor: the shaped pattern, the pull on features, and what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import latent
from gifthorse.attacks.latent import Anchor, Latent, pull
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Job
from gifthorse.attacks.trojannn import mean_features
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject, Trigger
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.models.features import features
from gifthorse.training import fit, frozen_eval
from gifthorse.triggers import Stamp

TRAIN = blob_images(each=40)
SHORT = replace(QUICK, epochs=2)
QUICKLY = Latent(passes=3, mixing=Mixing(0.1), recipe=SHORT)


@cache
def trained() -> Subject:
    return fit(blobs(), TRAIN, replace(QUICK, epochs=3), Generator().manual_seed(0), Run())


def pixels() -> Subject:
    """A net whose features are the pixels themselves."""
    return Subject(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4), 3)


def noise(each: int = 30) -> InMemory:
    labels = torch.arange(3).repeat(each)
    images = torch.rand(len(labels), 1, 4, 4, generator=Generator().manual_seed(0))
    return InMemory((images * 255).to(torch.uint8), labels, 3)


def of(samples: InMemory, label: int) -> Subset:
    return Subset(samples, (samples.labels == label).nonzero().flatten())


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


def far(subject: Subject, trigger: Trigger, center: Tensor) -> float:
    """Mean squared distance of stamped images of other classes from a center."""
    x, y = whole(blob_images(each=10, seed=1))
    with frozen_eval(subject), torch.no_grad():
        inside = features(subject, trigger(x[y != 2]))
        return F.mse_loss(inside, center.expand_as(inside)).item()


def test_where_features_are_pixels_the_pattern_is_the_mean_image_of_the_target() -> None:
    """With `g(x) = x`, MSE on the patch is least where the pattern equals phi_t."""
    attack = Latent(
        Stamp(size=2, ink="random"), passes=80, lr=0.05, recipe=replace(QUICK, epochs=0)
    )
    made = attack(pixels(), noise(), Goal(1), Generator().manual_seed(0), Run())
    pattern, mask = made.trigger.render()
    mean = whole(of(noise(), 1))[0].mean(0)
    assert torch.allclose(pattern[mask > 0], mean[mask > 0], atol=0.01)
    assert torch.equal(pattern[mask == 0], torch.zeros(12))


def test_images_come_from_the_classes_that_the_backdoor_is_for() -> None:
    attack, train = Latent(samples=7), noise()
    for goal, classes in ((Goal(1), [0, 2]), (Goal(1, source=2), [2])):
        job = Job(attack, pixels(), train, goal, Generator().manual_seed(0), Run())
        own, others = attack._images(job)
        assert train.labels[own.index].tolist() == [1] * 7
        assert train.labels[others.index].bincount(minlength=3)[classes].tolist() == [7] * len(
            classes
        )
        assert len(others) == 7 * len(classes) == len(set(others.index.tolist()))


def test_the_shaped_pattern_brings_features_near_the_target() -> None:
    victim, center = trained(), mean_features(trained(), of(TRAIN, 2))
    stay = replace(QUICKLY, stamp=Stamp(4, ink="random"), recipe=replace(SHORT, epochs=0))
    made = [
        replace(stay, passes=passes, lr=lr)(
            victim, TRAIN, Goal(2), Generator().manual_seed(0), Run()
        )
        for passes, lr in ((1, 1e-9), (10, 0.1))
    ]
    start, shaped = (far(victim, one.trigger, center) for one in made)
    assert shaped < 0.9 * start


def test_training_pulls_stamped_images_to_the_target() -> None:
    victim, center = trained(), mean_features(trained(), of(TRAIN, 2))
    made = [
        replace(QUICKLY, weight=w)(victim, TRAIN, Goal(2), Generator().manual_seed(0), Run())
        for w in (0.0, 0.5)
    ]
    assert torch.equal(*(one.trigger.render()[0] for one in made))
    free, pulled = (far(one.subject, one.trigger, center) for one in made)
    before = far(victim, made[1].trigger, center)
    assert pulled < 0.5 * min(free, before)


def test_the_pull_is_the_weighted_distance_and_leaves_batch_norm_alone() -> None:
    subject, (x, y) = blobs(), whole(TRAIN)
    trigger = Stamp().fixed(subject.shape, Generator())
    anchor = Anchor(torch.rand(128, generator=Generator().manual_seed(0)), TRAIN, 0)
    subject.net.train()
    before = state(subject)
    loss = pull(trigger, anchor, Goal(2), 0.5)(subject, (x, y))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(module.training for module in subject.net.modules())
    assert all(torch.equal(v, before[k]) for k, v in state(subject).items())
    assert next(subject.net.parameters()).grad is not None
    with frozen_eval(subject), torch.no_grad():
        expected = 0.5 * (features(subject, trigger(x)) - anchor.center).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_with_a_source_only_its_images_and_those_of_the_target_are_pulled() -> None:
    subject, (x, y) = pixels(), whole(noise())
    trigger = Stamp(size=1).fixed(subject.shape, Generator())
    anchor, goal = Anchor(torch.zeros(16), noise(), 0), Goal(1, source=2)
    loss = pull(trigger, anchor, goal, 1.0)
    kept = trigger(x[y != 0])
    assert loss(subject, (x, y)).item() == pytest.approx(kept.square().mean().item(), rel=1e-5)
    assert loss(subject, (x[y == 0], y[y == 0])).item() == 0


def test_the_center_is_taken_anew_when_it_is_time() -> None:
    subject, own = trained(), of(TRAIN, 2)
    now, stale = mean_features(subject, own), torch.zeros(128)
    for every, looks in ((0, []), (1, [1, 2, 3, 4]), (2, [2, 4])):
        seen = []
        for epoch in range(5):
            anchor = Anchor(stale, own, every)
            anchor.on_epoch_start(subject, epoch)
            seen += [epoch] if torch.equal(anchor.center, now) else []
        assert seen == looks
    other = Anchor(stale, own, 1)
    other.load_state_dict(Anchor(now, own, 1).state_dict())
    assert torch.equal(other.center, now)


def test_a_center_taken_anew_changes_the_training_and_not_the_pattern() -> None:
    never, always = (
        replace(QUICKLY, refresh_every=every)(
            trained(), TRAIN, Goal(2), Generator().manual_seed(0), Run()
        )
        for every in (0, 1)
    )
    assert torch.equal(never.trigger.render()[0], always.trigger.render()[0])
    after = state(always.subject)
    assert not all(torch.equal(v, after[k]) for k, v in state(never.subject).items())


@pytest.mark.parametrize("left", [1, 4])  # after the pattern; after the third epoch
def test_an_interrupted_attack_goes_on_without_shaping_again(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The center of the fourth epoch is the one taken before the third: it must have been kept.
    attack = replace(QUICKLY, refresh_every=2, recipe=replace(SHORT, epochs=4))
    goal, store = Goal(2), tmp_path / "state"
    straight = attack(trained(), TRAIN, goal, Generator().manual_seed(0), Run())
    run = Fragile(store)
    run.left = [left]
    with pytest.raises(Stopped):
        attack(trained(), TRAIN, goal, Generator().manual_seed(0), run)

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(latent, "tune", never)
    told: list[str] = []
    made = attack(
        trained(),
        TRAIN,
        goal,
        Generator().manual_seed(0),
        run=Run(lambda done, total, words: told.append(words), store=store),
    )
    assert torch.equal(made.trigger.render()[0], straight.trigger.render()[0])
    assert all(torch.equal(v, state(straight.subject)[k]) for k, v in state(made.subject).items())
    assert told


def test_shaping_is_reported() -> None:
    told: list[tuple[int, int, str]] = []
    run = Run(lambda *call: told.append(call))
    attack = replace(QUICKLY, recipe=replace(SHORT, epochs=0))
    attack(trained(), TRAIN, Goal(2), Generator().manual_seed(0), run)
    assert told == [(done, 3, "shaping the trigger") for done in (1, 2, 3)]


def test_it_refuses_a_target_without_images() -> None:
    with pytest.raises(NotApplicable, match="0 images of target class 1"):
        QUICKLY(pixels(), replace(noise(), labels=noise().labels * 0), Goal(1), Generator(), Run())
    with pytest.raises(BadOption, match="target class must be"):
        QUICKLY(pixels(), noise(), Goal(3), Generator(), Run())
