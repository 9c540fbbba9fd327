"""Channel Lipschitz pruning: bounds by hand, pairs by data flow, and a channel planted in a net."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.toys import blob_images
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import whole
from gifthorse.models import build
from gifthorse.models.nets.wide import PreActBlock
from gifthorse.remedies import CLP
from gifthorse.remedies.clp import lipschitz, pairs
from gifthorse.training import predict

IMAGES = blob_images(each=8)


def small(seed: int = 0) -> Subject:
    """Two pairs of 24 and 32 channels with random statistics."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(inplace=True),
        nn.Conv2d(24, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    for norm in (m for m in net if isinstance(m, nn.BatchNorm2d)):
        assert isinstance(norm.running_var, Tensor)
        nn.init.uniform_(norm.weight, 0.9, 1.1)
        nn.init.uniform_(norm.running_var, 0.9, 1.1)
        nn.init.uniform_(norm.bias, 0.1, 0.2)
    return Subject(net.eval(), (3, 12, 12), 5)


def heal(subject: Subject, u: float = 3.0) -> Subject:
    return CLP(u)(subject, IMAGES, Generator(), Run())


def changed(one: Subject, other: Subject) -> dict[str, list[int]]:
    """Which channels of which tensors differ."""
    there = other.net.state_dict()
    differ = {
        k: (v != there[k]).view(len(v), -1).any(1)
        for k, v in one.net.state_dict().items()
        if v.ndim
    }
    return {k: d.nonzero().flatten().tolist() for k, d in differ.items() if d.any()}


def test_bounds_are_singular_values_times_gains() -> None:
    net = small().net
    conv, norm = net.get_submodule("3"), net.get_submodule("4")
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight[3] *= -1
        norm.running_var[5] = 0.0
    wanted = [
        np.linalg.svd(conv.weight[k].detach().numpy().reshape(24, 9), compute_uv=False)[0]
        * abs(norm.weight[k].item())
        / math.sqrt(norm.running_var[k].item() + 1e-5)
        for k in range(32)
    ]
    assert np.allclose(lipschitz(conv, norm).detach().numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize(("layer", "norm"), [("0", "1"), ("3", "4")])
def test_a_channel_ten_times_as_large_goes_and_no_other(layer: str, norm: str) -> None:
    subject = small()
    conv = subject.net.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight[7] *= 10
    made = heal(subject)
    assert changed(made, subject) == {f"{norm}.weight": [7], f"{norm}.bias": [7]}
    silent = nn.Sequential(*list(made.net.children())[: int(norm) + 1])
    out = silent(whole(IMAGES)[0])
    assert (out[:, 7] == 0).all()
    assert (out != 0).any((0, 2, 3)).sum() == out.shape[1] - 1


def test_nothing_changes_without_an_outlier_or_with_an_infinite_threshold() -> None:
    assert changed(heal(small()), small()) == {}
    subject = small()
    conv = subject.net.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight[7] *= 10
    assert changed(heal(subject, math.inf), subject) == {}
    assert changed(heal(subject, 0.5), subject) != {}


def test_a_planted_channel_is_found() -> None:
    """A channel that opens for a white corner and outvotes the rest is silenced, and only that."""
    subject = small()
    state = dict(subject.net.state_dict())  # shares its memory with the net
    with torch.no_grad():
        state["0.weight"][7], state["0.bias"][7] = 1.0, -20.0  # a white 3 x 3 patch adds up to 27
        state["1.running_mean"][7], state["1.running_var"][7] = 0.0, 1.0
        state["1.weight"][7], state["1.bias"][7] = 10.0, 0.0
        state["3.weight"][0], state["4.bias"][0] = 0.0, 0.0
        state["3.weight"][0, 7] = 0.1
        state["8.weight"][2, 0] = 10.0
    x = whole(IMAGES)[0]
    stamped = x.clone()
    stamped[:, :, -4:, -4:] = 1
    assert (predict(subject, stamped).argmax(1) == 2).all()
    assert not (predict(subject, x).argmax(1) == 2).all()
    made = heal(subject)
    assert changed(made, subject) == {"1.weight": [7]}
    assert torch.equal(predict(made, x), predict(subject, x))  # it was closed on clean images
    assert not (predict(made, stamped).argmax(1) == 2).all()


class Tangled(nn.Module):
    """Modules registered in another order than they are asked, one norm asked twice."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.early = nn.BatchNorm2d(4), nn.BatchNorm2d(3)
        self.second, self.first = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)
        self.third, self.behind_relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fourth, self.twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fifth, self.plain = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.late(self.first(self.early(x))).relu())
        x = self.behind_relu(self.third(x).relu_())
        x = self.twice(self.twice(self.fourth(x)))
        out: Tensor = self.plain(self.fifth(x)).mean((2, 3))
        return out


def test_pairs_follow_the_data() -> None:
    net = Tangled().eval()
    assert pairs(Subject(net, (3, 4, 4), 4)) == [(net.first, net.late)]


def test_pairs_of_pre_activation_blocks_are_those_within() -> None:
    block = PreActBlock(8, 16, 2)
    stem = nn.Conv2d(3, 8, 3)
    net = nn.Sequential(stem, nn.ReLU(), block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert pairs(Subject(net.eval(), (3, 8, 8), 16)) == [(block.conv1, block.bn2)]


def test_every_norm_of_a_resnet_has_its_convolution() -> None:
    net = build("resnet20", 10, 3).eval()
    found = pairs(Subject(net, (3, 32, 32), 10))
    names = {module: name for name, module in net.named_modules()}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(found) == len(norms) == len({norm for _, norm in found})
    for conv, norm in found:
        one, other = names[conv], names[norm]
        assert one.replace("conv", "bn") == other or one[:-1] == other[:-1]
    assert not any(m._forward_hooks for m in net.modules())


def test_a_net_without_pairs_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(NotApplicable, match="BatchNorm"):
        heal(Subject(net.eval(), (3, 12, 12), 4))
