"""Where to start a search: small plain patches, stamped all over, forward passes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, PositiveShare, method
from gifthorse.core.memory import fitting
from gifthorse.core.pacing import breathe
from gifthorse.core.types import Images
from gifthorse.search.objective import Net
from gifthorse.search.parametrizations.masks import Parametrization, Parts

# Colors a sticker may have; the last two rows of a patch set are a checkerboard and noise.
_COLORS = ((1, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))


@dataclass(frozen=True, eq=False)
class BestPatches:
    """For each class the patch that speaks most for it.

    Attributes:
        pattern: `(K, C, H, W)` in [0, 1], zero off the patch.
        support: `(K, 1, H, W)` bool.
    """

    pattern: Tensor
    support: Tensor


@method
class PatchInit:
    """Try patches of a few plain colors on a grid and keep the best one of every class.

    A random start of an inversion may never meet a small opaque trigger: what it needs is a full
    patch at the right place, while natural features pull from everywhere. One forward pass tells
    about all classes at once, so the cost does not grow with their number. Every class gets a
    start in the same way, so a clean model gains no outlier from it.

    Attributes:
        side: Side of a patch as a share of the image's.
        images: Clean images that each patch is tried on.
        max_batch: Most images in one forward.
    """

    side: Annotated[float, PositiveShare] = 0.125
    images: Annotated[int, AtLeast(1)] = 8
    max_batch: Annotated[int, AtLeast(1)] = 512

    def __call__(
        self,
        net: Net,
        pool: Images,
        target: Tensor,
        form: Parametrization,
        variables: Parts,
        rng: Generator,
    ) -> Parts:
        """Return variables that show, in every arm, the best patch of its target."""
        patches = self.best_patches(net, pool, rng)
        return form.init_from(variables, patches.pattern[target], patches.support[target])

    @torch.no_grad()
    def best_patches(self, net: Net, pool: Images, rng: Generator) -> BestPatches:
        """Return the best patch of each class for a net on raw images `(N, C, H, W)`."""
        n, channels, height, width = pool.shape
        order = torch.randperm(n, generator=rng)[: self.images].to(pool.device)
        x = pool[order]
        side = max(2, round(min(height, width) * self.side))
        inks = _inks(channels, side, rng).to(pool)
        corners = _grid(height, width, side)
        base = net(x).log_softmax(1).mean(0)
        gains = []
        for ink in inks:
            for some in corners.split(max(1, fitting(x, self.max_batch) // len(x))):
                breathe()
                stamped = x.repeat(len(some), 1, 1, 1, 1)
                for row, (top, left) in enumerate(some.tolist()):
                    stamped[row, :, :, top : top + side, left : left + side] = ink
                scores = net(stamped.flatten(0, 1)).log_softmax(1)
                gains.append(scores.view(len(some), len(x), -1).mean(1) - base)
        gain, best = torch.cat(gains).max(0)  # (K,)
        pattern = pool.new_zeros(len(gain), channels, height, width)
        support = torch.zeros(len(gain), 1, height, width, dtype=torch.bool, device=pool.device)
        for k, row in enumerate(best.tolist()):
            top, left = corners[row % len(corners)].tolist()
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            pattern[k][window] = inks[row // len(corners)]
            support[k][window] = True
        return BestPatches(pattern, support)


def _inks(channels: int, side: int, rng: Generator) -> Tensor:
    """Return the patches `(I, C, s, s)`: plain colors, a checkerboard, noise."""
    colors = _COLORS if channels == 3 else _COLORS[:2]
    plain = [
        torch.tensor(c[:channels]).float().view(-1, 1, 1).expand(-1, side, side) for c in colors
    ]
    board = (torch.arange(side)[:, None] + torch.arange(side)) % 2
    noise = torch.rand(channels, side, side, generator=rng)
    return torch.stack([*plain, board.float().expand(channels, side, side), noise])


def _grid(height: int, width: int, side: int) -> Tensor:
    """Return top left corners `(P, 2)`, half a side apart, the last ones flush with the border."""
    step = max(1, side // 2)
    rows = sorted({*range(0, height - side, step), height - side})
    cols = sorted({*range(0, width - side, step), width - side})
    return torch.cartesian_prod(torch.tensor(rows), torch.tensor(cols))
