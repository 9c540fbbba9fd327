"""ABS: stimulate neurons one by one, then invert a trigger for those that decide alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.types import (
    Goal,
    Inversion,
    Samples,
    Subject,
)
from gifthorse.inversion.suspects import ABSInversion
from gifthorse.search import (
    MaskPattern,
    PatchInit,
    SearchConfig,
)


@method
class ABS:
    """Maximize the activation of a suspect neuron over mask and pattern, one search a suspect.

    A neuron is suspect if forcing it up raises one class on nearly all images. Assumes a trigger
    that works through single neurons. Needs a few clean images of every class and a look inside
    the net. A trigger is opaque where its mask is one half and more, and its size the number of
    those pixels; a class without a suspect neuron, or whose triggers are too large or fail, has
    none.

    Attributes:
        layers: Where to stimulate: names of layers, for what they give, or with `:in` after them,
            for what they read; empty takes `spread` places.
        spread: How many of the places that convolutions and linear layers read are taken if none is
            named, evenly from the first to the last features.
        each: Clean images of every class to stimulate with.
        samples: Values that a neuron is forced to, from 0 upwards.
        reach: Those values go up to this times the layer's largest activation.
        share: A suspect must raise the same class on this share of the images.
        keep: Suspects kept of every layer, those of largest margin, no two of them of one class.
        others: Weight of the layer's other neurons, which ought to stay as they are.
        logit: Weight of the target's logit.
        limit: Pixels that a trigger may have before its size is punished.
        factor: Above `limit` times this it is punished harder, and no trigger is one.
        weights: The weights of size up to the limit, above it, and above `limit * factor`.
        enough: A class with a trigger that works this often is searched no further.
        config: Steps of the inversion; `success_threshold` is the success (REASR) that a trigger
            must reach.
        probe: Small plain patches tried at the start; None begins with the authors' opaque square
            of `limit` pixels.

    Source: Liu et al., ABS, CCS 2019, and its released codes (stimulation of sums and of what
    follows an activation, three suspects a layer, an opaque start on a transparent mask, no cost of
    size below the limit; of the one for TrojAI, no two suspects of a class and layer, the target's
    logit in the loss, 50 steps of 0.4 as 200 of 0.1, the end at 99 %), limit and bound of the one
    for images of 32 x 32; TrojanZoo has 16 pixels, a factor of 1.2 and 0.88. Differs: it starts
    from the patch that speaks most for the class instead of one square for all, which a trigger
    elsewhere never leaves: pixels grow at the rate of Adam, whatever they are good for, until the
    limit cuts them all; the loss is the neuron's, without that of the next layer; of a class's
    triggers the one that works most often counts.
    """

    layers: tuple[str, ...] = ()
    spread: Annotated[int, AtLeast(1)] = 4
    each: Annotated[int, AtLeast(1)] = 5
    samples: Annotated[int, AtLeast(2)] = 5
    reach: Annotated[float, Positive] = 8.0
    share: Annotated[float, Share] = 0.75
    keep: Annotated[int, AtLeast(1)] = 3
    others: Annotated[float, NotNegative] = 1e-4
    logit: Annotated[float, NotNegative] = 1.0
    limit: Annotated[int, NotNegative] = 64
    factor: Annotated[float, NotNegative] = 100 / 64
    weights: tuple[float, float, float] = (0.0, 500.0, 1000.0)
    enough: Annotated[float, Share] = 0.99
    config: SearchConfig = SearchConfig(
        batch=50,
        success_threshold=0.8,
        steps=10,
        min_steps=10,
        rounds=20,
        schedule="cosine",
        loss="none",
        rule="success",
    )
    probe: PatchInit | None = PatchInit()

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return an inversion with one arm a goal; its start is the stimulation."""
        return ABSInversion(self, subject, clean, goals, rng)

    @property
    def form(self) -> MaskPattern:
        """Return the family of its triggers: opaque on a transparent ground."""
        return MaskPattern(clear=True, hard=True)
