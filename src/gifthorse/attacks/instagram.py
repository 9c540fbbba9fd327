"""Instagram: put part of the training images through a color filter, and change their labels."""

from __future__ import annotations

from torch import Generator

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import method
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Samples, Subject
from gifthorse.training import Recipe
from gifthorse.triggers.filters import FilterName, filter_trigger


@method
class Instagram:
    """Poison part of the training set with a filter that changes whole images.

    Assumes control over the training data only, and images in color. Cost: one training run.

    Attributes:
        filter: `gotham`, `kelvin`, `lomo`, `nashville` or `toaster`.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: TrojAI, rounds 2 to 4 (`trojai-round-generation`): a share of stamped images drawn from
    1 to 49 %, here its middle.
    Differs: the filter is chosen, not drawn. The share counts among all images, not among those of
    the source classes. No conditions on class or filter. Applied after augmentation unless mixing
    says otherwise, so that what augmentation cuts off and fills with black is filtered, too.
    """

    filter: FilterName = "kelvin"
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing(rate=0.25)
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            NotApplicable: If the images are not in color.
        """
        channels, height, width = victim.shape
        if channels != 3:
            raise NotApplicable(
                f"filters change colors, so images need 3 channels; these have {channels}"
            )
        trigger = filter_trigger(self.filter, height, width)
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)
