"""DenseNet-121 for small and large images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_GROWTH = 32
_DEPTHS = (6, 12, 24, 16)
_WIDTH = 1024  # channels of the last map


@dataclass(frozen=True)
class _Style:
    """What two implementations call the same parts, and where they put new channels."""

    block: str
    layer: str
    first: int
    transition: str
    norm: str
    new_first: bool


_TORCHVISION = _Style("denseblock", "denselayer", 1, "transition", "norm", new_first=False)
_KUANGLIU = _Style("dense", "", 0, "trans", "bn", new_first=True)


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU and 3x3 convolution; its output joins its input.

    The norms are called `norm`1 and `norm`2. `new_first` tells on which side the new channels
    stand: checkpoints differ in that.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017, DenseNet-B.
    """

    def __init__(self, cin: int, norm: str = "norm", new_first: bool = False) -> None:
        super().__init__()
        width = 4 * _GROWTH
        self.new_first = new_first
        self.add_module(f"{norm}1", nn.BatchNorm2d(cin))
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.add_module(f"{norm}2", nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, cin + 32, H, W)` for `(N, cin, H, W)`."""
        out = x
        for part in self.children():
            out = part(out)
        return torch.cat([out, x] if self.new_first else [x, out], dim=1)


def _transition(cin: int, norm: str) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts[norm] = nn.BatchNorm2d(cin)
    parts["relu"] = nn.ReLU()
    parts["conv"] = nn.Conv2d(cin, cin // 2, 1, bias=False)
    parts["pool"] = nn.AvgPool2d(2)
    return nn.Sequential(parts)


def _trunk(style: _Style) -> Iterator[tuple[str, nn.Module]]:
    width = 2 * _GROWTH
    for i, depth in enumerate(_DEPTHS, start=1):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k in range(depth):
            name = f"{style.layer}{k + style.first}"
            layers[name] = DenseLayer(width + k * _GROWTH, style.norm, style.new_first)
        yield f"{style.block}{i}", nn.Sequential(layers)
        width += depth * _GROWTH
        if i < len(_DEPTHS):
            yield f"{style.transition}{i}", _transition(width, style.norm)
            width //= 2


def densenet121(classes: int, channels: int = 3) -> nn.Module:
    """Make a DenseNet-121 with the keys of torchvision, for images of 224 pixels.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Huang et al., CVPR 2017, table 1.
    """
    features: OrderedDict[str, nn.Module] = OrderedDict()
    features["conv0"] = nn.Conv2d(channels, 2 * _GROWTH, 7, 2, padding=3, bias=False)
    features["norm0"] = nn.BatchNorm2d(2 * _GROWTH)
    features["relu0"] = nn.ReLU()
    features["pool0"] = nn.MaxPool2d(3, 2, padding=1)
    features.update(_trunk(_TORCHVISION))
    features["norm5"] = nn.BatchNorm2d(_WIDTH)
    parts: OrderedDict[str, nn.Module] = OrderedDict(features=nn.Sequential(features))
    return _finish(parts, "classifier", classes)


def densenet121_cifar(classes: int, channels: int = 3) -> nn.Module:
    """Make a DenseNet-121 for small images with the keys of kuangliu/pytorch-cifar.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Huang et al., CVPR 2017. Differs: 3x3 stem without norm and pooling.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, 2 * _GROWTH, 3, padding=1, bias=False)
    parts.update(_trunk(_KUANGLIU))
    parts["bn"] = nn.BatchNorm2d(_WIDTH)
    return _finish(parts, "linear", classes)


def _finish(parts: OrderedDict[str, nn.Module], head: str, classes: int) -> nn.Module:
    parts["relu"] = nn.ReLU()
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts[head] = nn.Linear(_WIDTH, classes)
    return nn.Sequential(parts)
