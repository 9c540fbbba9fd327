"""Model files, read in a process of their own: what is checked is what is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from gifthorse.core.errors import GifthorseError, UnreadableModel
from gifthorse.core.isolated import readers
from gifthorse.core.isolated.confinement import Limits
from gifthorse.core.isolated.transport import BrokenAnswer, together
from gifthorse.models.reading import child
from gifthorse.models.reading.entries import PLAIN, CheckpointEntry, shown
from gifthorse.models.reading.files import digest, digest_of, open_file, size_of
from gifthorse.models.reading.survey import Survey

MEMORY = 8 << 30  # bytes
DEADLINE = 120.0  # seconds of processor time
SURVEY = Limits(1 << 30, 20.0)  # for a file of no size; larger ones get more
PACE = 50 << 20  # bytes a second that even a slow disk and a checksum manage
WHAT = "the file"


@dataclass(frozen=True, eq=False)
class PrivateCopy:
    """The bytes of a file, where nobody can change them between check and use.

    Attributes:
        stream: Open; no folder names it, so that it goes with whoever holds it.
        name: Of the file.
        sha256: Hex digest of the bytes.
        size: Their number.
    """

    stream: IO[bytes]
    name: str
    sha256: str
    size: int


@contextmanager
def private_copy(path: Path, memory: int = MEMORY) -> Iterator[PrivateCopy]:
    """Lend a copy of a file of at most `memory` bytes.

    Raises:
        UsageError: If there is no such file.
        UnreadableModel: If it is no file, too large, or changes while it is copied.
        GifthorseError: If there is no room for a copy.
    """
    with open_file(path) as stream, tempfile.TemporaryFile() as copy:
        size = size_of(stream)
        if size > memory:
            raise UnreadableModel(
                f"{shown(str(path))!r} has {size:,} bytes, more than the limit of {memory:,}: "
                "allow more memory if you expect a file that large",
                rule="FS004",
            )
        before = os.fstat(stream.fileno())
        try:
            sha256 = digest(stream, copy)
            copy.flush()
        except OSError as error:
            raise GifthorseError(
                f"no private copy of {shown(str(path))!r} ({size:,} bytes) can be made in "
                f"{tempfile.gettempdir()}: {error.strerror}; free some space there, or set TMPDIR"
            ) from error
        after = os.fstat(stream.fileno())
        same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if not same or size_of(copy) != size:
            raise UnreadableModel(
                f"{shown(str(path))!r} changed while it was read: wait until it is written, then "
                "try again",
                rule="FS003",
            )
        yield PrivateCopy(copy, path.name, sha256, size)


def sniff(path: Path) -> str:
    """Tell what a file is by its bytes, see `files.sniff_stream`.

    Raises:
        GifthorseError: If it is no regular file, or a broken zip archive.
    """
    with open_file(path) as stream:
        told, _ = readers.call(
            child.sniffed,
            [path.suffix.lower()],
            what=WHAT,
            error=UnreadableModel,
            limits=SURVEY,
            streams=[stream],
        )
    return str(told)


def survey(copy: PrivateCopy, deadline: float = DEADLINE) -> Survey:
    """Return what a file's bytes say; see `gifthorse.models.reading.survey`.

    Raises:
        UnreadableModel: If even that takes more than `SURVEY`.
    """
    seconds = min(deadline, SURVEY.seconds + copy.size / PACE)
    limits = Limits(SURVEY.memory + copy.size, seconds)
    told, _ = readers.call(
        child.surveyed,
        [copy.name],
        what=WHAT,
        error=UnreadableModel,
        limits=limits,
        streams=[copy.stream],
    )
    try:
        return _form().validate_python([told])[0]
    except ValidationError as error:
        raise _unequal() from error


@cache
def _form() -> TypeAdapter[list[Survey]]:
    return TypeAdapter(list[Survey], config=ConfigDict(arbitrary_types_allowed=True))


def read(
    copy: PrivateCopy,
    reader: str,
    expected: Sequence[CheckpointEntry],
    *,
    memory: int,
    deadline: float,
    beside: PrivateCopy | None = None,
) -> list[Tensor | None]:
    """Read a checked file.

    Args:
        copy: Its bytes.
        reader: What opens it, see `Survey.reader`.
        expected: The leaves that its bytes were seen to hold.
        memory: Bytes that the reader may take beyond what torch itself needs.
        deadline: Seconds of processor time that it may take.
        beside: The file of numbers that belongs to it, see `Survey.beside`.

    Returns:
        One tensor an expected leaf, None for what is no plain tensor.

    Raises:
        UnreadableModel: If the file is refused, needs too much memory or time, or reads
            differently from what was expected.
    """
    told, tensors = readers.call(
        child.tensors,
        [reader],
        what=WHAT,
        error=UnreadableModel,
        limits=Limits(memory, deadline),
        streams=[copy.stream, *([beside.stream] if beside else [])],
    )
    left = iter(tensors)
    try:
        seen = [(_plain(*fact), None if fact[2] is None else next(left)) for fact in told]
    except (TypeError, ValueError, StopIteration) as error:
        raise _unequal() from error
    if reader == "safetensors":  # whose order is that of the numbers, not of the names
        by_name = {entry.path: (entry, tensor) for entry, tensor in seen}
        seen = [by_name[entry.path] for entry in expected if entry.path in by_name]
    _compare(expected, [entry for entry, _ in seen])
    found = [tensor for _, tensor in seen]
    if any(_differs(e, t) for e, t in zip(expected, found, strict=True)):
        raise _unequal()
    return found


@contextmanager
def lent_beside(path: Path, found: Survey, memory: int) -> Iterator[PrivateCopy | None]:
    """Lend a copy of the file of numbers that belongs to a surveyed one, if there is one.

    Raises:
        UnreadableModel: If it is missing, no file, or too large.
    """
    if not found.beside:
        yield None
        return
    place = path.parent / found.beside
    if not place.is_file():
        raise UnreadableModel(
            f"its numbers lie in {shown(found.beside)!r}, which is not in its folder: get that "
            "file as well",
            rule="FS003",
        )
    with private_copy(place, memory) as copy:
        yield copy


def digest_now(path: Path) -> str:
    """Return the hash of a model file by now, with that of the numbers that lie beside it.

    Raises:
        GifthorseError: If it cannot be read any more.
    """
    with private_copy(path) as copy:
        if sniff(path) != "onnx":
            return copy.sha256
        with lent_beside(path, survey(copy), MEMORY) as beside:
            return digest_with(path, copy, beside)


def digest_with(path: Path, copy: PrivateCopy, beside: PrivateCopy | None) -> str:
    """Return the hash of a file, or of it and the one of its numbers."""
    if beside is None:
        return copy.sha256
    return digest_of([(path, copy.sha256), (Path(beside.name), beside.sha256)])


def names_with(path: Path, beside: PrivateCopy | None) -> tuple[str, ...]:
    """Return the names of the files that `digest_with` is of."""
    return (path.name,) if beside is None else (path.name, beside.name)


def checkpoint(path: Path, wanted: Collection[str] = ()) -> dict[Any, Any]:
    """Return the dictionary in a zip of torch.save; see `values.checkpoint`.

    Raises:
        UnsafeModel: If it asks for anything but tensors, arrays and plain values.
        UnreadableModel: If it is damaged, too large, or no dictionary.
        UsageError: If there is no such file.
    """
    with private_copy(path) as copy:
        told, tensors = readers.call(
            child.checkpoint,
            [copy.name, sorted(wanted)],
            what=WHAT,
            error=UnreadableModel,
            limits=Limits(SURVEY.memory + 4 * copy.size, DEADLINE),
            streams=[copy.stream],
        )
    try:
        return dict(together(told, tensors))
    except (BrokenAnswer, TypeError, ValueError) as error:
        raise _unequal() from error


def _plain(keys: Any, dtype: Any, shape: Any) -> CheckpointEntry:
    return CheckpointEntry(tuple(keys), dtype, None if shape is None else tuple(shape))


def _compare(expected: Sequence[CheckpointEntry], seen: Sequence[CheckpointEntry]) -> None:
    wanted = [e for e in expected if e.shape is not None and e.type in PLAIN]
    got = [e for e in seen if e.shape is not None]
    if len(expected) != len(seen) or wanted != got:
        raise _unequal()


def _differs(entry: CheckpointEntry, tensor: Tensor | None) -> bool:
    if entry.shape is None or entry.type not in PLAIN:
        return False
    same = tensor is not None and str(tensor.dtype) == f"torch.{entry.type}"
    return not same or tensor is None or tuple(tensor.shape) != entry.shape


def _unequal() -> UnreadableModel:
    return UnreadableModel(
        "the file reads differently by its bytes and by torch: it is damaged or made to deceive; "
        "get it again from its source",
        rule="FS003",
    )
