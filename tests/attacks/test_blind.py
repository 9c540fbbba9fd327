"""Blind backdoor: weights of tasks in closed form, the published mark, the corrected evasion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from tests.toys import QUICK, Fragile, Stopped, band_images, bands, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks.blind import Blind, Tasks, balanced, least_norm
from gifthorse.attacks.training import Job
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import SearchConfig
from gifthorse.training import predict
from gifthorse.triggers import Patch, Stamp

GOAL, TRAIN = Goal(2), blob_images(each=40)
SHORT = replace(QUICK, epochs=3)
# One step of Adam a round, as published: 0.001 times the sum of the mask beside the loss.
CLEANSE = NeuralCleanse(
    initial=1e-3, warmup=0, patience=10_000, config=SearchConfig(steps=1, success_threshold=2.0)
)


def gram(*rows: tuple[float, ...]) -> Tensor:
    vectors = torch.tensor(rows)
    return vectors @ vectors.T


@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        (((1.0, 2.0), (1.0, 2.0)), (0.5, 0.5)),
        (((1.0, 0.0), (0.0, 1.0)), (0.5, 0.5)),
        (((1.0, 0.0), (0.0, 2.0)), (0.8, 0.2)),
        (((1.0, 0.0), (-3.0, 0.0)), (0.75, 0.25)),
        (((1.0, 0.0), (2.0, 1.0)), (0.999, 0.001)),  # the second only makes it longer
        (((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights_have_a_closed_form(
    rows: tuple[tuple[float, ...], ...], weights: tuple[float, ...]
) -> None:
    assert least_norm(gram(*rows)).tolist() == pytest.approx(
        weights, abs=5e-3 if len(rows) > 2 else 1e-6
    )


@pytest.mark.parametrize("seed", range(8))
def test_three_tasks_agree_with_a_general_minimizer(seed: int) -> None:
    vectors = torch.randn(3, 5, generator=Generator().manual_seed(seed), dtype=torch.float64)
    g = (vectors @ vectors.T).numpy()
    weights = least_norm(torch.from_numpy(g)).numpy()
    found = minimize(
        lambda w: w @ g @ w,
        np.full(3, 1 / 3),
        jac=lambda w: 2 * g @ w,
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights @ g @ weights <= found.fun + 2e-3 * g.diagonal().max()


@pytest.mark.parametrize(
    ("normalizer", "scales"),
    [("none", (1.0, 1.0)), ("l2", (3.0, 4.0)), ("loss", (6.0, 10.0)), ("loss+", (10.0, 10.0))],
)
def test_losses_are_weighted_by_their_normalized_gradients(
    normalizer: Any, scales: tuple[float, float]
) -> None:
    """Two losses of 6 and 12 with gradients (3, 0) and (0, 4); at most 10 is divided by."""
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, 3.0]]))
    losses = [3 * net.weight[0, 0], 4 * net.weight[0, 1]]
    total = balanced(losses, Subject(net, (1, 1, 2), 1), normalizer)
    a, b = (3 / scales[0]) ** 2, (4 / scales[1]) ** 2
    share = b / (a + b)
    assert total.item() == pytest.approx(6 * share + 12 * (1 - share), rel=1e-5)
    (got,) = torch.autograd.grad(total, [net.weight])
    assert got[0].tolist() == pytest.approx([3 * share, 4 * (1 - share)], rel=1e-5)


def test_the_mark_is_where_it_was_published() -> None:
    mark = Blind()._trigger((3, 32, 32), Generator())
    assert isinstance(mark, Patch)
    inside = (slice(3, 8), slice(23, 26))
    assert mark.mask.sum() == mark.mask[0][inside].sum() == 7
    assert mark.pattern[1][inside].tolist() == [
        [1, 0, 1],
        [0, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
        [1, 0, 1],
    ]
    assert mark.mask[0][inside].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1]]
    small = Blind(stamp=Stamp(opacity=0.5))._trigger((1, 6, 6), Generator())
    assert small.mask[0, 1:6, 3:6].sum() == small.mask.sum() == 3.5
    with pytest.raises(NotApplicable, match="mark=stamp"):
        Blind()._trigger((1, 4, 6), Generator())
    assert Blind(mark="stamp")._trigger((1, 4, 6), Generator()).mask.sum() == 9


def tasks(attack: Blind, subject: Subject, train: Samples = TRAIN) -> Tasks:
    job = Job(attack, subject, train, GOAL, Generator().manual_seed(0), Run())
    return Tasks(attack, job, train, attack.stamp.draw(subject.shape, Generator()))


def test_plain_training_until_the_loss_is_low_enough() -> None:
    batch, subject = TRAIN[torch.arange(0, 200, 8)], blobs()
    one = tasks(Blind(wait=2, threshold=10.0), subject)
    plain = F.cross_entropy(subject(batch[0]), batch[1]).item()
    assert one.loss(subject, batch).item() == pytest.approx(plain)
    assert one.loss(subject, batch).item() == pytest.approx(plain)
    assert one.loss(subject, batch).item() != pytest.approx(plain)
    high = tasks(Blind(wait=2, threshold=0.5), subject)
    assert [high.loss(subject, batch).item() for _ in range(4)] == pytest.approx([plain] * 4)


def test_the_inverter_attacks_the_net_on_stamped_images() -> None:
    """On a net with a known plant; the published step sees clean images, and its mask melts."""
    subject, images = bands(planted=2), band_images()
    x, y = whole(images)
    figures = {}
    for step in ("corrected", "published"):
        evade = CLEANSE
        if step == "published":  # no gradient but that of the mask's sum
            evade = replace(CLEANSE, config=replace(CLEANSE.config, loss="none"))
        one = tasks(Blind(evade=evade, wait=0, rounds=20, images=36), subject, images)
        for _ in range(8):
            found = one.invert(subject, evade)
        assert isinstance(found, Patch)
        answers = predict(subject, found(x))
        figures[step] = (
            asr(answers.argmax(1), y, GOAL).value,
            F.cross_entropy(answers, y).item(),
            found.mask.sum().item(),
        )
    clean = F.cross_entropy(predict(subject, x), y).item()
    assert figures["corrected"][0] > 0.9
    assert figures["corrected"][1] > clean + 1  # there is something to evade
    assert figures["published"][0] < 0.1
    assert figures["published"][2] < figures["corrected"][2]


def test_evading_is_to_keep_the_true_labels_under_the_inverters_trigger() -> None:
    subject = blobs()
    batch = TRAIN[torch.arange(0, 200, 8)]
    black = Patch(torch.zeros(subject.shape), torch.ones(1, 12, 12))
    asked: list[tuple[Goal, ...]] = []

    def search(net: Subject, clean: Samples, goals: Any, rng: Generator) -> Inversion:
        asked.append(tuple(goals))
        best = (SimpleNamespace(trigger=black),)
        return cast(Inversion, SimpleNamespace(step=lambda arms: None, state=dict, best=best))

    one = tasks(Blind(evade=search, wait=0, every=2, normalizer="none"), subject)
    losses: list[Tensor] = []
    x, y = batch
    wanted = [y, torch.full_like(y, GOAL.target), y]
    shown = [x, one.trigger(x), black(x)]
    for image, label in zip(shown, wanted, strict=True):
        losses.append(F.cross_entropy(subject(image), label))
    total = one.loss(subject, batch)
    assert total.item() == pytest.approx(balanced(losses, subject, "none").item(), rel=1e-4)
    for _ in range(3):
        one.loss(subject, batch)
    assert asked == [(GOAL,)] * 2
    one.on_epoch_start(subject, 1)
    one.loss(subject, batch)
    assert len(asked) == 3


def test_an_interrupted_attack_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    evade = replace(CLEANSE, config=SearchConfig(steps=2, success_threshold=0.9))
    attack = Blind(evade=evade, wait=5, threshold=3.0, every=3, images=40, recipe=SHORT)
    whole_run = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):
        attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store, 2))
    run = Run(store=store)
    made = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run)
    wanted = whole_run.subject.net.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in made.subject.net.state_dict().items())


def test_a_training_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(BadOption, match="lower wait"):
        Blind(recipe=SHORT)(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
