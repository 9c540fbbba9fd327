"""A net in two halves: where it is cut, and that the halves make the net."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.models.cutting import halfway
from gifthorse.models.zoo import NETS

SHAPE = (3, 32, 32)


class Bypassed(nn.Module):
    """Two layers, and what goes past both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        out: Tensor = self.second(self.first(flat)) + flat[:, :3]
        return out


def chain(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), *more)


def test_the_cut_is_in_the_middle_and_after_the_relu() -> None:
    net = chain(nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    cut = halfway(net, (1, 2, 2))
    assert (cut.name, cut.shape, cut.positive, cut.depth) == ("4", (5,), True, 0.5)
    x = torch.rand(7, 1, 2, 2)
    with torch.no_grad():
        assert torch.equal(cut(net[:5](x)), net(x))


@pytest.mark.parametrize("name", ["basic", "lisa_cnn", "resnet20", "wrn16_1", "vit_cifar", "tiny"])
def test_every_kind_of_net_has_a_place_that_everything_passes(name: str) -> None:
    torch.manual_seed(1)
    shape = (1, 28, 28) if name == "basic" else SHAPE
    net = NETS[name](10, shape[0]).eval()
    cut = halfway(net, shape)
    assert 0.2 < cut.depth < 0.8
    inside = torch.rand(2, *cut.shape, requires_grad=True)
    (slope,) = torch.autograd.grad(cut(inside)[:, 0].sum(), inside)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Bypassed()])
def test_a_net_that_nothing_cuts_says_so(net: nn.Module) -> None:
    with pytest.raises(NotApplicable, match="cannot be cut in two"):
        halfway(net, (1, 2, 2))
