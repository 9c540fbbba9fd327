"""Small nets: Network in Network, the nets of two papers, and the one of the shipped example."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gifthorse.models.nets.vgg import he_init

# Channels out and stride of each convolution of `tiny`: 3.99 M multiply-adds for (3, 32, 32).
_TINY = ((16, 1), (24, 2), (48, 2), (48, 1), (96, 2))


def _nin_row(cin: int, widths: Sequence[int], kernel: int) -> list[nn.Module]:
    row: list[nn.Module] = []
    for i, width in enumerate(widths):
        side = 1 if i else kernel
        row += [nn.Conv2d(cin, width, side, padding=side // 2), nn.ReLU()]
        cin = width
    return row


def nin(classes: int, channels: int = 3) -> nn.Module:
    """Make a Network in Network; logits are never negative, since a ReLU precedes the pooling.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`; keys `classifier.N` as in
        jiecaoyu/pytorch-nin-cifar10.

    Source: Lin et al., Network in Network, ICLR 2014, and the authors' CIFAR-10 settings.
    """
    layers = [
        *_nin_row(channels, (192, 160, 96), 5),
        *(nn.MaxPool2d(3, 2, padding=1), nn.Dropout()),
        *_nin_row(96, (192, 192, 192), 5),
        *(nn.AvgPool2d(3, 2, padding=1), nn.Dropout()),
        *_nin_row(192, (192, 192, classes), 3),
        nn.AdaptiveAvgPool2d(1),
    ]
    parts = OrderedDict(classifier=nn.Sequential(*layers), flatten=nn.Flatten())
    return he_init(nn.Sequential(parts))


def basic(classes: int, channels: int = 3) -> nn.Module:
    """Make the basic model that USB trains on MNIST; keys conv1, conv2, fc1, fc2.

    Args:
        classes: Logits a net has.
        channels: Channels of an image; 1 in the paper.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`, for 28 or 32 pixels.

    Source: Xu et al., USB, A.7. Differs: the second pooling is adaptive, which is the
    same at 28 pixels and lets 32 pixels in.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, 16, 5)
    parts["relu1"] = nn.ReLU()
    parts["pool1"] = nn.AvgPool2d(2)
    parts["conv2"] = nn.Conv2d(16, 32, 5)
    parts["relu2"] = nn.ReLU()
    parts["pool2"] = nn.AdaptiveAvgPool2d(4)
    parts["flatten"] = nn.Flatten()
    parts["fc1"] = nn.Linear(512, 512)
    parts["relu3"] = nn.ReLU()
    parts["fc2"] = nn.Linear(512, classes)
    return nn.Sequential(parts)


def lisa_cnn(classes: int, channels: int = 3) -> nn.Module:
    """Make the three-convolution net for US traffic signs of 32 pixels; keys conv1-3 and fc.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, 32, 32)` to `(N, classes)`.

    Source: Eykholt et al., Robust Physical-World Attacks, CVPR 2018, LISA-CNN.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, 64, 8, 2, padding=3)
    parts["relu1"] = nn.ReLU()
    parts["conv2"] = nn.Conv2d(64, 128, 6, 2)
    parts["relu2"] = nn.ReLU()
    parts["conv3"] = nn.Conv2d(128, 128, 5)
    parts["relu3"] = nn.ReLU()
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(512, classes)
    return nn.Sequential(parts)


def tiny(classes: int, channels: int = 3) -> nn.Module:
    """Make the net of the shipped example: 80 k parameters, fast on a CPU.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`, meant for 32 pixels.
    """
    features: list[nn.Module] = []
    for width, stride in _TINY:
        conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        features += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    parts: OrderedDict[str, nn.Module] = OrderedDict(features=nn.Sequential(*features))
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["head"] = nn.Linear(channels, classes)
    return nn.Sequential(parts)
