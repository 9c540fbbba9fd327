"""Blended: whole images, mixed with a pattern by hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator

from gifthorse.attacks.blended import Blended
from gifthorse.core.run import Run
from gifthorse.core.types import Goal

HASTY = replace(QUICK, epochs=1)


def test_every_pixel_is_four_fifths_image_and_one_fifth_pattern() -> None:
    data = blob_images(each=8)
    made = Blended(recipe=HASTY)(blobs(), data, Goal(2), Generator().manual_seed(0), Run())
    x, _ = data[torch.arange(10)]
    pattern, strength = made.trigger.render()
    assert torch.allclose(made.trigger(x), 0.8 * x + 0.2 * pattern, atol=1e-6)
    assert torch.equal(strength, torch.full((1, 12, 12), 0.2))
    assert pattern.std() > 0.2


def test_a_white_pattern_brightens_all_alike() -> None:
    attack = Blended(ink="white", opacity=0.5, recipe=HASTY)
    made = attack(blobs(), blob_images(each=8), Goal(2), Generator().manual_seed(0), Run())
    assert torch.equal(made.trigger(torch.zeros(1, 3, 12, 12)), torch.full((1, 3, 12, 12), 0.5))
