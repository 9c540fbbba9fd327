"""What a net returns is looked at first; the right logits are those of a plain net."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import UnfitNet
from gifthorse.models.features import head
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.models.outputs import agree, ends, head_of, locate

CLASSES = 5
Pair = namedtuple("Pair", ["embedding", "logits"])


@dataclass
class Answer:
    loss: None
    logits: Tensor


class Wrapped(nn.Module):
    """A linear net whose logits and features are handed out in some shape."""

    def __init__(self, shape: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.fc, self.shape = nn.Linear(3 * 64, 7), nn.Linear(7, CLASSES), shape

    def forward(self, x: Tensor) -> Any:
        inside = self.features(x.flatten(1))
        return self.shape(self.fc(inside), inside)


SHAPES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "plain": lambda y, f: y,
    "alone": lambda y, f: (y,),
    "pair": lambda y, f: (y, f),
    "features first": lambda y, f: [f, y],
    "twice": lambda y, f: (y, y * 0),
    "named": lambda y, f: {"features": f, "logits": y},
    "other name": lambda y, f: {"out": y},
    "ordered": lambda y, f: OrderedDict(loss=None, pred=y),
    "record": lambda y, f: Answer(None, y),
    "named tuple": lambda y, f: Pair(f, y),
    "namespace": lambda y, f: SimpleNamespace(logits=y, features=f),
    "nested": lambda y, f: ({"head": [y]}, f),
    "trailing": lambda y, f: y[:, :, None, None],
    "middle": lambda y, f: y[:, None],
    "squeezed": lambda y, f: y.squeeze(),
    "half": lambda y, f: y.bfloat16(),
    "with a score": lambda y, f: (y.amax(1), y),
    "softmax": lambda y, f: y.softmax(1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_found_and_said(name: str, rng: Generator) -> None:
    net, plain = Wrapped(SHAPES[name]).eval(), Wrapped(SHAPES["plain"])
    x = torch.rand(6, 3, 8, 8, generator=rng)
    output = locate(net, x, CLASSES)
    assert output.classes == CLASSES
    assert bool(output.words) == (name not in ("plain", "half"))
    model = Classifier(net, NORMALIZATIONS["none"], 3, output).eval()
    expected = plain(x).log_softmax(1) if name == "softmax" else plain(x)
    for some in (x, x[:1]):
        got = model(some)
        assert got.dtype == torch.float32
        assert torch.allclose(got, expected[: len(some)], atol=0.02 if name == "half" else 1e-5)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda y, f: None, "no logits: for 3 images no tensor"),
        (lambda y, f: y.argmax(1), "class numbers in place of logits"),
        (lambda y, f: y[:2], r"no logits: for 3 images \(2, 5\) float32; expected"),
        (lambda y, f: y.mean(0), "no logits"),
        (lambda y, f: (f, f * 2), "cannot be told which of them"),
        (lambda y, f: y.to(torch.complex64), "no logits"),
        (lambda y, f: y if len(y) > 1 else y[:, :3], "of one image the net makes"),
    ],
)
def test_what_holds_no_logits_is_refused(
    shape: Callable[[Tensor, Tensor], Any], words: str, rng: Generator
) -> None:
    with pytest.raises(UnfitNet, match=words):
        locate(Wrapped(shape).eval(), torch.rand(4, 3, 8, 8, generator=rng), CLASSES)


class Heads(nn.Module):
    """Two heads, and the classifier declared before everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(4, 9), nn.Conv2d(1, 4, 3)
        self.turned = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv(x).mean((2, 3))
        self.turned(inside)
        logits: Tensor = self.fc(inside)
        return logits


def test_what_forward_does_counts_not_the_order_of_layers(rng: Generator) -> None:
    net = Heads().eval()
    assert ends(net) == (9, 1)
    x = torch.rand(3, 1, 8, 8, generator=rng)
    model = Classifier(net, NORMALIZATIONS["none"], 1).eval()
    assert head(model) == "net.turned"  # the last declared
    model.logits_layer = head_of(model, x)
    assert head(model) == "net.fc"


def test_a_net_that_ran_nowhere_has_no_known_classes() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError(len(x))

    assert ends(Odd()) == (0, 3)
    assert ends(nn.Sequential(nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())) == (2, 4)


def test_rounding_agrees_and_another_answer_does_not(rng: Generator) -> None:
    said = torch.randn(8, 5, generator=rng)
    assert agree(said, said * (1 + 1e-5))
    assert not agree(said, said.flip(1))
    assert not agree(said, said + 0.1)
    assert not agree(said, torch.full_like(said, torch.nan))


@pytest.mark.parametrize("flat", [False, True])
def test_one_number_is_two_classes(flat: bool, rng: Generator) -> None:
    z = torch.randn(3, 1, generator=rng)

    def net(x: Tensor) -> Tensor:
        out = z[: len(x)]
        return out[:, 0] if flat else out

    for made, words in ((net, "the logits 0 and z"), (lambda x: net(x).sigmoid(), "probability")):
        found = locate(made, torch.rand(3, 1, 2, 2, generator=rng), 1)  # type: ignore[arg-type]
        assert (found.classes, found.single) == (2, True)
        assert words in found.words
        chances = found(made(torch.zeros(3, 1))).softmax(1)[:, 1]
        assert torch.allclose(chances, z[:, 0].sigmoid(), atol=1e-6)
