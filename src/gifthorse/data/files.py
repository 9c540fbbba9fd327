"""Image files in folders: which there are, which can be used, and why the others cannot."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from gifthorse.core.errors import BadImages
from gifthorse.data.decode import (
    Decoded,
    Pixels,
    counted,
    decode,
    image_suffixes,
    in_words,
    listed,
)
from gifthorse.data.gallery import (
    Gallery,
    LabelsFrom,
    Wanted,
    as_samples,
    balanced,
    count_classes,
    digest,
    limit_note,
)
from gifthorse.data.isolation import LEAST, SWELL

# Of Unix file systems, Windows, storage boxes; those of macOS and of Python begin with a mark.
DEBRIS = {"lost+found", "$recycle.bin", "system volume information", "@eadir", "#recycle"}


@dataclass(frozen=True)
class ImageEntry:
    """A file that may be an image: where it is, its name to show, its label or -1."""

    path: Path
    name: str
    label: int = -1


@dataclass(frozen=True)
class FolderContents:
    """What a folder holds before any image is opened.

    Attributes:
        source: The folder or table as the user named it.
        labels_from: `folders`, `file` or `model`.
        entries: The files to read, in order.
        class_names: Names by class number; may be empty.
        notes: What is to be said about the labels.
        skipped: What is left out, each with its reason.
    """

    source: str
    labels_from: LabelsFrom
    entries: tuple[ImageEntry, ...]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


COPIES = 3  # of all pixels that are held at a time: decoded, stacked, handed over


def walk(folder: Path) -> list[Path]:
    """Return all files below a folder in order of their paths; links are followed, not in rings."""
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(root, file) for file in files]
    return sorted(found)


def shown(name: str) -> str:
    r"""Return a name that is safe to print: control characters come out as escapes.

    Example:
        >>> shown("a.png"), shown(chr(7))
        ('a.png', "'\\x07'")
    """
    return name if name.isprintable() else ascii(name)


def is_debris(folder: str) -> bool:
    """Whether a folder's name is one that systems and tools leave behind.

    Example:
        >>> is_debris(".git"), is_debris("__MACOSX"), is_debris("@eaDir"), is_debris("14_stop")
        (True, True, True, False)
    """
    return folder.startswith((".", "__")) or folder.lower() in DEBRIS


def sort_out(
    files: Sequence[Path], root: Path, label: int = -1
) -> tuple[list[ImageEntry], list[str]]:
    """Tell files that may be images from those whose names say that they are none."""
    entries, skipped = [], []
    for path in files:
        name = path.relative_to(root).as_posix()
        *folders, own = PurePosixPath(name).parts
        if own.startswith(".") or any(map(is_debris, folders)):
            skipped.append(f"{shown(name)} is hidden")
        elif path.suffix.lower() in image_suffixes() | {""}:
            entries.append(ImageEntry(path, name, label))
        else:
            skipped.append(f"{shown(name)} is not an image")
    return entries, skipped


def gather(found: FolderContents, wanted: Wanted) -> Gallery:
    """Decode the files, leave out what cannot be used and exact duplicates, and say so.

    Raises:
        BadImages: No image can be used, or they differ in size and none was asked for.
    """
    labels = np.array([entry.label for entry in found.entries], np.int64)
    chosen = [found.entries[i] for i in balanced(labels, wanted.limit)]
    good, decoded, bad = _decode_all(chosen, wanted)
    skipped = [*found.skipped, *bad]
    if not good:
        reasons = listed([*bad, *found.skipped])  # what fails first, it says more
        raise BadImages(f"no usable image in {found.source}: {reasons or 'it is empty'}")
    _check_sizes(decoded, found.source)
    pixels, marks = [image.pixels for image in decoded], [e.label for e in good]
    kept, duplicates = distinct(pixels, marks, wanted.repeats)
    notes = [*found.notes, *limit_note(len(chosen), len(labels))]
    notes += in_words(Counter(step for i in kept for step in decoded[i].steps))
    if skipped:
        notes.append(f"{counted(len(skipped), 'file')} skipped: {listed(skipped)}")
    images = np.stack([decoded[i].pixels.transpose(2, 0, 1) for i in kept])
    targets = np.array([good[i].label for i in kept], np.int64)
    classes = _count(targets, [good[i].name for i in kept], wanted, found)
    samples = as_samples(images, targets, classes)
    return Gallery(
        samples,
        found.labels_from,
        class_names=found.class_names,
        names=tuple(good[i].name for i in kept),
        notes=(*notes, *duplicates),
        source=found.source,
        sha256=digest(samples.images, samples.labels),
        skipped=tuple(skipped),
    )


def _count(
    labels: NDArray[np.int64], names: Sequence[str], wanted: Wanted, found: FolderContents
) -> int:
    try:
        return count_classes(labels, wanted, found.class_names)
    except BadImages as error:
        first = int(labels.argmax())
        raise BadImages(f"{shown(names[first])} has label {labels[first]}: {error}") from error


def _decode_all(
    entries: Sequence[ImageEntry], wanted: Wanted
) -> tuple[list[ImageEntry], list[Decoded], list[str]]:
    good, decoded, bad = [], [], []
    total = stored = 0
    for entry in entries:
        try:
            image = decode(entry.path, channels=wanted.channels, size=wanted.size)
            stored += entry.path.stat().st_size
        except BadImages as error:
            bad.append(f"{shown(entry.name)} {error}")
            continue
        total += image.pixels.nbytes
        _check_room(total, stored)
        decoded.append(image)
        good.append(entry)
    return good, decoded, bad


def _check_room(total: int, stored: int) -> None:
    """Refuse images that unfold to far more than their files hold, before memory is out."""
    if total > (LEAST.memory + SWELL * stored) // COPIES:
        raise BadImages(
            f"the images unfold to more than {total:,} bytes from files of {stored:,}: give the "
            "size that the model was trained on as --input-size HxW, or fewer images"
        )


def _check_sizes(decoded: Sequence[Decoded], source: str) -> None:
    sizes = Counter(image.pixels.shape[:2] for image in decoded)
    if len(sizes) > 1:
        table = listed([f"{h}x{w} ({n:,})" for (h, w), n in sizes.most_common()], most=8)
        raise BadImages(
            f"the images of {source} differ in size: {table}; give the size that the model was "
            "trained on as --input-size HxW, and they will be resized"
        )


def distinct(
    images: Sequence[Pixels], labels: Sequence[int], repeats: bool = False
) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of the first of each set of equal images, and notes on the others.

    If repeats may stay, all of them.
    """
    if repeats:
        return list(range(len(images))), ()
    first: dict[bytes, int] = {}
    kept: list[int] = []
    torn = 0
    for i, image in enumerate(images):
        key = hashlib.sha256(np.ascontiguousarray(image).data).digest()
        if first.setdefault(key, i) == i:
            kept.append(i)
        else:
            torn += labels[first[key]] != labels[i]
    if len(kept) == len(images):
        return kept, ()
    under = f", {torn:,} of them under another label than the first" if torn else ""
    return kept, (f"{counted(len(images) - len(kept), 'duplicate image')} left out{under}",)
