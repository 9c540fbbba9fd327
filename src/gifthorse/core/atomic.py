"""Files that are whole or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gifthorse.core.errors import Unwritable


@contextmanager
def atomic(path: Path) -> Iterator[IO[Any]]:
    """Open a binary file that takes the place of `path` when all went well, and never before.

    Raises:
        Unwritable: If the folder does not exist or cannot be written to, the disk is full, or
            `path` is something else than a file: a device, a pipe, a folder.
    """
    part: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file, but a folder, a device or a pipe")
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out before a long run whether a file can be written at its end; makes its folder.

    Raises:
        Unwritable: If it cannot.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is no file, but a folder, a device or a pipe")
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part"
        ) as file:
            file.write(b"x")
    except OSError as error:
        raise Unwritable(f"cannot write {path}: {error.strerror or error}") from error
