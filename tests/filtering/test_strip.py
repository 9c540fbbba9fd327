"""STRIP on nets whose mixtures can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.filtering.points import Points, reader, seeded
from tests.toys import BANDS, SIDE, band_images, bands, corner
from torch import Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import STRIP
from gifthorse.filtering.scoring import judge


class Sticky(nn.Module):
    """Bands, but 50 more for class 3 once the corner pixel is brighter than gray by a quarter."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = bands().net(x)
        fired = (x[:, 0, 0, 0] > 0.7).float() * 50
        return logits + nn.functional.one_hot(torch.tensor(3), BANDS) * fired[:, None]


def test_the_entropy_is_that_of_the_mixtures_by_hand() -> None:
    """Two classes, logits are the points: mix, softmax, sum p ln p, and average, all in floats."""
    clean = Points(torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), torch.zeros(3).long())
    suspects = Points(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.zeros(2).long())
    scores = STRIP(partners=3, weight=0.25)(reader(2), clean, suspects, seeded(), Run())
    for x, score in zip(suspects.points.tolist(), scores.tolist(), strict=True):
        total = 0.0
        for q in clean.points.tolist():
            gap = (0.25 * x[0] + 0.75 * q[0]) - (0.25 * x[1] + 0.75 * q[1])
            p = 1 / (1 + math.exp(-gap))
            total -= p * math.log(p) + (1 - p) * math.log(1 - p)
        assert score == pytest.approx(-total / 3, abs=1e-6)


def test_a_weight_of_one_mixes_nothing() -> None:
    clean = band_images()
    scores = STRIP(partners=4, weight=1.0)(bands(), clean, clean, seeded(), Run())
    p = bands()(whole(clean)[0]).softmax(1)
    assert torch.allclose(scores, (p * p.log()).sum(1), atol=1e-6)


def test_a_constant_net_flags_nothing() -> None:
    clean = Points(torch.rand(20, 2), torch.zeros(20).long())
    subject = reader(2)
    with torch.no_grad():
        next(subject.net.parameters()).zero_()
    scores = STRIP(partners=5)(subject, clean, clean, seeded(), Run())
    assert torch.allclose(scores, torch.full((20,), -math.log(2)))
    assert judge(scores[:10], scores[10:], scores[:10]).tpr.value == 0


def test_a_trigger_that_works_at_half_opacity_is_always_found() -> None:
    subject = Subject(Sticky().eval(), (1, SIDE, SIDE), BANDS)
    clean, test = band_images(12), band_images(4, seed=1)
    stamped = InMemory((corner()(whole(test)[0]) * 255).round().byte(), test.labels, BANDS)
    method = STRIP(partners=16)
    low = method(subject, clean, test, seeded(), Run())
    high = method(subject, clean, stamped, seeded(), Run())
    assert judge(low, high, low).auroc == 1
    assert high.min() > -1e-6  # the net is certain


def test_entropy_may_be_told_as_a_share_of_its_largest_value() -> None:
    clean = band_images()
    plain, share = (
        STRIP(8, relative=r)(bands(), clean, clean, seeded(), Run()) for r in (False, True)
    )
    assert torch.allclose(share * math.log(BANDS), plain)
    assert (share >= -1).all()


def test_both_tails_measure_the_distance_from_the_usual() -> None:
    clean, test = band_images(8), band_images(3, seed=1)
    drawn = torch.randperm(len(clean), generator=spawn(seeded()))
    rest = Subset(clean, drawn[16:])  # those that are no partners
    low, usual = (-STRIP(16)(bands(), clean, s, seeded(), Run()) for s in (test, rest))
    both = STRIP(16, tails="both")(bands(), clean, test, seeded(), Run())
    assert torch.allclose(both, (low - usual.quantile(0.5)).abs(), atol=1e-6)
    assert (low > usual.quantile(0.5)).any()
    assert (low < usual.quantile(0.5)).any()


def test_partners_are_the_clean_images_drawn_and_no_others() -> None:
    clean = Points(torch.tensor([[0.0, 1.0], [9.0, 0.0]]), torch.zeros(2).long())
    suspects = Points(torch.tensor([[3.0, 0.0]]), torch.zeros(1).long())
    drawn = {
        float(STRIP(partners=1)(reader(2), clean, suspects, seeded(s), Run())) for s in range(8)
    }
    every = torch.arange(2)[:, None]
    alone = [STRIP(1)(reader(2), Subset(clean, i), suspects, seeded(), Run()) for i in every]
    assert drawn == {float(score) for score in alone}


@pytest.mark.parametrize("method", [STRIP(partners=37), STRIP(partners=36, tails="both")])
def test_too_few_clean_images_are_refused(method: STRIP) -> None:
    clean = band_images()
    with pytest.raises(NotApplicable, match="37 clean images are needed, but there are 36"):
        method(bands(), clean, clean, seeded(), Run())
