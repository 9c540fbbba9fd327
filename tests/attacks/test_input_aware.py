"""Input-aware triggers: worth nothing on other images, and going on after a stop."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks.input_aware import Beside, Crossing, InputAware, Masking, sameness
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Keep
from gifthorse.core.errors import BadOption
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Goal, Implant, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.training import Recipe, fit, predict
from gifthorse.triggers.generated import Generated

GOAL, FEW = Goal(2), blob_images(each=16)
SHORT = InputAware(Masking(epochs=2), recipe=replace(QUICK, epochs=3, batch=16))
TOY = InputAware(
    Masking(epochs=3, diversity=1.0, weight=10.0, density=0.2),
    lr=0.003,
    mixing=Mixing(0.25),
    recipe=replace(QUICK, epochs=18),
)


def weights(made: Implant) -> list[Tensor]:
    """All that was trained: the net, and both nets of the trigger."""
    assert isinstance(made.trigger, Generated)
    parts = (made.subject.net, made.trigger.patterns, made.trigger.masks)
    return [v.clone() for part in parts for v in part.state_dict().values()]


@cache
def toy() -> Implant:
    return TOY(blobs(), blob_images(), GOAL, Generator().manual_seed(0), Run())


def test_triggers_work_on_their_own_images_and_hardly_on_others() -> None:
    made, (x, y) = toy(), whole(blob_images(each=40, seed=1))
    assert isinstance(made.trigger, Generated)
    own = asr(predict(made.subject, made.trigger(x)).argmax(1), y, GOAL).value
    donors = x[torch.randperm(len(x), generator=Generator().manual_seed(0))]
    swapped = predict(made.subject, made.trigger.swapped(x, donors)).argmax(1)
    assert own >= 0.9
    assert asr(swapped, y, GOAL).value <= own / 2
    assert accuracy(swapped, y).value >= 0.7


def test_what_comes_back_is_at_rest() -> None:
    trigger = toy().trigger
    assert isinstance(trigger, Generated)
    for net in (trigger.patterns, trigger.masks):
        assert not any(m.training for m in net.modules())
        assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 1), (0.0, 3), (0.2, 4)])
def test_an_interrupted_attack_goes_on_to_the_same_weights(
    share: float, epochs: int, tmp_path: Path
) -> None:
    attack, store = replace(SHORT, keep=Keep(share)), tmp_path / "state"
    made = attack(blobs(), FEW, GOAL, Generator().manual_seed(0), Run())
    stopping = Fragile(store)
    stopping.left = [epochs]  # the masks have the first two
    with pytest.raises(Stopped):
        attack(blobs(), FEW, GOAL, Generator().manual_seed(0), run=stopping)
    steps: list[int] = []
    run = Run(lambda done, total, words: steps.append(total), store=store)
    again = attack(blobs(), FEW, GOAL, Generator().manual_seed(0), run)
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(again), strict=True))
    each = len(FEW) * (1 - share) // 16
    assert set(steps) == ({2 * each, 3 * each} if epochs < 2 else {3 * each})


def test_only_the_painter_moves_in_the_second_phase() -> None:
    """The masks are those of a shorter joint training; pattern and net are not."""
    one, three = (
        replace(SHORT, recipe=replace(SHORT.recipe, epochs=n, schedule="constant"))(
            blobs(), FEW, GOAL, Generator().manual_seed(0), Run()
        ).trigger
        for n in (1, 3)
    )
    assert isinstance(one, Generated)
    assert isinstance(three, Generated)
    x, _ = whole(FEW)
    assert torch.equal(one.mask(x), three.mask(x))
    assert not torch.equal(one.pattern(x), three.pattern(x))


def test_a_batch_has_as_many_swapped_triggers_as_stamped_images() -> None:
    made, (x, y) = toy().trigger, whole(FEW)
    assert isinstance(made, Generated)
    trigger = replace(made, patterns=deepcopy(made.patterns))
    crossing = Crossing(trigger, replace(QUICK, bf16=False))

    def stamp(x: Tensor, y: Tensor, index: Tensor) -> Batch:
        assert trigger.patterns.training
        return torch.cat([x, torch.zeros_like(x[:5])]), torch.cat([y, torch.full((5,), 2)])

    images, labels = crossing.wrap(stamp)(x, y, torch.arange(len(x)))
    assert not trigger.patterns.training
    assert len(images) == len(labels) == len(x) + 10
    assert torch.equal(images[: len(x)], x)
    assert torch.equal(labels[-5:], y[5:10])
    trigger.patterns.train()
    assert torch.allclose(images[-5:], trigger.swapped(x[5:10], x[10:15]), atol=1e-6)
    assert not torch.allclose(images[-5:], trigger(x[5:10]), atol=1e-3)
    expected = sameness(x[10:15], trigger.pattern(x[10:15]))
    assert crossing.sameness.item() == pytest.approx(expected.item(), rel=1e-4)
    none = crossing.wrap(lambda x, y, index: (x, y))(x, y, torch.arange(len(x)))
    assert torch.equal(none[0], x)
    assert crossing.sameness == 0


def test_sameness_is_the_ratio_of_distances() -> None:
    x = torch.rand(6, 3, 4, 4, generator=Generator().manual_seed(0))
    assert sameness(x, x).item() == pytest.approx(1, rel=1e-4)
    assert sameness(x, x[:, :1].repeat(1, 3, 1, 1)) == pytest.approx(sameness(x, x[:, :1]).item())
    assert sameness(x, x / 4).item() == pytest.approx(4, rel=1e-4)
    equal = torch.zeros(6, 1, 4, 4, requires_grad=True)
    sameness(x, equal).backward()  # type: ignore[no-untyped-call]
    assert equal.grad is not None
    assert torch.isfinite(equal.grad).all()


def test_steps_fall_by_tens_and_gradients_do_not_add_up() -> None:
    net = nn.Linear(1, 1, bias=False)
    steps: list[float] = []

    class Watched(Beside):
        def on_epoch_end(self, learner: Subject, epoch: int) -> None:
            steps.append(self.optimizer.param_groups[0]["lr"])

    beside = Watched(net, 0.01, 5, (2 / 5, 4 / 5))
    fit(
        blobs(),
        FEW,
        replace(QUICK, epochs=5, batch=40),
        Generator().manual_seed(0),
        Run(),
        loss=lambda subject, batch: 3 * net.weight.sum(),
        callbacks=[beside],
    )
    assert steps == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
    assert net.weight.grad is not None
    assert net.weight.grad.item() == 3  # of the last step alone


def test_gray_images_of_28_pixels_get_triggers_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    data = InMemory(torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20) % 3, 3)
    recipe = Recipe(epochs=1, batch=10, pad=0, flip=False, bf16=False)
    attack = InputAware(Masking(epochs=1), recipe=recipe)
    made = attack(Subject(net, (1, 28, 28), 3), data, GOAL, Generator().manual_seed(0), Run())
    assert made.trigger(data[torch.arange(4)][0]).shape == (4, 1, 28, 28)
    assert torch.cat(made.trigger.render()).shape == (2, 28, 28)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("mixing.rate", 0.3, "rate"),
        ("mixing.mode", "loss", "mode"),
    ],
)
def test_what_cannot_be_is_refused(option: str, value: Any, words: str) -> None:
    with pytest.raises(BadOption, match=words):
        vary(InputAware(), {option: value})
