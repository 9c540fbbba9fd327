"""Maximum margins against linear programs and a hand-made ascent, and the test on them."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog
from scipy.special import digamma
from scipy.stats import gamma
from tests.toys import blobs
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Samples, Subject
from gifthorse.detection import DETECTORS
from gifthorse.detection.mm_bd import MMBD, margin, surprise

NOTHING = cast(Samples, None)  # the method has no use for images
SHAPE, CLASSES = (3, 2, 2), 6


def linear(seed: int = 0, boost: float = 1.0, classes: int = CLASSES) -> Subject:
    """A linear net on 12 pixels; the weights of class 2 are multiplied by `boost`."""
    rng = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    last = cast(nn.Linear, net[1])
    with torch.no_grad():
        last.weight.copy_(3 * torch.randn(classes, 12, generator=rng))
        last.weight[min(2, classes - 1)] *= boost
        last.bias.copy_(torch.randn(classes, generator=rng))
    return Subject(net.eval(), SHAPE, classes)


def highest(subject: Subject, c: int) -> float:
    """The largest margin of class c in the box: max t with t <= every lead, a linear program."""
    last = cast(nn.Linear, cast(nn.Sequential, subject.net)[1])
    weight, bias = last.weight.detach().double().numpy(), last.bias.detach().double().numpy()
    others = [k for k in range(len(weight)) if k != c]
    left = np.hstack([weight[others] - weight[c], np.ones((len(others), 1))])
    solved = linprog(
        np.append(np.zeros(12), -1.0),
        left,
        bias[c] - bias[others],
        bounds=[(0, 1)] * 12 + [(None, None)],
    )
    assert solved.success
    return -float(solved.fun)


def climb(subject: Subject, x: Tensor, c: int, steps: int, lr: float, momentum: float) -> float:
    """The best margin of heavy-ball ascent within the box, by hand in numpy."""
    last = cast(nn.Linear, cast(nn.Sequential, subject.net)[1])
    weight, bias = last.weight.detach().double().numpy(), last.bias.detach().double().numpy()
    at, speed, best = x.double().numpy().reshape(len(x), -1), np.zeros((len(x), 12)), -np.inf
    for _ in range(steps):
        logits = at @ weight.T + bias
        others = np.where(np.arange(len(weight)) == c, -np.inf, logits)
        best = max(best, float((logits[:, c] - others.max(1)).max()))
        speed = momentum * speed + weight[c] - weight[others.argmax(1)]
        at = np.clip(at + lr * speed, 0, 1)
    return best


def test_the_margins_of_a_linear_net_are_those_of_the_linear_program(rng: Generator) -> None:
    subject = linear()
    got, stopped = MMBD(starts=10).margins(subject, rng, Run())
    want = torch.tensor([highest(subject, c) for c in range(CLASSES)])
    assert stopped == ""
    assert (got <= want + 1e-4).all()
    assert (got >= want - 0.02 * want.abs() - 0.1).all()


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.9])
def test_the_ascent_is_heavy_ball_within_the_box(momentum: float) -> None:
    subject, method = linear(), MMBD(2, 9, 0.005, momentum, tolerance=0.0)
    got, _ = method.margins(subject, Generator().manual_seed(5), Run())
    start = torch.rand(CLASSES * 2, *SHAPE, generator=spawn(Generator().manual_seed(5)))
    want = [climb(subject, start[2 * c : 2 * c + 2], c, 9, 0.005, momentum) for c in range(CLASSES)]
    assert got.tolist() == pytest.approx(want, rel=1e-4)
    if momentum:
        plain, _ = MMBD(2, 9, 0.005, 0.0, tolerance=0.0).margins(
            subject, Generator().manual_seed(5), Run()
        )
        assert (got > plain + 1e-3).any()


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_how_many_classes_run_at_once_does_not_matter(chunk: int) -> None:
    runs = [
        MMBD(4, 20, tolerance=0.0, max_batch=c).margins(
            linear(), Generator().manual_seed(0), Run()
        )[0]
        for c in (12, chunk)
    ]
    assert torch.allclose(runs[0], runs[1], atol=1e-5)


def test_more_steps_never_lower_a_margin() -> None:
    runs = [
        MMBD(4, n, tolerance=0.0).margins(linear(), Generator().manual_seed(0), Run())[0]
        for n in (1, 10, 60)
    ]
    assert (runs[0] <= runs[1]).all()
    assert (runs[1] <= runs[2]).all()
    assert runs[2].sum() > runs[0].sum() + 1


def test_the_ascent_ends_when_nothing_changes() -> None:
    run = Run()
    MMBD(5, 300, lr=0.0).margins(linear(), Generator().manual_seed(0), run)
    assert run.image_steps == 2 * 5 * CLASSES  # the second step changes nothing
    run = Run()
    MMBD(5, 7, tolerance=0.0).margins(linear(), Generator().manual_seed(0), run)
    assert run.image_steps == 7 * 5 * CLASSES


def test_margin_of_logits() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [5.0, -3.0, 1.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [2.0, -4.0]


@pytest.mark.parametrize("classes", [4, 10, 43])
def test_the_p_value_is_that_of_the_most_likely_gamma(classes: int) -> None:
    draws = np.sort(np.random.default_rng(classes).gamma(4.0, 2.0, classes))
    null = draws[:-1]
    spread = math.log(null.mean()) - np.log(null).mean()
    shape = brentq(lambda k: math.log(k) - digamma(k) - spread, 0.01, 1e4)
    for largest in (draws[-1], 1.5 * draws[-1]):
        p = 1 - gamma(shape, scale=null.mean() / shape).cdf(largest) ** classes
        got = surprise(torch.tensor([*null, largest]))
        assert 10**-got == pytest.approx(p, rel=1e-5, abs=1e-12)


def test_near_equal_margins_do_not_stand_out() -> None:
    values = torch.tensor([20.0, 20.001, 19.999, 20.0, 20.0, 20.02])
    assert surprise(values) < 0.5
    assert surprise(values, floor=1e-4) > 2
    assert surprise(torch.full((6,), 3.0)) < 0.5


def test_an_enormous_margin_still_has_a_finite_score() -> None:
    near, far = (surprise(torch.tensor([10.0, 11.0, 9.0, 10.5, m])) for m in (40.0, 1e12))
    assert 2 < near < far <= 300


@pytest.mark.parametrize(("classes", "low", "high"), [(4, 0.35, 0.65), (10, 0.1, 0.33)])
def test_the_p_value_is_as_optimistic_as_the_docstring_says(
    classes: int, low: float, high: float
) -> None:
    draws = np.random.default_rng(0).gamma(6.0, 1.0, (200, classes))
    flags = [surprise(torch.tensor(row)) > -math.log10(0.05) for row in draws]
    assert low < np.mean(flags) < high


def test_a_class_with_a_far_larger_margin_is_suspicious_and_no_more(rng: Generator) -> None:
    got = MMBD(starts=8)(linear(boost=6.0), NOTHING, rng, Run())
    assert got.label == "SUSPICIOUS"
    assert got.score >= got.threshold == pytest.approx(-math.log10(0.05))
    (found,) = got.findings
    assert (found.rule, found.severity, found.goal) == ("BD010", "MEDIUM", Goal(2))
    assert "Class 2" in found.message
    assert got.statistics["largest_class"] == 2
    assert got.statistics["value_2"] == got.statistics["largest"]
    assert got.statistics["p"] == pytest.approx(10**-got.score)
    assert got.arms == ()
    assert 0 < got.image_steps <= 8 * CLASSES * 300


def test_even_margins_are_not_suspicious(rng: Generator) -> None:
    # Class c looks at its own two pixels only: by symmetry all margins are equal.
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False))
    with torch.no_grad():
        cast(nn.Linear, net[1]).weight.copy_(4 * torch.eye(6).repeat_interleave(2, 1))
    got = MMBD(starts=8)(Subject(net.eval(), SHAPE, 6), NOTHING, rng, Run())
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold
    assert [f.severity for f in got.findings] == ["INFO"]


def test_a_spent_budget_stops_the_ascent_without_a_verdict(rng: Generator) -> None:
    run = Run(budget=700)
    got = MMBD(starts=8, tolerance=0.0, max_batch=16)(linear(boost=6.0), NOTHING, rng, run)
    assert got.label == "INCONCLUSIVE"
    assert (got.findings[0].rule, got.findings[0].severity) == ("IN003", "HIGH")
    assert "700 image-steps" in got.findings[0].message
    assert got.image_steps == run.image_steps == 704  # 44 steps of 16 images


def test_a_budget_that_is_spent_by_the_last_step_does_no_harm(rng: Generator) -> None:
    method = MMBD(starts=8, steps=5, tolerance=0.0, max_batch=16)
    enough = Run(budget=5 * 8 * CLASSES)
    got = method(linear(boost=6.0), NOTHING, rng, run=enough)
    assert got.findings[0].rule != "IN003"
    short = Run(budget=2 * 5 * 16)  # ends with the second of three groups
    got = method(linear(boost=6.0), NOTHING, rng, run=short)
    assert got.findings[0].rule == "IN003"


def test_progress_ends_at_the_total(rng: Generator) -> None:
    told: list[tuple[int, int, str]] = []
    run = Run(progress=lambda *a: told.append(a))
    MMBD(starts=2, steps=5, tolerance=0.0, max_batch=4)(linear(), NOTHING, rng, run)
    assert [t[0] for t in told] == list(range(1, 16))
    assert told[-1][:2] == (15, 15)


def test_three_classes_allow_no_verdict(rng: Generator) -> None:
    got = MMBD()(linear(classes=3), NOTHING, rng, Run())
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "IN004")
    assert got.image_steps == 0


def test_classes_that_nothing_reaches_are_left_out(rng: Generator) -> None:
    subject = linear(boost=6.0)
    with torch.no_grad():
        cast(nn.Linear, cast(nn.Sequential, subject.net)[1]).bias[0] = -500
    got = MMBD(starts=8)(subject, NOTHING, rng, Run())
    assert got.statistics["unreached"] == 1
    assert got.statistics["value_0"] < 0
    assert got.label == "SUSPICIOUS"
    with torch.no_grad():
        cast(nn.Linear, cast(nn.Sequential, subject.net)[1]).bias[3:5] = -500
    assert MMBD(starts=8)(subject, NOTHING, rng, Run()).label == "INCONCLUSIVE"


def test_outputs_that_are_no_numbers_allow_no_verdict(rng: Generator) -> None:
    subject = linear()
    with torch.no_grad():
        cast(nn.Linear, cast(nn.Sequential, subject.net)[1]).weight[0, 0] = math.nan
    got = MMBD(starts=2, steps=2)(subject, NOTHING, rng, Run())
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "FS005")


def test_the_same_seed_gives_the_same_verdict_and_nothing_else_moves() -> None:
    subject = blobs()
    before = {k: v.clone() for k, v in subject.net.state_dict().items()}
    runs = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        state = torch.get_rng_state()
        verdict = MMBD(starts=3, steps=4)(subject, NOTHING, Generator().manual_seed(0), Run())
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(dict(verdict.statistics))
    assert runs[0] == runs[1]
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in subject.net.parameters())


def test_the_quick_one_flags_one_in_a_hundred_nets_without_a_backdoor() -> None:
    """Of ten classes whose margins are Gamma distributed, by its own threshold."""
    rng, quick = np.random.default_rng(0), DETECTORS["mm_bd_quick"]
    assert isinstance(quick, MMBD)
    drawn = (surprise(torch.from_numpy(rng.gamma(16, size=10))) for _ in range(300))
    assert sum(score >= quick.threshold for score in drawn) <= 9
    assert MMBD().threshold < quick.threshold
