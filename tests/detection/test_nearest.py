"""Screening of many classes: the bound against the exact shift, and what a scan makes of it."""

from __future__ import annotations

import torch
from tests.toys import wired, wired_images
from torch import Generator, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import DETECTORS
from gifthorse.detection.latent_shift import margins, shifts
from gifthorse.detection.nearest import SHARE, distances, screened

K, D = 40, 16


def many(rng: Generator) -> tuple[Subject, InMemory]:
    """A linear net of random classes."""
    head = nn.Linear(D, K)
    with torch.no_grad():
        head.weight.copy_(torch.randn(K, D, generator=rng))
    net = nn.Sequential(nn.Flatten(), head).eval().requires_grad_(False)
    x = torch.randint(0, 256, (3 * K, 1, 4, 4), dtype=torch.uint8, generator=rng)
    return Subject(net, (1, 4, 4), K), InMemory(x, torch.arange(3 * K) % K, K)


def test_the_distance_is_a_bound_on_the_shortest_shift(rng: Generator) -> None:
    subject, clean = many(rng)
    x, y = whole(clean)
    head = subject.net[1]  # type: ignore[index]
    exact = shifts(head.weight.double(), margins(subject(x).double(), y, SHARE), 2000, 1e-9)
    bound = distances(subject, clean, Run()).double()
    assert (bound <= exact.norm(dim=1) * (1 + 1e-4)).all()
    assert (bound > 0.3 * exact.norm(dim=1)).all()
    assert int(exact.norm(dim=1).argmin()) in bound.argsort()[:5]


def test_the_nearest_and_some_others_are_searched(rng: Generator) -> None:
    subject, clean = many(rng)
    some = screened(subject, clean, 3, 5, rng, Run())
    assert len(some) == len(set(some)) == 8
    assert some == sorted(some)
    assert set(distances(subject, clean, Run()).argsort()[:3].tolist()) <= set(some)


def test_nothing_found_among_some_classes_is_no_answer() -> None:
    shape, classes = (1, 10, 14), 7
    clean = wired_images(8, 5, shape, classes)
    options = {"most": "4", "nearest": "2", "inverter.config.rounds": "40"}
    detector = vary(DETECTORS["pixel_quick"], options)
    got = detector(wired(None, shape, classes), clean, Generator().manual_seed(0), Run())
    assert (got.label, len(got.coverage)) == ("INCONCLUSIVE", 4)
    assert "Only 4 of 7 classes" in got.findings[-1].message
    found = detector(wired(1, shape, classes), clean, Generator().manual_seed(0), Run())
    assert 1 in {goal.target for goal in found.coverage}
