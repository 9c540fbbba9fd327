"""The options of a patch: how large, where, in which form and color."""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, Share, method
from gifthorse.core.types import Shape
from gifthorse.triggers.marks import Picture, mark
from gifthorse.triggers.patch import Ink, Patch, Place, Wandering, scatter, square, wandering


@method
class Stamp:
    """A patch trigger that is still to be drawn.

    Attributes:
        size: Side of the square, in pixels; `scatter` uses `size ** 2` single pixels.
        form: `square`, `scatter` (distinct pixels drawn once), `wandering` (a square at a new
            place in every image: TrojanZoo's TB), or `picture` (a drawing in a square).
        place: Where the square lies; corners keep one pixel of margin.
        ink: `white`, `black`, `checker`, or `random` colors.
        opacity: 1 replaces pixels, smaller values blend. Opacity is 1 minus TrojanZoo's alpha.
        picture: What is drawn: `apple`, `ring_text`, `tag`, `cross` or `checker`.
    """

    size: Annotated[int, AtLeast(1)] = 3
    form: Literal["square", "scatter", "wandering", "picture"] = "square"
    place: Place = "lower_right"
    ink: Ink = "white"
    opacity: Annotated[float, Share] = 1.0
    picture: Picture = "apple"

    def draw(self, shape: Shape, rng: Generator) -> Patch | Wandering:
        """Return the trigger for images of `shape`.

        Raises:
            BadOption: If it does not fit, or opacity is not in [0, 1].
        """
        if self.form == "wandering":
            return wandering(shape, self.size, self.ink, self.opacity, rng)
        return self.fixed(shape, rng)

    def fixed(self, shape: Shape, rng: Generator) -> Patch:
        """Return the trigger at one place, for attacks that shape it.

        Raises:
            BadOption: If it does not fit, wanders, or opacity is not in [0, 1].
        """
        if self.form == "wandering":
            raise BadOption("this attack shapes its trigger and needs a fixed place: form=square")
        if self.form == "scatter":
            return scatter(shape, self.size**2, self.ink, self.opacity, rng)
        full = square(shape, self.size, self.place, self.ink, self.opacity, rng)
        if self.form != "picture":
            return full
        drawn = mark(self.picture, self.size) * self.opacity
        mask = full.mask.masked_scatter(full.mask > 0, drawn)
        return Patch(full.pattern * (mask > 0), mask)
