"""Files that say they are models: opened, hashed and told apart by their bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from gifthorse.core.errors import UnreadableModel, UsageError
from gifthorse.models.reading import archives
from gifthorse.models.reading.entries import shown

CHUNK = 1 << 20

# Endings under which each kind is usually seen.
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "pytorch": (".pt", ".pth", ".ckpt", ".bin", ".tar", ".model", ".th", ".pkl"),
    "legacy": (".pt", ".pth", ".ckpt", ".bin", ".tar", ".model", ".th", ".t7", ".pkl"),
    "torchscript": (".torchscript", ".ts"),
    "pt2": (".pt2",),
    "onnx": (".onnx",),
}

# First bytes of what is mistaken for a model, in words.
_STRANGERS: Mapping[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run git lfs pull",
    b"<": "a web page: the download failed",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF document",
}


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading, at once: devices, pipes and folders are refused.

    Raises:
        UsageError: If there is no such file, or it is a folder.
        UnreadableModel: If it is a device, a pipe or a socket, or may not be read.
    """
    name = shown(str(path))
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no file {name!r}: check the path") from error
    except IsADirectoryError as error:
        raise _folder(name) from error
    except (OSError, ValueError) as error:
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


def size_of(stream: IO[bytes]) -> int:
    """Return the size of an open file in bytes."""
    return stream.seek(0, os.SEEK_END)


def sniff_stream(stream: IO[bytes], size: int, ending: str = "") -> str:
    """Tell what an open file of `size` bytes is by its bytes.

    Returns:
        `safetensors`, `pytorch` (a zip with a pickled index), `legacy` (a pickle), `torchscript`,
        `pt2`, `onnx`, `zip` (another archive), `empty` or `unknown`.

    Raises:
        UnreadableModel: If it is a broken zip archive.
    """
    stream.seek(0)
    first = stream.read(16)
    if not first:
        return "empty"
    if first.startswith(b"PK\x03\x04"):
        return archives.kind(archives.directory(stream, size))
    if first[8:9] == b"{" or (ending == ".safetensors" and not stranger(first)):
        return "safetensors"
    if first[0] == 0x80 and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "legacy"
    onnx = first[0] == 0x08 and first[1:2] < b" " and first[2:3] in (b"\x12", b":", b"\x1a", b'"')
    return "onnx" if onnx else "unknown"


def stranger(first: bytes) -> str:
    """Say in words what a file is that starts with these bytes; empty if unknown."""
    known = (words for magic, words in _STRANGERS.items() if first.startswith(magic[: len(first)]))
    return next(known, "")
