"""Residual nets that normalize before they convolve: pre-activation and wide ResNets."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gifthorse.models.nets.resnet import stages


class PreActBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, beside a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution that reads the first ReLU. The name
    that it has in the state dict is an argument: `shortcut` (then within a `Sequential`, as in
    kuangliu/pytorch-cifar) or `convShortcut` (as in xternalz/WideResNet-pytorch).

    Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, fig. 1b.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        stride: int,
        shortcut: Literal["shortcut", "convShortcut"] = "shortcut",
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.kind = shortcut if stride != 1 or cin != cout else None
        if self.kind:
            project = nn.Conv2d(cin, cout, 1, stride, bias=False)
            self.add_module(
                self.kind, nn.Sequential(project) if self.kind == "shortcut" else project
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, cout, H / stride, W / stride)` for `(N, cin, H, W)`."""
        active = torch.relu(self.bn1(x))
        beside = self.get_submodule(self.kind)(active) if self.kind else x
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + beside


def preactresnet18(classes: int, channels: int = 3) -> nn.Module:
    """Make a pre-activation ResNet-18 for small images, keys as in kuangliu/pytorch-cifar.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: He et al., ECCV 2016. Differs: no norm after the last block, as in the code that
    BackdoorBench and others train.
    """
    rows = stages(PreActBlock, 64, (64, 128, 256, 512), (2, 2, 2, 2))
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    parts.update((f"layer{i}", row) for i, row in enumerate(rows, start=1))
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(512, classes)
    return nn.Sequential(parts)


def wrn(classes: int, channels: int = 3, *, depth: int, factor: int) -> nn.Module:
    """Make a WRN-depth-factor, keys as in xternalz/WideResNet-pytorch.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.
        depth: Layers with weights; `depth - 4` is a multiple of 6.
        factor: How many times wider than a ResNet of the same depth.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, table 1; no dropout.
    """
    block = partial(PreActBlock, shortcut="convShortcut")
    widths = (16 * factor, 32 * factor, 64 * factor)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    for i, row in enumerate(stages(block, 16, widths, ((depth - 4) // 6,) * 3), start=1):
        parts[f"block{i}"] = nn.Sequential(OrderedDict(layer=row))
    parts["bn1"] = nn.BatchNorm2d(widths[-1])
    parts["relu"] = nn.ReLU()
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(widths[-1], classes)
    return nn.Sequential(parts)
