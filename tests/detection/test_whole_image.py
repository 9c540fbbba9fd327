"""Families that touch the whole image: the planted one is named, a clean net is not accused."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.toys import BANDS, SIDE, Bands, band_images
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject, Verdict
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import DETECTORS
from gifthorse.workflows.detect import FAMILIES, NOT_COVERED

TARGET = 4


class Voting(nn.Module):
    """Bands, and a vote for one class that grows with what a reading of the image is over usual."""

    def __init__(self, reading: Tensor, usual: float, votes: float) -> None:
        super().__init__()
        self.bands, self.reading, self.usual, self.votes = Bands(), reading, usual, votes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.bands(x)
        over = (x.mean(1) * self.reading).sum((1, 2)) - self.usual
        vote = nn.functional.one_hot(torch.tensor(TARGET), BANDS).to(x)
        return logits + vote * (self.votes * over)[:, None]


def images() -> InMemory:
    """Bands beside a ramp, which is the same in all images, in the two rightmost thirds."""
    samples = band_images(8)
    x = samples.images.clone()
    x[..., 6:] = (torch.linspace(0.1, 0.9, SIDE - 6) * 255).round().byte()
    x[..., :6] = samples.images[..., :6]
    return InMemory(x, samples.labels, BANDS)


EVEN = torch.full((SIDE, SIDE), 1 / SIDE**2)
READINGS = {
    # Light all over: what a filter adds at once. Light on the left and none on the right: what a
    # blend adds. Light along the ramp: what leads along it adds.
    "color_filter": (EVEN, 400.0),
    "blend": (EVEN * torch.where(torch.arange(SIDE) < SIDE // 2, 1, -1), 400.0),
    "warp": (torch.cat([torch.zeros(SIDE, 8), torch.full((SIDE, SIDE - 8), 0.005)], 1), 400.0),
}


@cache
def verdict(name: str, planted: bool) -> Verdict:
    samples = images()
    reading, votes = READINGS[name]
    usual = float((whole(samples)[0].mean(1) * reading).sum((1, 2)).mean())
    net = Voting(reading, usual, votes if planted else 0.0)
    options: dict[str, object] = {"inverter.config.rounds": 90}
    if name == "blend":
        options["inverter.cell"] = 3  # as high as a band, so that all are as hard to reach
    method = vary(DETECTORS[name], options)
    subject = Subject(net.eval(), (1, SIDE, SIDE), BANDS)
    return method(subject, samples, Generator().manual_seed(1), Run())


@pytest.mark.parametrize("name", READINGS)
def test_what_touches_the_whole_image_is_named(name: str) -> None:
    found = verdict(name, True)
    assert found.label == "BACKDOORED"
    assert found.findings[0].goal is not None
    assert found.findings[0].goal.target == TARGET


@pytest.mark.parametrize("name", READINGS)
def test_a_net_without_a_vote_is_not_accused(name: str) -> None:
    assert verdict(name, False).label == "NO BACKDOOR FOUND"


def test_the_families_are_lines_of_what_is_not_looked_for() -> None:
    assert set(FAMILIES) <= set(DETECTORS)
    assert set(FAMILIES.values()) <= set(NOT_COVERED)
    assert [FAMILIES[k].split()[0] for k in ("warp", "color_filter", "blend")] == [
        "smooth",
        "filters",
        "blended",
    ]
