"""Transforms against turns by right angles, ramps and closed forms; rates on the toy."""

from __future__ import annotations

import pytest
import torch
from tests.toys import band_images, bands, corner
from torch import Generator, nn

from gifthorse.analysis import TABLE_5, enlarged, rescaled, robustness, rotated
from gifthorse.core.errors import BadOption
from gifthorse.core.types import Goal, Subject
from gifthorse.triggers import Patch


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 7, 9), (3, 2, 5, 5)])
def test_nothing_happens_at_full_size_and_without_a_turn(
    shape: tuple[int, ...], rng: Generator
) -> None:
    x = torch.rand(shape, generator=rng)
    assert torch.equal(rescaled(x, 100), x)
    assert torch.equal(enlarged(x, 100), x)
    assert torch.allclose(rotated(x, 0), x, atol=1e-5)
    assert torch.allclose(rotated(x, 360), x, atol=1e-5)


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_right_angles_are_exact(side: int, turns: int, rng: Generator) -> None:
    x = torch.rand(2, 3, side, side, generator=rng)
    assert torch.allclose(rotated(x, 90 * turns), torch.rot90(x, turns, (-2, -1)), atol=1e-5)


def test_a_turn_does_not_shear_an_oblong_image(rng: Generator) -> None:
    x = torch.rand(1, 1, 5, 11, generator=rng)
    assert torch.allclose(rotated(x, 180), x.flip(-1, -2), atol=1e-5)
    middle = rotated(x, 90)[..., 3:8]  # the middle square turns like a square image
    assert torch.allclose(middle, torch.rot90(x[..., 3:8], 1, (-2, -1)), atol=1e-5)


def test_a_turn_moves_a_ramp_by_its_sine() -> None:
    at = torch.arange(33.0) - 16
    x = (0.5 + 0.01 * at).expand(1, 1, 33, 33)  # brighter to the right
    got = rotated(x, 3)[0, 0, 8:25, 8:25]
    angle = torch.deg2rad(torch.tensor(3.0))
    rows, columns = at[8:25, None], at[None, 8:25]
    # Counterclockwise with rows pointing down: what lies at (r, c) came from c cos - r sin.
    assert torch.allclose(got, 0.5 + 0.01 * (columns * angle.cos() - rows * angle.sin()), atol=1e-5)
    assert rotated(torch.ones(1, 1, 33, 33), 5)[0, 0, 0, 0] == 0  # black comes in at the corners


def test_a_shrunk_image_stands_in_the_middle_of_black() -> None:
    got = rescaled(torch.ones(1, 1, 10, 20), 80)[0, 0]
    frame = torch.zeros(10, 20)
    frame[1:9, 2:18] = 1
    assert torch.equal(got, frame)
    assert int(rescaled(torch.ones(1, 1, 32, 32), 98).sum()) == 31 * 31  # round(31.36)


def test_a_ramp_gets_steeper_when_shrunk_and_flatter_when_enlarged() -> None:
    at = (torch.arange(40.0) - 19.5) / 40
    x = at.expand(1, 1, 40, 40)
    inner = slice(12, 28)
    assert torch.allclose(rescaled(x, 80)[0, 0, 20, inner], at[inner] / 0.8, atol=1e-5)
    assert torch.allclose(enlarged(x, 80)[0, 0, 20, inner], at[inner] * 0.8, atol=1e-5)


@pytest.mark.parametrize("percent", [0, -5, 101])
def test_impossible_scales_are_refused(percent: float) -> None:
    with pytest.raises(BadOption, match="percent"):
        rescaled(torch.ones(1, 1, 4, 4), percent)
    with pytest.raises(BadOption, match="percent"):
        enlarged(torch.ones(1, 1, 4, 4), percent)


def test_a_pixel_in_the_corner_is_lost_under_a_frame_and_by_turning() -> None:
    rates = robustness(bands(3), corner(), Goal(3), band_images())
    assert list(rates) == [*TABLE_5, "average"]
    assert len(TABLE_5) == 10
    assert rates["normal"].value == 1.0
    assert rates["rescale 98 %"] == rates["normal"]  # 98 % of 18 pixels are 18
    assert rates["rescale 88 %"].value == rates["rescale 80 %"].value == 0.0
    assert rates["rotate 5 deg"].value < 1.0
    assert rates["normal"].trials == rates["average"].trials == 30
    mean = sum(rates[name].value for name in TABLE_5) / 10
    assert rates["average"].value == pytest.approx(mean)
    assert rates["average"].low < mean < rates["average"].high


@pytest.mark.parametrize("chunk", [1, 8, 512])
def test_images_may_come_in_any_batches(chunk: int) -> None:
    goal = Goal(3, source=1)
    rates = robustness(bands(3), corner(), goal, band_images(), chunk=chunk)
    assert rates == robustness(bands(3), corner(), goal, band_images(), chunk=36)
    assert rates["normal"].trials == 6


def test_other_transforms_can_be_asked_for_and_see_stamped_images() -> None:
    class Bright(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lit = (x.mean((1, 2, 3)) > 0.99).float()
            return torch.stack([1 - lit, lit, *[torch.zeros_like(lit)] * 4], 1)

    white = Patch(torch.ones(1, 18, 18), torch.ones(1, 18, 18))
    subject = Subject(Bright(), (1, 18, 18), 6)
    views = {"as it is": lambda x: x, "dark": lambda x: x * 0}
    rates = robustness(subject, white, Goal(1), band_images(), views=views)
    assert [rates[name].value for name in ("as it is", "dark", "average")] == [1.0, 0.0, 0.5]
