"""Packed data sets: many encoded images in one `.npz` file, decoded once and then cached."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from platformdirs import user_cache_path

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import BadImages, BadOption, UsageError
from gifthorse.core.files import is_regular, read_file
from gifthorse.data.archive import MOST_BYTES, Array, arrays, peek
from gifthorse.data.decode import UNDECODABLE, Pixels
from gifthorse.data.gallery import (
    Gallery,
    Wanted,
    as_samples,
    balanced,
    count_classes,
    digest,
    limit_note,
)

Split: TypeAlias = Literal["train", "test"]
Index: TypeAlias = NDArray[np.int64]

SPLITS: tuple[Split, Split] = ("train", "test")  # by their number in the file
PACKED: dict[str, str] = {
    "cifar10": "cifar10.npz",
    "cifar10_lossless": "cifar10_lossless.npz",
    "gtsrb": "gtsrb32.npz",
    "imagenet1k": "imagenet1k_sample224.npz",
    "imagenette": "imagenette224.npz",
    "mnist": "mnist.npz",
}
PIXELS = {"data", "offsets", "images"}
MEBI = 2**20
CACHE_FORMAT = 1  # raise it when the decoding changes

log = logging.getLogger("gifthorse")


def locate(name_or_path: str | Path) -> Path:
    """Return the file of a packed set, given by path or by a name in `PACKED`.

    Raises:
        BadImages: There is no such file, or `GIFTHORSE_DATA` does not lead to it.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = str(name_or_path)
    if name not in PACKED:
        known = ", ".join(PACKED)
        raise BadImages(f"{name!r} is neither a file nor a packed data set; known: {known}")
    folder = os.environ.get("GIFTHORSE_DATA", "")
    if not folder:
        raise BadImages(
            f"the data set {name!r} is found through the environment variable GIFTHORSE_DATA, "
            f"which is not set: set it to the folder that holds {PACKED[name]}"
        )
    if not (file := Path(folder) / PACKED[name]).is_file():
        raise BadImages(
            f"GIFTHORSE_DATA is {folder!r}, which has no {PACKED[name]}: set it to the folder "
            "that holds the file"
        )
    return file


def load_packed(
    name_or_path: str | Path, split: Split = "train", *, limit: int | None = None
) -> Gallery:
    """Read one split of a packed set: `(N, 3, H, W)`, or `(N, 1, H, W)` for raw gray images.

    The first call decodes the whole split and caches it in the user's cache folder; later calls
    map that file into memory.

    Args:
        name_or_path: A name in `PACKED`, looked up in `$GIFTHORSE_DATA`, or an `.npz` file.
        split: `train` or `test`.
        limit: Take at most so many images, spread evenly over the classes.

    Raises:
        BadImages: No such file, no such images in it, or not the layout of a packed set.
        BadOption: `split` is neither `train` nor `test`.
    """
    if split not in SPLITS:
        raise BadOption(f"split must be {' or '.join(SPLITS)}; got {split!r}")
    path = locate(name_or_path)
    shapes = peek(path)
    if not is_packed(shapes):
        raise BadImages(f"{path} is no packed set: it needs labels, split and data + offsets")
    table = _table(path, shapes)
    rows = np.flatnonzero(table["split"] == SPLITS.index(split))
    if not len(rows):
        raise BadImages(f"{path} has no images marked {split!r}; take the other split")
    chosen = balanced(table["labels"][rows], limit)
    pixels = _raw(path, rows[chosen]) if "images" in shapes else _cached(path, rows, chosen, split)
    gallery = _gallery(pixels, table, rows[chosen], f"{name_or_path}:{split}")
    return replace(gallery, notes=limit_note(len(chosen), len(rows)))


def is_packed(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether the arrays of an `.npz` file are those of a packed set.

    Example:
        >>> is_packed({"images": (9, 28, 28), "labels": (9,), "split": (9,)})
        True
    """
    return {"labels", "split"} <= set(shapes) and (
        "images" in shapes or {"data", "offsets"} <= set(shapes)
    )


def splits_of(path: Path) -> tuple[Split, ...]:
    """Return which splits a packed set has images of."""
    present = arrays(path, ["split"])["split"]
    return tuple(name for number, name in enumerate(SPLITS) if (present == number).any())


def _table(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    table = arrays(path, sorted(set(shapes) - PIXELS))
    ends = "images" not in shapes  # offsets have one entry more than there are images
    count = (shapes["offsets" if ends else "images"] or (0,))[0] - ends
    for key in ("labels", "split"):
        if table[key].shape != (count,) or table[key].dtype.kind not in "iu":
            raise BadImages(
                f"{key} of {path} must be {count:,} integers, one an image; got "
                f"{table[key].dtype} {table[key].shape}"
            )
    return table


def _gallery(pixels: Pixels, table: Mapping[str, Array], rows: Index, source: str) -> Gallery:
    names = tuple(str(name) for name in table.get("class_names", np.array([])).flat)
    labels = table["labels"]
    samples = as_samples(pixels, labels[rows], count_classes(labels, Wanted(), names))
    extras = {
        key: torch.from_numpy(value[rows].astype(np.int64 if value.dtype.kind in "iu" else "f4"))
        for key, value in table.items()
        if key not in {"labels", "split"}
        and value.dtype.kind in "iuf"
        and value.shape[:1] == labels.shape
    }
    return Gallery(
        samples,
        "packed",
        class_names=names,
        source=source,
        sha256=digest(samples.images, samples.labels),
        extras=extras,
    )


# Pixels ---------------------------------------------------------------------------------------


def _raw(path: Path, rows: Index) -> Pixels:
    images = arrays(path, ["images"])["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise BadImages(
            f"images of {path} must be uint8, N x H x W or N x H x W x C; got {images.dtype} "
            f"{images.shape}"
        )
    chosen = images[rows]
    return chosen[:, None] if images.ndim == 3 else _channels_first(chosen)


def _channels_first(images: Pixels) -> Pixels:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _cached(path: Path, rows: Index, chosen: Index, split: Split) -> Pixels:
    """Return the decoded images of `rows[chosen]`, through the cache.

    A small choice is decoded by itself as long as nobody has asked for the whole split.
    """
    cache = user_cache_path("gifthorse") / "packed" / f"{_fingerprint(path)}-{split}.npy"
    if (pixels := _mapped(cache, len(rows))) is not None:
        return pixels if len(chosen) == len(rows) else pixels[chosen]
    if len(chosen) < len(rows):
        return _decode(path, rows[chosen])
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.with_suffix(".lock")):
            if (pixels := _mapped(cache, len(rows))) is None:  # another process was faster
                pixels = _decode(path, rows)
                with atomic(cache) as file:
                    np.save(file, pixels, allow_pickle=False)
                with atomic(_seal(cache)) as file:
                    file.write(_digest(cache).encode())
    except (OSError, UsageError) as error:
        log.warning("%s cannot be cached in %s: %s", path, cache.parent, error)
        return _decode(path, rows) if pixels is None else pixels
    return pixels


def _fingerprint(path: Path) -> str:
    """Hash the size and both ends; a zip file ends with the checksums of all its members."""
    size = path.stat().st_size
    with path.open("rb") as file:
        state = hashlib.sha256(f"{CACHE_FORMAT} {size}".encode())
        state.update(file.read(MEBI))
        file.seek(max(0, size - MEBI))
        state.update(file.read(MEBI))
    return state.hexdigest()


def _seal(cache: Path) -> Path:
    """Return the file that keeps the digest of a cache."""
    return cache.with_suffix(".sha256")


def _digest(cache: Path) -> str:
    with cache.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapped(cache: Path, count: int) -> Pixels | None:
    """Map the cache file if it is as it was written, copy on write: tensors are never read-only."""
    if not is_regular(cache):
        return None
    if not is_regular(_seal(cache)) or read_file(_seal(cache), 99) != _digest(cache).encode():
        log.warning("%s was changed since it was written: images are decoded anew", cache)
        return None
    try:
        pixels: Pixels = np.load(cache, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == count
    return pixels if good else None


def _decode(path: Path, rows: Index) -> Pixels:
    data, offsets = _encoded(path)

    def image(row: int) -> Pixels:
        return _one(data[offsets[row] : offsets[row + 1]], row)

    shape = image(int(rows[0])).shape
    if (total := len(rows) * math.prod(shape)) > MOST_BYTES:
        raise BadImages(f"{path} unpacks to {total:,} bytes; at most {MOST_BYTES:,} are read")
    out = np.empty((len(rows), *shape), np.uint8)

    def work(part: Index) -> None:
        for place in part:
            pixels = image(row := int(rows[place]))
            if pixels.shape != shape:
                raise BadImages(
                    f"image {row} of {path} is {pixels.shape[0]}x{pixels.shape[1]}, others are "
                    f"{shape[0]}x{shape[1]}: a packed set has one size"
                )
            out[place] = pixels

    parts = np.array_split(np.arange(len(rows)), max(1, len(rows) // 256))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, parts))
    return _channels_first(out)


def _encoded(path: Path) -> tuple[memoryview, Index]:
    """Return the bytes of all images and where each starts and ends, checked."""
    stored = arrays(path, ["data", "offsets"])
    data, offsets = stored["data"], stored["offsets"]
    if data.dtype != np.uint8 or data.ndim != 1 or offsets.dtype.kind not in "iu":
        raise BadImages(f"data of {path} must be uint8 bytes and offsets a vector of positions")
    ends: Index = offsets.astype(np.int64)
    if ends.min() < 0 or ends.max() > len(data) or (np.diff(ends) <= 0).any():
        raise BadImages(f"offsets of {path} must rise from 0 to {len(data):,}, the size of data")
    return data.data, ends


def _one(encoded: memoryview, row: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except UNDECODABLE as error:
        raise BadImages(f"image {row} of the packed set cannot be decoded: {error}") from error
