"""Reports written to files, each whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import Unwritable


def save(
    targets: Sequence[tuple[str, Path]],
    document: Callable[[str], str],
    told: Callable[[str], object],
) -> None:
    """Write documents to files; if one takes it not, somewhere else.

    Args:
        targets: Formats, and where to.
        document: Gives the document of a format.
        told: Is told of each that was written.

    Raises:
        Unwritable: If one was not written; says where it is kept.
    """
    failed: list[str] = []
    for name, path in targets:
        content = document(name).encode()
        try:
            with atomic(path) as file:
                file.write(content)
            told(f"wrote {path}")
        except Unwritable as error:
            failed.append(f"{error}; {_kept(path.name, content)}")
    if failed:
        raise Unwritable("; ".join(failed))


def _kept(name: str, content: bytes) -> str:
    """Keep what could not be written in the temporary folder; say where, or that it is lost."""
    try:
        spare = Path(tempfile.mkdtemp(prefix="gifthorse-")) / name
        spare.write_bytes(content)
    except OSError as error:
        return f"nor can it be kept elsewhere ({error.strerror or error})"
    return f"it is kept in {spare}"
