"""Loss terms against numbers worked out by hand, naive loops and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.search.losses import (
    Activation,
    Alone,
    Blocking,
    Clipped,
    CrossEntropy,
    Distance,
    Elastic,
    Logit,
    Margin,
    Nothing,
    Prob,
    Roughness,
    Similarity,
    Squares,
    Step,
    StepwiseSize,
    Term,
)

ARMS, BATCH, SHAPE, CLASSES = 3, 2, (3, 6, 5), 4
WEIGHT = torch.randn(CLASSES, 90, generator=Generator().manual_seed(7), dtype=torch.float64) / 4
FILTER = torch.randn(5, 3, 3, 3, generator=Generator().manual_seed(8), dtype=torch.float64)
BETA = torch.tensor([9.0, 9.0, 0.9, 9.0, 1.2, math.inf])
NEURON = torch.tensor([0, 0, 3, 0, 1, 4])

TERMS: dict[str, Term] = {
    "entropy": CrossEntropy(),
    "prob": Prob(),
    "clipped": Clipped(BETA),
    "margin": Margin(0.3),
    "squares": Squares(),
    "nothing": Nothing(),
    "distance": Distance(),
    "similarity": Similarity(),
    "large mask": Elastic("mask"),
    "pattern outside": Elastic("outside", 2.0),
    "rough mask": Roughness("mask"),
    "rough pattern": Roughness("outside", 2.0),
    "blocking": Blocking(),
    "alone": Alone(),
    "activation": Activation(NEURON, 0.1),
    "stepwise": StepwiseSize(limit=12),
}
each = pytest.mark.parametrize("name", TERMS)


def linear(x: Tensor) -> Tensor:
    return x.flatten(2) @ WEIGHT.T.to(x)


def trial(parts: tuple[Tensor, Tensor], arms: Tensor) -> Step:
    """A step of a linear net with a mask and a pattern; every arm has its own images."""
    rng = Generator().manual_seed(1)
    x = torch.rand(6, BATCH, *SHAPE, generator=rng, dtype=torch.float64)[arms]
    y = torch.randint(CLASSES, (6, BATCH), generator=rng)[arms]
    target = torch.tensor([0, 1, 2, 3, 0, 1])[arms]
    mask, pattern = (p.unsqueeze(1) for p in parts)
    stamped = x + mask * (pattern - x)
    features = torch.conv2d(stamped.flatten(0, 1), FILTER).view(len(x), BATCH, 5, 4, 3)
    return Step(x, y, stamped, linear(stamped), target, arms, parts, linear, features)


def drawn() -> tuple[Tensor, Tensor]:
    rng = Generator().manual_seed(2)
    return (
        torch.rand(ARMS, 1, *SHAPE[1:], generator=rng, dtype=torch.float64),
        torch.rand(ARMS, *SHAPE, generator=rng, dtype=torch.float64),
    )


def said(logits: list[list[float]], target: int) -> Step:
    """A step of one arm, known by its logits alone."""
    empty = torch.zeros(1, len(logits), 1, 1, 1)
    now = torch.tensor([logits], dtype=torch.float64)
    where, arm = torch.tensor([target]), torch.tensor([0])
    return Step(empty, empty[..., 0, 0, 0].long(), empty, now, where, arm, (), linear)


def shown(mask: Tensor, pattern: Tensor) -> Step:
    """A step of one arm, known by its mask `(H, W)` and pattern `(H, W)` alone."""
    parts = mask[None, None].double(), pattern[None, None].double()
    return replace(said([[0.0]], 0), parts=parts)


# Any term ----------------------------------------------------------------------------------------

PICKED = torch.tensor([2, 4, 5])


@each
def test_gradients_agree_with_finite_differences(name: str) -> None:
    leaves = [p.requires_grad_() for p in drawn()]

    def value(mask: Tensor, pattern: Tensor) -> Tensor:
        return TERMS[name](trial((mask, pattern), PICKED))

    assert value(*leaves).shape == (ARMS,)
    assert torch.autograd.gradcheck(value, leaves)


@each
def test_arms_do_not_meet(name: str) -> None:
    together = TERMS[name](trial(drawn(), PICKED))
    for i, arm in enumerate(PICKED):
        mask, pattern = (p[i : i + 1] for p in drawn())
        alone = TERMS[name](trial((mask, pattern), arm.view(1)))
        assert alone.item() == pytest.approx(together[i].item(), rel=1e-12)


# Losses ------------------------------------------------------------------------------------------


def test_cross_entropy_and_prob_by_hand() -> None:
    logits, target = [[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], 1
    p = [math.exp(row[target]) / sum(map(math.exp, row)) for row in logits]
    got = CrossEntropy()(said(logits, target)).item()
    assert got == pytest.approx(-(math.log(p[0]) + math.log(p[1])) / 2)
    got = Prob()(said(logits, target)).item()
    assert got == pytest.approx(16.118 * (1 - sum(p) / 2), rel=1e-5)


def test_prob_is_the_keras_cross_entropy_with_its_arguments_swapped() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    one_hot = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).clamp(1e-7, 1 - 1e-7)
    expected = -(logits.softmax(1) * one_hot.log()).sum(1).mean().item()
    assert Prob()(said(logits.tolist(), 1)).item() == pytest.approx(expected, abs=1e-6)


def test_each_image_is_clipped_at_its_arms_beta() -> None:
    # ln 2 = 0.693 for the even image, about 9 for the hopeless one
    step = said([[0.0, 0.0], [9.0, 0.0]], 1)
    for arm, beta in ((0, 5.0), (1, 0.5), (2, math.inf)):
        now = replace(step, arms=torch.tensor([arm]))
        got = Clipped(torch.tensor([5.0, 0.5, math.inf]))(now).item()
        hopeless = math.log1p(math.exp(9))
        assert got == pytest.approx((min(math.log(2), beta) + min(hopeless, beta)) / 2)


def test_an_image_beyond_beta_has_no_gradient() -> None:
    logits = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]], requires_grad=True)
    step = replace(said([[0.0], [0.0]], 1), logits=logits)
    (gradient,) = torch.autograd.grad(Clipped(torch.tensor([5.0]))(step).sum(), logits)
    assert gradient[0, 0].tolist() == [0.25, -0.25]  # (p - one-hot) / B
    assert gradient[0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, 1.5), (0.5, 1.25), (9.0, 0.0)])
def test_the_margin_by_hand(kappa: float, expected: float) -> None:
    # the best other class leads by 3 in the first image and trails by 3 in the second
    step = said([[1.0, 4.0, -2.0], [5.0, 2.0, 1.0]], 0)
    assert Margin(kappa)(step).item() == pytest.approx(expected)


def test_nothing_weighs_nothing_yet_reaches_every_variable() -> None:
    leaves = [p.requires_grad_() for p in drawn()]
    value = Nothing()(trial((leaves[0], leaves[1]), PICKED))
    assert value.tolist() == [0.0] * ARMS
    assert all(g.count_nonzero() == 0 for g in torch.autograd.grad(value.sum(), leaves))


# Images ------------------------------------------------------------------------------------------


def test_the_distance_by_hand() -> None:
    x = torch.zeros(1, 2, 1, 1, 2)
    stamped = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(1, 2, 1, 1, 2)
    assert Distance()(replace(said([[0.0]], 0), x=x, stamped=stamped)).item() == 0.75


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two channels `(H, W)`, window by window, zeros beyond the edges."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = np.pad(a, 5), np.pad(b, 5)
    total = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            cov = (window * p * q).sum() - mp * mq
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * mp * mq + c1) * (2 * cov + c2)
            total.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(total))


def test_similarity_agrees_with_a_naive_loop() -> None:
    step = trial(drawn(), PICKED)
    got = Similarity()(step)
    for arm in range(ARMS):
        expected = [
            naive_ssim(step.x[arm, i, c].numpy(), step.stamped[arm, i, c].numpy())
            for i in range(BATCH)
            for c in range(SHAPE[0])
        ]
        assert got[arm].item() == pytest.approx(-np.mean(expected), abs=1e-10)


def test_an_unchanged_image_is_entirely_similar() -> None:
    for x in (torch.zeros(1, 2, 3, 12, 12), torch.rand(1, 2, 3, 12, 12)):
        step = replace(said([[0.0]], 0), x=x, stamped=x)
        assert Similarity()(step).item() == pytest.approx(-1, abs=1e-5)


# TABOR -------------------------------------------------------------------------------------------


def test_elastic_by_hand() -> None:
    step = shown(torch.tensor([[0.5, 1.0]]), torch.tensor([[0.4, 0.9]]))
    assert Elastic("mask")(step).item() == pytest.approx(1.5 + 1.25)
    assert Elastic("outside")(step).item() == pytest.approx(0.2 + 0.04)
    assert Elastic("outside", 255.0)(step).item() == pytest.approx(255 * 0.2 + 255**2 * 0.04)


def test_roughness_by_hand() -> None:
    mask = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    step = shown(mask, torch.ones(2, 3))
    expected = (0.25 + 0.25 + 0.0) + (1.0 + 1.0) + (0.0 + 0.25)
    assert Roughness("mask")(step).item() == pytest.approx(expected)
    # outside, 1 - m is as rough as m
    assert Roughness("outside", 3.0)(step).item() == pytest.approx(9 * expected)


def test_a_blocked_image_and_a_trigger_alone_are_what_the_net_is_asked() -> None:
    step = trial(drawn(), PICKED)
    asked: list[Tensor] = []

    def net(x: Tensor) -> Tensor:
        asked.append(x)
        return linear(x)

    step = replace(step, net=net)
    blocked, alone = Blocking()(step), Alone()(step)
    mask, pattern = step.parts
    for arm in range(ARMS):
        rows = []
        for i in range(BATCH):
            black = (1 - mask[arm]) * step.x[arm, i]
            assert torch.equal(asked[0][arm, i], black)
            z = WEIGHT @ black.flatten()
            rows.append(z.logsumexp(0) - z[step.y[arm, i]])
        assert blocked[arm].item() == pytest.approx(float(sum(rows)) / BATCH)
        z = WEIGHT @ (mask[arm] * pattern[arm]).flatten()
        expected = z.logsumexp(0) - z[step.target[arm]]
        assert alone[arm].item() == pytest.approx(expected.item())
    assert asked[1].shape == (ARMS, 1, *SHAPE)  # one image, not one for each of the batch


# ABS ---------------------------------------------------------------------------------------------


def test_activation_by_hand() -> None:
    # two images, two channels, one row of two places; h = 2 a above 0, a below
    a = torch.tensor([[[[1.0, -1.0]], [[2.0, 0.0]]], [[[0.0, 3.0]], [[-4.0, 1.0]]]])
    h = [2 - 1 + 0 + 6, 4 + 0 - 4 + 2]  # sums over images and places: 7 and 2
    step = replace(said([[0.0]], 0), features=a[None])
    assert Activation(torch.tensor([0]), 0.5)(step).item() == pytest.approx(-h[0] + 0.5 * h[1])
    assert Activation(torch.tensor([1]), 0.5)(step).item() == pytest.approx(-h[1] + 0.5 * h[0])
    dense = replace(step, features=a[None, ..., 0, 0])  # (a, B, J): 1 and 0, 2 and -4
    assert Activation(torch.tensor([0]), 0.5)(dense).item() == pytest.approx(-2 + 0.5 * (4 - 4))


def test_activation_needs_a_layer() -> None:
    with pytest.raises(BadOption, match="name its layer"):
        Activation(torch.tensor([0]))(said([[0.0]], 0))


@pytest.mark.parametrize(
    ("pixels", "weight"), [(1, 0.01), (16, 0.01), (17, 500), (19, 500), (20, 1000), (25, 1000)]
)
def test_the_weight_of_size_climbs_in_steps(pixels: int, weight: float) -> None:
    mask = torch.full((25,), 0.01, dtype=torch.float64)  # not above 0.01: not counted
    mask[:pixels] = 0.5
    step = shown(mask.view(5, 5), torch.ones(5, 5))
    expected = weight * (0.5 * pixels + 0.01 * (25 - pixels))
    assert StepwiseSize()(step).item() == pytest.approx(expected)


def test_the_logit_is_minus_the_sum_over_images() -> None:
    logits = torch.tensor([[[1.0, 4.0], [5.0, 0.5]], [[2.0, 1.0], [3.0, -1.0]]])
    x, target = torch.zeros(2, 2, 1, 1, 1), torch.tensor([1, 0])
    none = torch.zeros(2, 2).long()
    step = Step(x, none, x, logits, target, target, (), lambda more: more)
    assert Logit()(step).tolist() == [-4.5, -5.0]
