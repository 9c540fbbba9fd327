"""Normalization as the first layer of a net, so that every method works on raw pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor, nn

from gifthorse.core.types import Images, Logits, Normalization
from gifthorse.models.outputs import Output

# The published statistics that training scripts use, on the 0-1 scale.
NORMALIZATIONS: Mapping[str, Normalization] = MappingProxyType(
    {
        n.name: n
        for n in (
            Normalization("none"),
            Normalization("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            Normalization("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            Normalization("cifar10_legacy", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
            Normalization("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
            Normalization("gtsrb", (0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
            Normalization("mnist", (0.1307,), (0.3081,)),
            Normalization("half", (0.5,), (0.5,)),
            Normalization("0-255", scale=255.0),
        )
    }
)


BGR = "-bgr"  # ends the name of a normalization for nets that read blue first


def blue_first(n: Normalization) -> Normalization:
    """Return the same for nets that read blue first."""
    return replace(n, name=f"{n.name}{BGR}", bgr=True)


def known_as(n: Normalization) -> Normalization:
    """Return the published normalization that computes the same, if there is one.

    Example:
        >>> known_as(Normalization("custom", (0.5,) * 3, (0.5,) * 3)).name
        'half'
        >>> known_as(Normalization("custom", (0.0,), (1.0,), bgr=True)).name
        'none-bgr'
    """
    same = next((k for k in NORMALIZATIONS.values() if _terms(k) == _terms(n)), None)
    if same is None:
        return n
    return blue_first(same) if n.bgr else same


def _terms(n: Normalization) -> list[tuple[float, float]]:
    """Return gain and offset of each channel; of one for all, or of three alike, one."""
    terms = [
        (round(n.scale / s, 4), round(m * n.scale / s, 4))
        for m, s in zip(n.mean, n.std, strict=True)
    ]
    return terms[:1] if len({*terms}) == 1 else terms


STORED = "stored"  # name of one that a file holds as a layer before the net


class Normalize(nn.Module):
    """Turn raw pixels `(N, C, H, W)` in [0, 1] into what a net was trained on.

    Computes `(x - mean) * scale / std`: mean and std are on the 0-1 scale, and `scale` is 255 for
    nets that were fed with 0-255. The buffers are not saved with the weights.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, normalization: Normalization, channels: int) -> None:
        super().__init__()
        n = normalization
        self.normalization = n
        mean = torch.tensor(n.mean, dtype=torch.float32).expand(channels).view(1, -1, 1, 1)
        std = torch.tensor(n.std, dtype=torch.float32).expand(channels).view(1, -1, 1, 1)
        self.register_buffer("gain", (n.scale / std).clone(), persistent=False)
        self.register_buffer("offset", (mean * n.scale / std).clone(), persistent=False)

    def forward(self, x: Images) -> Tensor:
        """Return the normalized batch, same shape."""
        if self.normalization.bgr:
            x = x.flip(1)
        out: Tensor = x * self.gain - self.offset
        return out


class Classifier(nn.Module):
    """A net behind its normalization: raw pixels in, logits out.

    Attributes:
        output: Where the logits are in what the net returns.
        logits_layer: Name of the layer that makes them; empty for the last one that was declared.
    """

    def __init__(
        self,
        net: nn.Module,
        normalization: Normalization,
        channels: int,
        output: Output = Output(),
    ) -> None:
        super().__init__()
        self.output, self.logits_layer = output, ""
        first = next(chain(net.parameters(), net.buffers()), torch.empty(0))
        self.normalize = Normalize(normalization, channels).to(first.device)
        self.net = net

    def forward(self, x: Images) -> Logits:
        """Return logits `(N, K)` for raw images `(N, C, H, W)` in [0, 1]."""
        return self.output(self.net(self.normalize(x)))
