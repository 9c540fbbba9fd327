"""Bounded universal perturbations: the least bound that works is known."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tests.toys import HEIGHT, SIDE, Bands, band_images, bands
from torch import Generator

from gifthorse.core.options import vary
from gifthorse.core.types import Candidate, Goal
from gifthorse.data.samples import whole
from gifthorse.inversion import UAP
from gifthorse.triggers import Additive

PLANTED = 2


def least_bound(target: int) -> float:
    """The smallest eps at which some change within it sends every image of the toy to `target`.

    The best change is eps times the sign of what helps; only darkening dark pixels is clipped, so
    clipping is taken into account image by image.
    """
    net = Bands(PLANTED)
    x, y = whole(band_images())
    x = x[y != target].double()
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _works(net, x, target, middle):
            high = middle
        else:
            low = middle
    return high


def _works(net: Bands, x: torch.Tensor, target: int, eps: float) -> bool:
    band = torch.arange(SIDE) // HEIGHT
    change = torch.where(band == target, eps, -eps)[:, None].expand(SIDE, SIDE).clone()
    change[0, 0] = eps if target == net.planted else -eps
    stamped = (x + change).clamp(0, 1)
    return bool((net(stamped).argmax(1) == target).all())


@cache
def run(eps: float, target: int, rounds: int = 200) -> Candidate:
    inversion = UAP(eps=eps)(
        bands(PLANTED), band_images(), [Goal(target)], Generator().manual_seed(0)
    )
    for _ in range(rounds):
        inversion.step(torch.tensor([0]))
    return inversion.best[0]


@pytest.mark.parametrize("target", [PLANTED, 4])
def test_it_works_within_a_quarter_of_the_least_bound(target: int) -> None:
    least = least_bound(target)
    assert run(1.25 * least, target).asr == 1.0
    assert run(0.9 * least, target).asr < 1.0


def test_the_planted_class_needs_the_smaller_bound() -> None:
    assert least_bound(PLANTED) < 0.8 * least_bound(4)


def test_the_bound_holds_everywhere() -> None:
    trigger = run(0.05, PLANTED).trigger
    assert isinstance(trigger, Additive)
    assert trigger.delta.abs().max() <= 0.05


def test_a_small_beta_is_a_dead_start_and_the_default_is_not() -> None:
    # Every loss of the untouched images lies above 0.01, so nothing has a gradient.
    hunts = [
        vary(UAP(eps=0.12), {"beta": beta})(
            bands(PLANTED), band_images(), [Goal(4)], Generator().manual_seed(0)
        )
        for beta in (0.01, None)
    ]
    moved = []
    for inversion in hunts:
        inversion.step(torch.tensor([0]))
        trigger = inversion.best[0].trigger
        assert isinstance(trigger, Additive)
        moved.append(trigger.delta.abs().max().item())
    assert moved[0] == 0
    assert moved[1] > 0


def test_with_patience_it_settles_when_nothing_works_more_often() -> None:
    method = vary(UAP(eps=0.12), {"config.patience": 5})
    inversion = method(bands(PLANTED), band_images(), [Goal(4)], Generator().manual_seed(0))
    success = []
    while not inversion.done.all():
        inversion.step(torch.tensor([0]))
        success.append(inversion.best[0].asr)
    assert 5 < len(success) < 1000
    first = success.index(max(success))
    assert len(success) == first + 1 + 5  # five more rounds in which nothing was better
