"""Makes hostile, damaged and odd model files; used by the tests of safe loading."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

DATA = "archive/data.pkl"


class Reduced:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def torch_zip(
    path: Path, index: bytes, records: Mapping[str, bytes] = {}, *, method: int = zipfile.ZIP_STORED
) -> Path:
    """Write an archive like torch.save's: `archive/data.pkl` and the records beside it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(DATA), index)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def records(data: bytes) -> dict[str, bytes]:
    """Return the records of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archived(records: Mapping[str, bytes]) -> bytes:
    """Return an archive of records, stored plainly."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def text(value: str) -> bytes:
    """Opcode that pushes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Opcode that pushes an integer of any size and sign."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    """Opcodes that push a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """Opcodes that push a storage."""
    start = b"(" + text("storage") + f"ctorch\n{kind}\n".encode()
    return start + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    shape: tuple[int, ...], stride: tuple[int, ...], count: int, *, offset: int = 0
) -> bytes:
    """Opcodes that push a float32 tensor over storage `0` of `count` numbers."""
    view = storage(count) + number(offset) + numbers(shape) + numbers(stride)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + hooks + b"tR"


def index(value: bytes, name: str = "fc.weight") -> bytes:
    """Pickle of a dictionary with one value."""
    return b"\x80\x02}" + text(name) + value + b"s."


def command(marker: Path) -> str:
    """Shell command that leaves a marker."""
    return f"touch {marker}"


def code_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that create `marker` when unpickled, by several ways to name a function."""
    import os

    touch = command(marker)
    python = f"open({str(marker)!r}, 'w').close()"
    short = text(touch)
    return {
        "os.system": pickle.dumps(Reduced(os.system, touch), protocol=2),
        "builtins.eval": pickle.dumps(Reduced(eval, python), protocol=2),
        "protocol 0": pickle.dumps({"a": Reduced(os.system, touch)}, protocol=0),
        "protocol 5": pickle.dumps([Reduced(os.system, touch)], protocol=5),
        # The parts of the name come from the memo, in the wrong order, past a thrown-away value.
        "memo": b"\x80\x04" + text("system") + b"q\x07" + text("posix") + b"q\x01" + b"00"
        b"h\x01" + text("x") + b"0" + b"h\x07\x93" + short + b"\x85R.",
        "inst": b"(" + text(touch) + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + text(touch) + b"o.",
        "extension": b"\x80\x02\x82\x05" + short + b"\x85R.",
        "broken tail": b"\x80\x02cos\nsystem\n" + short + b"\x85R\xff\xff",
        "thrown away": b"\x80\x02cos\nsystem\n" + short + b"\x85R0}.",
        "python 2": b"c__builtin__\neval\n(" + text(python) + b"tR.",
        "nested": b"cpickle\nloads\n(B\x01\x00\x00\x00.tR.",
        "operator": b"coperator\nattrgetter\n(" + text("system") + b"tR.",
        "getattr": b"cbuiltins\ngetattr\n(" + text("a") + text("b") + b"tR.",
        "runpy": b"crunpy\n_run_code\n(tR.",
        "torch.load": b"ctorch.serialization\nload\n(" + text("x") + b"tR.",
    }


def laughs(levels: int, width: int = 10) -> bytes:
    """Pickle of a list that holds the one below `width` times, remembered or duplicated."""
    body = b"\x80\x02]" + text("ha") + b"aq\x00"
    for _ in range(levels):
        body += b"](" + b"h\x00" * width + b"eq\x00"
    return body + b"."


def doubled(levels: int) -> bytes:
    """The same with DUP and tuples: each level is a pair of the one below."""
    return b"\x80\x02K\x01" + b"2\x86" * levels + b"."


def safetensors(path: Path, header: object, data: bytes = b"", *, length: int = -1) -> Path:
    """Write a safetensors file from a header as an object, or as bytes, and the data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length < 0 else length
    path.write_bytes(size.to_bytes(8, "little") + raw + data)
    return path


def span(begin: int, end: int, shape: tuple[int, ...], dtype: str = "F32") -> dict[str, object]:
    """Header entry of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def saved(value: object, **options: bool) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def program(front: bytes = b"") -> bytes:
    """An archive as TorchScript writes it: a layer within a net, numbers, lists, code."""
    ints = b"ctorch.jit._pickle\nbuild_intlist\n(](" + number(1) + b"etR"
    inner = b"c__torch__.torch.nn.modules.linear.___torch_mangle_3\nLinear\n)\x81}("
    inner += text("training") + b"\x89" + text("padding") + ints
    inner += text("weight") + tensor((2, 3), (3, 1), 6) + b"ub"
    outer = b"c__torch__.nets\nNet\n)\x81}(" + text("fc") + inner + b"ub."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data/0", torch.arange(6.0).numpy().tobytes())
        archive.writestr("net/data.pkl", b"\x80\x02" + front + outer)
        code = "def forward(self, x):\n  return x\n" * 9
        archive.writestr("net/code/__torch__/nets.py", code, zipfile.ZIP_DEFLATED)
        archive.writestr("net/constants.pkl", b"\x80\x02).")
        archive.writestr("net/version", b"3\n")
    return buffer.getvalue()
