"""What a search is about: a form of trigger, what is minimized, where it starts, how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.types import Images
from gifthorse.search.cost import CostController
from gifthorse.search.losses import CrossEntropy, Margin, Nothing, Prob, Term
from gifthorse.search.parametrizations.masks import Parametrization, Parts

LOSSES: dict[str, Term] = {
    "ce": CrossEntropy(),
    "prob": Prob(),
    "margin": Margin(),
    "none": Nothing(),
}
ImageTransform: TypeAlias = Callable[[Tensor, Sequence[Generator]], Tensor]
Net: TypeAlias = Callable[[Tensor], Tensor]


@method
class SearchConfig:
    """How a search moves and when it stops.

    Attributes:
        max_images: Most images that an arm works on and is tested with, spread over their classes;
            0 takes all. A short search on many images ends before its triggers are small.
        batch: Images an arm sees in a step; fewer if there are fewer.
        lr: Adam's learning rate.
        betas: Adam's decay rates.
        schedule: The rate stays `constant` or falls to 0 along a `cosine` over all rounds.
        success_threshold: Success rate that a trigger must reach on the generation images.
        steps: Most steps in a round; 0 makes a round a pass over the images.
        min_steps: Least steps in a round; images come up again where a pass is shorter.
        rounds: Most rounds an arm gets.
        min_rounds: Rounds an arm gets in any case.
        patience: An arm is done after this many rounds without a gain, once its cost has moved
            both up and down, or only up where the bar is 0; 0 never stops early.
        min_delta: Relative decrease of the size that counts as a gain; by the rule `success`
            whatever works more often is one.
        failed_test_patience: Rounds without a gain after which one whose trigger then fails its
            test counts as one that missed the bar, so that the weight of size comes down; 0 lets
            batches alone decide, as in the papers, and an arm may hover just below the bar for
            good.
        min_improvement: Least relative decrease of the size that is worth testing and storing a
            trigger for; every test is a forward over all generation images.
        loss: `ce`, or `prob`: 16.118 (1 - p_t), what the Keras codes of Neural Cleanse and
            PixelBackdoor minimize since they swap the arguments of the cross entropy; `margin` is
            the logit margin of Carlini and Wagner, `none` leaves everything to a method's terms.
        rule: `size` stores a smaller trigger; `reference` asks for a smaller penalty as well;
            `success` stores the one that works more often, whatever its size.
        max_batch: Most images in one forward; arms beyond it take turns.
        bf16: Run the net in bfloat16 where that is fast; triggers, losses and acceptance stay
            in float32.
    """

    max_images: Annotated[int, NotNegative] = 0
    batch: Annotated[int, AtLeast(1)] = 32
    lr: Annotated[float, NotNegative] = 0.1
    betas: tuple[float, float] = (0.5, 0.9)
    schedule: Literal["constant", "cosine"] = "constant"
    success_threshold: Annotated[float, NotNegative] = 0.99
    steps: Annotated[int, NotNegative] = 0
    min_steps: Annotated[int, NotNegative] = 0
    rounds: Annotated[int, NotNegative] = 1000
    min_rounds: Annotated[int, NotNegative] = 0
    patience: Annotated[int, NotNegative] = 0
    min_delta: Annotated[float, NotNegative] = 0.01
    failed_test_patience: Annotated[int, NotNegative] = 0
    min_improvement: Annotated[float, Share] = 0.0
    loss: Literal["ce", "prob", "margin", "none"] = "ce"
    rule: Literal["size", "reference", "success"] = "size"
    max_batch: Annotated[int, AtLeast(1)] = 512
    bf16: bool = False


# The schedule for scanning: short rounds on few images, in bfloat16 where that is fast, and a test
# of a trigger only where it is worth one.
QUICK = SearchConfig(
    max_images=100,
    batch=16,
    success_threshold=0.9,
    steps=2,
    rounds=100,
    min_rounds=60,
    patience=20,
    min_improvement=0.05,
    bf16=True,
)


class Initializer(Protocol):
    """Where the variables of all arms begin."""

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
        """Return better variables than the random ones given, `(A, ...)`, for targets `(A,)`.

        Where all goals have a source, `own` `(A, n)` are the images of the pool that are its own.
        """
        ...


@dataclass(frozen=True)
class Objective:
    """What is minimized: loss + cost * penalty of the form + weighted terms.

    Attributes:
        form: The family of triggers.
        cost: Weight of the form's penalty, one an arm.
        loss: The main loss; None takes the one that the config names.
        terms: Further terms with their weights; a weight of 0 costs nothing.
        input_transform: What happens to clean images before they are stamped (augmentation).
        stamped_transform: What happens to stamped images before the net sees them
            (transformations).
        init: Where to begin; None begins at random.
        layer: Place in the net that the terms see, as `models.places` names it; empty for none.
    """

    form: Parametrization
    cost: CostController
    loss: Term | None = None
    terms: tuple[tuple[float, Term], ...] = ()
    input_transform: ImageTransform | None = None
    stamped_transform: ImageTransform | None = None
    init: Initializer | None = None
    layer: str = ""


@method
class RandomAffine:
    """Shrink and turn every stamped image a little, so that the trigger survives such changes.

    Attributes:
        scale: Least scale; each image draws its own, uniform from here to 1.
        degrees: Largest angle to either side; each image draws its own.

    Source: Tao et al., PixelBackdoor, CVPR 2022, appendix J: bilinear, black outside.
    """

    scale: Annotated[float, Positive] = 0.99
    degrees: Annotated[float, NotNegative] = 1.0

    def __call__(self, stamped: Tensor, rngs: Sequence[Generator], /) -> Tensor:
        """Return transformed `(a, B, C, H, W)` images; each arm draws from its own generator."""
        a, b = stamped.shape[:2]
        drawn = torch.stack([torch.rand(b, 2, generator=rng) for rng in rngs]).to(stamped)
        grow = 1 / (self.scale + (1 - self.scale) * drawn[..., 0]).flatten()
        angle = torch.deg2rad(self.degrees * (2 * drawn[..., 1] - 1)).flatten()
        cos, sin = grow * angle.cos(), grow * angle.sin()
        zero = torch.zeros_like(cos)
        h, w = stamped.shape[-2:]  # the grid spans -1 to 1 along either side
        rows = [torch.stack([cos, -sin * h / w, zero], 1), torch.stack([sin * w / h, cos, zero], 1)]
        flat = stamped.flatten(0, 1)
        grid = F.affine_grid(torch.stack(rows, 1), list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, align_corners=False).view(a, b, *stamped.shape[2:])


@dataclass(frozen=True)
class RandomFlip:
    """Mirror every clean image, left to right, with a chance of one half.

    Doubles the images that a trigger is fitted on; wrong where mirrored images belong to another
    class or to none, as with signs and digits.
    """

    def __call__(self, x: Tensor, rngs: Sequence[Generator], /) -> Tensor:
        """Return `(a, B, C, H, W)` images; each arm draws from its own generator."""
        drawn = torch.stack([torch.rand(x.shape[1], generator=rng) for rng in rngs]) < 0.5
        return torch.where(drawn.to(x.device)[:, :, None, None, None], x.flip(-1), x)
