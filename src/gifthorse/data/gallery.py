"""Clean images as they were read, with what was done to them on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gifthorse.core.errors import BadImages
from gifthorse.core.resizing import Resize
from gifthorse.data.samples import InMemory

LabelsFrom: TypeAlias = Literal["folders", "file", "npz", "packed", "model"]

MOST_CLASSES = 100_000  # a larger number is a date or an id, not a class


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images, where they came from and what a reader of a report should know about them.

    Attributes:
        samples: The images and labels; a label is -1 where none is known.
        labels_from: Where the labels came from; `model` means that a model is still to give them.
        class_names: Names by class number; may be empty.
        names: File names, one an image; empty if the images were no files.
        notes: What was converted, resized, renumbered or skipped, in words.
        source: The path or name that was read.
        sha256: Hex digest of shape, pixels and labels, see `digest`.
        extras: Further vectors, one entry an image, e.g. `track` of GTSRB.
        skipped: Files that were found and are not among the images, each with its reason; those
            that a limit or a duplicate left out are not listed.
    """

    samples: InMemory
    labels_from: LabelsFrom
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What the caller of a reader asks for.

    Attributes:
        size: How to resize; None keeps the images' own, which must then agree.
        channels: 3 for RGB, 1 for gray.
        classes: How many classes the model has; None takes the number from the labels.
        limit: At most so many images, spread evenly over the classes.
        repeats: Whether exact duplicates stay, so that every image of the source has its place.
    """

    size: Resize | None = None
    channels: int = 3
    classes: int | None = None
    limit: int | None = None
    repeats: bool = False


def digest(images: Tensor, labels: Tensor) -> str:
    """Return the SHA-256 of the shape, the pixels `(N, C, H, W)` and the int64 labels `(N,)`.

    Example:
        >>> black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
        >>> digest(black, torch.tensor([0])) == digest(black, torch.tensor([1]))
        False
    """
    state = hashlib.sha256(repr(tuple(images.shape)).encode())
    state.update(images.contiguous().numpy().data)
    state.update(labels.contiguous().numpy().astype("<i8").data)
    return state.hexdigest()


def balanced(labels: NDArray[Any], limit: int | None) -> NDArray[np.int64]:
    """Return the indices of at most `limit` entries, in order, as even over the labels as can be.

    Within a label the entries are spread evenly over the list, since neighbors often resemble
    each other (frames of one film). No chance is involved.

    Example:
        >>> balanced(np.array([0, 0, 0, 0, 1, 2, 2]), 5).tolist()
        [1, 3, 4, 5, 6]
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    kinds, counts = np.unique(labels, return_counts=True)
    quota = np.zeros_like(counts)
    while (left := limit - int(quota.sum())) > 0:
        hungry = np.flatnonzero(quota < counts)
        if left < len(hungry):
            hungry = hungry[np.arange(left) * len(hungry) // left]
        quota[hungry] += np.minimum(max(1, left // len(hungry)), (counts - quota)[hungry])
    chosen = [
        np.flatnonzero(labels == kind)[(2 * np.arange(take) + 1) * count // (2 * take)]
        for kind, count, take in zip(kinds, counts, quota, strict=True)
        if take
    ]
    return np.sort(np.concatenate(chosen))


def as_samples(images: NDArray[np.uint8], labels: NDArray[Any], classes: int) -> InMemory:
    """Wrap arrays `(N, C, H, W)` and `(N,)` without copying the pixels."""
    return InMemory(
        torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), max(classes, 0)
    )


def count_classes(labels: NDArray[Any], wanted: Wanted, names: tuple[str, ...] = ()) -> int:
    """Return how many classes there are: those of the model, or those that are named or used.

    Raises:
        BadImages: A label is not among the classes of the model.
    """
    top = int(labels.astype(np.int64).max(initial=-1))
    if top >= MOST_CLASSES:
        raise BadImages(f"label {top} is no class number; at most {MOST_CLASSES:,} are supported")
    if wanted.classes is None:
        return max(len(names), top + 1)
    if top >= wanted.classes:
        raise BadImages(
            f"the labels go up to {top}, but the model has {wanted.classes} classes "
            f"(0 to {wanted.classes - 1}): give labels of the model's own numbering, from 0"
        )
    return wanted.classes


def limit_note(taken: int, of: int) -> tuple[str, ...]:
    """Say how many images a limit has left.

    Example:
        >>> limit_note(10, 50)
        ('10 of 50 images taken, evenly over the classes',)
    """
    return (f"{taken:,} of {of:,} images taken, evenly over the classes",) if taken < of else ()


def named_alike(gallery: Gallery, names: Sequence[str]) -> Gallery:
    """Number the classes as a model does, if all of the images' are among its own by name.

    Args:
        gallery: Images with labels and class names.
        names: The model's class names, by number.

    Returns:
        The gallery with the model's numbers and a note, or as it was if a name is not among them;
        with the model's names if it has none of its own.
    """
    numbers = {name.strip().casefold(): k for k, name in enumerate(names)}
    labels = gallery.samples.labels
    own = [k for k in labels.unique().tolist() if k >= 0]
    if not gallery.class_names:
        return replace(gallery, class_names=tuple(names))
    if not own or own[-1] >= len(gallery.class_names):
        return gallery
    wanted = {k: numbers.get(gallery.class_names[k].strip().casefold()) for k in own}
    if None in wanted.values() or all(k == number for k, number in wanted.items()):
        return gallery
    moved = labels.clone()
    for k, number in wanted.items():
        moved[labels == k] = number  # type: ignore[assignment]
    samples = replace(gallery.samples, labels=moved, classes=len(names))
    return replace(
        gallery,
        samples=samples,
        class_names=tuple(names),
        notes=(*gallery.notes, "classes numbered by the model's own names"),
        sha256=digest(samples.images, moved),
    )
