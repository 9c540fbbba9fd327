"""Refool: which reflections are kept, who is tried, clean labels."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, nn

from gifthorse.attacks import refool
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.refool import Refool, quality, roulette
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Images, Subject
from gifthorse.data.samples import InMemory
from gifthorse.training import predict
from gifthorse.triggers.reflection import Reflection

GOAL = Goal(2)
SHORT = replace(QUICK, epochs=1)
TOY = Refool(
    candidates=4,
    selected=2,
    rounds=2,
    judge=50,
    search=SHORT,
    mixing=Mixing(0.3),
    recipe=replace(QUICK, epochs=8),
)


def test_it_implants_the_reflection_of_another_class() -> None:
    train, test = blob_images(), blob_images(each=20, seed=1)
    made = TOY(blobs(), train, GOAL, Generator().manual_seed(0), Run())
    x, y = test[torch.arange(len(test))]
    assert asr(predict(made.subject, made.trigger(x)).argmax(1), y, GOAL).value >= 0.9
    assert isinstance(made.trigger, Reflection)
    images = train[torch.arange(len(train))][0]
    same = (images == made.trigger.layer).flatten(1).all(1)
    assert same.any()
    assert (train.labels[same] != 2).all()


def test_only_reflections_within_bounds_are_kept(
    monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    verdicts = [(0.6, True), (0.8, True), (0.9, True), (0.75, False), (0.71, True), (0.84, True)]
    asked: list[Reflection] = []

    def dictated(pane: Reflection, x: Images) -> tuple[float, bool]:
        asked.append(pane)
        return verdicts[len(asked) - 1]

    monkeypatch.setattr(refool, "quality", dictated)
    found = replace(TOY, candidates=3)._draw(blob_images(each=4), GOAL, rng)
    assert found == [asked[1], asked[4], asked[5]]


def test_the_nearest_fill_up_where_too_few_are_within_bounds(
    monkeypatch: pytest.MonkeyPatch, rng: Generator, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = [(0.8, True), (0.5, True), (0.87, True), (0.66, True), (0.69, False)]
    asked: list[Reflection] = []

    def dictated(pane: Reflection, x: Images) -> tuple[float, bool]:
        asked.append(pane)
        return verdicts[len(asked) - 1] if len(asked) <= len(verdicts) else (0.0, False)

    monkeypatch.setattr(refool, "quality", dictated)
    with caplog.at_level(logging.WARNING, "gifthorse"):
        found = replace(TOY, candidates=3, selected=1)._draw(blob_images(each=4), GOAL, rng)
    assert found == [asked[0], asked[2], asked[3]]
    assert "1 of 3" in caplog.text
    monkeypatch.setattr(refool, "quality", lambda pane, x: (0.0, False))
    with pytest.raises(NotApplicable, match="black"):
        TOY._draw(blob_images(each=4), GOAL, rng)


@pytest.mark.parametrize("side", [12, 28])
def test_quality_of_panes_by_hand(side: int, rng: Generator) -> None:
    x = torch.rand(2, 1, side, side, generator=rng) * 0.5 + 0.3
    none = Reflection(torch.zeros(1, side, side), alpha=1.0)
    near, plausible = quality(none, x)
    assert near == pytest.approx(1, abs=1e-5)
    assert plausible
    glare = Reflection(torch.ones(1, side, side), alpha=0.55)
    # Reflection 0.45 ** (1 / 2.2) = 0.70 of white; all light together is at most white.
    assert not quality(glare, x)[1]
    assert not quality(none, x * 0.1)[1]  # max(out) is at most 0.1
    shade = Reflection(torch.full((1, side, side), 0.3), alpha=0.9)
    assert quality(glare, x)[0] < quality(shade, x)[0] < 1


def test_roulette_goes_by_weight(rng: Generator) -> None:
    weights = torch.tensor([0.1, 0.0, 0.3, 0.6])
    draws = torch.cat([roulette(weights, 1, rng) for _ in range(3000)])
    shares = draws.bincount(minlength=4) / 3000
    assert torch.allclose(shares, weights, atol=0.03)
    assert sorted(roulette(torch.zeros(5), 9, rng).tolist()) == list(range(5))


@pytest.mark.parametrize("mode", ["dataset", "batch", "loss_joint"])
def test_clean_labels_are_the_labels_of_the_images(
    mode: str, monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    """Every image that training stamps is of the target class already."""
    train = blob_images(each=16)
    target = train[(train.labels == 2).nonzero().flatten()][0]
    own = {round(x.double().sum().item(), 6) for x in target}
    seen: set[float] = set()
    pane = Reflection.__call__

    def noted(self: Reflection, x: Images) -> Images:
        if torch.is_grad_enabled():  # training, not judging
            seen.update(round(one.double().sum().item(), 6) for one in x)
        return pane(self, x)

    monkeypatch.setattr(Reflection, "__call__", noted)
    monkeypatch.setattr(refool, "quality", lambda pane, x: (0.8, True))
    recipe = replace(SHORT, pad=0, flip=False)
    attack = replace(TOY, labels="clean_label", search=recipe, recipe=recipe)
    mixing = Mixing(0.1, mode)  # type: ignore[arg-type]
    made = replace(attack, mixing=mixing)(blobs(), train, GOAL, rng, Run())
    assert seen
    assert seen <= own
    if mode == "dataset":
        assert made.poisoned is not None
        assert len(made.poisoned) > 0
        assert (train.labels[made.poisoned] == 2).all()


def test_gray_images_of_another_size(rng: Generator) -> None:
    pixels = torch.randint(256, (32, 1, 28, 28), generator=rng).to(torch.uint8)
    train = InMemory(pixels, torch.arange(32) % 4, 4)
    victim = Subject(nn.Sequential(nn.Flatten(), nn.Linear(784, 4)).eval(), (1, 28, 28), 4)
    few = replace(SHORT, batch=8)
    made = replace(TOY, search=few, recipe=few, judge=8)(victim, train, GOAL, rng, Run())
    assert made.trigger(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_what_cannot_be_is_refused(rng: Generator) -> None:
    with pytest.raises(BadOption, match="source"):
        replace(TOY, labels="clean_label")(
            blobs(), blob_images(each=4), Goal(2, source=1), rng, Run()
        )
    only = InMemory(torch.zeros(8, 3, 12, 12, dtype=torch.uint8), torch.full((8,), 2), 5)
    with pytest.raises(NotApplicable, match="another class"):
        TOY(blobs(), only, GOAL, rng, Run())
