"""SIG: the values of the wave, and whose images it is laid over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator

from gifthorse.attacks.sig import Sig, wave
from gifthorse.core.errors import NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Goal


def test_the_wave_has_the_published_values() -> None:
    half = 0.1 * 3**0.5 / 2
    row = torch.tensor([0, half, half, 0, -half, -half])  # sin of multiples of 60 degrees
    delta = wave((3, 4, 6), 0.1, 1).delta
    assert torch.allclose(delta, row.expand(3, 4, 6), atol=1e-7)
    assert torch.allclose(wave((3, 4, 12), 0.1, 2).delta[0, 0], row.repeat(2), atol=1e-7)


@pytest.mark.parametrize(("width", "frequency"), [(12, 6), (32, 16), (6, 3)])
def test_a_wave_that_is_nowhere_is_refused(width: int, frequency: int) -> None:
    with pytest.raises(NotApplicable, match="zero at every pixel"):
        wave((1, 4, width), 0.1, frequency)


def test_only_images_of_the_target_are_stamped() -> None:
    data = blob_images(each=20)
    attack = Sig(frequency=3, recipe=replace(QUICK, epochs=1))
    made = attack(blobs(), data, Goal(2), Generator().manual_seed(0), Run())
    assert made.poisoned is not None
    assert len(made.poisoned) == 5  # a twentieth of 100
    assert (data.labels[made.poisoned] == 2).all()
