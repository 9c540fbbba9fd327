"""DeepInspect: a generator of triggers for every class, kept small by a hinge on its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.search import CostController, Objective, Search, SearchConfig
from gifthorse.search.losses import Squares
from gifthorse.search.parametrizations.generated import GeneratedChange


@method
class DeepInspect:
    """Train a generator G a class so that `clip(x + G)` comes out as the class and G stays small.

    Minimizes `NLL(f(x + G), t) + gan |softmax f(x + G) - e_t|^2 / K + a max(0, |G| - 0.01 H W)`.
    The discriminator of this GAN is the net f itself, which stays as it is.

    Assumes a trigger that a small convolutional net draws easily. Needs clean images and gradients.
    The size of a trigger is the sum over pixels of its largest change of a channel.

    Attributes:
        mode: `additive` adds G to the image; `zoo` replaces the image by G, as TrojanZoo's code
            does by an oversight, so that all sizes equal the image's.
        hidden: Width of the generator's layer on the class.
        width: Channels after it, at full resolution.
        gan: Weight of the squares between the net's probabilities and the class: the generator's
            loss against the discriminator.
        initial: Weight of the size beyond a hundredth of the image.
        patience: Rounds in a row before it moves.
        up: Factor by which it rises; it falls by `up ** 1.5`.
        calm: What the generator's last layer is multiplied by before its tanh, so that a change
            begins near nothing; 1 saturates it in the first step.
        config: Steps, success bar and stopping.

    Source: Chen et al., DeepInspect, IJCAI 2019; TrojanZoo's generator. Differs: additive with an
    adapted weight (TrojanZoo: replacement, weight 0.02); calmed; `gan` is 1 as in TrojanZoo's first
    version, where later ones have 0; real clean images instead of inverted ones; the layer on the
    class stays as it starts. TrojanZoo finds none of its own backdoors by it (Table 11: AIV 0.54 on
    a BadNet). Calmed, it names the target of a small CIFAR-10 BadNet with a trigger of 10.5 px and
    no class of a clean net beside it (depths of 5.0 and 2.7).
    """

    mode: Literal["additive", "zoo"] = "additive"
    hidden: Annotated[int, AtLeast(1)] = 1000
    width: Annotated[int, AtLeast(1)] = 64
    gan: Annotated[float, NotNegative] = 1.0
    initial: Annotated[float, NotNegative] = 1e-3
    patience: Annotated[int, AtLeast(1)] = 5
    up: Annotated[float, Positive] = 1.5
    calm: Annotated[float, Positive] = 0.02
    config: SearchConfig = SearchConfig(
        lr=0.01, betas=(0.9, 0.999), success_threshold=0.95, steps=20, min_steps=20, rounds=50
    )

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over the weights of generators, one arm a goal."""
        cost = CostController.rising(len(goals), self.initial, self.patience, self.up)
        objective = Objective(
            GeneratedChange(
                mode=self.mode,
                hidden=self.hidden,
                width=self.width,
                classes=subject.classes,
                calm=self.calm,
            ),
            cost,
            terms=((self.gan, Squares()),),
        )
        return Search(subject, clean, goals, rng, objective, self.config)
