"""What IMC adds to survive adversarial retraining: adversarial images in place of clean ones."""

from __future__ import annotations

from typing import Annotated

from torch import Generator

from gifthorse.core.fields import NotNegative, Positive, method
from gifthorse.core.types import Batch, Images, Subject
from gifthorse.training import Recipe, worst_change


@method
class AgainstAR:
    """Train on adversarial images in place of clean ones, beside the stamped ones.

    Attributes:
        steps: Steps of projected gradient descent for each batch; 0 turns it off, TrojanZoo uses 7.
        size: Length of a step, on the 0-1 scale.
        radius: How far a pixel may move.

    Source: TrojanZoo sec. 6.3 (IMC adapted to AR); Madry et al., ICLR 2018. Differs: one step of
    the net a batch, not one for each step of the images; the net is in evaluation mode while the
    images move.
    """

    steps: Annotated[int, NotNegative] = 0
    size: Annotated[float, Positive] = 2 / 255
    radius: Annotated[float, Positive] = 8 / 255

    def moved(self, subject: Subject, clean: Batch, rng: Generator, recipe: Recipe) -> Images:
        """Return images within `radius` of clean ones that the net gets wrong more often."""
        with recipe.precision(clean[0].device):
            change = worst_change(
                subject, clean, rng, eps=self.radius, size=self.size, steps=self.steps
            )
        return clean[0] + change
