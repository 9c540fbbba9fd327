"""Losses and further terms of a search: what is minimized beside the size of a trigger.

Every term maps a `Step` to one number an arm, `(a,)`, and never mixes arms. Terms that read
`parts` expect those of `MaskPattern`: a mask `(a, 1, H, W)` and a pattern `(a, C, H, W)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Images, Labels, Logits
from gifthorse.search.parametrizations.masks import Parts

PROB = -math.log(1e-7)  # 16.118, Keras clips probabilities at 1e-7
WINDOW, DEVIATION = 11, 1.5  # side of the SSIM window, and of the Gaussian in it
C1, C2 = 0.01**2, 0.03**2  # keep the quotients of SSIM finite


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a search, as a loss term sees it.

    Attributes:
        x: Clean images, (a, B, C, H, W).
        y: Their labels, (a, B).
        stamped: The same with each arm's trigger, (a, B, C, H, W).
        logits: What the net says of them, (a, B, K) float32.
        target: The arms' targets, (a,).
        arms: Their numbers, (a,).
        parts: The decoded trigger, differentiable, one row an arm.
        net: Logits for further images, (a, b, C, H, W) -> (a, b, K).
        features: Output of the watched layer on `stamped`, (a, B, ...), or None.
    """

    x: Images
    y: Labels
    stamped: Images
    logits: Logits
    target: Tensor
    arms: Tensor
    parts: Parts
    net: Callable[[Images], Logits]
    features: Tensor | None = None


Term: TypeAlias = Callable[[Step], Tensor]


# Losses: how far the net is from the target ------------------------------------------------------


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over the images of the cross entropy to the target."""

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)`, at least 0."""
        return _entropy(step.logits, step.target[:, None]).mean(1)


@dataclass(frozen=True)
class Prob:
    """Mean over the images of `16.118 (1 - p_t)`, p_t the target's probability.

    Source: the Keras codes of Neural Cleanse, PixelBackdoor and TABOR, which swap the arguments of
    the cross entropy: images far from the target hardly count, half-flipped ones dominate.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)` in [0, 16.118]."""
        p = _of_target(step.logits.softmax(-1), step.target)
        return PROB * (1 - p).mean(1)


@dataclass(frozen=True)
class Squares:
    """Mean over images and classes of `(p_k - [k = t])^2`, p the probabilities.

    Source: Chen et al., DeepInspect, IJCAI 2019, the loss of its generator against a discriminator
    that is fixed: the net under inspection. As TrojanZoo's first version wrote it, on probabilities
    where that took logits.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> step = SimpleNamespace(logits=torch.zeros(1, 1, 2), target=torch.tensor([0]))
        >>> Squares()(step).item()
        0.25
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)` in [0, 2 / K]."""
        p = step.logits.softmax(-1)
        wanted = F.one_hot(step.target, p.shape[-1])[:, None]
        return (p - wanted).square().mean((1, 2))


@dataclass(frozen=True, eq=False)
class Clipped:
    """Mean over the images of the cross entropy to the target, each clipped at beta.

    Images beyond beta have no gradient: a beta below the losses of an untouched trigger means that
    nothing ever moves.

    Attributes:
        beta: Most that one image counts, `(A,)`, one entry for every arm; infinite for no clip.

    Source: Shafahi et al., Universal Adversarial Training, AAAI 2020; PixelBackdoor, appendix B,
    eqs. 10 and 11.
    """

    beta: Tensor

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)` in [0, beta]."""
        beta = self.beta.to(step.logits)[step.arms, None]
        return _entropy(step.logits, step.target[:, None]).minimum(beta).mean(1)


@dataclass(frozen=True)
class Margin:
    """Mean over the images of `max(max_{k != t} z_k - z_t, -kappa)`, z the logits.

    Attributes:
        kappa: By how much the target must lead before an image counts as done.

    Source: Carlini and Wagner, S&P 2017, f_6; PixelBackdoor eq. 8.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> logits, target = torch.tensor([[[1.0, 4.0, 2.0], [5.0, 0.0, 1.0]]]), torch.tensor([0])
        >>> Margin(kappa=2.0)(SimpleNamespace(logits=logits, target=target)).item()  # 3 and -2
        0.5
    """

    kappa: float = 0.0

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)`, at least `-kappa`."""
        z = step.logits
        index = step.target[:, None, None].expand(*z.shape[:2], 1)
        others = z.scatter(2, index, -math.inf).amax(2)
        return (others - _of_target(z, step.target)).clamp_min(-self.kappa).mean(1)


@dataclass(frozen=True)
class Nothing:
    """No loss, for methods whose terms say it all."""

    def __call__(self, step: Step) -> Tensor:
        """Return zeros `(a,)` that depend on every part, so that all gradients exist."""
        return step.stamped[:, :1].flatten(1).sum(1) * 0  # not the logits: saves a backward


# Terms on the images -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """Mean over the images of the squared L2 distance that the trigger moves them.

    Source: Carlini and Wagner, S&P 2017; PixelBackdoor eq. 7.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the distance of each arm, `(a,)`, at least 0."""
        return (step.stamped - step.x).square().flatten(2).sum(2).mean(1)


@dataclass(frozen=True)
class Similarity:
    """Minus the mean structural similarity (SSIM) of clean and stamped images.

    An 11x11 Gaussian window of deviation 1.5, zeros beyond the edges, constants 0.01^2 and 0.03^2;
    mean over images, channels and pixels.

    Source: Wang et al., SSIM, TIP 2004; USB (arXiv 2302.00747), eq. 1.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the term of each arm, `(a,)` in [-1, 1]; -1 if nothing changed."""
        x, y = step.x, step.stamped
        mean_x, mean_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
        products, squares = mean_x * mean_y, mean_x**2 + mean_y**2
        structure = (2 * (xy - products) + C2) / (xx + yy - squares + C2)
        similar: Tensor = (2 * products + C1) / (squares + C1) * structure
        return -similar.mean((1, 2, 3, 4))


def _blurred(images: Tensor) -> Tensor:
    """Return `(..., H, W)` under the window, one banded matrix for rows and one for columns."""
    rows, columns = (_window(side, images.dtype, images.device) for side in images.shape[-2:])
    return rows @ images @ columns


@cache  # copying it to a device in every step would wait for that device
def _window(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the symmetric `(side, side)` matrix that blurs a line, zeros beyond its ends."""
    away = torch.arange(side, dtype=torch.float64)[:, None] - torch.arange(side)
    reach = WINDOW // 2
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window = _bell(away) / _bell(line).sum() * (away.abs() <= reach)
    return window.to(device, dtype)


def _bell(x: Tensor) -> Tensor:
    return torch.exp(-(x**2) / (2 * DEVIATION**2))


# TABOR: masks and patterns that look like a trigger ----------------------------------------------


@dataclass(frozen=True)
class Elastic:
    """`|v|_1 + |v|_2^2` of the mask (R1a) or of the pattern outside it, `(1 - m) p` (R1b).

    Attributes:
        part: `mask` or `outside`.
        scale: What v is multiplied by; 255 for patterns as TABOR's own weights expect them.

    Source: Guo et al., TABOR, ICDM 2020, R1; TrojanZoo, Table 21.
    """

    part: Literal["mask", "outside"]
    scale: float = 1.0

    def __call__(self, step: Step) -> Tensor:
        """Return the term of each arm, `(a,)`, at least 0."""
        v = _part(step.parts, self.part).flatten(1) * self.scale
        return v.abs().sum(1) + v.square().sum(1)


@dataclass(frozen=True)
class Roughness:
    """Squared differences of neighbors in the mask (R2a) or in the pattern outside it (R2b).

    Attributes:
        part: `mask` or `outside`.
        scale: What the values are multiplied by; 255 for patterns as TABOR's own weights expect.

    Source: Guo et al., TABOR, ICDM 2020, R2; TrojanZoo, Table 21.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> mask = torch.tensor([[0.0, 1.0], [0.0, 0.5]]).view(1, 1, 2, 2)
        >>> Roughness("mask")(SimpleNamespace(parts=(mask, mask))).item()  # 0.25 down, 1.25 across
        1.5
    """

    part: Literal["mask", "outside"]
    scale: float = 1.0

    def __call__(self, step: Step) -> Tensor:
        """Return the term of each arm, `(a,)`, at least 0."""
        v = _part(step.parts, self.part) * self.scale
        down, across = v.diff(dim=-2), v.diff(dim=-1)
        return down.square().flatten(1).sum(1) + across.square().flatten(1).sum(1)


@dataclass(frozen=True)
class Blocking:
    """Cross entropy to the true labels of images with the mask blacked out, `(1 - m) x` (R3).

    A trigger must not win by hiding the object. Costs a second run through the net.

    Source: Guo et al., TABOR, ICDM 2020, R3.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the mean loss of each arm, `(a,)`, at least 0."""
        masked = (1 - step.parts[0].unsqueeze(1)) * step.x
        return _entropy(step.net(masked), step.y).mean(1)


@dataclass(frozen=True)
class Alone:
    """Cross entropy to the target of the trigger on black, `m p`: it must be enough (R4).

    Source: Guo et al., TABOR, ICDM 2020, R4. Differs: runs the one image once, not once for every
    image of the batch.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the loss of each arm, `(a,)`, at least 0."""
        mask, pattern = step.parts
        logits = step.net((mask * pattern).unsqueeze(1))  # (a, 1, K)
        return _entropy(logits, step.target[:, None])[:, 0]


# ABS: wake one neuron with a mask of a given size ------------------------------------------------


@dataclass(frozen=True, eq=False)
class Activation:
    """Minus the activation of one channel plus a little of all others, in a watched layer.

    With `h = a + relu(a)`: `-sum h_j + others * sum_{j' != j} h_j'`. Both are sums over batch and
    space, divided by nothing, so the term grows with the number of images and the size of the
    layer's output, as published.

    Attributes:
        neuron: j, the channel of every arm, `(A,)` int64.
        others: Weight of the other channels.

    Source: Liu et al., ABS, CCS 2019, in the version of TrojanZoo's code.
    """

    neuron: Tensor
    others: float = 1e-4

    def __call__(self, step: Step) -> Tensor:
        """Return the term of each arm, `(a,)`.

        Raises:
            BadOption: If the search watches no layer.
        """
        if step.features is None:
            raise BadOption("a neuron's activation was asked for without a layer: name its layer")
        h = step.features + step.features.relu()  # (a, B, J, ...)
        each = h.transpose(1, 2).flatten(2).sum(2)  # (a, J)
        chosen = self.neuron.to(each.device)[step.arms, None]
        wanted = each.gather(1, chosen)[:, 0]
        return self.others * each.scatter(1, chosen, 0).sum(1) - wanted


@dataclass(frozen=True)
class Logit:
    """Minus the sum over the images of the target's logit.

    Source: Liu et al., ABS, CCS 2019, in the version of their code for TrojAI.
    """

    def __call__(self, step: Step) -> Tensor:
        """Return the term of each arm, `(a,)`."""
        return -_of_target(step.logits, step.target).sum(1)


@dataclass(frozen=True)
class StepwiseSize:
    """`w |m|_1`, where w is small for a small mask and prohibitive for a large one.

    Attributes:
        limit: Pixels that a mask may cover; those above 0.01 count.
        factor: Beyond `factor * limit` pixels the last weight holds.
        weights: w up to the limit, above it, and above `factor` times it.

    Source: Liu et al., ABS, CCS 2019; values of TrojanZoo's code (its paper's Table 21 differs).
    """

    limit: int = 16
    factor: float = 1.2
    weights: tuple[float, float, float] = (0.01, 500.0, 1000.0)

    def __call__(self, step: Step) -> Tensor:
        """Return the weighted size of each arm's mask, `(a,)`, at least 0."""
        mask = step.parts[0].flatten(1)
        covered = (mask > 0.01).sum(1)
        small, medium, large = (mask.new_tensor(w) for w in self.weights)
        weight = small.where(covered <= self.limit, medium)
        return large.where(covered > self.factor * self.limit, weight) * mask.sum(1)


def _entropy(logits: Logits, labels: Labels) -> Tensor:
    """Return the cross entropy `(a, b)` of logits `(a, b, K)` to labels `(a, b)` or `(a, 1)`."""
    labels = labels.expand(logits.shape[:2])
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def _of_target(values: Tensor, target: Tensor) -> Tensor:
    """Return from `(a, B, K)` the target's column, `(a, B)`."""
    return values.gather(2, target[:, None, None].expand(*values.shape[:2], 1))[..., 0]


def _part(parts: Parts, which: Literal["mask", "outside"]) -> Tensor:
    """Return the mask or the pattern outside it."""
    mask, pattern = parts
    return mask if which == "mask" else (1 - mask) * pattern
