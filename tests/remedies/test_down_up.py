"""Down-upsampling against closed forms and against interpolation called directly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.toys import blob_images, blobs
from torch import Generator, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.models.features import head
from gifthorse.remedies import DownUp
from gifthorse.remedies.down_up import Kernel, Reformed, Rescale
from gifthorse.training import predict

KERNELS: tuple[Kernel, ...] = ("bilinear", "bicubic", "area")
kernels = pytest.mark.parametrize("kernel", KERNELS)


@kernels
def test_a_constant_image_stays(kernel: Kernel) -> None:
    x = torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1, 1).expand(3, 2, 19, 32)
    assert torch.allclose(Rescale(0.95, kernel)(x), x, atol=1e-6)


@kernels
def test_a_dot_loses_its_peak_and_nothing_leaves_the_range(kernel: Kernel) -> None:
    x = torch.zeros(1, 1, 32, 20)
    x[..., 15, 9] = 1
    out = Rescale(0.5, kernel)(x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert 0.05 < out.max() < 0.7
    assert Rescale(0.5, kernel)(1 - x).max() <= 1


@pytest.mark.parametrize(
    ("ratio", "side", "small"), [(0.95, 32, 30), (0.95, 28, 26), (0.95, 224, 212), (0.29, 100, 29)]
)
def test_the_size_in_between(ratio: float, side: int, small: int) -> None:
    x = torch.rand(1, 1, side, 5)
    options = {"mode": "bilinear", "align_corners": False, "antialias": True}
    down = F.interpolate(x, (small, max(1, int(ratio * 5))), **options)  # type: ignore[arg-type]
    up = F.interpolate(down, (side, 5), **options)  # type: ignore[arg-type]
    assert torch.equal(Rescale(ratio, "bilinear")(x), up.clamp(0, 1))


def test_without_antialiasing_a_pixel_between_two_others_is_lost() -> None:
    """Every third pixel is met in the middle, the others by no one: what code of 2021 does."""
    x = torch.zeros(1, 1, 9, 9)
    x[..., 0, 0] = 1  # beside the middle of the first three by three
    plain, smooth = (Rescale(1 / 3, "bilinear", on)(x) for on in (False, True))
    assert plain.max() == 0
    assert smooth.max() > 0.01
    x[..., 1, 1] = 1
    assert Rescale(1 / 3, "bilinear", False)(x).max() == 1


def test_areas_at_half_the_size_are_means_of_blocks() -> None:
    x = torch.rand(2, 3, 4, 6)
    blocks = x.view(2, 3, 2, 2, 3, 2).mean((3, 5))
    wanted = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(Rescale(0.5, "area")(x), wanted)


def test_the_net_sees_reformed_images_and_its_last_layer_is_found() -> None:
    x, net = whole(blob_images(each=2))[0], blobs()
    made = DownUp()(net, blob_images(each=1), Generator(), Run())
    assert torch.allclose(predict(made, x), predict(net, Rescale(0.95, "bilinear")(x)))
    assert not torch.allclose(predict(made, x), predict(net, x))
    assert isinstance(made.net.get_submodule(head(made.net)), nn.Linear)
    assert torch.equal(Reformed(nn.Identity(), net.net)(x), net(x))


def test_tiny_images_are_refused() -> None:
    line = Subject(blobs().net, (3, 1, 9), 5)
    with pytest.raises(NotApplicable, match="smaller"):
        DownUp()(line, blob_images(each=1), Generator(), Run())
