"""WaNet: how many images are warped, which labels they get, and going on after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import training as implanting
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Keep
from gifthorse.attacks.wanet import WaNet, noisy
from gifthorse.core.errors import BadOption
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.training import Recipe
from gifthorse.triggers.warp import Warp, smooth_field

GOAL, TRAIN = Goal(2), blob_images(each=16)
SHORT = replace(QUICK, epochs=3, batch=16)


def unchanged(x: Tensor, y: Tensor, index: Tensor) -> Batch:
    return x, y


def test_images_with_noise_keep_their_labels_and_are_warped() -> None:
    warp = Warp(smooth_field((3, 12, 12), 4, Generator().manual_seed(0)), 2.0)
    mix = noisy(unchanged, warp, 0.3, Generator().manual_seed(1))
    x, y = TRAIN[torch.arange(0, 80, 2)]
    for _ in range(10):
        images, labels = mix(x, y, torch.arange(40))
        count = len(images) - 40
        assert count == 12
        assert torch.equal(images[:40], x)
        assert torch.equal(labels, torch.cat([y, y.flip(0)[:count]]))
        near = (images[40:] - warp(x.flip(0)[:count])).abs().mean((1, 2, 3))
        assert near.min() > 0
        assert near.max() < 0.1  # about half a pixel of noise beside the warp itself


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 0.2), (0.3, 0.05), (0.2, 0.0)])
def test_the_shares_are_those_that_were_asked_for(
    rate: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def counted(victim: Subject, train: InMemory, *rest: Any, mix: Any, **other: Any) -> Subject:
        x, y = train[torch.arange(10)]
        seen.extend(mix(x, torch.zeros_like(y), torch.arange(10))[1] for _ in range(600))
        return victim

    monkeypatch.setattr(implanting, "fit", counted)
    WaNet(noise=noise, mixing=Mixing(rate))(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    labels = torch.cat(seen)
    total, stamped = len(labels), int((labels == 2).sum())
    kept = total - stamped - 10 * len(seen)
    assert stamped / total == pytest.approx(rate, abs=0.01)
    assert kept / total == pytest.approx(noise, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_an_interrupted_attack_goes_on_to_the_same_weights(share: float, tmp_path: Path) -> None:
    attack = WaNet(recipe=SHORT, keep=Keep(share))
    whole = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):
        attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store))
    run = Run(store=store)
    made = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run)
    after = made.subject.net.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in whole.subject.net.state_dict().items())
    assert isinstance(made.trigger, Warp)
    assert isinstance(whole.trigger, Warp)
    assert torch.equal(made.trigger.field, whole.trigger.field)


def test_gray_images_of_28_pixels_are_warped_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    data = InMemory(torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20) % 3, 3)
    attack = WaNet(recipe=Recipe(epochs=1, batch=10, pad=0, flip=False, bf16=False))
    made = attack(Subject(net, (1, 28, 28), 3), data, GOAL, Generator().manual_seed(0), Run())
    assert made.trigger(data[torch.arange(4)][0]).shape == (4, 1, 28, 28)
    assert torch.cat(made.trigger.render()).shape == (2, 28, 28)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("noise", 0.9, "noise"),
        ("mixing.mode", "dataset", "mode"),
    ],
)
def test_what_cannot_be_is_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(BadOption, match=words):
        vary(WaNet(), {option: value})
