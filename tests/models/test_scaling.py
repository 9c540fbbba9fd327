"""Scaled gradients are the mix that both branches give by hand, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models.test_folding import norms, stirred
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.models.folding import frozen
from gifthorse.models.nets.densenet import DenseLayer
from gifthorse.models.nets.resnet import BasicBlock, Bottleneck
from gifthorse.models.nets.wide import PreActBlock
from gifthorse.models.scaling import scaled
from gifthorse.models.zoo import NETS

PAIRS = [(0.5, 1.0), (1.0, 0.5), (0.3, 0.7), (1.0, 0.0)]
pairs = pytest.mark.parametrize(("skip", "residual"), PAIRS)


def slope(net: nn.Module, x: Tensor) -> Tensor:
    """How a fixed mix of a net's outputs rises with its input."""
    x = x.clone().requires_grad_()
    out: Tensor = net(x)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    (found,) = torch.autograd.grad((out * weights).sum(), x)
    return found


class Halves(nn.Module):
    """A block written out, of whose two summands only one may pass a gradient."""

    def __init__(self, block: nn.Module, open_skip: bool) -> None:
        super().__init__()
        self.block, self.open_skip = block, open_skip

    def forward(self, x: Tensor) -> Tensor:
        b, after = self.block, torch.relu
        if isinstance(b, PreActBlock):
            active = torch.relu(b.bn1(x))
            skip = b.get_submodule(b.kind)(active) if b.kind else x
            res, after = b.conv2(torch.relu(b.bn2(b.conv1(active)))), nn.Identity()
        elif isinstance(b, BasicBlock):
            skip = b.get_submodule(b.kind)(x)
            res = b.bn2(b.conv2(torch.relu(b.bn1(b.conv1(x)))))
        else:
            assert isinstance(b, Bottleneck)
            skip = b.get_submodule(b.kind)(x)
            res = b.bn3(b.conv3(torch.relu(b.bn2(b.conv2(torch.relu(b.bn1(b.conv1(x))))))))
        return after(skip + res.detach() if self.open_skip else skip.detach() + res)


@pairs
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck, PreActBlock])
@pytest.mark.usefixtures("double")
def test_the_gradient_is_the_mix_of_both_branches(
    kind: type[nn.Module], stride: int, skip: float, residual: float, rng: Generator
) -> None:
    block = stirred(kind(8, 8 * stride, stride), rng)
    x = torch.rand(3, 8, 6, 6, generator=rng)
    through_skip, through_residual = (slope(Halves(block, which), x) for which in (True, False))
    assert torch.allclose(slope(block, x), through_skip + through_residual)
    with scaled(block, skip=skip, residual=residual):
        found = slope(block, x)
    assert torch.allclose(found, skip * through_skip + residual * through_residual)
    assert not torch.allclose(found, slope(block, x))


@pytest.mark.usefixtures("double")
def test_new_channels_of_a_dense_layer_are_scaled_once(rng: Generator) -> None:
    """With every ReLU open, the branch of new channels is linear and passes the factor itself."""
    layer = stirred(DenseLayer(4), rng)
    with torch.no_grad():
        layer.get_submodule("norm1").bias.fill_(9.0)  # type: ignore[operator]
        layer.get_submodule("norm2").bias.fill_(99.0)  # type: ignore[operator]
    new_only = nn.Sequential(layer)
    x = torch.rand(2, 4, 5, 5, generator=rng)

    def branch(factor: float) -> Tensor:
        with scaled(new_only, residual=factor):
            leaf = x.clone().requires_grad_()
            (found,) = torch.autograd.grad(layer(leaf)[:, 4:].square().sum(), leaf)
        return found

    assert torch.allclose(branch(0.25), 0.25 * branch(1.0))
    assert branch(1.0).abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet20", "wrn16_1"])
def test_the_net_says_the_same_to_the_bit(name: str, rng: Generator) -> None:
    net = stirred(NETS[name](10), rng)
    keys, x = list(net.state_dict()), torch.rand(2, 3, 8, 8, generator=rng)
    before, plain = net(x), slope(net, x)
    with scaled(net, skip=0.5, residual=0.25):
        assert torch.equal(net(x), before)
        assert list(net.state_dict()) == keys
        assert not torch.allclose(slope(net, x), plain)
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.equal(slope(net, x), plain)
    with scaled(net):
        assert not any(m._forward_hooks for m in net.modules())


def test_a_net_is_folded_inside_the_context_as_outside(rng: Generator) -> None:
    net = stirred(NETS["resnet20"](10), rng)
    x = torch.rand(2, 3, 32, 32, generator=rng)
    with scaled(net, skip=0.5):
        folded = frozen(net, x)
    assert norms(folded, x) == 0
    assert torch.allclose(folded(x), net(x), atol=1e-4)


def test_what_cannot_be_scaled_is_refused_and_hooks_go_after_an_error() -> None:
    for factors in ({"skip": 0.0}, {"skip": -1.0}, {"residual": -0.1}):
        with pytest.raises(BadOption, match="above 0"), scaled(NETS["resnet20"](10), **factors):
            pass
    with pytest.raises(BadOption, match="no residual block"), scaled(NETS["tiny"](10), skip=0.5):
        pass
    with pytest.raises(BadOption, match="DenseNet"), scaled(DenseLayer(4), skip=0.5):
        pass
    net = BasicBlock(4, 4, 1)
    with pytest.raises(ZeroDivisionError), scaled(net, skip=math.sqrt(0.5)):
        _ = 1 / 0
    assert not any(m._forward_hooks for m in net.modules())
