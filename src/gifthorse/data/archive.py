"""Opening `.npz` files of unknown origin: headers are checked before anything is allocated."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gifthorse.core.errors import BadImages
from gifthorse.core.files import check_regular

Array: TypeAlias = NDArray[Any]
MOST_BYTES = 8 * 2**30  # of one array; about 50,000 images of 224 x 224
# All that zipfile and NumPy have been seen to raise on damaged files; a file for which memory does
# not suffice need not be damaged.
BROKEN = (
    *(ValueError, OSError, EOFError, LookupError, RuntimeError, TypeError, SyntaxError),
    *(AttributeError, OverflowError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def peek(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in an `.npz` file without reading the arrays.

    Raises:
        BadImages: The file is no `.npz`, an array holds Python objects (loading those could run
            code), or it claims more bytes than there are or than `MOST_BYTES`.
    """
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            shapes = {}
            for member in members:
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                _check(path, member, shape, dtype)
                shapes[member.filename.removesuffix(".npy")] = shape
    except BROKEN as error:
        raise BadImages(f"{path} is not a readable .npz file: {error}") from error
    return shapes


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in read:
        raise ValueError(f"array format {version} is not supported")
    shape, _, dtype = read[version](file)
    return shape, dtype


def _check(
    path: Path, member: zipfile.ZipInfo, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    what = f"array {member.filename.removesuffix('.npy')!r} of {path}"
    if dtype.hasobject:
        raise BadImages(
            f"{what} holds Python objects, which are pickles and could run code: "
            "save plain uint8 images and integer labels"
        )
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > MOST_BYTES:
        raise BadImages(f"{what} claims {claimed:,} bytes; at most {MOST_BYTES:,} are read")
    if min(shape, default=0) < 0 or claimed > member.file_size:
        raise BadImages(f"{what} claims {claimed:,} bytes but holds {member.file_size:,}")


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
    return array


def arrays(path: Path, keys: Iterable[str]) -> dict[str, Array]:
    """Read these arrays of an `.npz` file that `peek` has accepted.

    Raises:
        BadImages: An array is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # np.load takes other members that are called so
            return {key: _array(archive, f"{key}.npy") for key in keys}
    except BROKEN as error:
        raise BadImages(f"{path} is damaged: {error}") from error
