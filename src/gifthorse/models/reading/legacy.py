"""What torch.save wrote before version 1.6: five pickles, then the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import IO

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading import archives
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.opcodes import Node, Trace, trace
from gifthorse.models.reading.pickles import Contents

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle
RECORD = "the file"


def index(
    stream: IO[bytes], size: int, read: Callable[[Trace, str], Contents]
) -> tuple[Contents, Mapping[str, int]]:
    """Compare the five pickles of a file with the numbers behind them.

    Args:
        stream: The file.
        size: Its bytes.
        read: What makes contents of a traced pickle.

    Returns:
        What the file holds, and where the numbers of each storage begin.

    Raises:
        UnreadableModel: If they do not fit.
    """
    stream.seek(0)
    inner = BytesIO(stream.read(archives.PICKLE))
    parts = [trace(inner) for _ in range(5)]
    _, _, told, _, last = parts
    all_read = [read(part, RECORD) for part in parts]
    found = all_read[3]
    keys = getattr(last.result, "items", None)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not isinstance(keys, list) or not texts or sorted(keys) != sorted(found.storages):
        raise UnreadableModel("its list of storages is not that of its tensors", rule="FS003")
    _check_order(told)
    places, at = {}, inner.tell()
    for key in map(str, keys):
        stream.seek(at)
        count = int.from_bytes(stream.read(8), "little")
        storage = found.storages[key]
        if count * storage.width != storage.size:
            raise UnreadableModel(f"storage {shown(key)!r} has another size inside", rule="FS003")
        places[key] = at + 8
        at += 8 + storage.size
    if at != size:
        raise UnreadableModel(
            f"the file should end at byte {at:,}, but has {size:,}: it is truncated, or something "
            "was appended",
            rule="FS003" if at > size else "FS008",
        )
    return found, places


def _check_order(told: Trace) -> None:
    """Refuse numbers whose bytes are in the other order."""
    items = told.result.items if isinstance(told.result, Node) else []
    if ("little_endian", False) in zip(items[::2], items[1::2], strict=False):
        raise UnreadableModel("its numbers are big-endian: save it again", rule="FS009")
