"""Images whose classes are numbered in another order than the model's: noticed, used on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gifthorse.core.metrics import accuracy
from gifthorse.core.types import Labels, Rate
from gifthorse.data.gallery import Gallery
from gifthorse.workflows.sanity import Row, SanityThresholds, trusted

SHOWN = 8  # classes that are named in words


@dataclass(frozen=True)
class ClassOrder:
    """An order of the classes under which a model does its job on the images.

    Attributes:
        places: For each class of the images, the class of the model.
        accuracy: On the images that the order was not found by.
        normalization: Name of the one that it was found under.
    """

    places: tuple[int, ...]
    accuracy: Rate
    normalization: str

    def of(self, y: Labels) -> Labels:
        """Return labels in the model's numbers."""
        return torch.tensor(self.places)[y]

    def renumbered(self, gallery: Gallery) -> Gallery:
        """Return a gallery with its class names in the model's order, and a note on that."""
        names = dict(zip(self.places, gallery.class_names, strict=False))
        told = tuple(names.get(k, "") for k in range(len(self.places)))
        words = f"classes renumbered by what the model says of them, on request: {self.words}"
        named = told if gallery.class_names else ()
        return replace(gallery, class_names=named, notes=(*gallery.notes, words))

    @property
    def words(self) -> str:
        """What it is, in words."""
        moved = [f"{k} is its {place}" for k, place in enumerate(self.places) if k != place]
        more = f" and {len(moved) - SHOWN} more" * (len(moved) > SHOWN)
        return f"{', '.join(moved[:SHOWN])}{more}"

    @property
    def hint(self) -> str:
        """What to tell whose images have other numbers."""
        a = self.accuracy
        return (
            f"The classes seem to be numbered in another order than the model's: with "
            f"normalize={self.normalization} it is right on {a.value:.1%} [{a.low:.0%}, "
            f"{a.high:.0%}] of images that this order was not found by ({self.words}). Number them "
            "as the model does, or give --class-order found."
        )


def found_order(rows: Sequence[Row], y: Labels, thresholds: SanityThresholds) -> ClassOrder | None:
    """Return an order of classes under which a model that fails on the images does its job.

    The order is the assignment of classes to classes with most agreement on one half of the
    images; it counts only if the other half then meets what a sane model must.

    Args:
        rows: The normalizations that were tried.
        y: The images' labels.
        thresholds: What counts as sane.

    Returns:
        The best over the normalizations; None if there is none, or none is needed.

    Source: the assignment problem, Kuhn 1955, as scipy.optimize.linear_sum_assignment solves it.
    """
    classes = rows[0].logits.shape[1]
    if any(trusted(row.tried.accuracy, classes, thresholds) for row in rows):
        return None
    half = _halved(y)
    best: ClassOrder | None = None
    for row in rows:
        said = row.logits.argmax(1).cpu()
        order = ClassOrder(_assigned(said[half], y[half], classes), Rate(0, 0, 0, 0), "")
        rate = accuracy(said[~half], order.of(y[~half]))
        name = row.tried.normalization.name
        if best is None or rate.value > best.accuracy.value:
            whole = _assigned(said, y, classes)
            best = ClassOrder(whole, rate, name)
    return best if best and trusted(best.accuracy, classes, thresholds) else None


def _halved(y: Labels) -> torch.Tensor:
    """Return which images are in the first half: every second one of each class."""
    first = torch.zeros(len(y), dtype=torch.bool)
    for k in y.unique():
        first[(y == k).nonzero().flatten()[::2]] = True
    return first


def _assigned(said: Labels, y: Labels, classes: int) -> tuple[int, ...]:
    """Return for each class of the images the class of the model that fits them all best."""
    from scipy.optimize import linear_sum_assignment  # late: slow

    counts = torch.zeros(classes, classes)
    counts.index_put_((y, said), torch.ones(len(y)), accumulate=True)
    # Classes without images stay what they are, if nothing else takes their place.
    _, places = linear_sum_assignment((counts + 1e-3 * torch.eye(classes)).numpy(), maximize=True)
    return tuple(int(place) for place in places)
