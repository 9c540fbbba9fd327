"""Reading clean images: class folders, flat folders, label tables, `.npz` arrays, packed sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.files import is_regular
from gifthorse.core.resizing import Resize
from gifthorse.data import isolation
from gifthorse.data.archive import Array, arrays, peek
from gifthorse.data.decode import MOST_SIDE, as_pixels, conform, counted
from gifthorse.data.files import distinct
from gifthorse.data.folders import (
    are_examples,
    read_examples,
    read_flat,
    read_folders,
    subfolders,
)
from gifthorse.data.gallery import (
    MOST_CLASSES,
    Gallery,
    Wanted,
    as_samples,
    balanced,
    count_classes,
    digest,
    limit_note,
)
from gifthorse.data.packed import PACKED, SPLITS, Split, is_packed, load_packed, locate, splits_of
from gifthorse.data.tabled import find_table, read_table
from gifthorse.data.tables import ENDINGS, TABLES

Reader: TypeAlias = Callable[[str, Wanted], Gallery]

IMAGE_KEYS = ("images", "x", "data", "X")
LABEL_KEYS = ("labels", "y", "targets", "label")


def read(
    source: str,
    *,
    size: tuple[int, int] | Resize | None = None,
    channels: int = 3,
    classes: int | None = None,
    limit: int | None = None,
    repeats: bool = False,
    flat: bool = False,
) -> Gallery:
    """Read clean images of whatever kind `source` is, see `sniff`.

    Args:
        source: A folder, an `.npz` file, a table of labels, or a packed set, `NAME[:SPLIT]`.
        size: How to resize; height and width alone are resized to bilinear, antialiased, without
            keeping the aspect ratio. Images that have the size stay as they are.
        channels: 3 for RGB, 1 for gray.
        classes: How many classes the model has, to check the labels against.
        limit: At most so many images, spread evenly over the classes, without chance.
        repeats: Whether exact duplicates stay, so that without a limit row i of an array or of a
            packed split is image i.
        flat: Of a folder, whether to read every image wherever in it, without labels.

    Raises:
        BadImages: There is nothing to read, nothing usable, or the labels do not fit.
        BadOption: `size`, `channels` or `limit` is off.
    """
    if channels not in (1, 3):
        raise BadOption(f"channels must be 1 or 3; got {channels}")
    if limit is not None and limit < 1:
        raise BadOption(f"limit must be 1 or more; got {limit}")
    resize = Resize(size) if isinstance(size, tuple) else size
    if resize is not None and not (min(resize.size) >= 1 and max(resize.size) <= MOST_SIDE):
        height, width = resize.size
        raise BadOption(f"size must be 1 to {MOST_SIDE} pixels a side; got {height}x{width}")
    name, _ = _name_and_split(source)
    given = (channels, classes, limit, repeats)
    if name in PACKED and not Path(name).exists():  # the user's own, kept decoded in their cache
        return READERS["packed"](source, Wanted(resize, *given))
    path = Path(source) if Path(source).exists() else Path(name)
    table = path.is_file() and path.suffix.lower() in (*ENDINGS, ".json")
    told = None if resize is None else asdict(resize)
    asked = [source, told, *given, flat]
    parts = isolation.decoded(examined, asked, path.parent if table else path)
    return isolation.together(parts)


def examined(
    source: str,
    size: dict[str, Any] | None,
    channels: int,
    classes: int | None,
    limit: int | None,
    repeats: bool,
    flat: bool,
) -> isolation.Parts:
    """Read images where nothing but reading is allowed; for the arguments see `read`."""
    wanted = Wanted(Resize.read(size), channels, classes, limit, repeats)
    kind = "flat" if flat and Path(source).is_dir() else sniff(source)
    return isolation.apart(READERS[kind](source, wanted))


def sniff(source: str) -> str:
    """Return which reader of `READERS` a source is for.

    Raises:
        BadImages: There is no such file, folder or packed set, or it is of no known kind.
    """
    path = Path(source)
    if not source.strip():
        raise BadImages("no name of images is given: name a folder, a file or a packed data set")
    if _is_folder(path):
        names, _ = subfolders(path)
        usual = any(is_regular(path / table) for table in TABLES)
        if usual or (len(names) <= 1 and find_table(path) is not None):
            return "table"
        flat = "examples" if are_examples(path) else "flat"
        return "folders" if names else flat
    if is_regular(path) and path.suffix.lower() in (*ENDINGS, ".json"):
        return "table"
    name, _ = _name_and_split(source)
    if name in PACKED and not is_regular(path):
        return "packed"
    if not is_regular(Path(name)):
        raise BadImages(
            f"{source!r} is no file or folder, and no packed data set ({', '.join(PACKED)})"
        )
    return "packed" if is_packed(peek(Path(name))) else "npz"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


# Arrays ---------------------------------------------------------------------------------------


def read_npz(source: str, wanted: Wanted) -> Gallery:
    """Read arrays of images (`images`, `x`, `data`, `X`) and labels (`labels`, `y`, `targets`)."""
    path = Path(source)
    shapes = peek(path)
    key = next((key for key in IMAGE_KEYS if key in shapes), None)
    if key is None:
        raise BadImages(
            f"{source} holds {', '.join(map(ascii, shapes)) or 'no array'}; expected the images "
            f"under one of {', '.join(IMAGE_KEYS)}, the labels under one of {', '.join(LABEL_KEYS)}"
        )
    label_key = next((key for key in LABEL_KEYS if key in shapes), None)
    extra = {"class_names"} & set(shapes) | ({label_key} if label_key else set())
    stored = arrays(path, {key, *extra})
    raw = np.atleast_1d(stored[key])
    labels = _labels(stored.get(label_key or ""), len(raw), source)
    known = np.flatnonzero(labels >= 0)
    if wanted.repeats or not len(known):  # every row has its place, or no label is known
        known = np.arange(len(labels))
    chosen = known[balanced(labels[known], wanted.limit)]
    pixels, notes = as_pixels(raw[chosen])
    images, more = conform(pixels, channels=wanted.channels, size=wanted.size)
    kept, duplicates = distinct(list(images), labels[chosen].tolist(), wanted.repeats)
    targets = labels[chosen][kept]
    names = _names(stored)
    left = len(raw) - len(known)
    unknown = [f"{counted(left, 'image')} with the label -1 left out"] if left else []
    samples = as_samples(images[kept], targets, count_classes(targets, wanted, names))
    return Gallery(
        samples,
        "npz" if label_key else "model",
        class_names=names,
        notes=(*limit_note(len(chosen), len(known)), *unknown, *notes, *more, *duplicates),
        source=source,
        sha256=digest(samples.images, samples.labels),
    )


def _labels(stored: Array | None, count: int, source: str) -> Array:
    if stored is None:
        return np.full(count, -1)
    labels = stored.ravel()
    if labels.shape != (count,) or labels.dtype.kind not in "iuf":
        raise BadImages(
            f"the labels of {source} are {stored.dtype} {stored.shape}; expected {count:,} class "
            "numbers, one an image"
        )
    with np.errstate(invalid="ignore"):  # not-a-number is refused below
        whole: Array = labels.astype(np.int64)
    if (whole != labels).any() or whole.min(initial=0) < -1:
        raise BadImages(f"the labels of {source} must be class numbers from 0, or -1 if unknown")
    return whole


def _names(stored: Mapping[str, Array]) -> tuple[str, ...]:
    names = stored.get("class_names")
    return tuple(str(name) for name in names.ravel()[:MOST_CLASSES]) if names is not None else ()


# Packed sets ----------------------------------------------------------------------------------


def _name_and_split(source: str) -> tuple[str, Split | None]:
    name, _, part = source.rpartition(":")
    split = next((split for split in SPLITS if split == part), None)
    return (name, split) if split and not Path(source).exists() else (source, None)


def read_packed(source: str, wanted: Wanted) -> Gallery:
    """Read `NAME[:SPLIT]`; without a split the test images if there are any."""
    name, split = _name_and_split(source)
    if split is None:
        split = "test" if "test" in splits_of(locate(name)) else "train"
    gallery = load_packed(name, split, limit=wanted.limit)
    labels = gallery.samples.labels
    pixels = gallery.samples.images.numpy()
    images, notes = conform(pixels, channels=wanted.channels, size=wanted.size)
    classes = count_classes(labels.numpy(), wanted, gallery.class_names)
    kept, duplicates = distinct(list(images), labels.tolist(), wanted.repeats)
    if duplicates:
        images, labels = images[kept], labels[kept]
    samples = as_samples(images, labels.numpy(), classes)
    return replace(
        gallery,
        samples=samples,
        notes=(f"{split} images of {name}", *gallery.notes, *notes, *duplicates),
        source=source,
        sha256=digest(samples.images, labels) if notes or duplicates else gallery.sha256,
        extras={key: vector[kept] for key, vector in gallery.extras.items()},
    )


READERS: dict[str, Reader] = {
    "examples": read_examples,
    "flat": read_flat,
    "folders": read_folders,
    "npz": read_npz,
    "packed": read_packed,
    "table": read_table,
}
