"""Normalization as a first layer, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, nn

from gifthorse.core.types import Normalization
from gifthorse.models.normalize import NORMALIZATIONS, Classifier, Normalize

# What torchvision's and the data sets' training scripts divide by, per channel.
PUBLISHED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10_legacy": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "mnist": ((0.1307,), (0.3081,)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_channels_are_shifted_and_scaled_as_published(name: str, rng: Generator) -> None:
    mean, std = PUBLISHED[name]
    n = NORMALIZATIONS[name]
    assert (n.name, n.mean, n.std, n.scale, n.bgr) == (name, mean, std, 1.0, False)
    channels = len(mean) if len(mean) > 1 else 2  # one number serves any number of channels
    x = torch.rand(4, channels, 3, 5, generator=rng)
    got = Normalize(n, channels)(x)
    for c in range(channels):
        m, s = mean[c % len(mean)], std[c % len(std)]
        assert torch.allclose(got[:, c], (x[:, c] - m) / s, atol=1e-6)


def test_every_normalization_goes_by_its_name_and_the_table_cannot_be_changed() -> None:
    assert set(NORMALIZATIONS) == {*PUBLISHED, "0-255"}
    assert all(n.name == name for name, n in NORMALIZATIONS.items())
    with pytest.raises(TypeError):
        NORMALIZATIONS["mine"] = Normalization()  # type: ignore[index]


def test_nets_for_bytes_get_bytes() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert Normalize(NORMALIZATIONS["0-255"], 1)(x).flatten().tolist() == [0.0, 127.5, 255.0]


def test_bgr_turns_the_channels_before_anything_else() -> None:
    x = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    n = Normalization("custom", (0.3, 0.2, 0.1), (1.0, 0.5, 0.1), bgr=True)
    got = Normalize(n, 3)(x).flatten()  # blue 0.3, green 0.2, red 0.1
    assert torch.allclose(got, torch.zeros(3), atol=1e-6)


def test_nothing_of_it_is_saved_or_trained() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), NORMALIZATIONS["half"], 3)
    assert set(model.state_dict()) == {"net.1.weight", "net.1.bias"}
    assert [name for name, _ in model.named_parameters()] == ["net.1.weight", "net.1.bias"]
    assert {name for name, _ in model.named_buffers()} == {"normalize.gain", "normalize.offset"}


def test_it_moves_with_the_model() -> None:
    model = Classifier(nn.Flatten(), NORMALIZATIONS["imagenet"], 3).double()
    assert model(torch.rand(1, 3, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_a_classifier_is_the_net_behind_it(rng: Generator) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x = torch.rand(4, 3, 2, 2, generator=rng)
    n = NORMALIZATIONS["cifar10"]
    assert torch.equal(Classifier(net, n, 3)(x), net(Normalize(n, 3)(x)))
