"""Files that say they are models: opened, hashed and told apart by their bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from gifthorse.core.errors import UnreadableModel, UsageError
from gifthorse.core.files import AT_ONCE
from gifthorse.models.reading import archives
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.headers import HEADER
from gifthorse.models.reading.strangers import HEAD, stranger

PROTOCOL = b"\x20"  # above any version of the pickle format, and of ONNX, for long
_FIELDS = (b"\x12", b":", b"\x1a", b'"')  # that may follow the version of an ONNX file
CHUNK = 1 << 20
HDF5 = b"\x89HDF\r\n\x1a\n"

# Endings under which each kind is usually seen.
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "pytorch": (".pt", ".pth", ".ckpt", ".bin", ".tar", ".model", ".th", ".pkl"),
    "legacy": (".pt", ".pth", ".ckpt", ".bin", ".tar", ".model", ".th", ".t7", ".pkl"),
    "torchscript": (".torchscript", ".ts"),
    "pt2": (".pt2",),
    "onnx": (".onnx",),
    "keras": (".keras",),
    "hdf5": (".h5", ".hdf5", ".keras"),
}


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading, at once: devices, pipes and folders are refused.

    Raises:
        UsageError: If there is no such file, or it is a folder.
        UnreadableModel: If it is a device, a pipe or a socket, or may not be read.
    """
    name = shown(str(path))
    try:
        fd = os.open(path, AT_ONCE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no file {name!r}: check the path") from error
    except IsADirectoryError as error:
        raise _folder(name) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"there is no file {name!r}: no file can have that name") from error
        raise UnreadableModel(f"{name!r} cannot be opened: {error}", rule="FS003") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise _folder(name)
    raise UnreadableModel(
        f"{name!r} is a device, a pipe or a socket, not a file; save the model to disk first",
        rule="FS003",
    )


def _folder(name: str) -> UsageError:
    return UsageError(f"{name!r} is a folder: name a model file inside it")


def digest(stream: IO[bytes], copy: IO[bytes] | None = None) -> str:
    """Return the SHA-256 of a stream from its start as hex; write its bytes to `copy`."""
    stream.seek(0)
    total = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        total.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return total.hexdigest()


def digest_of(hashes: Iterable[tuple[Path, str]]) -> str:
    """Return the hash of several files from their names and the hash of each."""
    lines = "".join(f"{path.name} {sha256}\n" for path, sha256 in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()


def size_of(stream: IO[bytes]) -> int:
    """Return the size of an open file in bytes."""
    return stream.seek(0, os.SEEK_END)


def sniff_stream(stream: IO[bytes], size: int, ending: str = "") -> str:
    """Tell what an open file of `size` bytes is by its bytes.

    Returns:
        `safetensors`, `pytorch` (a zip with a pickled index), `legacy` (a pickle), `torchscript`,
        `pt2`, `onnx`, `keras` (an archive), `hdf5`, `zip` (another archive), `empty` or `unknown`.

    Raises:
        UnreadableModel: If it is a broken zip archive.
    """
    stream.seek(0)
    first = stream.read(16)
    if not first or first.startswith(HDF5):
        return "hdf5" if first else "empty"
    if first.startswith(b"PK\x03\x04"):
        return archives.kind(archives.directory(stream, size))
    first += stream.read(HEAD - len(first))
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= HEADER:
        return "safetensors"
    if stranger(first)[0]:
        return "unknown"
    if first[8:9] == b"{" or (ending == ".safetensors" and first[:1] not in b"{["):
        return "safetensors"
    legacy = first[:1] == b"\x80" and first[1:2] < PROTOCOL
    onnx = first[:1] == b"\x08" and first[1:2] < PROTOCOL and first[2:3] in _FIELDS
    return "legacy" if legacy else "onnx" if onnx else "unknown"
