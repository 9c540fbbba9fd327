"""Nets made of inverted residuals: MobileNetV2 and EfficientNet-B0."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

Activation: TypeAlias = Callable[[], nn.Module]

# Expansion, channels, blocks, stride. Source: Sandler et al., MobileNetV2, CVPR 2018, table 2.
_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Expansion, kernel, channels, blocks, stride. Source: Tan and Le, EfficientNet, ICML 2019, table 1.
_B0 = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
_STEM, _LAST = 32, 1280  # channels of the first and of the last map, of all nets here
_DROP = 0.2  # dropout at the head, and stochastic depth of a block after the last


def _conv_bn(
    cin: int,
    cout: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = None,
) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate that reads the means of all channels.

    Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, with SiLU for ReLU.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled maps, same shape."""
        gate = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    """A body, called `name` in the state dict, to whose output the input may be added."""

    def __init__(self, name: str, body: nn.Module, skip: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.add_module(name, body)
        self.name = name
        self.skip = skip
        # On (N, C, H, W) this drops whole images of a batch, which is stochastic depth.
        self.drop = nn.Dropout3d(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the body, plus `x` if `skip`."""
        out: Tensor = self.get_submodule(self.name)(x)
        return x + self.drop(out) if self.skip else out


def _v2_block(cin: int, cout: int, expansion: int, stride: int) -> nn.Module:
    wide = cin * expansion
    widen = [_conv_bn(cin, wide, activation=nn.ReLU6)] if expansion > 1 else []
    depthwise = _conv_bn(wide, wide, 3, stride, groups=wide, activation=nn.ReLU6)
    body = nn.Sequential(*widen, depthwise, *_conv_bn(wide, cout))
    return InvertedResidual("conv", body, skip=stride == 1 and cin == cout)


def _v2_rows(large: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield channels in, channels out, expansion and stride of each block."""
    cin = _STEM
    for row, (expansion, cout, depth, stride) in enumerate(_V2):
        for i in range(depth):
            halve = i == 0 and (large or row > 1)
            yield cin, cout, expansion, stride if halve else 1
            cin = cout


def mobilenetv2(classes: int, channels: int = 3, *, large: bool = True) -> nn.Module:
    """Make a MobileNetV2 with the keys of torchvision.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.
        large: Whether it is meant for 224 pixels; otherwise stem and second row have stride 1, as
            in chenyaofo/pytorch-cifar-models. The state dict does not tell which.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Sandler et al., MobileNetV2, CVPR 2018, table 2.
    """
    stem = _conv_bn(channels, _STEM, 3, 2 if large else 1, activation=nn.ReLU6)
    last = _conv_bn(_V2[-1][1], _LAST, activation=nn.ReLU6)
    return _with_classifier([stem, *(_v2_block(*row) for row in _v2_rows(large)), last], classes)


class _FlatInvertedResidual(nn.Module):
    """The inverted residual of kuangliu/pytorch-cifar: always widens, projects at stride 1."""

    def __init__(self, cin: int, cout: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.conv1, self.bn1 = _conv_bn(cin, wide)
        self.conv2, self.bn2 = _conv_bn(wide, wide, 3, stride, groups=wide)
        self.conv3, self.bn3 = _conv_bn(wide, cout)
        self.skip = stride == 1
        self.shortcut = _conv_bn(cin, cout) if self.skip and cin != cout else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        narrow: Tensor = self.bn3(self.conv3(out))
        return narrow + self.shortcut(x) if self.skip else narrow


def mobilenetv2_cifar(classes: int, channels: int = 3) -> nn.Module:
    """Make a MobileNetV2 for small images with the keys of kuangliu/pytorch-cifar.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Sandler et al., CVPR 2018. Differs: ReLU for ReLU6, stem and second row of stride 1,
    a 1x1 convolution where a row of stride 1 changes the width.
    """
    blocks = (_FlatInvertedResidual(*row) for row in _v2_rows(large=False))
    stem = _conv_bn(channels, _STEM, 3, activation=nn.ReLU)
    last = _conv_bn(_V2[-1][1], _LAST, activation=nn.ReLU)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"], parts["bn1"], parts["relu1"] = stem
    parts["layers"] = nn.Sequential(*blocks)
    parts["conv2"], parts["bn2"], parts["relu2"] = last
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(_LAST, classes)
    return nn.Sequential(parts)


def _mbconv(cin: int, cout: int, wide: int, kernel: int, stride: int, drop: float) -> nn.Module:
    widen = [_conv_bn(cin, wide, activation=nn.SiLU)] if wide != cin else []
    depthwise = _conv_bn(wide, wide, kernel, stride, groups=wide, activation=nn.SiLU)
    gate = SqueezeExcitation(wide, cin // 4)
    body = nn.Sequential(*widen, depthwise, gate, _conv_bn(wide, cout))
    return InvertedResidual("block", body, skip=stride == 1 and cin == cout, drop=drop)


def _b0_rows() -> Iterator[nn.Module]:
    total = sum(depth for _, _, _, depth, _ in _B0)
    cin, done = _STEM, 0
    for expansion, kernel, cout, depth, stride in _B0:
        row: list[nn.Module] = []
        for i in range(depth):
            drop = _DROP * done / total
            row.append(_mbconv(cin, cout, cin * expansion, kernel, 1 if i else stride, drop))
            cin, done = cout, done + 1
        yield nn.Sequential(*row)


def efficientnet_b0(classes: int, channels: int = 3) -> nn.Module:
    """Make an EfficientNet-B0 with the keys of torchvision, for images of 224 pixels.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Tan and Le, EfficientNet, ICML 2019, table 1; stochastic depth up to 0.2.
    """
    stem = _conv_bn(channels, _STEM, 3, 2, activation=nn.SiLU)
    last = _conv_bn(_B0[-1][2], _LAST, activation=nn.SiLU)
    return _with_classifier([stem, *_b0_rows(), last], classes)


def _with_classifier(features: list[nn.Module], classes: int) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(features=nn.Sequential(*features))
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Sequential(nn.Dropout(_DROP), nn.Linear(_LAST, classes))
    return nn.Sequential(parts)
