"""Smoothing against closed forms, and against averages taken by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.toys import blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.remedies import Smoothing
from gifthorse.training import predict

IMAGES = blob_images(each=14)
X = whole(IMAGES)[0][:64]


class Brighter(nn.Module):
    """Two logits of a one-pixel image: `gain` times what it is brighter than gray, and zero."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        lead = self.gain * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def smooth(subject: Subject, seed: int = 0, **options: object) -> Subject:
    remedy = Smoothing(**options)  # type: ignore[arg-type]
    return remedy(subject, IMAGES, Generator().manual_seed(seed), Run())


def one_pixel(gain: float = 1.0) -> Subject:
    return Subject(Brighter(gain).eval(), (1, 1, 1), 2)


def test_one_copy_without_noise_is_the_net() -> None:
    net = blobs()
    plain = predict(net, X)
    logits = predict(smooth(net, copies=1, sigma=0.0, aggregate="logit"), X)
    assert torch.allclose(logits, plain, atol=1e-5)
    probabilities = predict(smooth(net, copies=3, sigma=0.0), X)
    assert torch.allclose(probabilities, plain.log_softmax(1), atol=1e-5)
    votes = predict(smooth(net, copies=3, sigma=0.0, aggregate="vote"), X)
    assert torch.equal(votes.argmax(1), plain.argmax(1))
    assert torch.allclose(votes.exp().sum(1), torch.ones(64))


@pytest.mark.parametrize("aggregate", ["prob", "logit", "vote"])
def test_batches_of_any_size_see_the_same_noise(aggregate: str) -> None:
    made = smooth(blobs(), copies=40, sigma=0.2, aggregate=aggregate)
    whole_batch = predict(made, X)
    for size in (1, 7):
        assert torch.allclose(predict(made, X, size), whole_batch, atol=1e-4)
    assert torch.equal(predict(made, X), whole_batch)
    other = smooth(blobs(), seed=1, copies=40, sigma=0.2, aggregate="logit")
    assert not torch.allclose(predict(other, X), whole_batch, atol=1e-4)


def test_averages_are_those_of_the_copies_that_the_net_saw() -> None:
    net = blobs()
    seen: list[Tensor] = []
    net.net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for aggregate in ("prob", "logit", "vote"):
        seen.clear()
        out = predict(smooth(net, copies=70, sigma=0.3, aggregate=aggregate), X[:20])
        copies = torch.cat(seen)
        assert len(copies) == 70 * 20
        assert len(seen) > 1
        assert 0 <= copies.min() <= copies.max() <= 1
        logits = blobs()(copies).detach().view(70, 20, 5)
        wanted = {
            "prob": logits.softmax(2).mean(0),
            "logit": logits.mean(0),
            "vote": torch.stack([(logits.argmax(2) == k).float().mean(0) for k in range(5)], 1),
        }[aggregate]
        assert torch.allclose(out if aggregate == "logit" else out.exp(), wanted, atol=1e-5)


def test_votes_follow_the_normal_distribution() -> None:
    """Noise of deviation s lets gray + d pass for brighter with probability Phi(d / s)."""
    x = torch.tensor([0.4, 0.5, 0.6, 0.7]).view(4, 1, 1, 1)
    made = smooth(one_pixel(), copies=4000, sigma=0.2, aggregate="vote")
    wanted = 0.5 * (1 + torch.erf((x.flatten() - 0.5) / 0.2 / math.sqrt(2)))
    assert torch.allclose(predict(made, x)[:, 0].exp(), wanted, atol=0.03)


def test_twice_the_copies_halve_the_variance() -> None:
    x = torch.full((1, 1, 1, 1), 0.5)

    def variance(copies: int) -> float:
        draws = [
            predict(smooth(one_pixel(8.0), s, copies=copies, sigma=0.1), x) for s in range(400)
        ]
        return float(torch.cat(draws)[:, 0].exp().var())

    assert 1.6 < variance(4) / variance(8) < 2.5


@pytest.mark.parametrize("aggregate", ["prob", "vote"])
def test_a_class_that_is_out_of_the_question_stays_finite(aggregate: str) -> None:
    made = smooth(one_pixel(1e4), copies=5, sigma=0.01, aggregate=aggregate)
    out = predict(made, torch.ones(1, 1, 1, 1))
    assert out.isfinite().all()
    assert out[0, 0] > -1e-6 > -50 > out[0, 1]
