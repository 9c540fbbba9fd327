"""Images of unknown origin, decoded in a process that can only read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gifthorse.core.errors import BadImages
from gifthorse.core.isolated import readers
from gifthorse.core.isolated.confinement import Limits
from gifthorse.data.gallery import Gallery
from gifthorse.data.samples import InMemory

LEAST = Limits(1 << 30, 60.0)  # for images of no size; larger ones get more
MOST = 32 << 30  # bytes of memory
SWELL = 100  # times its bytes on disk that a source may take in memory; photographs take 10 to 30
PACE = 1 << 20  # bytes on disk that are decoded in a second, at the very least

Parts = tuple[Any, Sequence[Tensor]]


def decoded(function: Callable[..., Parts], arguments: Sequence[object], source: Path) -> Parts:
    """Call a function that decodes images where it can only read, see `readers.call`.

    Args:
        function: Returns a JSON value and tensors.
        arguments: JSON values.
        source: The file or folder that it reads; links out of a folder are followed.

    Raises:
        BadImages: If the images take far more memory or time than their files are large.
    """
    size, places = _reach(source)
    memory = min(LEAST.memory + SWELL * size, MOST)
    return readers.call(
        function,
        arguments,
        what=f"{source}",
        error=BadImages,
        limits=Limits(memory, LEAST.seconds + size // PACE),
        readable=places,
    )


def _reach(source: Path) -> tuple[int, list[str]]:
    """Return the bytes that a source takes on disk, and the folders that its files lie in."""
    if not source.is_dir():
        return _on_disk(source), [str(source)]
    size, places, seen = 0, {os.path.realpath(source)}, set[str]()
    top = os.path.realpath(source)
    for root, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths = [Path(root, file) for file in files]
        size += sum(map(_on_disk, paths))
        outside = {os.path.realpath(path) for path in paths if path.is_symlink()}
        near = {real, *map(os.path.dirname, outside)}
        places |= {place for place in near if not place.startswith(top)}
    return size, sorted(places)


def _on_disk(path: Path) -> int:
    try:
        state = path.stat()
    except OSError:
        return 0
    return min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512)


# Galleries ------------------------------------------------------------------------------------

_WORDS = ("labels_from", "class_names", "names", "notes", "source", "sha256", "skipped")


def apart(gallery: Gallery) -> Parts:
    """Return a gallery as a JSON value and tensors."""
    samples = gallery.samples
    told = {name: getattr(gallery, name) for name in _WORDS}
    told |= {"classes": samples.classes, "extras": list(gallery.extras)}
    return told, [samples.images, samples.labels, *gallery.extras.values()]


def together(parts: Parts) -> Gallery:
    """Return the gallery that `apart` took apart.

    Raises:
        BadImages: If the parts are of another form.
    """
    told, tensors = parts
    try:
        images, labels, *extras = tensors
        words = {
            name: tuple(map(str, told[name])) if isinstance(told[name], list) else str(told[name])
            for name in _WORDS
        }
        samples = InMemory(images, labels, int(told["classes"]))
        named = dict(zip(map(str, told["extras"]), extras, strict=True))
        return Gallery(samples, **words, extras=named)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise BadImages(f"the reader of the images gave no images: {error}") from error
