"""The loop over weights against steps made by hand, and `fit` on the blobs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.toys import BLOB_SHAPE, QUICK, blob_images, blobs
from torch import Generator, Tensor, nn
from torch.optim import SGD, Adam

from gifthorse.core.metrics import accuracy
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Labels, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.training import Player, Recipe, cross_entropy, descend, evaluate, fit, predict

PLAIN = Recipe(
    epochs=5, batch=10, lr=0.1, momentum=0.0, decay=0.0, schedule="constant", pad=0, flip=False,
    bf16=False,
)  # fmt: skip


def linear(classes: int = 5) -> Subject:
    size = BLOB_SHAPE[0] * BLOB_SHAPE[1] * BLOB_SHAPE[2]
    return Subject(nn.Sequential(nn.Flatten(), nn.Linear(size, classes)), BLOB_SHAPE, classes)


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stream(steps: int, rng: Generator) -> list[Batch]:
    return [
        (torch.rand(8, *BLOB_SHAPE, generator=rng), torch.randint(5, (8,), generator=rng))
        for _ in range(steps)
    ]


def test_descend_with_one_player_is_plain_gradient_descent(rng: Generator) -> None:
    ours, batches = linear(), stream(6, rng)
    theirs = deepcopy(ours)
    player = Player(
        tuple(ours.net.parameters()),
        lambda batch: cross_entropy(ours, batch),
        SGD(ours.net.parameters(), 0.3, momentum=0.9),
    )
    losses = [value.item() for (value,) in descend([player], batches)]
    optimizer, expected = SGD(theirs.net.parameters(), 0.3, momentum=0.9), []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        expected.append(loss.item())
    assert same(state(ours), state(theirs))
    assert losses == expected


def test_two_players_take_turns_on_the_same_batch() -> None:
    # a goes down (a b - c)^2, b goes down (a b + c)^2, with steps of 0.1; worked out by hand:
    # a = 1 - 0.1 * 2 (1 * 2 - 3) * 2 = 1.4, then b = 2 - 0.1 * 2 (1.4 * 2 + 3) * 1.4 = 0.376.
    a, b = (torch.tensor(v, requires_grad=True) for v in (1.0, 2.0))
    players = [
        Player((a,), lambda batch: (a * b - batch[0]) ** 2, SGD([a], 0.1)),
        Player((b,), lambda batch: (a * b + batch[0]) ** 2, SGD([b], 0.1)),
    ]
    ((first, second),) = list(descend(players, [(torch.tensor(3.0), torch.tensor(0))]))
    assert a.item() == pytest.approx(1.4)
    assert b.item() == pytest.approx(0.376)
    assert [first.item(), second.item()] == pytest.approx([1.0, 5.8**2])
    assert not first.requires_grad


def test_a_player_leaves_no_gradient_on_the_others_variables() -> None:
    a, b = (torch.tensor(v, requires_grad=True) for v in (1.0, 2.0))
    players = [Player((a,), lambda batch: a * b * batch[0], Adam([a], 0.1))]
    list(descend(players, [(torch.tensor(3.0), torch.tensor(0))]))
    assert b.grad is None
    assert b.item() == 2.0


def test_full_batches_follow_the_gradient_of_the_whole_set(rng: Generator) -> None:
    train = blob_images(each=2)
    start = linear()
    recipe = replace(PLAIN, batch=len(train), epochs=4)
    ours = fit(start, train, recipe, rng, Run())
    theirs, (x, y) = deepcopy(start), whole(train)
    optimizer = SGD(theirs.net.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for a, b in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_label_smoothing_is_torchs(rng: Generator) -> None:
    train = blob_images(each=2)
    start = linear()
    recipe = replace(PLAIN, batch=len(train), epochs=1, smoothing=0.2)
    ours = fit(start, train, recipe, rng, Run())
    theirs, (x, y) = deepcopy(start), whole(train)
    optimizer = SGD(theirs.net.parameters(), 0.1)
    F.cross_entropy(theirs(x), y, label_smoothing=0.2).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for a, b in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_blobs_are_learned_with_every_schedule(schedule: str, rng: Generator) -> None:
    recipe = vary(QUICK, {"schedule": schedule, "epochs": 4})
    made = fit(blobs(), blob_images(), recipe, rng, Run())
    test = blob_images(each=40, seed=1)
    assert accuracy(evaluate(made, test), test.labels).value > 0.95
    assert not made.net.training


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    train, recipe = blob_images(each=10), replace(QUICK, epochs=1, batch=10)
    runs = [
        state(fit(blobs(), train, recipe, Generator().manual_seed(seed), Run()))
        for seed in (1, 1, 2)
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_a_net_with_dropout_depends_on_the_given_seed_alone() -> None:
    base = linear()
    victim = replace(base, net=nn.Sequential(nn.Dropout(), base.net))
    runs = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        runs.append(
            state(fit(victim, blob_images(each=4), PLAIN, Generator().manual_seed(0), Run()))
        )
    assert same(*runs)


def test_fit_leaves_victim_data_and_global_seed_alone(rng: Generator) -> None:
    victim, train = blobs(), blob_images(each=10)
    for p in victim.net.parameters():
        p.requires_grad_(False)
    before, pixels, seed = state(victim), train.images.clone(), torch.get_rng_state()
    made = fit(victim, train, replace(QUICK, epochs=1, batch=10), rng, Run())
    assert same(state(victim), before)
    assert not victim.net.training
    assert not any(p.requires_grad for p in victim.net.parameters())
    assert torch.equal(train.images, pixels)
    assert torch.equal(torch.get_rng_state(), seed)
    assert made.net is not victim.net
    assert not same(state(made), before)


def test_every_epoch_sees_each_image_once_but_for_the_odd_ones(rng: Generator) -> None:
    train = InMemory(blob_images(each=5).images, torch.arange(25) % 5, 5)
    seen: list[Tensor] = []

    def watch(x: Tensor, y: Labels, index: Tensor) -> Batch:
        assert torch.equal(x, train[index][0])
        assert torch.equal(y, train[index][1])
        seen.append(index)
        return x, y

    fit(linear(), train, replace(PLAIN, epochs=3, batch=10), rng, Run(), mix=watch)
    assert [len(index) for index in seen] == [10] * 6
    for epoch in range(3):
        assert len(set(torch.cat(seen[2 * epoch : 2 * epoch + 2]).tolist())) == 20


def test_a_batch_larger_than_the_data_is_one_batch(rng: Generator) -> None:
    steps: list[tuple[int, int]] = []
    recipe = replace(PLAIN, epochs=2, batch=500, schedule="onecycle")
    fit(
        linear(),
        blob_images(each=2),
        recipe,
        rng,
        run=Run(lambda d, n, _: steps.append((d, n))),
    )
    assert steps == [(2, 2)]


def test_progress_ends_at_the_announced_number_of_steps(rng: Generator) -> None:
    steps: list[tuple[int, int, str]] = []
    fit(
        linear(),
        blob_images(each=10),
        PLAIN,
        rng,
        run=Run(lambda *a: steps.append(a)),
    )
    assert [(done, total) for done, total, _ in steps] == [(20, 25), (25, 25)]
    assert "loss" in steps[-1][2]


def test_the_loss_can_be_replaced(rng: Generator) -> None:
    start = linear()
    made = fit(
        start, blob_images(each=2), PLAIN, rng, Run(), loss=lambda s, b: 0 * cross_entropy(s, b)
    )
    assert same(state(made), state(start))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_predict_and_evaluate_do_not_depend_on_the_chunk(size: int) -> None:
    subject, test = blobs(), blob_images(each=4)
    x, _ = whole(test)
    with torch.no_grad():
        expected = subject(x)
    assert torch.allclose(predict(subject, x, size), expected, atol=1e-5)
    assert torch.equal(evaluate(subject, test, size), expected.argmax(1))
