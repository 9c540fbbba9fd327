"""One image to uint8 pixels, whatever its mode; what was done to it is named in words."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gifthorse.core.errors import BadImages
from gifthorse.core.files import is_regular
from gifthorse.core.resizing import Resize

Pixels: TypeAlias = NDArray[np.uint8]

MOST_SIDE = 4096  # without resizing
OVER = 0.25  # of its range that a float image may leave it by, as resizing with ringing does
FEW = 0.01  # share of its values that may
DIM = 16.0  # what floats in 0-255 reach at least

# Raster formats whose decoders run no other program, unlike Pillow's EPS. JPEG covers MPO.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# All that Pillow's decoders have been seen to raise on damaged files.
UNDECODABLE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError),
    *(OverflowError, MemoryError, NotImplementedError, struct.error, zlib.error, *BOMBS),
)


@dataclass(frozen=True, eq=False)
class Decoded:
    """One image.

    Attributes:
        pixels: `(H, W, C)` uint8.
        steps: What was done to it, each to be read after the word "image".
    """

    pixels: Pixels
    steps: tuple[str, ...] = ()


def decode(path: Path, *, channels: int = 3, size: Resize | None = None) -> Decoded:
    """Read one image file.

    The EXIF orientation is applied, of several frames the first is taken, transparency is laid
    on white as most viewers do, 16-bit gray is scaled by 255 / 65535, and what is not gray or RGB
    is converted. Color profiles are ignored.

    Args:
        path: The file; links are followed.
        channels: 3 for RGB, 1 for gray (ITU-R 601 luma).
        size: How to resize; None keeps the image's own size.

    Raises:
        BadImages: The file is no image, is damaged, or is too large; the message is the reason
            alone, to be read after the file's name.
    """
    if not is_regular(path):
        raise BadImages("is not a regular file" if os.path.exists(path) else "is missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for bomb in BOMBS[1:]:
            warnings.simplefilter("error", bomb)
        try:
            if path.stat().st_size == 0:
                raise BadImages("is empty")
            with Image.open(path, formats=FORMATS) as image:
                return _convert(image, channels, size)
        except UNDECODABLE as error:
            raise BadImages(_reason(error)) from error


def opens(path: Path) -> bool:
    """Whether a file begins like an image, whatever it is called."""
    if not is_regular(path):
        return False
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS):
            return True
    except UNDECODABLE:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image"
    if isinstance(error, BOMBS):
        return f"is refused: it claims more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if "truncated" in str(error).lower():
        return "is truncated"
    return f"cannot be decoded ({error})"


def conform(
    images: Pixels, *, channels: int, size: Resize | None
) -> tuple[Pixels, tuple[str, ...]]:
    """Give images `(N, 1 | 3 | 4, H, W)` this number of channels and size, as `decode` does.

    Returns:
        Images `(N, channels, H, W)` and notes; the images as they were if there is nothing to do.
    """
    if images.shape[1] == channels and (size is None or size.size == images.shape[2:]):
        return images, ()
    steps: Counter[str] = Counter()
    out = []
    for image in images:
        plain = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        done = _convert(Image.fromarray(plain), channels, size)
        steps.update(done.steps)
        out.append(done.pixels.transpose(2, 0, 1))
    return np.stack(out), in_words(steps)


def as_pixels(array: NDArray[Any]) -> tuple[Pixels, tuple[str, ...]]:
    """Turn an array of images into `(N, C, H, W)` uint8, with notes on what was done.

    Args:
        array: N x H x W, N x H x W x C or N x C x H x W with C of 1, 3 or 4; 8-bit, 16-bit, or
            floats in [0, 1] or 0-255.

    Raises:
        BadImages: Another shape, or values that are no raw pixels.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise BadImages(
            f"the images have shape {array.shape}; expected N x H x W, N x H x W x C or "
            "N x C x H x W"
        )
    pixels, notes = _eight_bits(array)
    if pixels.ndim == 3:
        return pixels[:, None], notes
    first, last = (pixels.shape[axis] in (1, 3, 4) for axis in (1, 3))
    if first == last:
        why = "both the second and the last axis" if first else "neither the second nor the last"
        raise BadImages(
            f"the images have shape {array.shape}: {why} could be the 1, 3 or 4 channels"
        )
    return (pixels if first else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), notes


def _eight_bits(array: NDArray[Any]) -> tuple[Pixels, tuple[str, ...]]:
    if array.dtype == np.uint8:
        return array, ()
    if array.dtype.kind not in "iuf":
        raise _no_pixels(array, "")
    if array.dtype.kind == "f":
        return _from_floats(array)
    low, high = float(array.min()), float(array.max())
    top = 65535 if array.dtype == np.uint16 and high > 255 else 255
    if not (low >= 0 and high <= top):
        raise _no_pixels(array, f" from {low:g} to {high:g}")
    pixels = np.rint(array * (255 / float(top))).astype(np.uint8)
    return pixels, (f"pixels converted from {array.dtype} in 0-{top} to 8 bits",)


def _from_floats(array: NDArray[Any]) -> tuple[Pixels, tuple[str, ...]]:
    """Scale floats in 0-1 or 0-255; what lies a little outside, and seldom, is clipped."""
    low, high = float(array.min()), float(array.max())
    integral = high > 1 and bool((array == np.rint(array)).all())
    tops = (1.0, 255.0) if not integral else (255.0,)
    for top in tops:
        outside = (array < 0) | (array > top)
        near = -OVER * top <= low and high <= (1 + OVER) * top and outside.mean() <= FEW
        hair = -1e-3 * top <= low and high <= (1 + 1e-3) * top
        if (near or hair) and (top == 1 or integral or high >= DIM):
            pixels = np.rint(array.clip(0, top) * (255 / top)).astype(np.uint8)
            notes = [f"pixels converted from {array.dtype} in 0-{top:g} to 8 bits"]
            if outside.any():
                notes.append(f"{outside.sum():,} values from {low:g} to {high:g} clipped")
            return pixels, tuple(notes)
    raise _no_pixels(array, f" from {low:g} to {high:g}")


def _no_pixels(array: NDArray[Any], span: str) -> BadImages:
    return BadImages(
        f"the images are {array.dtype}{span}; expected raw pixels: uint8, or floats in [0, 1] or "
        "0-255, not normalized"
    )


def in_words(steps: Counter[str]) -> tuple[str, ...]:
    """Turn counted steps into notes.

    Example:
        >>> in_words(Counter({"with a palette expanded": 2}))
        ('2 images with a palette expanded',)
    """
    return tuple(f"{counted(n, 'image')} {step}" for step, n in sorted(steps.items()))


def counted(count: int, noun: str) -> str:
    """Put a number before a noun.

    Example:
        >>> counted(1, "image"), counted(2000, "file")
        ('1 image', '2,000 files')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@cache
def image_suffixes() -> frozenset[str]:
    """Return the file name endings of the formats that are read, in lower case, with the dot."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in (*FORMATS, "MPO"))


# Conversion -----------------------------------------------------------------------------------


def _convert(image: Image.Image, channels: int, size: Resize | None) -> Decoded:
    steps: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        steps.append("with several frames reduced to the first")
    if size is None and max(image.size) > MOST_SIDE:
        raise BadImages(
            f"is {image.height}x{image.width}; above {MOST_SIDE} pixels a side give --input-size"
        )
    image.load()
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        steps.append("turned upright by the EXIF orientation")
    plain = _flat(upright, steps)
    mode, word = ("L", "grayscale") if channels == 1 else ("RGB", "RGB")
    if plain.mode != mode:
        steps.append(f"converted from {'RGB' if channels == 1 else 'grayscale'} to {word}")
        plain = plain.convert(mode)
    if size is not None and plain.size != size.size[::-1]:
        steps.append(size.words)
        plain = size(plain)
    pixels = np.array(plain)
    return Decoded(pixels if pixels.ndim == 3 else pixels[..., None], tuple(steps))


def _flat(image: Image.Image, steps: list[str]) -> Image.Image:
    """Return the image in mode L or RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image, steps)
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"), steps).convert("L" if gray else "RGB")
    if not gray and image.mode != "RGB":
        kind = "a palette" if image.mode == "P" else f"mode {image.mode}"
        steps.append(f"converted from {kind} to RGB")
    return image.convert("L" if gray else "RGB")


def _on_white(image: Image.Image, steps: list[str]) -> Image.Image:
    if image.getchannel("A").getextrema() == (255, 255):
        return image
    steps.append("with transparency laid on white")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _from_deep(image: Image.Image, steps: list[str]) -> Image.Image:
    """Scale 16-bit gray, which Pillow opens as `I;16` or `I`, to 8 bits."""
    values = np.array(image)
    if image.mode == "F":
        try:
            pixels, _ = _from_floats(values)
        except BadImages as error:
            raise BadImages(f"has pixels outside 0 to 1 and 0 to 255 (mode F): {error}") from error
        steps.append("scaled from floats to 8 bits")
        return Image.fromarray(pixels)
    if not (values.min() >= 0 and values.max() <= 65535):
        raise BadImages(f"has pixels outside 0 to 65535 (mode {image.mode})")
    steps.append("scaled from 16-bit gray to 8 bits")
    return Image.fromarray(np.round(values * (255 / 65535)).astype(np.uint8))


def listed(reasons: Iterable[str], most: int = 20) -> str:
    """Join reasons by commas, and say how many more there are than `most`.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    every = list(reasons)
    rest = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest
