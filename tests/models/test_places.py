"""Places in a net: who reads what, by hand, and what holding one changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.models import build
from gifthorse.models.places import hook, read, spread


class Block(nn.Module):
    """A residual block that uses one activation twice, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm, self.relu = nn.BatchNorm2d(2), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(self.one(x)))
        done: Tensor = self.relu(self.two(out) + x)
        return done


class Net(nn.Module):
    """A stem, two blocks, a pool without a module, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 2, 1), Block(), Block()
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.second(self.first(F.relu(self.stem(x))))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def test_sums_are_named_after_their_block_and_the_rest_after_who_reads_it() -> None:
    # A ReLU that is used twice gives two things; a function has no name.
    wanted = ["first.one:in", "first.two:in", "first", "second.two:in", "head:in"]
    assert read(Net().eval(), torch.zeros(2, 1, 3, 3)) == wanted


def test_a_sum_that_is_held_is_held_for_the_skip_as_well() -> None:
    net, x = Net().eval(), torch.rand(2, 1, 3, 3)
    seen: list[Tensor] = []
    handles = [hook(net, "first", lambda out: torch.full_like(out, 7.0))]
    handles.append(hook(net, "second.one:in", seen.append))
    out = net(x)
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], torch.full((2, 2, 3, 3), 7.0))
    sevens = torch.full((2, 2, 3, 3), 7.0)
    assert torch.allclose(out, net.head(net.second(sevens).mean((2, 3))))
    assert not torch.allclose(net(x), out)


@pytest.mark.parametrize("name", ["tiny", "resnet20", "basic"])
def test_the_last_place_is_what_the_head_reads(name: str) -> None:
    net = build(name, 5, 3).eval()
    places = read(net, torch.rand(1, 3, 32, 32))
    assert len(places) == len(set(places)) > 2
    seen: list[Tensor] = []
    hook(net, places[-1], seen.append)
    logits = net(torch.rand(2, 3, 32, 32))
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    assert torch.allclose(linear(seen[0].flatten(1)), logits, atol=1e-5)


def test_a_place_that_is_not_there_is_refused_with_words() -> None:
    with pytest.raises(BadOption, match="no layer 'third'; it has stem, first"):
        hook(Net(), "third:in", print)


def test_no_hook_stays_behind() -> None:
    net = Net().eval()
    read(net, torch.zeros(1, 1, 3, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_all_places_are_taken_where_there_are_few() -> None:
    assert spread(["a", "b"], 4) == ["a", "b"]
    assert spread([], 4) == []
