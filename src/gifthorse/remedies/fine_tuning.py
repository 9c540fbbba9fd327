"""Fine-tuning: train on, with clean images alone; what every other repair is measured against."""

from __future__ import annotations

from torch import Generator

from gifthorse.core.fields import method
from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.training import Recipe, fit


@method
class FineTuning:
    """Train the net on with clean images.

    Cost: `recipe.epochs` passes over the clean images. A trigger that no clean image resembles is
    hardly forgotten at a low rate, since nothing in the images speaks against it.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        recipe: How the net is tuned; with `recipe.part` only the last layer or those before it.

    Source: Liu et al., Fine-Pruning, RAID 2018, where it is the baseline; BackdoorBench `ft` (100
    epochs of SGD at 0.01 on a cosine). Differs: Nesterov momentum; batches of 128.
    """

    recipe: Recipe = Recipe(epochs=100, lr=0.01, schedule="cosine")

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net.

        An interrupted training goes on from what the run kept of it.

        Raises:
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        return fit(subject, clean, self.recipe, rng, run)
