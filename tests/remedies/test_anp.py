"""ANP: masks against finite differences on a tiny net, the planted neuron, and exact zeros."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from tests.remedies.badnet import CLEAN, planted, right, same, state, success
from tests.toys import Doubles
from torch import Generator, Tensor, nn

from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, split, whole
from gifthorse.remedies.anp import ANP, Neurons, pruned
from gifthorse.training import predict

TOY = ANP(steps=120, batch=32)
BRIEF = ANP(steps=10, batch=32, threshold=0.97)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@cache
def cut() -> Subject:
    return TOY(planted().subject, CLEAN, rng(), Run())


# 1. A tiny net, where everything can be counted ---------------------------------------------------


def tiny() -> Subject:
    """Two channels, in double precision, with weights that are nowhere special."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)).double()
    draw = rng(4)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return Subject(net.eval(), (1, 2, 2), 3)


def few(count: int = 12) -> Doubles:
    images = torch.randint(256, (count, 1, 2, 2), generator=rng(5)).to(torch.uint8)
    return Doubles(InMemory(images, torch.arange(count) % 3, 3))


def by_hand(
    subject: Subject, kept: Tensor, scale: Tensor, shift: Tensor
) -> Callable[[Tensor], Tensor]:
    """The net with the weights of its BatchNorm set anew."""
    net = deepcopy(subject.net)
    with torch.no_grad():
        net.get_parameter("2.weight").mul_(kept + scale)
        net.get_parameter("2.bias").mul_(1 + shift)
    return net.train()


def test_masks_and_noise_act_on_scale_and_shift() -> None:
    subject, (x, _) = tiny(), whole(few())
    neurons = Neurons(Subject(deepcopy(subject.net), subject.shape, 3))
    neurons.set_trainable()
    neurons.disturb(0.4, rng())
    with torch.no_grad():
        neurons.kept[0].copy_(torch.tensor([0.25, 0.75]))
        plain, disturbed = neurons(x), neurons(x, disturbed=True)
        zero, (d, e) = torch.zeros(2), neurons.noise
        kept = neurons.kept[0]
        assert torch.allclose(plain, by_hand(subject, kept, zero, zero)(x))
        assert torch.allclose(disturbed, by_hand(subject, kept, d, e)(x))
    assert all(0 < n.abs().max() <= 0.4 for n in neurons.noise)


def slopes(loss: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences."""
    moves = torch.eye(len(at)).double() * step
    return torch.stack([(loss(at + m) - loss(at - m)) / (2 * step) for m in moves])


def test_one_step_is_what_finite_differences_say() -> None:
    subject, samples = tiny(), few()
    x, y = whole(samples)
    method = ANP(steps=1, batch=12, lr=0.05)
    got = method.masks(subject, samples, rng(), Run())["2"]

    draw = spawn(rng())
    start = [((torch.rand(2, generator=draw) * 2 - 1) * 0.4).double() for _ in range(2)]
    ones = torch.ones(2).double()

    def loss(kept: Tensor, d: Tensor, e: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(by_hand(subject, kept, d, e)(x), y)

    up = slopes(lambda v: loss(ones, v[:2], v[2:]), torch.cat(start)).sign()
    moved = (torch.cat(start) + 0.4 * up).clamp(-0.4, 0.4)
    d, e = moved[:2], moved[2:]
    zero = torch.zeros(2).double()
    slope = slopes(lambda m: 0.2 * loss(m, zero, zero) + 0.8 * loss(m, d, e), ones)
    assert torch.allclose(got, (ones - 0.05 * slope).clamp(0, 1), atol=1e-6)
    assert (got < 1).any()


# 2. A neuron that does nothing on clean images, and much when it is disturbed ---------------------


def sleeper(classes: int = 4) -> tuple[Subject, InMemory]:
    """Each class has a pixel and a neuron; the last neuron hardly ever wakes, for class 0."""
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(classes + 1, classes + 1, bias=False),
        nn.BatchNorm1d(classes + 1),
        nn.ReLU(),
        nn.Linear(classes + 1, classes, bias=False),
    )
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(torch.eye(classes + 1))
        net.get_parameter("2.bias")[-1] = -1.8
        net.get_parameter("4.weight").copy_(3 * torch.eye(classes, classes + 1))
        net.get_parameter("4.weight")[0, -1] = 20.0
    y = torch.arange(40 * classes) % classes
    x = torch.rand(len(y), classes + 1, generator=rng()) * 60
    x[torch.arange(len(y)), y] += 180
    x[:, -1] *= 4
    images = x.to(torch.uint8).view(-1, 1, 1, classes + 1)
    subject, samples = Subject(net, (1, 1, classes + 1), classes), InMemory(images, y, classes)
    for _ in range(100):  # until the running statistics are those of the images
        net(whole(samples)[0])
    net.eval()
    return subject, samples


def test_the_sleeping_neuron_is_cut_and_no_other() -> None:
    subject, samples = sleeper()
    x, y = whole(samples)
    assert (predict(subject, x).argmax(1) == y).float().mean() == 1
    mask = ANP(steps=40, batch=32).masks(subject, samples, rng(), Run())["2"]
    assert mask[-1] <= 0.1
    assert mask[:-1].min() >= 0.5
    out = ANP(steps=40, batch=32)(subject, samples, rng(), Run())
    assert out.net.get_parameter("2.weight")[-1] == 0
    assert (predict(out, x).argmax(1) == y).float().mean() == 1


# 3. What is cut -----------------------------------------------------------------------------------


def test_without_perturbation_nothing_is_cut() -> None:
    masks = ANP(steps=40, batch=32, eps=0.0, weight=1.0).masks(
        planted().subject, CLEAN, rng(), Run()
    )
    assert min(float(m.min()) for m in masks.values()) > 0.9
    made = ANP(steps=40, batch=32, eps=0.0, threshold=0.2)(planted().subject, CLEAN, rng(), Run())
    assert same(made, planted().subject)


def test_a_cut_channel_is_exactly_zero() -> None:
    masks = {"net.4": torch.linspace(0, 1, 32)}
    out, seen = pruned(planted().subject, masks, 0.3), list[Tensor]()
    out.net.get_submodule("net.4").register_forward_hook(lambda *given: seen.append(given[2]))
    predict(out, whole(CLEAN)[0])
    silent = seen[0].abs().amax((0, 2, 3)) == 0
    assert torch.equal(silent, masks["net.4"] <= 0.3)
    assert same(pruned(planted().subject, masks, -1.0), planted().subject)


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.3, 1.0])
def test_the_threshold_is_the_largest_that_keeps_accuracy(
    drop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, masks = planted().subject, {"net.4": torch.linspace(0.02, 1, 32).flip(0)}
    monkeypatch.setattr(ANP, "masks", lambda *given: masks)
    out = ANP(max_drop=drop, share=0.5)(made, CLEAN, rng(), Run())
    held, _ = split(CLEAN, 0.5, spawn(rng()))
    x, y = whole(held)
    rates = {
        k / 20: float((predict(pruned(made, masks, k / 20), x).argmax(1) == y).float().mean())
        for k in range(19)
    }
    within = [t for t, rate in rates.items() if rate >= 1 - drop - 1e-6]  # 1 is its accuracy
    assert same(out, pruned(made, masks, max(within)))
    assert (max(within) == 0.9) == (drop == 1)


def test_the_backdoor_is_weakened() -> None:
    made = planted().subject
    assert success(cut()) <= success(made) - 0.3
    assert right(made) - right(cut()) <= 0.05


# 4. What every remedy keeps to --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_net_and_inputs_stay() -> None:
    made, before, nets = planted().subject, state(planted().subject), []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        nets.append(BRIEF(made, CLEAN, rng(), Run()))
    assert same(*nets)
    assert not same(nets[0], made)
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    assert all(p.requires_grad for p in [*made.net.parameters(), *nets[0].net.parameters()])
    assert not any(m.training for m in [*made.net.modules(), *nets[0].net.modules()])
    masks = [BRIEF.masks(made, CLEAN, rng(seed), Run())["net.4"] for seed in (0, 1)]
    assert not torch.equal(*masks)


def test_a_session_sees_the_steps_and_can_stop_them() -> None:
    calls: list[tuple[int, int, str]] = []
    run = Run(lambda *call: calls.append(call))
    vary(TOY, {"steps": 30})(planted().subject, CLEAN, rng(), run=run)
    assert [call[:2] for call in calls] == [(20, 30), (30, 30)]
    assert run.image_steps == 30 * 32 * 3
    with pytest.raises(Incomplete, match="budget of 200 image-steps"):
        TOY(planted().subject, CLEAN, rng(), run=Run(budget=200))


def test_a_net_without_batchnorm_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    with pytest.raises(NotApplicable, match="no BatchNorm"):
        TOY(Subject(net, (3, 12, 12), 5), CLEAN, rng(), Run())
