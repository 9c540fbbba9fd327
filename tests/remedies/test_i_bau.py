"""I-BAU: the hypergradient against finite differences of the whole game, and what it unlearns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.remedies.badnet import CLEAN, planted, right, same, state
from tests.toys import Doubles
from torch import Generator, Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gifthorse.core.errors import Incomplete
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.remedies.i_bau import IBAU
from gifthorse.training import predict

# The toy is so sure of itself that its gradients are tiny.
TOY = IBAU(batch=10, share=0.5, ascent=1000.0, bound=2.0, rounds=4)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# 1. The hypergradient -----------------------------------------------------------------------------


def tiny() -> tuple[Subject, Doubles]:
    """A smooth net and images in the middle of their range, so that nothing is clipped."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    draw = rng(4)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    images = torch.randint(100, 156, (9, 1, 2, 2), generator=draw).to(torch.uint8)
    return Subject(net.eval(), (1, 2, 2), 3), Doubles(InMemory(images, torch.arange(9) % 3, 3))


STRICT = IBAU(terms=100, inner=0.02, decay=10.0, share=1.0)  # so much decay makes harm convex


def answer(subject: Subject, batch: Batch, said: Tensor) -> Tensor:
    """The worst change to the last digit, by plain gradient descent on what harm is by its name."""
    change = torch.zeros(1, 2, 2).double().requires_grad_()
    for _ in range(100):
        loss = F.cross_entropy(subject(batch[0] + change), said)
        harm = STRICT.decay * (change**2).sum() - loss
        (slope,) = torch.autograd.grad(harm, change)
        change = (change - 0.02 * slope).detach().requires_grad_()
    return change.detach()


def hypergradient(method: IBAU, subject: Subject, batch: Batch, change: Tensor) -> Tensor:
    loss = method.unlearning(subject, change, rng())(batch)
    return parameters_to_vector(torch.autograd.grad(loss, list(subject.net.parameters())))


def test_the_hypergradient_is_the_slope_of_the_whole_game() -> None:
    """Move a weight, let the change answer, and see what becomes of the outer loss."""
    subject, samples = tiny()
    batch = x, y = whole(samples)
    said = predict(subject, x).argmax(1)
    at = parameters_to_vector(subject.net.parameters()).detach().clone()
    change = answer(subject, batch, said)
    assert 0.01 < change.abs().max() < 0.3  # far from being clipped
    got = hypergradient(STRICT, subject, batch, change)

    def game(weights: Tensor) -> float:
        vector_to_parameters(weights, subject.net.parameters())
        worst = answer(subject, batch, said)
        return F.cross_entropy(predict(subject, x + worst), y).item()

    which = range(0, len(at), 5)
    for k in which:
        step = torch.zeros_like(at)
        step[k] = 1e-5
        slope = (game(at + step) - game(at - step)) / 2e-5
        assert got[k].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)
    vector_to_parameters(at, subject.net.parameters())
    plain = hypergradient(replace(STRICT, terms=0), subject, batch, change)
    assert (got - plain).abs().max() > 1e-3  # the change does answer


def test_without_terms_it_is_plain_training_on_changed_images() -> None:
    subject, samples = tiny()
    batch = x, y = whole(samples)
    change = torch.randn(1, 2, 2, generator=rng()).double() / 10
    loss = F.cross_entropy(subject(x + change), y)
    plain = parameters_to_vector(torch.autograd.grad(loss, list(subject.net.parameters())))
    got = hypergradient(replace(STRICT, terms=0), subject, batch, change)
    assert torch.allclose(got, plain)


def test_a_share_of_the_batch_carries_the_change() -> None:
    seen: list[Tensor] = []

    class Ears(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x.flatten(1)[:, :3]

    x, change = torch.full((50, 1, 2, 2), 0.5), torch.full((1, 2, 2), 0.75)
    for share, count in ((0.01, 1), (0.2, 10), (1.0, 50)):
        method = IBAU(share=share, terms=0)
        method.unlearning(Subject(Ears(), (1, 2, 2), 3), change, rng())((x, torch.arange(50) % 3))
        assert int((seen[-1].flatten(1).amax(1) == 1).sum()) == count  # clipped
        assert int((seen[-1].flatten(1).amax(1) == 0.5).sum()) == 50 - count


# 2. The change ------------------------------------------------------------------------------------


def fooled(subject: Subject, change: Tensor) -> float:
    x, y = whole(CLEAN)
    return float((predict(subject, (x + change).clamp(0, 1)).argmax(1) != y).float().mean())


def test_the_change_harms_and_keeps_to_its_bound() -> None:
    subject = planted().subject
    change = TOY.worst(subject, CLEAN, rng())
    assert change.shape == (3, 12, 12)
    assert change.norm().item() == pytest.approx(2.0, rel=1e-5)
    order = torch.randperm(change.numel(), generator=rng())
    shuffled = change.flatten()[order].view_as(change)
    assert fooled(subject, change) >= fooled(subject, shuffled) + 0.3
    short = vary(TOY, {"ascent": 1.0}).worst(subject, CLEAN, rng())
    assert 0 < short.norm() < 2


def test_afterwards_the_worst_change_harms_less() -> None:
    made = planted().subject
    healed = vary(TOY, {"terms": 1})(made, CLEAN, rng(), Run())
    harm = [fooled(net, TOY.worst(net, CLEAN, rng())) for net in (made, healed)]
    assert harm[1] <= harm[0] - 0.3
    assert right(healed) >= 0.95


# 3. What every remedy keeps to --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_net_and_inputs_stay() -> None:
    made, before, nets = planted().subject, state(planted().subject), []
    brief = vary(TOY, {"rounds": 1})
    for unrelated, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(unrelated)
        nets.append(brief(made, CLEAN, rng(seed), Run()))
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])
    assert all(torch.equal(v, before[k]) for k, v in made.net.state_dict().items())
    healed = state(nets[0])
    assert all(torch.equal(v, healed[k]) for k, v in before.items() if "running" in k)
    assert not any(m.training for m in [*made.net.modules(), *nets[0].net.modules()])


def test_a_session_sees_the_rounds_and_can_stop_them() -> None:
    calls: list[tuple[int, int, str]] = []
    run = Run(lambda *call: calls.append(call))
    vary(TOY, {"rounds": 2})(planted().subject, CLEAN, rng(), run=run)
    assert [call[:2] for call in calls] == [(1, 2), (2, 2)]
    assert run.image_steps == 2 * 100 * 9
    with pytest.raises(Incomplete, match="budget of 100 image-steps"):
        TOY(planted().subject, CLEAN, rng(), run=Run(budget=100))
