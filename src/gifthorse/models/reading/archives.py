"""Zip archives of `torch.save`, checked by their directory without inflating anything."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO
from zipfile import ZipFile, ZipInfo

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.opcodes import EXTENSION, NAMELESS, OPCODES, Trace, trace
from gifthorse.models.reading.pickles import Contents, weights
from gifthorse.models.reading.ratings import Import, imports, refuse_code

RECORDS = 20_000
PICKLES = 8  # torch.save writes one, TorchScript a few
RATIO = 100  # of a compressed record; random numbers hardly shrink
DIRECTORY = 16 << 20  # bytes of the directory of records
PICKLE = 64 << 20  # bytes of a pickle inside
PEEK = 1 << 12  # bytes of a tensor record that are looked at first for a hidden pickle
VERSIONS = range(1, 11)  # of the archives of torch.save that PyTorch reads

# What the zip reader of the standard library raises on damaged archives.
_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,  # with NotImplementedError: encrypted, unknown method
    EOFError,
    ValueError,
    OverflowError,
    OSError,
    struct.error,
    zlib.error,
)

_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
END = b"PK\x05\x06"
_CODE = ("code/", "constants.pkl")
_EXPORT = ("archive_format", "serialized_exported_program.json", "archive_version", "models/")


def directory(stream: IO[bytes], size: int) -> ZipFile:
    """Open a zip of `size` bytes whose directory is the very end of the file.

    Raises:
        UnreadableModel: `FS003` if it is truncated, `FS004` if its directory is huge, `FS008` if
            anything stands before or behind it.
    """
    stream.seek(max(0, size - _END.size))
    tail = stream.read(_END.size)
    if len(tail) < _END.size or tail[:4] != END:
        raise UnreadableModel(
            "the zip archive has no end record where it should be: the file is truncated, or "
            "something was appended to it; download it again",
            rule="FS003",
        )
    if _END.unpack(tail)[5] > DIRECTORY:
        raise UnreadableModel(
            f"the zip archive's directory is larger than {DIRECTORY} bytes", rule="FS004"
        )
    try:
        archive = ZipFile(stream)
    except _DAMAGE as error:
        raise UnreadableModel(
            f"the zip archive is damaged: {shown(str(error))}", rule="FS003"
        ) from error
    if len(archive.infolist()) > RECORDS:
        raise UnreadableModel(f"the zip archive has more than {RECORDS} records", rule="FS004")
    return archive


def is_end(tail: bytes, at: int) -> bool:
    """Whether bytes that begin at place `at` of a file are the end record of a zip archive."""
    if len(tail) < _END.size:
        return False
    magic, disk, first, here, records, length, begin, _ = _END.unpack(tail[: _END.size])
    far = 0xFFFFFFFF in (length, begin)
    return magic == END and disk == first and here == records and (far or length <= at)


def check_names(infos: Sequence[ZipInfo]) -> None:
    """Refuse names that leave the archive's own folder, links, doubles and near-doubles.

    Raises:
        UnreadableModel: `FS006`.
    """
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        outside = name.startswith("/") or ".." in PurePosixPath(name).parts
        odd = any(c in "\\:" or not c.isprintable() for c in name)
        odd |= info.external_attr >> 28 == 0xA
        if outside or odd or name.casefold() in seen:
            raise UnreadableModel(
                f"the zip archive has a record of a forbidden name, {shown(name)!r}: a path out "
                "of the archive, a link, the same name twice, or characters that act on a "
                "terminal; the file is not to be trusted",
                rule="FS006",
            )
        seen.add(name.casefold())


def check_layout(stream: IO[bytes], archive: ZipFile, size: int) -> None:
    """Refuse anything that two zip readers could read differently, and compression.

    Records must be stored plainly, one after another from the first byte to the directory, with
    equal local and central headers.

    Raises:
        UnreadableModel: `FS003`, `FS004` for compression, `FS008` for hidden bytes.
    """
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    at = 0
    for info in infos:
        name = shown(info.orig_filename)
        plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not plain and not _is_program(info):
            raise UnreadableModel(
                f"record {name!r} is compressed ({info.compress_size} to {info.file_size} bytes), "
                "as torch.save never does; not inflated. Save the weights again",
                rule="FS009" if _modest(info) else "FS004",
            )
        if not 0 <= info.header_offset - at <= 24 or (at == 0 != info.header_offset):
            raise UnreadableModel(
                f"bytes {at} to {info.header_offset} of the file belong to no record of its zip "
                "archive, or to two: something is hidden there",
                rule="FS008",
            )
        at = _local_end(stream, info)
    width = sum(46 + len(_raw(i)) + len(i.extra) + len(i.comment) for i in infos)
    rest = size - archive.start_dir - width
    if not 0 <= archive.start_dir - at <= 24 or rest not in (22, 98):  # 98: with zip64 records
        raise UnreadableModel("bytes around the zip directory belong to nothing", rule="FS008")


def _modest(info: ZipInfo) -> bool:
    """Whether a record is not compressed, or no more than honest numbers can be."""
    return info.file_size <= RATIO * info.compress_size + PEEK


def _is_program(info: ZipInfo) -> bool:
    """Whether a record is a part of a TorchScript program: compressed, and never read here."""
    inner = info.orig_filename.partition("/")[2]
    return inner.startswith(_CODE[0]) and info.compress_type == zipfile.ZIP_DEFLATED


def _raw(info: ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _local_end(stream: IO[bytes], info: ZipInfo) -> int:
    """Return where a record's data ends, after comparing its two headers."""
    stream.seek(info.header_offset)
    head = stream.read(_LOCAL.size)
    if len(head) < _LOCAL.size:
        raise UnreadableModel("the zip archive ends within a record", rule="FS003")
    magic, _, flags, method, _, _, _, packed, full, name, extra = _LOCAL.unpack(head)
    later = (0, 0xFFFFFFFF) if flags & 8 else (0xFFFFFFFF,)
    sizes = ((packed, info.compress_size), (full, info.file_size))
    same = (
        magic == b"PK\x03\x04",
        flags == info.flag_bits and not flags & ~0x808,
        method == info.compress_type,
        all(n in (own, *later) for n, own in sizes),
        stream.read(name) == _raw(info),
    )
    if not all(same):
        raise UnreadableModel(
            f"the two headers of record {shown(info.orig_filename)!r} differ or ask for "
            "encryption: two readers could see two files",
            rule="FS003",
        )
    return info.header_offset + _LOCAL.size + int(name) + int(extra) + info.compress_size


def kind(archive: ZipFile) -> str:
    """Say what a zip archive is by its names: `pytorch`, `torchscript`, `pt2`, `keras` or `zip`."""
    if {"config.json", "model.weights.h5"}.issubset(archive.namelist()):
        return "keras"
    inner = [name.partition("/")[2] or name for name in archive.namelist()]
    if any(name.startswith(_CODE) for name in inner):
        return "torchscript"
    if any(name.startswith(_EXPORT) for name in (*inner, *archive.namelist())):
        return "pt2"
    return "pytorch" if "data.pkl" in inner else "zip"


def pickled(archive: ZipFile) -> tuple[Import, ...]:
    """Return what all pickles inside would import, also those that pretend to be tensors.

    Raises:
        UnreadableModel: `FS003` if a pickle cannot be read, `FS004` if it is huge.
    """
    found: dict[Import, None] = {}
    followed = 0
    known = [i for i in archive.infolist() if _modest(i)]
    indices = [i for i in known if PurePosixPath(i.filename).suffix in (".pkl", ".pickle")]
    stored = [i for i in known if i.compress_type == zipfile.ZIP_STORED]
    if len(indices) > PICKLES:
        raise UnreadableModel(
            f"the zip archive has {len(indices)} pickles, more than {PICKLES}", rule="FS004"
        )
    named = {info.header_offset for info in indices}
    for info in (*indices, *(i for i in stored if i.header_offset not in named)):
        if info.header_offset in named:
            data = read(archive, info.filename, PICKLE)
            names, count = chained(data, info.filename, OPCODES - followed)
        else:
            names, count = hidden(_open(archive, info), info.filename, OPCODES - followed)
        found |= dict.fromkeys(names)
        followed += count
        if followed > OPCODES:
            refuse_code(tuple(found))  # what was seen so far may be worse
            raise UnreadableModel(f"its pickles have more than {OPCODES:,} opcodes", rule="FS004")
    return tuple(found)


def chained(
    data: bytes, record: str, limit: int = OPCODES, most: int = 5
) -> tuple[list[Import], int]:
    """Return what the first pickles in `data` would import, and how many opcodes they have."""
    found: list[Import] = []
    begin = count = 0
    for _ in range(most):
        traced, end = _followed(data, begin, max(0, limit - count))
        count += traced.count
        found += imports(traced, record, data[begin:] if traced.fault else b"")
        begin = end
        if traced.fault is not None or end == len(data):
            break
    return found, count


@lru_cache(maxsize=1)  # an index is followed for its names first, then for its tensors
def _followed(data: bytes, begin: int, limit: int) -> tuple[Trace, int]:
    """Return the trace of the pickle that begins somewhere in `data`, and where it ends."""
    stream = BytesIO(data)
    stream.seek(begin)
    return trace(stream, limit=limit), stream.tell()


def hidden(
    stream: IO[bytes] | bytes, record: str, limit: int = OPCODES
) -> tuple[list[Import], int]:
    """Return what bytes that are no pickle by name would import if they were unpickled.

    Of bytes that break off, only what is known to be dangerous counts, since numbers may look like
    the beginning of a pickle.

    Returns:
        The names, and how many opcodes were followed.
    """
    stream = BytesIO(stream) if isinstance(stream, bytes) else stream
    data, size, count = b"", PEEK, 0
    try:
        while True:
            data += stream.read(size - len(data))
            traced = trace(BytesIO(data), limit=max(0, limit - count))
            count += traced.count
            short = len(data) == size < PICKLE and _broke_off(traced)
            if not short or count > limit:
                break
            size = min(16 * size, PICKLE)
    except _DAMAGE:
        return [], count  # check_layout and check_sums name the fault
    whole = traced.fault is None
    found = imports(traced, record)
    return [i for i in found if whole or _surely(i)], count


def _surely(found: Import) -> bool:
    """Whether chance does not make such a name: it makes extensions and nameless imports."""
    return found.safety == "dangerous" and found.module not in (NAMELESS, EXTENSION)


def _broke_off(traced: Trace) -> bool:
    """Whether a trace came to an end because there were no more bytes to follow."""
    return traced.fault is not None and any(words in str(traced.fault) for words in _ENDS)


# What pickletools says where bytes end within a pickle.
_ENDS = ("exhausted before", "not enough data", "but only", "no newline found")


def _open(archive: ZipFile, info: ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except _DAMAGE:
        return BytesIO()  # check_layout and check_sums name the fault


def read(archive: ZipFile, name: str, limit: int) -> bytes:
    """Return one record of at most `limit` bytes; a compressed one only if it swells modestly.

    Raises:
        UnreadableModel: `FS003` if it is damaged, `FS004` if it is larger.
    """
    info = archive.getinfo(name)
    if info.file_size > limit or not _modest(info):
        raise UnreadableModel(
            f"record {shown(name)!r} is strongly compressed or has more than {limit} bytes",
            rule="FS004",
        )
    try:
        return archive.read(name)
    except _DAMAGE as error:
        raise UnreadableModel(
            f"record {shown(name)!r} of the zip archive is damaged ({shown(str(error))}); "
            "download the file again",
            rule="FS003",
        ) from error


def check_sums(archive: ZipFile) -> None:
    """Compare every record that is stored plainly with its checksum; nothing is inflated.

    Raises:
        UnreadableModel: `FS003`.
    """
    for info in archive.infolist():
        if info.compress_type == zipfile.ZIP_STORED:
            _check_sum(archive, info)


def _check_sum(archive: ZipFile, info: ZipInfo) -> None:
    try:
        with archive.open(info) as record:
            while record.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" in str(error):
            raise UnreadableModel(
                f"the checksum of record {shown(info.orig_filename)!r} is wrong: the file is "
                "damaged; download it again",
                rule="FS003",
            ) from error
        raise UnreadableModel(f"the zip archive is damaged: {error}", rule="FS003") from error
    except _DAMAGE as error:
        raise UnreadableModel(f"the zip archive is damaged: {error}", rule="FS003") from error


def index_name(archive: ZipFile) -> str:
    """Return the name of the record that lists the tensors; empty if there is none."""
    names = archive.namelist()
    return next((name for name in names if name.partition("/")[2] == "data.pkl"), "")


def index(archive: ZipFile, read_index: Callable[[Trace, str], Contents] = weights) -> Contents:
    """Read the pickled index of an archive and compare it with the records it speaks of.

    Args:
        archive: Of torch.save or TorchScript.
        read_index: What makes contents of a traced pickle; that of weights alone if not given.

    Raises:
        UnsafeModel: If the index needs code.
        UnreadableModel: If it does not fit the records (`FS003`) or is a bomb (`FS004`).
    """
    name = index_name(archive)
    _check_version(archive, name.partition("/")[0])
    data = read(archive, name, PICKLE)
    traced, end = _followed(data, 0, OPCODES)
    found = read_index(traced, name)
    if end != len(data):
        raise UnreadableModel(f"something follows the pickle in {shown(name)!r}", rule="FS003")
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    top = name.partition("/")[0]
    for storage in found.storages.values():
        size = sizes.get(f"{top}/data/{storage.key}")
        if size != storage.size:
            raise UnreadableModel(
                f"storage {shown(storage.key)!r} should have {storage.size} bytes, but its record "
                f"{'is missing' if size is None else f'has {size}'}",
                rule="FS003",
            )
    return found


def _check_version(archive: ZipFile, top: str) -> None:
    """Refuse what torch's reader would not know: the version of the archive, the order of bytes."""
    names = set(archive.namelist())
    version, order = (
        read(archive, f"{top}/{name}", 100) if f"{top}/{name}" in names else None
        for name in ("version", "byteorder")
    )
    known = version is None or (version.strip().isdigit() and int(version) in VERSIONS)
    if not known or order not in (None, b"little", b"big"):
        odd = f"version {shown(repr(version))}" if not known else f"order {shown(repr(order))}"
        raise UnreadableModel(
            f"the archive of torch.save is of the {odd}, which this version does not know: save "
            "it again, best as safetensors",
            rule="FS009",
        )
