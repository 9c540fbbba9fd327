"""The shortest shifts against scipy's solver and by hand, and what they say of a planted class."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject, Verdict
from gifthorse.data import InMemory
from gifthorse.detection.latent_shift import LatentShift, margins, shifts


def by_scipy(weight: Tensor, lacking: Tensor, k: int) -> Tensor:
    rivals = [j for j in range(len(weight)) if j != k]
    apart, asked = (weight[k] - weight[rivals]).numpy(), lacking[k, rivals].numpy()
    held = [{"type": "ineq", "fun": lambda s: apart @ s - asked, "jac": lambda s: apart}]
    start = torch.zeros(weight.shape[1], dtype=torch.float64).numpy()
    found = minimize(lambda s: s @ s / 2, start, jac=lambda s: s, constraints=held)
    assert found.success
    return torch.from_numpy(found.x)


def test_the_shifts_are_those_of_a_general_solver(rng: Generator) -> None:
    weight = torch.randn(6, 9, generator=rng, dtype=torch.float64)
    lacking = torch.randn(6, 6, generator=rng, dtype=torch.float64).fill_diagonal_(-torch.inf)
    ours = shifts(weight, lacking, 2000, 1e-12)
    for k in range(6):
        assert torch.allclose(ours[k], by_scipy(weight, lacking, k), atol=1e-5)


def test_margins_are_quantiles_over_the_other_classes() -> None:
    logits = torch.tensor([[9.0, 0.0], [4.0, 0.0], [2.0, 0.0], [0.0, 9.0]])
    got = margins(logits, torch.tensor([0, 0, 0, 1]), 0.5)
    assert got.tolist() == [[-torch.inf, 9.0], [4.0, -torch.inf]]


CLASSES = 6


def planted(short: float) -> Subject:
    """A net that reads its pixels as features; class 2 has rows `short` times as steep."""
    weight = torch.eye(CLASSES)
    weight[2] = weight[2] / short
    layer = nn.Linear(CLASSES, CLASSES, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return Subject(nn.Sequential(nn.Flatten(), layer).eval(), (1, 1, CLASSES), CLASSES)


def judge(subject: Subject, **options: int) -> Verdict:
    pixels = (torch.eye(CLASSES).repeat(5, 1) * 255).byte().view(-1, 1, 1, CLASSES)
    clean = InMemory(pixels, torch.arange(CLASSES).repeat(5), CLASSES)
    return LatentShift(**options)(subject, clean, Generator().manual_seed(0), Run())


def test_a_class_with_a_short_way_in_is_suspicious_and_no_more() -> None:
    got = judge(planted(0.05))
    assert got.label == "SUSPICIOUS"
    assert got.findings[0].goal == Goal(2)
    assert got.image_steps == 15  # 30 images, forward alone
    # Class 2 must win by 1 where the largest logit is 1: the shift is about 0.05 along its axis.
    assert got.statistics["value_2"] < got.statistics["value_0"] / 3


def test_classes_alike_are_not_suspicious() -> None:
    got = judge(planted(1.0))
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score == 0


def test_a_net_whose_logits_are_not_its_last_layers_gets_no_verdict() -> None:
    plain = planted(1.0)
    squared = nn.Sequential(plain.net, nn.Softplus())
    assert judge(Subject(squared.eval(), plain.shape, CLASSES)).label == "INCONCLUSIVE"


def test_few_classes_get_no_verdict() -> None:
    assert judge(planted(1.0), least=7).label == "INCONCLUSIVE"


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_shift_sends_the_share_over_each_rival(share: float, rng: Generator) -> None:
    weight = torch.randn(5, 12, generator=rng, dtype=torch.float64)
    inside = torch.randn(200, 12, generator=rng, dtype=torch.float64)
    y = (inside @ weight.T).argmax(1)
    s = shifts(weight, margins(inside @ weight.T, y, share), 2000, 1e-12)
    for k in range(5):
        moved = (inside[y != k] + s[k]) @ weight.T
        beats = (moved[:, k : k + 1] >= moved - 1e-9).double().mean(0)
        assert bool((beats >= share - 0.02).all())
