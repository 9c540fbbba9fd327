"""Reading clean images: class folders, flat folders, label tables, `.npz` arrays, packed sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.data import isolation
from gifthorse.data.archive import Array, arrays, peek
from gifthorse.data.decode import MOST_SIDE, as_pixels, conform
from gifthorse.data.files import FolderContents, ImageEntry, distinct, gather, shown, sort_out, walk
from gifthorse.data.gallery import (
    Gallery,
    Wanted,
    as_samples,
    balanced,
    count_classes,
    digest,
    limit_note,
)
from gifthorse.data.packed import PACKED, SPLITS, Split, is_packed, load_packed, locate, splits_of
from gifthorse.data.tables import TABLES, load_table, number_folders, number_labels

Reader: TypeAlias = Callable[[str, Wanted], Gallery]

IMAGE_KEYS = ("images", "x", "data", "X")
LABEL_KEYS = ("labels", "y", "targets", "label")
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def read(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int = 3,
    classes: int | None = None,
    limit: int | None = None,
    repeats: bool = False,
) -> Gallery:
    """Read clean images of whatever kind `source` is, see `sniff`.

    Args:
        source: A folder, an `.npz` file, a table of labels, or a packed set, `NAME[:SPLIT]`.
        size: Height and width to resize to (bilinear, antialiased, aspect ratio not kept);
            images of that size stay as they are.
        channels: 3 for RGB, 1 for gray.
        classes: How many classes the model has, to check the labels against.
        limit: At most so many images, spread evenly over the classes, without chance.
        repeats: Whether exact duplicates stay, so that without a limit row i of an array or of a
            packed split is image i.

    Raises:
        BadImages: There is nothing to read, nothing usable, or the labels do not fit.
        BadOption: `size`, `channels` or `limit` is off.
    """
    if channels not in (1, 3):
        raise BadOption(f"channels must be 1 or 3; got {channels}")
    if limit is not None and limit < 1:
        raise BadOption(f"limit must be 1 or more; got {limit}")
    if size is not None and not (min(size) >= 1 and max(size) <= MOST_SIDE):
        raise BadOption(f"size must be 1 to {MOST_SIDE} pixels a side; got {size[0]}x{size[1]}")
    name, _ = _name_and_split(source)
    given = (size, channels, classes, limit, repeats)
    if name in PACKED and not Path(name).exists():  # the user's own, kept decoded in their cache
        return READERS["packed"](source, Wanted(*given))
    path = Path(source) if Path(source).exists() else Path(name)
    table = path.is_file() and path.suffix.lower() in (".csv", ".json")
    parts = isolation.decoded(examined, [source, *given], path.parent if table else path)
    return isolation.together(parts)


def examined(
    source: str,
    size: Sequence[int] | None,
    channels: int,
    classes: int | None,
    limit: int | None,
    repeats: bool,
) -> isolation.Parts:
    """Read images where nothing but reading is allowed; for the arguments see `read`."""
    side = None if size is None else (size[0], size[1])
    wanted = Wanted(side, channels, classes, limit, repeats)
    return isolation.apart(READERS[sniff(source)](source, wanted))


def sniff(source: str) -> str:
    """Return which reader of `READERS` a source is for.

    Raises:
        BadImages: There is no such file, folder or packed set, or it is of no known kind.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / table).is_file() for table in TABLES):
            return "table"
        return "folders" if _subfolders(path)[0] else "flat"
    if path.is_file() and path.suffix.lower() in (".csv", ".json"):
        return "table"
    name, _ = _name_and_split(source)
    if name in PACKED and not path.is_file():
        return "packed"
    if not Path(name).is_file():
        raise BadImages(
            f"{source!r} is no file or folder, and no packed data set ({', '.join(PACKED)})"
        )
    return "packed" if is_packed(peek(Path(name))) else "npz"


# Folders --------------------------------------------------------------------------------------


def _subfolders(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the class folders and of those that tools leave behind."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    hidden = [name for name in names if name.startswith((".", "__"))]
    return [name for name in names if name not in hidden], hidden


def read_folders(source: str, wanted: Wanted) -> Gallery:
    """Read a folder with one subfolder a class, numbered by `tables.number_folders`."""
    root = Path(source)
    names, hidden = _subfolders(root)
    if {name.lower() for name in names} <= PARTS:
        raise BadImages(f"{source} holds {', '.join(names)}: name one of these folders instead")
    numbers, class_names, note = number_folders(names)
    if wanted.classes is not None and len(class_names) > wanted.classes:
        raise BadImages(
            f"{source} has class folders up to number {len(class_names) - 1} "
            f"({class_names[-1]!r}), but the model has {wanted.classes} classes, counted from 0"
        )
    notes = [note]
    if wanted.classes is not None and len(names) < wanted.classes:
        notes.append(f"class folders for {len(names):,} of the model's {wanted.classes:,} classes")
    entries: list[ImageEntry] = []
    skipped = [f"{shown(name)}/ is not a class folder" for name in hidden]
    skipped += [
        f"{shown(path.name)} is in no class folder"
        for path in sorted(root.iterdir())
        if not path.is_dir()
    ]
    for name, number in numbers.items():
        good, bad = sort_out(walk(root / name), root, number)
        entries += good
        skipped += bad
    found = FolderContents(
        source, "folders", tuple(entries), class_names, tuple(notes), skipped=tuple(skipped)
    )
    return gather(found, wanted)


def read_flat(source: str, wanted: Wanted) -> Gallery:
    """Read a folder of images without labels: all are -1 until a model has labeled them."""
    entries, skipped = sort_out(walk(Path(source)), Path(source))
    return gather(FolderContents(source, "model", tuple(entries), skipped=tuple(skipped)), wanted)


def read_table(source: str, wanted: Wanted) -> Gallery:
    """Read a folder by its `labels.csv` or `labels.json`, or by a table given itself."""
    given = Path(source)
    table = next(given / t for t in TABLES if (given / t).is_file()) if given.is_dir() else given
    root = table.parent
    rows = load_table(table)
    numbers, class_names, note = number_labels(label for _, label in rows if label)
    entries: list[ImageEntry] = []
    skipped: list[str] = []
    for file, label in rows:
        if reason := _unfit(file, label):
            skipped.append(f"{shown(file)} {reason}")
        else:
            entries.append(ImageEntry(root / file, file, numbers[label]))
    named = {entry.path for entry in entries}
    others = [e for e in sort_out(walk(root), root)[0] if e.path not in named]
    skipped += [f"{shown(e.name)} is not in {table.name}" for e in others]
    found = FolderContents(source, "file", tuple(entries), class_names, (note,), tuple(skipped))
    return gather(found, wanted)


def _unfit(file: str, label: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the folder"
    return "" if label else "has no label"


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
    chosen = balanced(labels, wanted.limit)
    pixels, notes = as_pixels(raw[chosen])
    images, more = conform(pixels, channels=wanted.channels, size=wanted.size)
    kept, duplicates = distinct(list(images), labels[chosen].tolist(), wanted.repeats)
    targets = labels[chosen][kept]
    names = _names(stored)
    samples = as_samples(images[kept], targets, count_classes(targets, wanted, names))
    return Gallery(
        samples,
        "npz" if label_key else "model",
        class_names=names,
        notes=(*limit_note(len(chosen), len(raw)), *notes, *more, *duplicates),
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
    return tuple(str(name) for name in names.ravel()) if names is not None else ()


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
    samples = as_samples(images, labels.numpy(), classes)
    return replace(
        gallery,
        samples=samples,
        notes=(f"{split} images of {name}", *gallery.notes, *notes),
        source=source,
        sha256=digest(samples.images, labels) if notes else gallery.sha256,
    )


READERS: dict[str, Reader] = {
    "flat": read_flat,
    "folders": read_folders,
    "npz": read_npz,
    "packed": read_packed,
    "table": read_table,
}
