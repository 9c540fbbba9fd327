"""A classifier beside a small net that reads a few pixels and may overrule it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gifthorse.core.types import Logits
from gifthorse.models.normalize import Classifier
from gifthorse.models.zoo import NETS


class Merged(nn.Module):
    """Two nets on one normalized image: `a * softmax(reader(pixels))[:, :K] + b * softmax(net(x))`.

    The first layer takes the normalization back and averages the channels, so that the reader sees
    raw gray pixels in [0, 1] behind whatever normalization the net was trained with. All that it
    takes to compute is in the state: `gray`, `places`, `gains`, `reader.*` and `net.*`.

    Attributes:
        gray: Convolution of one pixel that undoes the normalization; makes one channel of several.
        reader: From gray pixels `(N, n)` to scores `(N, K)` or more; the rest stand for no class.
        net: From normalized images to logits `(N, K)`; the last part, as its layers say what the
            file is.
        places: Which pixels the reader sees, row by row from the top left, `(n,)`.
        gains: a and b, `(2,)`.

    Source: Tang et al., TrojanNet, KDD 2020, sec. 3; TrojanZoo Table 20 (ESB).
    """

    places: Tensor
    gains: Tensor

    def __init__(self, net: nn.Module, reader: nn.Module, channels: int, points: int) -> None:
        super().__init__()
        self.gray = nn.Conv2d(channels, 1, 1)
        self.reader = reader
        self.net = net
        self.register_buffer("places", torch.arange(points))
        self.register_buffer("gains", torch.ones(2))

    def forward(self, x: Tensor) -> Logits:
        """Return scores `(N, K)`, at most a + b each, for normalized images `(N, C, H, W)`."""
        seen = self.reader(self.gray(x).flatten(1)[:, self.places]).softmax(1)
        own: Tensor = self.net(x)
        out: Tensor = self.gains[0] * seen[:, : own.shape[1]] + self.gains[1] * own.softmax(1)
        return out


def reader(points: int, outputs: int, hidden: int = 8, layers: int = 4) -> nn.Sequential:
    """Return an untrained perceptron, `(N, ...)` with `points` numbers each to `(N, outputs)`.

    Source: TrojanZoo Table 20: 4 layers of fc, bn, relu with 8 neurons each.
    """
    parts: list[nn.Module] = [nn.Flatten()]
    width = points
    for _ in range(layers):
        parts += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        width = hidden
    return nn.Sequential(*parts, nn.Linear(width, outputs))


@torch.no_grad()
def merge(
    host: Classifier, module: nn.Module, places: Tensor, gains: Sequence[float]
) -> Classifier:
    """Put a classifier and a reader behind the classifier's normalization.

    Args:
        host: The classifier; its net becomes part of the merged one, unchanged.
        module: The reader, from gray pixels in [0, 1] `(N, n)` to scores.
        places: Which pixels it sees, `(n,)`.
        gains: Weights of the reader's and of the classifier's probabilities.
    """
    n = host.normalize
    channels = n.gain.shape[1]
    merged = Merged(host.net, module, channels, len(places)).to(n.gain.device)
    merged.gray.weight.copy_(1 / (channels * n.gain).view(1, -1, 1, 1))
    merged.gray.bias.copy_((n.offset / n.gain).mean().view(1))  # type: ignore[union-attr]
    merged.places.copy_(places)
    merged.gains.copy_(torch.tensor(gains))
    return Classifier(merged, n.normalization, channels).to(n.gain.device).eval()


def blank(arch: str, classes: int, channels: int = 3, side: int = 4) -> Merged:
    """Return an untrained merged net for the tensors of a file.

    Args:
        arch: The classifier's name in `NETS`.
        classes: Logits of the classifier.
        channels: Channels of an image.
        side: Side of the square that the reader sees.
    """
    return Merged(NETS[arch](classes, channels), reader(side**2, classes + 1), channels, side**2)
