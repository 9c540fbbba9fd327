"""Files that are damaged, that exhaust their reader, or that are two things at once."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from tests.cases.case import GIFT, Case
from tests.models import hostile
from tests.models.hostile import saved, span, text
from torch import nn

Make = Callable[[Path], object]  # writes the file that it is given

COMMAND = "touch owned"
RUN = b"cos\nsystem\n(" + text(COMMAND) + b"tR"  # opcodes of a call
GOOD = hostile.index(hostile.tensor((2, 3), (3, 1), 6))
NUMBERS = {"archive/data/0": bytes(24)}

COMMANDS = "dangerous: opening it as usual would run commands"
HOSTILE = "hostile"
CODE = "brings code"
DAMAGED = "damaged"
UNKNOWN = "not understood"


@dataclass(frozen=True)
class Right:
    """What must be said of a file: the words on its safety, a rule, an exit status, more words."""

    safety: str
    rule: str
    status: int = 1
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def both(name: str, file: str, make: Make, right: Right) -> tuple[Case, Case]:
    """The same file before `inspect`, which lists it, and `scan`, which must refuse it, too."""

    def given(before: str, *behind: str) -> Callable[[Path], list[str]]:
        def build(folder: Path) -> list[str]:
            make(folder / file)
            return [before, file, *behind]

        return build

    grave = right.rule in ("FS001", "FS004", "FS006", "FS008")
    never = right.never if grave else (*right.never, "Do not use this file")
    inspected = Case(
        name=name,
        fed=f"inspect of {file}",
        right=f"{right.rule}, {right.safety}, exit {right.status}",
        make=given("inspect"),
        status=(right.status,),
        says=(right.safety, right.rule, *right.says),
        never=never,
        seconds=40,
        memory=1200,
    )
    scanned = replace(
        inspected,
        name=f"{name}, scanned",
        fed=f"scan of {file}",
        right=f"{right.rule}, not scanned, exit 2",
        make=given("scan", "--images", str(GIFT / "clean.npz")),
        status=(2,),
        says=("NOT SCANNED", *right.says),
    )
    return inspected, scanned


def write(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def zipped(index: bytes, records: dict[str, bytes] | None = None, **options: int) -> Make:
    beside = NUMBERS if records is None else records
    return lambda path: hostile.torch_zip(path, index, beside, **options)


def _tensors(header: object, data: bytes = b"", *, length: int = -1) -> Make:
    return lambda path: hostile.safetensors(path, header, data, length=length)


# 2. Two files in one --------------------------------------------------------------------------


def _state(path: Path) -> bytes:
    hostile.torch_zip(path, GOOD, NUMBERS)
    data = path.read_bytes()
    path.unlink()
    return data


def _behind(front: bytes) -> Make:
    return lambda path: path.write_bytes(front + _state(path))


def _in_slack(path: Path) -> None:
    """A safetensors file whose last tensor is a zip archive."""
    inside = _state(path)
    hostile.safetensors(path, {"w": span(0, len(inside), (len(inside),), "U8")}, inside)


def _pickled_header(path: Path) -> None:
    """A safetensors file whose length begins a text of a pickle that ends among the numbers."""
    size, code = 0x156, b"\n0" + RUN + b"."  # V: a text up to the next line
    header = json.dumps({"w": span(0, len(code), (len(code),), "U8")}).encode().ljust(size)
    hostile.safetensors(path, header, code)


PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
_TWO: dict[str, tuple[str, Make]] = {
    "a zip behind a PNG": ("a.png", _behind(PNG)),
    "a zip behind a JPEG": ("a.pt", _behind(b"\xff\xd8\xff\xe0" + bytes(100))),
    "a zip behind text": ("a.pt", _behind(b"hello\n")),
    "a zip behind a pickle": ("a.pt", _behind(b"\x80\x02N.")),
    "a zip as a tensor": ("a.safetensors", _in_slack),
    "a zip behind safetensors": (
        "a.safetensors",
        lambda path: path.write_bytes(
            hostile.safetensors(path, {"w": span(0, 4, (1,))}, bytes(4)).read_bytes() + _state(path)
        ),
    ),
    "a zip behind ONNX": ("a.onnx", _behind(b"\x08\x07\x12\x07pytorch")),
    "a zip within a zip": (
        "a.pt",
        lambda path: path.write_bytes(_state(path) + _state(path)),
    ),
}


# 3. Bombs -------------------------------------------------------------------------------------


def _many(count: int, name: str) -> Make:
    def make(path: Path) -> None:
        header = {name.format(i): span(4 * i, 4 * i + 4, (1,)) for i in range(count)}
        hostile.safetensors(path, header, bytes(4 * count))

    return make


def _listed(count: int, name: str) -> Make:
    """The same, pickled."""

    def make(path: Path) -> None:
        one = hostile.tensor((2, 3), (3, 1), 6)
        items = b"".join(text(name.format(i)) + one for i in range(count))
        hostile.torch_zip(path, b"\x80\x02}(" + items + b"u.", NUMBERS)

    return make


BUSY = b"\x80\x02" + b"]0" * 499_000 + b"}."
_HUGE = 10**5000
_LONG = _HUGE.to_bytes(_HUGE.bit_length() // 8 + 1, "little")
LONG4 = b"\x8b" + len(_LONG).to_bytes(4, "little") + _LONG

BOMBS: dict[str, tuple[str, Make, str, str, int]] = {
    "15: stride 0": (
        "a.pt",
        zipped(
            hostile.index(hostile.tensor((10**6, 10**6), (0, 0), 1)), {"archive/data/0": bytes(4)}
        ),
        "FS004", HOSTILE, 1,
    ),
    "16: deflated": (
        "a.pt",
        zipped(
            hostile.index(hostile.tensor((5_000_000,), (1,), 5_000_000)),
            {"archive/data/0": bytes(20_000_000)},
            method=zipfile.ZIP_DEFLATED,
        ),
        "FS004", HOSTILE, 1,
    ),
    "18: a million names": ("a.safetensors", _many(1_000_000, "n{}"), "FS004", HOSTILE, 1),
    "18: nested 500,000 deep": (
        "a.pt", zipped(b"\x80\x02)" + b"\x85" * 500_000 + b"."), "FS004", HOSTILE, 1,
    ),
    "18: nested by sharing": (
        "a.pt",
        zipped(
            b"\x80\x02]("
            + b"".join(
                (b"]" if k == 0 else b"h" + bytes([k - 1])) + b"\x85" * 90 + b"q" + bytes([k])
                for k in range(100)
            )
            + b"e."
        ),
        "FS004", HOSTILE, 1,
    ),
    "19: billion laughs": ("a.pt", zipped(hostile.laughs(30)), "FS004", HOSTILE, 1),
    "19: doubled": ("a.pt", zipped(hostile.doubled(60)), "FS004", HOSTILE, 1),
    "19: a shared tuple, hashed": (
        "a.pt",
        zipped(hostile.index(b"cnumpy\ndtype\n)" + b"2\x86" * 95 + b"\x85R")),
        "FS004", HOSTILE, 1,
    ),
    "19: a shared tuple as a key": (
        "a.pt",
        zipped(b"\x80\x02})" + b"2\x86" * 95 + b"K\x01s."),
        "FS004", HOSTILE, 1,
    ),
    "19: eight pickles": (
        "a.pt",
        lambda path: hostile.torch_zip(path, BUSY, {f"archive/{i}.pkl": BUSY for i in range(7)}),
        "FS004", HOSTILE, 1,
    ),
    "19: records like pickles": (
        "a.pt",
        lambda path: hostile.torch_zip(
            path, GOOD, {**NUMBERS, **{f"archive/data/{i}": b"(" * 1000 for i in range(1, 5000)}}
        ),
        "FS004", HOSTILE, 1,
    ),
    "19: long names from the memo": (
        "a.pt",
        zipped(
            b"\x80\x02" + text("a" * 10**6) + b"q\x00" + text("b") + b"q\x010"
            + b"h\x00h\x01\x930" * 5000 + b"}."
        ),
        "FS001", COMMANDS, 1,
    ),
    "integer of 5,000 digits": (
        "a.pt", zipped(b"\x80\x02}I" + b"9" * 5000 + b"\nK\x01s."), "FS004", HOSTILE, 1,
    ),
    "integer of 5,000 digits, binary": (
        "a.pt", zipped(b"\x80\x02}" + LONG4 + b"K\x01s."), "FS004", HOSTILE, 1,
    ),
    "integer of 5,000 digits as a size": (
        "a.safetensors",
        _tensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
        "FS003", DAMAGED, 2,
    ),
}  # fmt: skip


def _large(name: str, file: str, make: Make) -> Case:
    """A file that is long and honest: it is listed in little time."""

    def build(folder: Path) -> list[str]:
        make(folder / file)
        return ["inspect", file]

    return Case(
        name=name, fed=f"inspect of {file}", right="listed, exit 0 or a refusal", make=build,
        status=(0, 1), seconds=20, memory=1200,
    )  # fmt: skip


LARGE = (
    _large("hostile 18: 20,000 tensors", "a.safetensors", _many(20_000, "layer{}.weight")),
    _large("hostile 18: 20,000 tensors, pickled", "a.pt", _listed(20_000, "layer{}.weight")),
    _large("hostile 18: one long prefix", "a.safetensors", _many(25_000, "module." * 100 + "n{}")),
    _large("hostile 18: one long prefix, pickled", "a.pt", _listed(20_000, "x." * 100 + "n{}")),
    _large("hostile 18: whole names differ", "a.safetensors", _many(40_000, "a{0}.b{0}.c{0}")),
)


# 4. Damaged, deceitful, malformed -------------------------------------------------------------

ONE = {"w": span(0, 4, (1,))}
TWICE = (
    b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)


def _cut(share: float) -> Make:
    data = saved({"fc.weight": torch.zeros(20, 3)})
    return write(data[: int(len(data) * share)])


def _flipped(path: Path) -> None:
    data = bytearray(saved({"fc.weight": torch.arange(600.0).view(20, 30)}))
    at = data.index(torch.arange(600.0).numpy().tobytes()[400:480])
    data[at] ^= 1
    path.write_bytes(data)


def _named(*names: str) -> Make:
    return zipped(GOOD, {**NUMBERS, **dict.fromkeys(names, b"x")})


FILES: dict[str, tuple[str, Make, str, str, int, str]] = {
    "2: empty": ("a.pt", write(b""), "FS003", DAMAGED, 2, "empty"),
    "3: text": ("a.pt", write(b"hello"), "FS003", DAMAGED, 2, "not a model"),
    "3: one byte": ("a.pt", write(b"\x08"), "FS003", DAMAGED, 2, "not a model"),
    "4: cut at 30 %": ("a.pt", _cut(0.3), "FS003", DAMAGED, 2, "truncated"),
    "4: cut at 95 %": ("a.pt", _cut(0.95), "FS003", DAMAGED, 2, "truncated"),
    "5: a flipped bit": ("a.pt", _flipped, "FS003", DAMAGED, 2, "checksum"),
    "11: whole module": ("a.pt", write(saved(nn.ReLU())), "FS002", CODE, 1, "whole pickled"),
    "17: record too short": (
        "a.pt", zipped(GOOD, {"archive/data/0": bytes(20)}), "FS003", DAMAGED, 2, "24 bytes",
    ),
    "17: record too long": (
        "a.pt", zipped(GOOD, {"archive/data/0": bytes(28)}), "FS003", DAMAGED, 2, "24 bytes",
    ),
    "20: length": ("a.safetensors", _tensors(ONE, length=2**40), "FS003", DAMAGED, 2, "claims"),
    "20: not UTF-8": ("a.safetensors", _tensors(b'{"\xff":1}'), "FS003", DAMAGED, 2, "UTF-8"),
    "20: overlap": (
        "a.safetensors",
        _tensors({"w": span(0, 8, (2,)), "v": span(4, 12, (2,))}, bytes(12)),
        "FS003", DAMAGED, 2, "overlap",
    ),
    "20: overflow": (
        "a.safetensors", _tensors({"w": span(0, 4, (2**62, 4))}), "FS003", DAMAGED, 2, "shape",
    ),
    "20: overflow with a zero": (
        "a.safetensors",
        _tensors({"w": span(0, 0, (2**40, 2**40, 0))}),
        "FS003", DAMAGED, 2, "shape",
    ),
    "20: half a surrogate": (
        "a.safetensors",
        _tensors(b'{"__metadata__":{"a":"\\ud800"},' + json.dumps(ONE).encode()[1:], bytes(4)),
        "FS003", DAMAGED, 2, "JSON",
    ),
    "20: a header that begins with a space": (
        "a.safetensors", _tensors(b" " + json.dumps(ONE).encode(), bytes(4)), "FS003", DAMAGED, 2,
        "JSON",
    ),
    "20: NaN in the metadata": (
        "a.safetensors",
        _tensors(b'{"__metadata__":{"a":NaN},' + json.dumps(ONE).encode()[1:], bytes(4)),
        "FS003", DAMAGED, 2, "JSON",
    ),
    "21: names twice": ("a.safetensors", _tensors(TWICE, bytes(4)), "FS003", DAMAGED, 2, "twice"),
    "23: a path out": ("a.pt", _named("archive/../../x"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: absolute": ("a.pt", _named("/etc/x"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: colliding": ("a.pt", _named("archive/Version"), "FS006", HOSTILE, 1, "forbidden name"),
    "23: escapes in a name": ("a.pt", _named("archive/\x1b[2J"), "FS006", HOSTILE, 1, "forbidden"),
    "24: newer version": (
        "a.pt", lambda path: _versioned(path, b"99\n"), "FS009", UNKNOWN, 2, "version",
    ),
    "24: order of bytes": (
        "a.pt",
        zipped(GOOD, {**NUMBERS, "archive/byteorder": b"middle"}),
        "FS009", UNKNOWN, 2, "order",
    ),
}  # fmt: skip


def _versioned(path: Path, version: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", GOOD), ("version", version), ("data/0", bytes(24))):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _tar(path: Path) -> None:
    data = saved({"fc.weight": torch.zeros(2, 3)})
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = len(data)
        archive.addfile(info, BytesIO(data))


CASES = (
    *(
        case
        for name, (file, make) in _TWO.items()
        for case in both(f"hostile 25: {name}", file, make, Right(HOSTILE, "FS008"))
    ),
    *both(
        "hostile 25: a pickle that is also safetensors", "a.safetensors", _pickled_header,
        Right(COMMANDS, "FS008"),
    ),
    *both(
        "hostile 25: a tar is no polyglot", "weights.tar", _tar,
        Right(UNKNOWN, "FS009", 2, ("a tar archive", "unpack"), ("polyglot", "hidden")),
    ),
    *(
        case
        for name, (file, make, rule, safety, status) in BOMBS.items()
        for case in both(f"hostile {name}", file, make, Right(safety, rule, status))
    ),
    *LARGE,
    *(
        case
        for name, (file, make, rule, safety, status, words) in FILES.items()
        for case in both(f"hostile {name}", file, make, Right(safety, rule, status, (words,)))
    ),
)  # fmt: skip
