"""What every filter keeps to: it finds stamped images of the blobs and leaves its inputs alone."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from tests.toys import BLOB_CLASSES, QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import BadNet
from gifthorse.core.errors import Incomplete
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Filter, Goal, Implant, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import FILTERS
from gifthorse.filtering.scoring import judge
from gifthorse.training import fit, predict

GOAL = Goal(2)
TRAIN, TEST = blob_images(), blob_images(each=40, seed=1)
CLEAN = blob_images(each=30, seed=2)
TOY = {
    "recipe.epochs": 6, "recipe.batch": 32, "recipe.lr": 0.1, "recipe.pad": 1, "recipe.bf16": False,
    "mixing.rate": 0.1, "stamp.ink": "checker",
}  # fmt: skip

# What single filters need on images of 12 x 12, to be quick.
OWN: dict[str, dict[str, object]] = {
    "ensemble": {
        "inverter.config.rounds": 20, "inverter.config.steps": 2, "inverter.config.batch": 16,
        "inverter.config.success_threshold": 0.9, "inverter.initial": 0.02, "inverter.patience": 3,
        "inverter.warmup": 0,
    },
    "neo": {"images": 30, "most": 6},
}  # fmt: skip

names = pytest.mark.parametrize("name", sorted(FILTERS))
online = pytest.mark.parametrize("name", sorted(n for n in FILTERS if not n.endswith("_dataset")))
dataset = pytest.mark.parametrize("name", sorted(n for n in FILTERS if n.endswith("_dataset")))


def toy(name: str) -> Filter:
    return vary(FILTERS[name], OWN.get(name, {}))


@cache
def grown() -> Subject:
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


@cache
def implant() -> Implant:
    return vary(BadNet(), TOY)(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())


@cache
def suspects(name: str, lie: bool = True) -> tuple[InMemory, Tensor]:
    """Clean and stamped images, shuffled, and which are stamped.

    For a training set, all of it and a few stamped images, labeled as the target if they lie; else
    60 test images and 30 stamped ones.
    """
    training = name.endswith("_dataset")
    source, few = (TRAIN, 16) if training else (TEST, 30)
    x, y = whole(source)
    draw = Generator().manual_seed(1)
    shuffled = torch.randperm(len(y), generator=draw)
    stamped = shuffled[y[shuffled] != GOAL.target][:few]
    kept = torch.arange(len(y)) if training else torch.randperm(len(y), generator=draw)[:60]
    labels = torch.full_like(y[stamped], GOAL.target) if lie else y[stamped]
    images = torch.cat([x[kept], implant().trigger(x[stamped])])
    order = torch.randperm(len(images), generator=draw)
    pixels = (images[order] * 255).round().to(torch.uint8)
    truth = (torch.arange(len(images)) >= len(kept))[order]
    return InMemory(pixels, torch.cat([y[kept], labels])[order], BLOB_CLASSES), truth


def score(name: str, subject: Subject, samples: InMemory, seed: int = 0) -> Tensor:
    return toy(name)(subject, CLEAN, samples, Generator().manual_seed(seed), Run())


def auroc(scores: Tensor, truth: Tensor) -> float:
    return judge(scores[~truth], scores[truth], scores[~truth]).auroc


def test_the_trigger_works_on_the_backdoored_net_alone() -> None:
    x, y = whole(TEST)
    stamped = implant().trigger(x[y != GOAL.target])
    assert (predict(implant().subject, stamped).argmax(1) == GOAL.target).float().mean() > 0.9
    assert (predict(grown(), stamped).argmax(1) == GOAL.target).float().mean() < 0.2


@names
def test_stamped_images_score_higher(name: str) -> None:
    samples, truth = suspects(name)
    scores = score(name, implant().subject, samples)
    assert scores.shape == (len(samples),)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert auroc(scores, truth) >= 0.9


@names
def test_on_a_clean_net_they_score_like_others(name: str) -> None:
    samples, truth = suspects(name, lie=False)  # a wrong label alone would be odd enough
    scores = score(name, grown(), samples)
    assert scores.isfinite().all()
    assert 0.3 <= auroc(scores, truth) <= 0.7


@names
def test_the_same_seed_gives_the_same_scores_whatever_else_is_random(name: str) -> None:
    samples, _ = suspects(name)
    runs = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        runs.append(score(name, implant().subject, samples))
    assert torch.equal(runs[0], runs[1])


@names
def test_scores_follow_the_order_of_the_suspects(name: str) -> None:
    samples, _ = suspects(name)
    order = torch.randperm(len(samples), generator=Generator().manual_seed(7))
    turned = InMemory(samples.images[order], samples.labels[order], samples.classes)
    before = score(name, implant().subject, samples)
    after = score(name, implant().subject, turned)
    assert torch.allclose(after, before[order], rtol=1e-3, atol=1e-4)


@names
def test_inputs_stay_as_they_were(name: str) -> None:
    samples, _ = suspects(name)
    subject = deepcopy(implant().subject)
    subject.net.train()  # whoever forgot to switch it loses nothing
    state = {k: v.clone() for k, v in subject.net.state_dict().items()}
    pixels, labels = samples.images.clone(), samples.labels.clone()
    known, unrelated = CLEAN.images.clone(), torch.get_rng_state()
    scores = score(name, subject, samples)
    assert torch.equal(scores, score(name, implant().subject, samples))
    assert all(torch.equal(v, state[k]) for k, v in subject.net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in subject.net.parameters())
    assert all(m.training and not m._forward_pre_hooks for m in subject.net.modules())
    assert torch.equal(samples.images, pixels)
    assert torch.equal(samples.labels, labels)
    assert torch.equal(CLEAN.images, known)
    assert torch.equal(torch.get_rng_state(), unrelated)


@online
def test_labels_of_suspects_have_no_part_in_it(name: str) -> None:
    samples, _ = suspects(name)
    other = InMemory(samples.images, samples.labels.flip(0), samples.classes)
    subject = implant().subject
    assert torch.equal(score(name, subject, other), score(name, subject, samples))


@dataset
def test_a_training_set_needs_no_clean_images(name: str) -> None:
    samples, _ = suspects(name)
    none = Subset(CLEAN, torch.empty(0, dtype=torch.long))
    scores = toy(name)(implant().subject, none, samples, Generator().manual_seed(0), Run())
    assert torch.equal(scores, score(name, implant().subject, samples))


@names
def test_a_session_is_told_charged_and_obeyed(name: str) -> None:
    samples, _ = suspects(name)
    calls: list[tuple[int, int, str]] = []
    run = Run(progress=lambda *a: calls.append(a))
    method, subject = toy(name), implant().subject
    method(subject, CLEAN, samples, Generator().manual_seed(0), run)
    assert run.image_steps >= len(samples) / 2
    assert all(0 < done <= total for done, total, _ in calls)
    assert (len(samples), len(samples)) in {(done, total) for done, total, _ in calls}
    with pytest.raises(Incomplete, match="budget"):
        method(subject, CLEAN, samples, Generator().manual_seed(0), Run(budget=0))


@names
def test_one_channel_two_classes_and_oblong_images_will_do(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 7, 2))
    draw = Generator().manual_seed(0)
    x = torch.randint(256, (70, 1, 6, 9), generator=draw, dtype=torch.uint8)
    samples = InMemory(x, torch.arange(70) % 2, 2)
    subject = Subject(net.eval(), (1, 6, 9), 2)
    few = Subset(samples, torch.arange(5))
    for given in (few, Subset(samples, torch.arange(1))):
        method, rng = toy(name), Generator().manual_seed(0)
        if name == "activation_clustering_dataset":  # five images make no cluster
            with pytest.raises(Incomplete, match="nothing was judged"):
                method(subject, samples, given, rng, Run())
            continue
        scores = method(subject, samples, given, rng, Run())
        assert scores.shape == (len(given),)
        assert scores.isfinite().all()
