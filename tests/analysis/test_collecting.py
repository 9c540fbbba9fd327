"""Layers of the toy net, found and read."""

from __future__ import annotations

import pytest
import torch
from tests.toys import band_images, bands, blob_images, blobs
from torch import nn

from gifthorse.analysis.collecting import collect, given, stages, tapped
from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.models.zoo import NETS


def test_stages_are_the_last_modules_of_each_size_of_a_convolution() -> None:
    assert stages(blobs()) == ("net.2", "net.5")  # both ReLUs, not the pooling behind
    resnet = Subject(NETS["resnet20"](10).eval(), (3, 32, 32), 10)
    assert stages(resnet) == ("layer1", "layer2", "layer3")
    with pytest.raises(BadOption, match="no convolution"):
        stages(bands())


def test_a_module_that_is_asked_twice_is_no_stage() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), relu, nn.Conv2d(2, 2, 3, stride=2), relu)
    assert stages(Subject(net.eval(), (1, 8, 8), 2)) == ("0", "2")


def test_collected_rows_are_those_of_a_plain_forward_in_order() -> None:
    net, data = blobs(), blob_images(each=8)
    x, y = whole(data)
    inner: nn.Sequential = net.net.get_submodule("net")  # type: ignore[assignment]
    expected = inner[:3]((x - 0.5) / 0.5).detach()
    flags = [p.requires_grad for p in net.net.parameters()]
    got = collect(net, data, ["net.2"], reduce="none", size=7)
    torch.testing.assert_close(got.layers["net.2"], expected)
    assert got.labels.equal(y)
    assert got.index.tolist() == list(range(40))
    for how, want in (("mean", expected.mean((2, 3))), ("max", expected.amax((2, 3)))):
        torch.testing.assert_close(given(net, x, ["net.2"], reduce=how)["net.2"], want)  # type: ignore[arg-type]
    assert given(net, x, reduce="flatten")["net.5"].shape == (40, 32 * 36)
    assert [p.requires_grad for p in net.net.parameters()] == flags
    assert not any(m._forward_hooks for m in net.net.modules())


def test_a_later_layer_does_not_write_into_what_was_gathered() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False).eval(), nn.ReLU(inplace=True))
    x = torch.tensor([[[[-1.0, 2.0]]]])
    with torch.no_grad(), tapped(net, ["0"]) as seen:
        assert net(x).numpy() == pytest.approx(x.relu().numpy(), abs=1e-4)
    assert seen["0"].numpy() == pytest.approx(x.numpy(), abs=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadOption, match=r"no layer 'net\.99'"):
        collect(blobs(), blob_images(each=1), ["net.99"])
    with pytest.raises(BadOption, match="reduce must be one of"):
        collect(blobs(), blob_images(each=1), reduce="sum")  # type: ignore[arg-type]
    with pytest.raises(BadImages, match="at least one image"):
        collect(bands(), band_images(each=0), ["x"])
