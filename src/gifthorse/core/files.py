"""Small files that users name: regular ones of a limited size, read at once or refused."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading, at once: devices, pipes and folders are refused.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, not a file", str(path))
    return os.fdopen(fd, "rb")


def read_small(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes.

    Raises:
        OSError: If it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data


def read_json(path: Path, most: int) -> Any:
    """Return what a JSON file of at most `most` bytes holds.

    Raises:
        OSError: If it cannot be read, see `read_small`.
        ValueError: If it is no JSON, or nested too deeply.
    """
    return parse_json(read_small(path, most))


def parse_json(text: str | bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
