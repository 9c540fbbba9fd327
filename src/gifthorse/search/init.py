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

SOURCED = 64  # images of all sources together that a patch is tried on
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
        own: Tensor | None = None,
    ) -> Parts:
        """Return variables that show, in every arm, the best patch of its target.

        With `own`, the images of each arm's source, it is the best one for those.
        """
        if own is None:
            found = self.best_patches(net, pool, rng)
            return FromPatches(found)(net, pool, target, form, variables, rng)
        sources, arm = own.unique(dim=0, return_inverse=True)
        each = min(max(1, self.images // 4), max(1, SOURCED // len(sources)), sources.shape[1])
        x = pool[sources[:, :each]]  # (S, m, C, H, W)
        pattern, support = self._best(net, x, rng, (arm, target))
        return form.init_from(variables, pattern, support)

    def best_patches(self, net: Net, pool: Images, rng: Generator) -> BestPatches:
        """Return the best patch of each class for a net on raw images `(N, C, H, W)`."""
        order = torch.randperm(len(pool), generator=rng)[: self.images].to(pool.device)
        return BestPatches(*self._best(net, pool[order][None], rng))

    @torch.no_grad()
    def _best(
        self, net: Net, x: Tensor, rng: Generator, of: tuple[Tensor, Tensor] | None = None
    ) -> Parts:
        """Return pattern and support of the best patch of each class, or of groups and classes.

        Args:
            net: Gives logits.
            x: Groups of images, `(S, m, C, H, W)`; a patch has a mean gain for each of them.
            rng: Draws the noise.
            of: Groups and classes `(A,)` that are asked for; None for every class of one group.
        """
        groups, channels, (height, width) = len(x), x.shape[2], x.shape[3:]
        flat = x.flatten(0, 1)
        side = max(2, round(min(height, width) * self.side))
        inks = _inks(channels, side, rng).to(x)
        corners = _grid(height, width, side)
        base = net(flat).log_softmax(1).view(groups, x.shape[1], -1).mean(1)
        gains = []
        for ink in inks:
            for some in corners.split(max(1, fitting(flat, self.max_batch) // len(flat))):
                breathe()
                stamped = flat.repeat(len(some), 1, 1, 1, 1)
                for row, (top, left) in enumerate(some.tolist()):
                    stamped[row, :, :, top : top + side, left : left + side] = ink
                scores = net(stamped.flatten(0, 1)).log_softmax(1)
                gains.append(scores.view(len(some), groups, x.shape[1], -1).mean(2) - base)
        best = torch.cat(gains).max(0).indices  # (S, K)
        rows = best[0] if of is None else best[of]
        pattern = x.new_zeros(len(rows), channels, height, width)
        support = torch.zeros(len(rows), 1, height, width, dtype=torch.bool, device=x.device)
        for k, row in enumerate(rows.tolist()):
            top, left = corners[row % len(corners)].tolist()
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            pattern[k][window] = inks[row // len(corners)]
            support[k][window] = True
        return pattern, support


@dataclass(frozen=True, eq=False)
class FromPatches:
    """Begin with the patch of every arm's target that was found before."""

    patches: BestPatches

    def __call__(
        self,
        net: Net,
        pool: Images,
        target: Tensor,
        form: Parametrization,
        variables: Parts,
        rng: Generator,
        own: Tensor | None = None,
    ) -> Parts:
        """Return variables that show the patch of its target in every arm."""
        pattern, support = self.patches.pattern[target], self.patches.support[target]
        return form.init_from(variables, pattern, support)


@method
class SquareInit:
    """Begin with an opaque square in the middle, of whatever colors the variables have.

    Attributes:
        area: Pixels that it may cover.

    Source: Liu et al., ABS, CCS 2019, released code. Differs: in the middle, not in a corner.
    """

    area: Annotated[int, AtLeast(1)] = 16

    def __call__(
        self,
        net: Net,
        pool: Images,
        target: Tensor,
        form: Parametrization,
        variables: Parts,
        rng: Generator,
        own: Tensor | None = None,
    ) -> Parts:
        """Return variables that are opaque on the square, in every arm."""
        height, width = pool.shape[-2:]
        side = min(height, width, int(self.area**0.5))
        top, left = (height - side) // 2, (width - side) // 2
        support = torch.zeros(len(target), 1, height, width, dtype=torch.bool, device=pool.device)
        support[..., top : top + side, left : left + side] = True
        return form.init_from(variables, form.decode(variables)[1], support)


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
