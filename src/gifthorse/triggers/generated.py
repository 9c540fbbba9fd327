"""A trigger that two nets make for each image, and the nets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.tensors import called
from gifthorse.core.types import Images, Shape


@dataclass(frozen=True, eq=False)
class Generated:
    """Replace pixels by what one net paints, where another net says: `T(x) = x + M(x) (P(x) - x)`.

    With outputs g and m of the nets, `P = tanh(g) / 2 + 0.5` and `M = tanh(10 tanh(m)) / 2 + 0.5`,
    times the strength. The same image gets the same trigger as long as the nets are in evaluation
    mode; an attack that trains them puts them into training mode and back.

    Attributes:
        patterns: The net that paints, `(N, C, H, W)` to `(N, C, H, W)`.
        masks: The net that says where, `(N, C, H, W)` to `(N, 1, H, W)`.
        example: An image `(C, H, W)` in [0, 1]; its trigger is shown as the picture.
        order: Where each pixel of pattern and mask is taken from, `(H * W,)` int64; in order
            unless the trigger is shuffled.
        strength: Opacity where the mask is 1, in [0, 1].

    Source: Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020,
    and its public code.
    Differs: `strength` and `order` are ours.
    """

    patterns: nn.Module
    masks: nn.Module
    example: Tensor
    order: Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise BadOption(f"strength must lie in [0, 1], 1 replaces pixels; got {self.strength}")

    def pattern(self, x: Images) -> Tensor:
        """Return what is painted on each of `(N, C, H, W)` images, same shape, in [0, 1]."""
        return self._placed(torch.tanh(called(self.patterns, x).to(x.dtype)) / 2 + 0.5)

    def mask(self, x: Images) -> Tensor:
        """Return the opacity of the pixels of each image, `(N, 1, H, W)` in [0, 1]."""
        return self.strength * self._placed(sharpened(called(self.masks, x).to(x.dtype)))

    def __call__(self, x: Images, /) -> Images:
        """Return copies of `(N, C, H, W)` images, each with its own trigger."""
        return self.swapped(x, x)

    def swapped(self, x: Images, donors: Images) -> Images:
        """Return copies of `(N, C, H, W)` images, each with the trigger of its donor."""
        return torch.lerp(x, self.pattern(donors), self.mask(donors))

    def shuffled(self, rng: Generator, /) -> Generated:
        """Return the same colors and opacities of each image at shuffled pixels."""
        shuffle = torch.randperm(len(self.order), generator=rng).to(self.order.device)
        return replace(self, order=self.order[shuffle])

    def render(self) -> tuple[Tensor, Tensor]:
        """Return pattern and mask of the example."""
        with torch.no_grad():
            return self.pattern(self.example[None])[0], self.mask(self.example[None])[0]

    def _placed(self, planes: Tensor) -> Tensor:
        return planes.flatten(2)[:, :, self.order.to(planes.device)].view_as(planes)


def sharpened(m: Tensor) -> Tensor:
    """Return masks in [0, 1], most values close to 0 or 1, from a net's output of any size.

    Source: the public code of Input-Aware Dynamic.

    Example:
        >>> sharpened(torch.tensor([-9.0, 0.0, 9.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return torch.tanh(10 * torch.tanh(m)) / 2 + 0.5


class Autoencoder(nn.Module):
    """Image in, planes of the same size out, through a narrow middle and without shortcuts.

    Each stage has two convolutions with BatchNorm and ReLU and halves the size; as many stages
    bring it back by bilinear interpolation. The last convolution has no ReLU.

    Args:
        channels: Channels of the images.
        planes: Planes that come out.
        width: Channels of the first stage; each further one has twice as many.
        stages: How often the size is halved; odd sizes are rounded down, and come back exactly.

    Source: Input-Aware Dynamic, its public code. Differs: any image size, see `fitting`.
    """

    def __init__(self, channels: int, planes: int, width: int, stages: int) -> None:
        super().__init__()
        inner = [width * 2**i for i in range(stages)]
        wider = zip([channels, *inner], inner, strict=False)
        narrower = zip(reversed(inner), [*inner[-2::-1], planes], strict=True)
        self.down = nn.ModuleList(nn.Sequential(*_layer(a, b), *_layer(b, b)) for a, b in wider)
        self.middle = nn.Sequential(*_layer(inner[-1], inner[-1]))
        self.up = nn.ModuleList(nn.Sequential(*_layer(a, a), *_layer(a, b)) for a, b in narrower)
        self.up[-1] = nn.Sequential(*_layer(width, width), *_layer(width, planes)[:-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.3x as fast

    def forward(self, x: Tensor) -> Tensor:
        """Return planes `(N, planes, H, W)`, unbounded, for images `(N, channels, H, W)`."""
        sizes = []
        for stage in self.down:
            sizes.append(x.shape[-2:])
            x = F.max_pool2d(stage(x), 2)
        x = self.middle(x)
        for stage in self.up:
            x = stage(F.interpolate(x, sizes.pop(), mode="bilinear", align_corners=False))
        return x

    @classmethod
    def fitting(cls, shape: Shape, planes: int) -> Autoencoder:
        """Return a net for images of `shape`: as many stages as halve both sides without rest.

        At most three, with 32 channels in the first; if fewer, 16; at least one, even if a side is
        odd. The narrowest place keeps at least three pixels a side.

        Raises:
            NotApplicable: If the images have fewer than six pixels a side.
        """
        channels, H, W = shape
        if min(H, W) < 6:
            raise NotApplicable(f"generated triggers need images of 6 pixels a side; got {H}x{W}")
        whole = [s for s in (1, 2, 3) if H % 2**s == W % 2**s == 0 and min(H, W) >= 3 * 2**s]
        stages = max(whole, default=1)
        return cls(channels, planes, 32 if stages == 3 else 16, stages)

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> Autoencoder:
        """Return a net, in evaluation mode, with the weights that `state_dict` returned."""
        stages = len({name.split(".")[1] for name in state if name.startswith("down.")})
        first, last = state["down.0.0.weight"], state[f"up.{stages - 1}.3.weight"]
        net = cls(first.shape[1], len(last), len(first), stages)
        net.load_state_dict(dict(state))
        return net.eval().requires_grad_(False)


def _layer(channels: int, planes: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, planes, 3, padding=1),
        nn.BatchNorm2d(planes, momentum=0.05),
        nn.ReLU(),
    ]
