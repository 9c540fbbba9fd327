"""Folding changes no logit and nothing of the given net."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.fx import GraphModule

from gifthorse.models.folding import frozen
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.zoo import NETS

# BatchNorms that stay: those that follow an addition (or an output that a shortcut reads, too).
LEFT = {
    "resnet20": 0,  # 19 convolutions, each with its own
    "tiny": 0,
    "wrn16_1": 7,  # the first of each of six blocks, and the last of all; 6 of 13 are folded
    "preactresnet18": 8,  # the first of each of eight blocks; 8 of 16 are folded
}


def stirred(net: nn.Module, rng: Generator) -> nn.Module:
    """Give every BatchNorm statistics and weights as after training, so that folding matters."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            with torch.no_grad():
                m.running_mean.normal_(0, 0.1, generator=rng)
                m.running_var.uniform_(0.5, 1.5, generator=rng)
                m.weight.uniform_(0.5, 1.2, generator=rng)
                m.bias.normal_(0, 0.1, generator=rng)
    return net.eval()


def norms(net: nn.Module, x: Tensor) -> int:
    """How many BatchNorms run on `x`."""
    ran: list[str] = []
    hooks = [
        m.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
        for m in net.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return len(ran)


@pytest.mark.parametrize("name", LEFT)
def test_logits_stay_and_batch_norms_go(name: str, rng: Generator) -> None:
    net = Classifier(stirred(NETS[name](10), rng), NORMALIZATIONS["cifar10"], 3).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(3, 3, 32, 32, generator=rng)
    folded = frozen(net, x)
    with torch.no_grad():
        expected = net(x)
        assert (folded(x) - expected).abs().max() < 1e-4
        assert (frozen(net, x, fold=False)(x) - expected).abs().max() < 1e-4
    assert expected.std() > 0.01
    were = sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert norms(folded, x) == LEFT[name]
    assert norms(frozen(net, x, fold=False), x) == were
    assert norms(net, x) == were
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_copy_needs_no_gradient_and_never_trains() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    folded = frozen(net, torch.zeros(2, 1, 4, 4))
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(m.training for m in folded.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())
    assert not {p.data_ptr() for p in folded.parameters()} & {
        p.data_ptr() for p in net.parameters()
    }


def test_gradients_to_the_image_are_the_same(rng: Generator) -> None:
    net = stirred(NETS["tiny"](10), rng)
    slopes = []
    for model in (net, frozen(net, torch.rand(2, 3, 32, 32, generator=rng))):
        x = torch.rand(2, 3, 32, 32, generator=Generator().manual_seed(1)).requires_grad_()
        (slope,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
        slopes.append(slope)
    assert torch.allclose(slopes[0], slopes[1], atol=1e-5)


def test_input_normalization_is_not_folded_into_a_padded_convolution(rng: Generator) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Classifier(net, NORMALIZATIONS["imagenet"], 3).eval()
    x = torch.rand(2, 3, 4, 4, generator=rng)  # nearly all pixels lie at a border
    assert torch.allclose(frozen(model, x)(x), model(x), atol=1e-6)


class Branching(nn.Module):
    """Looks at its data before it decides, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        if out.mean() > 0:
            out = out * 2
        return out.mean((2, 3))


def test_a_net_that_cannot_be_traced_is_only_frozen(rng: Generator) -> None:
    net = stirred(Branching(), rng)
    x = torch.rand(3, 1, 6, 6, generator=rng)
    copy = frozen(net, x)
    assert isinstance(copy, Branching)
    assert copy is not net
    assert not any(p.requires_grad for p in copy.parameters())
    assert norms(copy, x) == 1
    assert torch.allclose(copy(x), net(x), atol=1e-6)


class Twice(nn.Module):
    """One convolution used twice, with a BatchNorm after each use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.conv(self.one(self.conv(x))))
        return out.flatten(1)


class Shared(nn.Module):
    """One BatchNorm after two convolutions, one of which is read by something else as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        out: Tensor = self.norm(a) + self.norm(self.b(x)) * a
        return out.flatten(1)


class Functional(nn.Module):
    """A convolution whose weights are read outside of its module, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) * self.conv.weight.sum()
        return out.flatten(1)


@pytest.mark.parametrize("kind", [Twice, Shared, Functional])
def test_weights_in_two_roles_keep_both(kind: type[nn.Module], rng: Generator) -> None:
    net = stirred(kind(), rng)
    x = torch.rand(3, 2, 4, 4, generator=rng)
    folded = frozen(net, x)
    assert isinstance(folded, GraphModule)
    assert torch.allclose(folded(x), net(x), atol=1e-5)


def test_a_batch_norm_without_statistics_stays(rng: Generator) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    x = torch.rand(3, 1, 6, 6, generator=rng)
    assert norms(frozen(net, x), x) == 1
    assert torch.allclose(frozen(net, x)(x), net(x), atol=1e-6)


class Misread(nn.Module):
    """Says another thing where it is traced than where it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)).mean((2, 3))
        return out if isinstance(x, Tensor) else out.flip(1)


class Strict(Misread):
    """Fails where it is traced, in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(x, Tensor)
        return super().forward(x)


class Viewing(Misread):
    """Counts on how memory is laid out."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)).view(len(x), -1)[:, :2]
        return out


@pytest.mark.parametrize("kind", [Misread, Strict, Viewing])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_searched_is_shown_to_be_the_net(
    kind: type[nn.Module], wrapped: bool, rng: Generator
) -> None:
    net: nn.Module = stirred(kind(), rng)
    net = Classifier(net, NORMALIZATIONS["half"], 1).eval() if wrapped else net
    x = torch.rand(5, 1, 6, 6, generator=rng)
    copy = frozen(net, x)
    assert torch.allclose(copy(x), net(x), atol=1e-6)
    assert torch.allclose(copy(x.requires_grad_()), net(x), atol=1e-6)


def test_without_images_nothing_is_changed(rng: Generator) -> None:
    net = stirred(NETS["tiny"](10), rng)
    x = torch.rand(2, 3, 32, 32, generator=rng)
    assert norms(frozen(net), x) > 0
    assert torch.equal(frozen(net)(x), net(x))
