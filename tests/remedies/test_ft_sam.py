"""FT-SAM: the ascent by its formula and against finite differences, and where gradients go."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tests.remedies.badnet import CLEAN, TUNING, planted, right, same, state
from tests.toys import Doubles, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Subject
from gifthorse.data.samples import whole
from gifthorse.remedies.ft_sam import FTSAM, unmoved
from gifthorse.training import cross_entropy, fit

TOY = vary(FTSAM(rho=0.5), TUNING | {"recipe.epochs": 2})
SHARP = FTSAM(rho=0.5, recipe=replace(TOY.recipe, smoothing=0.0))


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def double() -> tuple[Subject, Batch]:
    """A net in double precision, training, and a batch."""
    subject = blobs(1)
    net = deepcopy(subject.net).double().train()
    x, y = whole(Doubles(CLEAN))
    return replace(subject, net=net), (x[::5], y[::5])


def slopes(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    names, weights = zip(*subject.net.named_parameters(), strict=True)
    grads = torch.autograd.grad(cross_entropy(subject, batch), weights)
    return dict(zip(names, grads, strict=True))


def test_the_ascent_by_its_formula() -> None:
    subject, batch = double()
    g, w = slopes(subject, batch), {k: p.detach() for k, p in subject.net.named_parameters()}
    got = FTSAM(rho=2.0).ascent(subject, cross_entropy(subject, batch))
    length = sum(float(((w[k].abs() * g[k]) ** 2).sum()) for k in g) ** 0.5
    assert set(got) == set(g)
    assert all(torch.allclose(got[k], 2 * w[k] ** 2 * g[k] / length) for k in g)
    plain = FTSAM(rho=0.3, adaptive=False).ascent(subject, cross_entropy(subject, batch))
    assert sum(float((v**2).sum()) for v in plain.values()) ** 0.5 == pytest.approx(0.3)


def test_its_length_goes_with_rho() -> None:
    subject, batch = double()
    short, long = (FTSAM(rho=r).ascent(subject, cross_entropy(subject, batch)) for r in (0.5, 3.5))
    assert all(torch.allclose(long[k], 7 * short[k]) for k in short)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_ascent_is_the_steepest_way_up(adaptive: bool) -> None:
    """Among steps of one length, in the measure of the method, none gains more at first."""
    subject, batch = double()
    method = FTSAM(rho=1e-5, adaptive=adaptive)
    weights = dict(subject.net.named_parameters())
    start = cross_entropy(subject, batch).item()

    def measured(step: dict[str, Tensor]) -> float:
        scale = {
            k: w.detach().abs() if adaptive else torch.ones_like(w) for k, w in weights.items()
        }
        parts = ((s / scale[k])[scale[k] > 0] for k, s in step.items())
        return float(sum(float((p**2).sum()) for p in parts) ** 0.5)

    def gain(step: dict[str, Tensor]) -> float:
        with torch.no_grad():
            for sign in (1, -1):
                for k, w in weights.items():
                    w.add_(sign * step[k])
                if sign == 1:
                    found = cross_entropy(subject, batch).item() - start
        return found

    step = method.ascent(subject, cross_entropy(subject, batch))
    assert measured(step) == pytest.approx(1e-5, rel=1e-6)
    best = gain(step)
    length = sum(
        float(((w.detach().abs() if adaptive else 1) * g).square().sum())
        for w, g in zip(weights.values(), slopes(subject, batch).values(), strict=True)
    )
    assert best == pytest.approx(1e-5 * length**0.5, rel=1e-2)  # Cauchy and Schwarz
    for seed in range(3):
        other = {
            k: torch.randn(w.shape, generator=rng(seed)).to(w)
            * (w.detach().abs() if adaptive else 1)
            for k, w in weights.items()
        }
        share = 1e-5 / measured(other)
        assert gain({k: v * share for k, v in other.items()}) < best


def test_the_gradient_is_the_one_at_the_ascended_weights() -> None:
    subject, batch = double()
    steps = SHARP.ascent(subject, cross_entropy(subject, batch))
    there = replace(subject, net=deepcopy(subject.net))
    with torch.no_grad():
        for k, p in there.net.named_parameters():
            p.add_(steps[k])
    expected = slopes(there, batch)
    loss = SHARP.loss()(subject, batch)
    got = torch.autograd.grad(loss, list(subject.net.parameters()))
    assert all(torch.allclose(a, b) for a, b in zip(got, expected.values(), strict=True))
    assert loss.item() == pytest.approx(cross_entropy(there, batch).item())
    assert loss.item() > cross_entropy(subject, batch).item()


def test_running_statistics_see_the_first_pass_only() -> None:
    subject, batch = double()
    once = replace(subject, net=deepcopy(subject.net))
    SHARP.loss()(subject, batch)
    cross_entropy(once, batch)
    assert all(torch.equal(v, dict(once.net.named_buffers())[k])
               for k, v in subject.net.named_buffers())  # fmt: skip
    norm = nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2, generator=rng())
    expected = deepcopy(norm)(x)
    with unmoved(norm):
        assert torch.equal(norm(x), expected)
    assert norm.track_running_stats
    assert int(norm.get_buffer("num_batches_tracked")) == 0


def test_without_rho_it_is_fine_tuning_step_for_step() -> None:
    made = planted().subject
    tuned = fit(made, CLEAN, TOY.recipe, rng(), Run())
    assert same(vary(TOY, {"rho": 0.0})(made, CLEAN, rng(), Run()), tuned)
    assert not same(TOY(made, CLEAN, rng(), Run()), tuned)


def test_only_the_part_that_is_trained_moves() -> None:
    made = planted().subject
    got = vary(TOY, {"recipe.part": "classifier"})(made, CLEAN, rng(), Run())
    before = state(made)
    moved = {k for k, v in state(got).items() if not torch.equal(v, before[k])}
    assert moved == {"net.8.weight", "net.8.bias"}


def test_the_same_seed_gives_the_same_net_and_inputs_stay() -> None:
    made, before, nets = planted().subject, state(planted().subject), []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        nets.append(TOY(made, CLEAN, rng(), Run()))
    assert same(*nets)
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    assert not nets[0].net.training
    assert right(nets[0]) >= 0.95
