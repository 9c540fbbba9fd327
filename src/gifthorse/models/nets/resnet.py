"""ResNets for small and large images, with the state-dict keys that common checkpoints have."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shortcut: TypeAlias = Literal["downsample", "shortcut", "pad"]
MakeBlock: TypeAlias = Callable[[int, int, int], nn.Module]


def _conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)


class PadShortcut(nn.Module):
    """Parameter-free shortcut: every second pixel, new channels are zero on both sides.

    Source: He et al., Deep Residual Learning, CVPR 2016, sec. 3.3, option A.
    """

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C + extra, ceil(H / 2), ceil(W / 2))` for `(N, C, H, W)`."""
        half = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


def _shortcut(kind: Shortcut, cin: int, cout: int, stride: int) -> nn.Module:
    if stride == 1 and cin == cout:
        return nn.Sequential()  # the identity, without keys
    if kind == "pad":
        return PadShortcut(cout - cin)
    return nn.Sequential(_conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, whose kind is also its name in the state dict.

    Source: He et al., Deep Residual Learning, CVPR 2016, fig. 5 left.
    """

    expansion = 1

    def __init__(self, cin: int, cout: int, stride: int, shortcut: Shortcut = "downsample") -> None:
        super().__init__()
        self.conv1 = _conv(cin, cout, 3, stride)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = _conv(cout, cout, 3)
        self.bn2 = nn.BatchNorm2d(cout)
        self.kind = shortcut
        self.add_module(shortcut, _shortcut(shortcut, cin, cout, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, cout, H / stride, W / stride)` for `(N, cin, H, W)`."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.get_submodule(self.kind)(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride) and 1x1 convolutions beside a shortcut.

    Source: He et al., Deep Residual Learning, CVPR 2016, fig. 5 right. Differs: the stride is in
    the 3x3 convolution, as in torchvision ("v1.5").
    """

    expansion = 4

    def __init__(self, cin: int, cout: int, stride: int, shortcut: Shortcut = "downsample") -> None:
        super().__init__()
        width = cout // self.expansion
        self.conv1 = _conv(cin, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, cout, 1)
        self.bn3 = nn.BatchNorm2d(cout)
        self.kind = shortcut
        self.add_module(shortcut, _shortcut(shortcut, cin, cout, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, cout, H / stride, W / stride)` for `(N, cin, H, W)`."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + self.get_submodule(self.kind)(x))


def stages(
    make: MakeBlock, cin: int, widths: Sequence[int], depths: Sequence[int]
) -> Iterator[nn.Sequential]:
    """Yield one row of blocks for each width; all rows but the first halve height and width.

    Args:
        make: Makes a block from channels in, channels out and stride.
        cin: Channels that the first block reads.
        widths: Channels that each row puts out.
        depths: Blocks of each row.

    Yields:
        The rows, in order.
    """
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        first = make(cin, width, 1 if i == 0 else 2)
        yield nn.Sequential(first, *(make(width, width, 1) for _ in range(depth - 1)))
        cin = width


def resnet(
    classes: int,
    channels: int = 3,
    *,
    depths: Sequence[int],
    width: int = 64,
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    shortcut: Shortcut = "downsample",
    pooled: bool = False,
) -> nn.Module:
    """Make a ResNet.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.
        depths: Blocks of each row.
        width: Channels after the stem; each row doubles them.
        block: Kind of block.
        shortcut: `downsample` gives the keys of torchvision and of chenyaofo/pytorch-cifar-models
            (head `fc`), `shortcut` those of kuangliu/pytorch-cifar (head `linear`), `pad` those of
            akamaster/pytorch_resnet_cifar10 (head `linear`, shortcuts without parameters).
        pooled: Use the 7x7 stem with stride 2 and max pooling, meant for 224 pixels.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: He et al., Deep Residual Learning, CVPR 2016, table 1 and sec. 4.2.
    """

    def make(cin: int, cout: int, stride: int) -> nn.Module:
        return block(cin, cout, stride, shortcut)

    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = _conv(channels, width, 7, 2) if pooled else _conv(channels, width, 3)
    parts["bn1"] = nn.BatchNorm2d(width)
    parts["relu"] = nn.ReLU()
    if pooled:
        parts["maxpool"] = nn.MaxPool2d(3, 2, padding=1)
    widths = [width * block.expansion << i for i in range(len(depths))]
    for i, row in enumerate(stages(make, width, widths, depths), start=1):
        parts[f"layer{i}"] = row
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc" if shortcut == "downsample" else "linear"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(parts)
