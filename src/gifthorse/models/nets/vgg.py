"""VGG nets for small and large images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

_WIDTHS = (64, 128, 256, 512, 512)


def he_init(net: nn.Module) -> nn.Module:
    """Draw convolution weights anew so that a deep net without norms can be trained.

    Args:
        net: Changed in place; biases of its convolutions become 0.

    Returns:
        The same net.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 14 (fan-out form).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def _features(channels: int, depths: Sequence[int], norm: bool) -> Iterator[nn.Module]:
    for (cin, width), depth in zip(pairwise((channels, *_WIDTHS)), depths, strict=True):
        for i in range(depth):
            yield nn.Conv2d(width if i else cin, width, 3, padding=1)
            if norm:
                yield nn.BatchNorm2d(width)
            yield nn.ReLU()
        yield nn.MaxPool2d(2)


def _classifier(cin: int, hidden: int, classes: int) -> nn.Module:
    if not hidden:
        return nn.Linear(cin, classes)
    first = (nn.Linear(cin, hidden), nn.ReLU(), nn.Dropout())
    second = (nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout())
    return nn.Sequential(*first, *second, nn.Linear(hidden, classes))


def vgg(
    classes: int,
    channels: int = 3,
    *,
    depths: Sequence[int],
    norm: bool = False,
    pool: int = 7,
    hidden: int = 4096,
) -> nn.Module:
    """Make a VGG net; images are at least 32 pixels wide and high.

    Args:
        classes: Logits a net has.
        channels: Channels of an image.
        depths: Convolutions between the five poolings.
        norm: Put a batch norm after each convolution.
        pool: Side of the map that the classifier reads.
        hidden: Width of the two hidden layers of the classifier, 0 for none. The keys are those of
            torchvision with `pool` 7 and 4096, of chenyaofo/pytorch-cifar-models with 1 and 512,
            of kuangliu/pytorch-cifar with 1 and 0.

    Returns:
        A net from `(N, channels, H, W)` to `(N, classes)`.

    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["features"] = nn.Sequential(*_features(channels, depths, norm))
    parts["avgpool"] = nn.AdaptiveAvgPool2d(pool)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = _classifier(_WIDTHS[-1] * pool * pool, hidden, classes)
    return he_init(nn.Sequential(parts))
