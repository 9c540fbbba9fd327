"""Files whose path somebody else chose: only regular ones are opened, and only one run owns one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from gifthorse.core.errors import Unwritable, UsageError

MOST = 512 * 2**20  # bytes of a file that is read as a whole
# How to open what may be a pipe or a device: at once, and as it is.
AT_ONCE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def is_regular(path: Path) -> bool:
    """Whether there is a regular file, links followed; never an error, however odd the name."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # too long, a null character, a ring of links
        return False


def check_regular(path: Path) -> None:
    """Refuse what would keep its reader waiting, or never end: a pipe, a device, a folder.

    Raises:
        UsageError: If the path leads to something else than a regular file, or to nothing.
    """
    if is_regular(path):
        return
    name = ascii(str(path)[:200])
    if not os.path.exists(path):
        raise UsageError(f"there is no file {name}: check the path")
    raise UsageError(f"{name} is no file, but a folder, a device or a pipe: name a file")


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading, at once: devices, pipes and folders are refused.

    Raises:
        UsageError: If there is none, it is something else, or may not be read.
    """
    check_regular(path)
    try:  # a pipe that came into its place meanwhile keeps nobody waiting
        fd = os.open(path, AT_ONCE)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    return os.fdopen(fd, "rb")


def read_file(path: Path, most: int = MOST) -> bytes:
    """Return the bytes of a regular file, at once: pipes and devices are refused.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        UsageError: If there is no such file, it is none, is too large, or may not be read.
    """
    with open_regular(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise UsageError(f"{path} has more than {most:,} bytes: is it the right file?")
    return content


@contextmanager
def owned(store: Path | None) -> Iterator[None]:
    """Keep other runs off the file that keeps the state of this one.

    A lock goes with the process that holds it, so none that was killed leaves one behind.

    Raises:
        UsageError: If another run is at work on it.
        Unwritable: If its folder cannot be written to.
    """
    if store is None:
        yield
        return
    lock = store.with_name(f".{store.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise UsageError(
            f"another run keeps its state in {store}: wait for it, or name another folder"
        ) from error
    except PermissionError as error:
        raise Unwritable(f"cannot write to {store.parent}: {error.strerror}") from error


def read_json(path: Path, most: int = MOST) -> Any:
    """Return what a JSON file holds.

    Raises:
        UsageError: If it cannot be read, see `read_file`.
        ValueError: If it is no JSON, or nested too deeply.
    """
    return parse_json(read_file(path, most))


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
