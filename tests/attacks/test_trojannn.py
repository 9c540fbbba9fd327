"""TrojanNN: which neurons are taken, and what the pattern does to them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import trojannn
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.trojannn import (
    NeuronExcitation,
    TrojanNN,
    mean_features,
    rank_neurons,
    shape_pattern,
)
from gifthorse.core.errors import BadImages, BadOption, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import InMemory
from gifthorse.models.features import features
from gifthorse.training import fit, frozen_eval
from gifthorse.triggers import Learned, Patch, Stamp

TRAIN = blob_images(each=40)
SIDE = 4


@cache
def trained() -> Subject:
    return fit(blobs(), TRAIN, replace(QUICK, epochs=3), Generator().manual_seed(0), Run())


def by_hand(into: Tensor, out: Tensor, bias: Tensor | None = None) -> Subject:
    """`relu(into @ pixels + bias)`, `(d,)`, and a last layer on top, on 4x4 gray images."""
    first, last = nn.Linear(SIDE**2, len(into)), nn.Linear(len(into), len(out))
    with torch.no_grad():
        first.weight.copy_(into)
        first.bias.copy_(torch.zeros(len(into)) if bias is None else bias)
        last.weight.copy_(out)
    return Subject(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last), (1, SIDE, SIDE), len(out))


def gray(values: Tensor) -> InMemory:
    """Plain images of these values, in 255ths."""
    pixels = values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE)
    return InMemory(pixels.contiguous(), torch.zeros(len(values), dtype=torch.long), 2)


def start(ink: Any = "random", opacity: float = 1.0) -> Patch:
    stamp = Stamp(size=2, ink=ink, opacity=opacity)
    return stamp.fixed((1, SIDE, SIDE), Generator().manual_seed(0))


def neurons(subject: Subject, patch: Patch) -> Tensor:
    """Activations `(d,)` of the last layer's input on a black image with an opaque pattern."""
    with frozen_eval(subject), torch.no_grad():
        opaque = replace(patch, mask=(patch.mask > 0).float())
        return features(subject, opaque(torch.zeros(1, *subject.shape)))[0]


ones = torch.ones(SIDE**2)
# Mean activations 3 : 1 : 2; absolute weights 3, 4, 5, whose signed sums rank the other way.
KNOWN = by_hand(
    torch.stack([3 * ones, 1 * ones, 2 * ones]),
    torch.tensor([[1.0, 2.0, -5.0], [2.0, -2.0, 0.0]]),
)


def test_rare_neurons_have_the_smallest_mean_connected_ones_the_largest_weights() -> None:
    images = gray(torch.tensor([10, 200]))
    assert rank_neurons(KNOWN, images, "rare").tolist() == [1, 2, 0]
    assert rank_neurons(KNOWN, images, "connected").tolist() == [2, 1, 0]


def test_kernels_of_a_convolution_at_the_end_are_summed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    kernels = torch.zeros(2, 3, 3, 3)
    kernels[0, 0, 1, 1] = 4.0  # one large weight
    kernels[1, 1] = -1.0  # nine smaller ones sum to more
    with torch.no_grad():
        net.get_submodule("0").get_parameter("weight").copy_(kernels)
    assert rank_neurons(Subject(net, (3, 4, 4), 2), TRAIN, "connected").tolist() == [1, 0, 2]


def test_mean_features_weigh_every_image_alike() -> None:
    values = torch.arange(520) % 256  # not a multiple of the batch: a mean of means would differ
    values[512:] = 255
    expected = torch.tensor([3.0, 1.0, 2.0]) * SIDE**2 * values.float().mean() / 255
    assert torch.allclose(mean_features(KNOWN, gray(values)), expected, rtol=1e-5)
    with pytest.raises(BadImages):
        mean_features(KNOWN, gray(torch.zeros(0)))


def test_the_best_pattern_for_a_linear_neuron_is_the_sign_of_its_weights() -> None:
    weight = torch.randn(1, SIDE**2, generator=Generator().manual_seed(1))
    subject = by_hand(weight, torch.ones(2, 1), torch.tensor([5.0]))
    patch = start(opacity=0.4)
    images, before = gray(torch.tensor([9])), patch.pattern.clone()
    got = shape_pattern(subject, patch, images, NeuronExcitation(count=1, value=1e3, steps=100))
    inside = patch.mask > 0
    wanted = (weight.view(1, SIDE, SIDE) > 0).float() * inside
    assert torch.allclose(got.pattern, wanted, atol=0.02)
    assert torch.equal(got.pattern[~inside], torch.zeros(SIDE**2 - 4))
    assert torch.equal(got.mask, patch.mask)
    assert torch.equal(patch.pattern, before)


def test_signed_steps_move_every_color_by_their_length_along_the_weights() -> None:
    weight = torch.randn(1, SIDE**2, generator=Generator().manual_seed(1))
    subject = by_hand(weight, torch.ones(2, 1), torch.tensor([5.0]))
    patch, images = start(), gray(torch.tensor([9]))
    inside = patch.mask > 0
    patch = replace(patch, pattern=0.5 * inside)
    shaping = NeuronExcitation(count=1, value=1e3, optimizer="pgd", lr=0.015, steps=20)
    moved = (shape_pattern(subject, patch, images, shaping).pattern - 0.5)[inside]
    wanted = 20 * 0.015 * weight.view(1, SIDE, SIDE)[inside].sign()
    assert torch.allclose(moved, wanted, atol=1e-4)


def test_a_faint_patch_is_shaped_as_if_it_were_opaque() -> None:
    """Opaque pixels reach the value at three quarters; faint ones would have to be white."""
    subject, images = by_hand(ones[None], torch.ones(2, 1)), gray(torch.tensor([9]))
    goal = NeuronExcitation(count=1, value=3.0, threshold=0.0, steps=100)
    got = shape_pattern(subject, start(opacity=0.4), images, goal)
    assert got.mask.max().item() == pytest.approx(0.4)
    assert got.pattern.sum().item() == pytest.approx(3.0, abs=0.1)


def test_shaping_stops_at_the_threshold() -> None:
    subject = by_hand(ones[None], torch.ones(2, 1))
    images, goal = (
        gray(torch.tensor([9])),
        NeuronExcitation(count=1, value=3.5, threshold=0.5, steps=100),
    )
    got = shape_pattern(subject, start("black"), images, goal)
    # From black, every step is at most what the value is short of: it stops just within reach.
    assert 3.0 <= neurons(subject, got).item() <= 3.2
    again = shape_pattern(subject, got, images, goal)
    assert torch.allclose(again.pattern, got.pattern, atol=1e-6)
    exact = shape_pattern(subject, got, images, replace(goal, threshold=0.0, steps=300))
    assert neurons(subject, exact).item() == pytest.approx(3.5, abs=0.1)


def test_a_neuron_that_is_dead_on_black_gives_its_place_to_the_next() -> None:
    into, bias = torch.stack([-ones, ones, 2 * ones]), torch.tensor([-1.0, 0.0, 0.0])
    subject, images = by_hand(into, torch.ones(2, 3), bias), gray(torch.tensor([50]))
    assert rank_neurons(subject, images).tolist() == [0, 1, 2]
    got = shape_pattern(
        subject, start(), images, NeuronExcitation(count=1, value=2.5, threshold=0.05)
    )
    assert neurons(subject, got)[1].item() == pytest.approx(2.5, abs=0.1)
    with pytest.raises(NotApplicable, match="only 2 of 3 respond"):
        shape_pattern(subject, start(), images, NeuronExcitation(count=3))


@pytest.mark.parametrize("rule", ["rare", "connected"])
def test_the_pattern_raises_the_neurons_of_a_trained_net(rule: Any) -> None:
    subject = trained()
    before = {k: v.clone() for k, v in subject.net.state_dict().items()}
    grads = [p.grad.clone() for p in subject.net.parameters() if p.grad is not None]
    patch = Stamp(size=4, ink="random").fixed(subject.shape, Generator().manual_seed(0))
    got = shape_pattern(subject, patch, TRAIN, NeuronExcitation(rule))
    learned, order = Learned(patch), rank_neurons(subject, TRAIN, rule)
    stamped = learned.stamp(torch.zeros(1, *subject.shape))
    chosen = trojannn._responsive(subject, stamped, learned.colors, order, 2)
    old, new = neurons(subject, patch)[chosen], neurons(subject, got)[chosen]
    assert (new - 10).norm() < (old - 10).norm() - 0.05
    assert (new - old).max() > 0.05
    assert 0 <= got.pattern.min() <= got.pattern.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
    assert all(p.requires_grad for p in subject.net.parameters())
    left = [p.grad for p in subject.net.parameters() if p.grad is not None]
    assert len(left) == len(grads)
    assert all(map(torch.equal, left, grads))


def test_the_attack_poisons_with_the_pattern_shaped_on_the_victim() -> None:
    recipe, victim = replace(QUICK, epochs=1), trained()
    attack = TrojanNN(Stamp(4, ink="random", opacity=0.7), mixing=Mixing(0.1), recipe=recipe)
    made = attack(victim, TRAIN, Goal(2), Generator().manual_seed(3), Run())
    patch = attack.stamp.fixed(victim.shape, spawn(Generator().manual_seed(3)))
    wanted = shape_pattern(victim, patch, TRAIN, attack.shaping)
    pattern, mask = made.trigger.render()
    assert torch.equal(pattern, wanted.pattern)
    assert mask.max().item() == pytest.approx(0.7)
    assert not torch.equal(pattern, patch.pattern)


def test_a_pattern_that_wanders_cannot_be_shaped() -> None:
    attack = TrojanNN(Stamp(form="wandering"))
    with pytest.raises(BadOption, match="fixed place"):
        attack(blobs(), TRAIN, Goal(2), Generator().manual_seed(0), Run())
