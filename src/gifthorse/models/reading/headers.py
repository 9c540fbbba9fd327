"""The header of a safetensors file, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeGuard

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.reading.entries import CheckpointEntry, shown

HEADER = 100_000_000  # bytes, the limit of the safetensors library
TENSORS = 50_000
TEXT = 10_000  # characters of a metadata value that are kept
TEXTS = 100
DIGITS = 20  # of an integer; the largest of 64 bits has as many

_DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds: its tensors and its cleaned metadata."""

    entries: tuple[CheckpointEntry, ...]
    metadata: Mapping[str, str]


def header(stream: IO[bytes], size: int) -> Header:
    """Read and check the header of a safetensors file of `size` bytes.

    Raises:
        UnreadableModel: `FS003` for anything but a well-formed header without duplicate keys whose
            tensors fill the rest of the file exactly, `FS008` for bytes behind them.
    """
    stream.seek(0)
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(HEADER, size - 8):
        raise _malformed(f"its header claims {length} bytes, the file has {size} in all")
    data = stream.read(length)
    if data.count(b'"data_offsets"') > TENSORS:
        raise UnreadableModel(
            f"the safetensors file lists more than {TENSORS:,} tensors, as no net has", rule="FS004"
        )
    fields = _parse(data)
    metadata = _texts(fields.pop("__metadata__", {}))
    spans = [_tensor(name, value) for name, value in fields.items()]
    _check_spans([(begin, end) for _, begin, end in spans], size - 8 - length)
    return Header(tuple(entry for entry, _, _ in spans), clean(metadata))


def clean(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as printable text: at most `TEXTS` values of `TEXT` characters.

    Example:
        >>> clean({"arch": "resnet20" + chr(27)})
        {'arch': 'resnet20?'}
    """
    return {shown(key): shown(value, TEXT) for key, value in list(metadata.items())[:TEXTS]}


def _texts(metadata: object) -> Mapping[str, str]:
    """Return metadata if it is what the format allows: a table of texts.

    Raises:
        UnreadableModel: `FS009` for other values, which the safetensors library refuses, too.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise _malformed("its metadata is no table of texts")
    odd = next((key for key, value in metadata.items() if not isinstance(value, str)), None)
    if odd is not None:
        raise UnreadableModel(
            f"the safetensors file's metadata has {shown(odd)!r} as a "
            f"{type(metadata[odd]).__name__}, where the format knows texts alone and its library "
            "opens no other: save it again with str(value)",
            rule="FS009",
        )
    return metadata


def _malformed(why: str) -> UnreadableModel:
    return UnreadableModel(
        f"the safetensors file is malformed: {why}; download it again", rule="FS003"
    )


def _parse(data: bytes) -> dict[str, Any]:
    if data[:1] != b"{":
        raise _malformed("its header is not UTF-8 JSON (it does not begin with a brace)")
    try:
        fields = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_constant=_constant
        )
        if b"\\u" in data:
            json.dumps(fields, ensure_ascii=False).encode()  # halves of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise _malformed(f"its header is not UTF-8 JSON ({shown(str(error))})") from error
    if not isinstance(fields, dict):
        raise _malformed("its header is no JSON object")
    return fields


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise _malformed(f"it has an integer of {len(text):,} digits")
    return int(text)


def _constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UnreadableModel(
            f"the safetensors file names {shown(double)!r} twice: readers disagree on which one "
            "counts, so what is scanned may not be what you run; do not use it",
            rule="FS003",
        )
    return table


def _tensor(name: str, value: object) -> tuple[CheckpointEntry, int, int]:
    """Return a tensor's entry and where its bytes begin and end."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"{shown(name)!r} is described in an unknown way")
    shape, span = value["shape"], value["data_offsets"]
    if not _counts(shape) or not _counts(span) or len(span) != 2:
        raise _malformed(f"{shown(name)!r} has no valid shape or place")
    if math.prod(n or 1 for n in shape) >= 2**60:  # the library multiplies in 64 bits
        raise _malformed(f"{shown(name)!r} has a shape that no memory holds")
    dtype = value["dtype"]
    if not isinstance(dtype, str):
        raise _malformed(f"{shown(name)!r} has a data type that is no text")
    if dtype not in _DTYPES:
        raise UnreadableModel(
            f"tensor {shown(name)!r} has the data type {shown(dtype, 40)!r}, which is not known "
            "here, so the file cannot be examined: save the weights as float32, or without that "
            "tensor",
            rule="FS009",
        )
    word, width = _DTYPES[dtype]
    begin, end = span
    if end - begin != math.prod(shape) * width:
        raise _malformed(f"{shown(name)!r} has {end - begin} bytes, not those of its shape")
    return CheckpointEntry((name,), word, tuple(shape)), begin, end


def _counts(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**48 for n in values)


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _malformed(f"its tensors overlap or leave a hole at byte {min(begin, at)}")
        at = end
    if at > size:
        raise _malformed(f"it ends {at - size} bytes too early")
    if at < size:
        raise UnreadableModel(
            f"{size - at} bytes follow the last tensor of the safetensors file: something is "
            "hidden there",
            rule="FS008",
        )
