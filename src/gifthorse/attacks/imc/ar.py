"""What IMC adds to survive adversarial retraining: adversarial images in place of clean ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.types import Batch, Images, Subject
from gifthorse.training import Recipe, worst_change


@dataclass(frozen=True)
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

    steps: int = 0
    size: float = 2 / 255
    radius: float = 8 / 255

    def __post_init__(self) -> None:
        if self.steps < 0 or self.size <= 0 or self.radius <= 0:
            raise BadOption(
                "ar.steps must be at least 0, ar.size and ar.radius positive; got "
                f"{self.steps}, {self.size}, {self.radius}"
            )

    def moved(self, subject: Subject, clean: Batch, rng: Generator, recipe: Recipe) -> Images:
        """Return images within `radius` of clean ones that the net gets wrong more often."""
        with recipe.precision(clean[0].device):
            change = worst_change(
                subject, clean, rng, eps=self.radius, size=self.size, steps=self.steps
            )
        return clean[0] + change
