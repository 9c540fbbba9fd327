"""The parsers of untrusted bytes, each as a function of bytes, with examples to start from.

Parsers that belong to a reader run in this process here, so that coverage is seen and a death is a
death. The first byte of most inputs chooses what the others are put into: bytes of a pickle reach
the machine that follows them only if a whole zip archive is around them.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from tests.models import hostile
from torch import Generator, Tensor

from gifthorse.bench import decoding, foreign, plan
from gifthorse.core.errors import GifthorseError, UsageError
from gifthorse.core.isolated import readers, tensors, transport
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Goal
from gifthorse.data.decode import decode
from gifthorse.data.gallery import Wanted
from gifthorse.data.readers import read_npz
from gifthorse.data.tabled import read_table
from gifthorse.detection.calibration import fit
from gifthorse.detection.calibrations import dumped, loaded
from gifthorse.models.architectures import within
from gifthorse.models.parts import choose
from gifthorse.models.reading import child
from gifthorse.models.reading.survey import refusal, survey
from gifthorse.report.facts import Footprint
from gifthorse.triggers.packing import packed, unpacked
from gifthorse.triggers.patch import square
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.repair.known import open_known

# What the reader's server puts into words, beside our own errors, see `server.said`.
EXHAUSTED = (MemoryError, RecursionError)


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        run: Parses bytes; raises our own errors alone.
        seeds: Inputs to start from.
        words: What inputs are made of, for mutations.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()


# 1. Places ------------------------------------------------------------------------------------


@cache
def _place(name: str) -> tuple[int, Path]:
    """Return a file of that name, open, in a folder of its own."""
    path = Path(tempfile.mkdtemp(prefix="gifthorse-fuzz-")) / name
    return os.open(path, os.O_RDWR | os.O_CREAT), path


def given(data: bytes, name: str) -> Path:
    """Return the path of a file with these bytes; it is overwritten by the next of that name."""
    file, path = _place(name)
    os.pwrite(file, data, 0)
    os.ftruncate(file, len(data))
    return path


@contextmanager
def in_process() -> Iterator[None]:
    """Run what readers do in this process."""

    def call(
        function: Callable[..., Any],
        arguments: Sequence[object],
        *,
        streams: Sequence[IO[bytes]] = (),
        **_: object,
    ) -> tuple[Any, list[Tensor]]:
        value, found = function(*streams, *arguments)
        return json.loads(json.dumps(value)), list(found)

    with patch.object(readers, "call", call):
        yield


# 2. Models ------------------------------------------------------------------------------------


def _zipped(index: bytes, records: Mapping[str, bytes] = {}) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", index)
        for name, data in {"archive/version": b"3\n", **records}.items():
            archive.writestr(name, data)
    return out.getvalue()


def model(data: bytes) -> tuple[str, bytes]:
    """Return the name and the bytes of a model file: as they are, a pickle in a zip, a header."""
    kind, rest = data[:1], data[1:]
    if kind == b"z":
        return "model.pt", _zipped(rest, {"archive/data/0": bytes(24), "archive/data/1": bytes(8)})
    if kind == b"s":
        return "model.safetensors", len(rest).to_bytes(8, "little") + rest + bytes(24)
    if kind == b"l":
        return "model.pt", _LEGACY + rest
    return _NAMES.get(kind, "model.pt"), rest


_NAMES = {
    b"S": "model.safetensors",
    b"o": "model.onnx",
    b"k": "model.keras",
    b"h": "model.h5",
}
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."


def _survey(data: bytes) -> None:
    name, content = model(data)
    found = survey(io.BytesIO(content), name)
    if refusal(found) is None:
        choose(found.entries, within)


def _opened(data: bytes) -> None:
    """Open what the survey lets pass."""
    name, content = model(data)
    stream = io.BytesIO(content)
    found = survey(stream, name)
    if refusal(found) is None and found.full < 1 << 24:
        child.tensors(stream, found.reader)


def _checkpoint(data: bytes) -> None:
    name, content = model(data)
    child.checkpoint(io.BytesIO(content), name, ())


def _models() -> list[bytes]:
    view = hostile.tensor((2, 3), (3, 1), 6)
    pickles = [
        hostile.index(view),
        hostile.index(b"}" + hostile.text("a") + view + b"s"),
        b"\x80\x02ccollections\nOrderedDict\n)R" + hostile.text("w") + view + b"s.",
        hostile.laughs(3),
        hostile.doubled(5),
        *hostile.code_pickles(Path("marker")).values(),
    ]
    header = {"w": hostile.span(0, 24, (2, 3)), "__metadata__": {"a": "b"}}
    small = {"w": torch.zeros(2, 3), "n": torch.tensor(1)}
    linear = torch.nn.Linear(3, 2, bias=False)
    return [
        *(b"z" + p for p in pickles),
        *(b"r" + p for p in pickles[:4]),
        b"s" + json.dumps(header).encode(),
        b"r" + hostile.saved(small),
        b"r" + hostile.saved(small, _use_new_zipfile_serialization=False),
        b"l" + hostile.saved(small, _use_new_zipfile_serialization=False)[len(_LEGACY) :],
        b"r" + hostile.saved({"a": np.arange(3), "b": [1, (2.5, None)]}),
        b"r" + hostile.saved(linear),
        b"z" + hostile.records(hostile.saved(linear))["archive/data.pkl"],
        b"l" + hostile.saved(linear, _use_new_zipfile_serialization=False)[len(_LEGACY) :],
        b"z" + hostile.records(hostile.program())["net/data.pkl"],
        b"r" + hostile.program(),
        *_graphs(),
    ]


def _graphs() -> Iterator[bytes]:
    """Graphs of other frameworks, if what reads them is there."""
    with suppress(ImportError):
        from tests.models import test_onnx

        nodes = [test_onnx.node("Flatten", "x", "f"), test_onnx.node("Gemm", "f w", "y")]
        wide = math.prod(test_onnx.SHAPE[1:])
        made = test_onnx.model(nodes, {"w": np.ones((wide, 3), np.float32)})
        yield b"o" + made.SerializeToString()
    with suppress(ImportError):
        from tests.models import test_keras

        dense = test_keras.layer("Dense", "d", units=2)
        kept = {"d/d/kernel:0": np.ones((3, 2), np.float32), "d/d/bias:0": np.ones(2, np.float32)}
        path = Path(tempfile.mkdtemp(prefix="gifthorse-fuzz-"))
        net = test_keras.sequential(
            test_keras.layer("InputLayer", "i", batch_input_shape=[None, 3]), dense
        )
        yield b"h" + test_keras.legacy(path / "a.h5", net, kept).read_bytes()
        yield b"k" + test_keras.archive(path / "a.keras", net, kept).read_bytes()


_OPS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"cos\nsystem\n",
    b"cbuiltins\ngetattr\n",
    b"c__torch__\nNet\n)\x81",
    b"cgone\nNet\n)\x81",
    *map(hostile.text, ("_modules", "_parameters", "_buffers", "weight")),
    *(
        b"(",
        b")R",
        b"tR",
        b"tQ",
        b"}",
        b"]",
        b"\x85",
        b"\x86",
        b"\x87",
        b"q\x00",
        b"h\x00",
        b"\x94",
    ),
    *(b"\x80\x02", b"\x80\x04", b"0", b"1", b"2", b"s", b"u.", b"e", b"b", b"\x93", b"\x81", b"."),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"data.pkl", b"archive/data/0"),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"F32"', b'"__metadata__"'),
)


# 3. Images ------------------------------------------------------------------------------------


def _npz(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind == b"n":  # the arrays of a well-formed archive, images first
        cut = max(rest.rfind(b"\x93NUMPY"), 0)
        rest = _archive({"images.npy": rest[:cut], "labels.npy": rest[cut:]})
    read_npz(str(given(rest, "images.npz")), Wanted())


def _archive(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return out.getvalue()


def _array(value: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value, allow_pickle=False)
    return out.getvalue()


def _npzs() -> list[bytes]:
    images, labels = np.zeros((2, 5, 5, 3), np.uint8), np.arange(2)
    records = {"images.npy": _array(images), "labels.npy": _array(labels)}
    odd = {"x.npy": _array(images / 255), "y.npy": _array(np.array(["a", "b"]))}
    return [
        b"r" + _archive(records),
        b"r" + _archive(records, zipfile.ZIP_DEFLATED),
        b"r" + _archive(odd),
        b"n" + records["images.npy"] + records["labels.npy"],
    ]


def _image(data: bytes) -> None:
    decode(given(data, "image"), size=Resize((8, 8)))


def _images() -> list[bytes]:
    found = []
    for kind, mode in (
        *(("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK")),
        *(("BMP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"), ("TIFF", "F"), ("WEBP", "RGB")),
        *(("PPM", "L"), ("JPEG2000", "RGB")),
    ):
        out = io.BytesIO()
        Image.new(mode, (5, 4)).save(out, kind)
        found.append(out.getvalue())
    return found


def _table(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    read_table(str(given(rest, "labels.json" if kind == b"j" else "labels.csv")), Wanted())


# 4. Texts and small files ---------------------------------------------------------------------


def _report(data: bytes) -> None:
    open_known(given(data, "report.json"))


def _reports() -> list[bytes]:
    white, goal = square((3, 8, 8), 2, "lower_right", "white", 1.0, Generator()), Goal(1)
    mark = asdict(Footprint(4, 64, 4.0, 1.0, (6, 6, 8, 8), "lower right"))
    found = {
        "severity": "HIGH",
        "goal": {"target": 1, "source": None},
        "trigger": {"footprint": mark, "image": None, "mask": None, "packed": packed(white, goal)},
    }
    origin = {"path": "a", "sha256": "b", "bytes": 3}
    verdict: dict[str, Any] = {"label": "BACKDOORED", "reason": "", "confidence": None}
    verdict |= {"not_covered": [], "next_steps": []}
    whole = {"schema_version": "2", "target": origin, "verdict": verdict, "findings": [found]}
    return [json.dumps(whole).encode(), b"{}", b"[[]]"]


def _safetensors(data: bytes) -> bytes:
    kind, rest = data[:1], data[1:]
    return len(rest).to_bytes(8, "little") + rest + bytes(64) if kind == b"h" else rest


def _trigger(data: bytes) -> None:
    trigger = open_trigger(given(_safetensors(data), "a.trigger.safetensors"))
    trigger.render()


def _triggers() -> list[bytes]:
    claims = {"kind": "Patch", "fields": {}}
    header = {
        "pattern": hostile.span(0, 48, (3, 2, 2)),
        "mask": hostile.span(48, 64, (1, 2, 2)),
        "__metadata__": {"trigger": json.dumps(claims)},
    }
    return [b"h" + json.dumps(header).encode()]


def _packed(data: bytes) -> None:
    import base64

    kind, rest = data[:1], data[1:]
    if kind == b"t":
        unpacked(rest.decode(errors="replace"))
    else:
        unpacked(base64.b64encode(zlib.compress(_safetensors(rest), 1)).decode())


def _packeds() -> list[bytes]:
    text = _reports()[0]
    inner = json.loads(text)["findings"][0]["trigger"]["packed"]
    told = {"kind": "Patch", "fields": {}, "goal": {"target": 1, "source": None}}
    header = json.loads(_triggers()[0][1:]) | {"__metadata__": {"trigger": json.dumps(told)}}
    return [b"t" + inner.encode(), b"bh" + json.dumps(header).encode()]


def _state(data: bytes) -> None:
    """A state is unpacked by torch's restricted reader, in a reader."""
    try:
        value, found = tensors.unpacked(io.BytesIO(data))
    except Exception as error:
        raise UsageError(str(error)) from error
    assert transport.together(value, found) is not NotImplemented


def _plan(data: bytes) -> None:
    plan.read(given(data, "plan.toml"))


def _plans() -> list[bytes]:
    grid = b'[[grid]]\ndata = ["mnist"]\nnets = ["basic"]\nattacks = ["badnet"]\n'
    more = b'defenses = ["strip", {use = "clp", as = "x", set = {u = 3.0}}]\nseeds = [1, 2]\n'
    return [
        grid,
        grid + more,
        b'profile = "smoke"\ninclude = []\n' + grid,
        b"[setting]\ntest = 9\n",
    ]


def _config(data: bytes) -> None:
    told = decoding.table(given(data, "config.json"))
    base = foreign.Foreign("trojai", Path("model.pt"), "trojai", True)
    foreign._told(base, told)


def _configs() -> list[bytes]:
    trigger = {"type": "polygon", "trigger_target_class": 3, "triggered_classes": [1, 2]}
    told = {"number_classes": 5, "model_architecture": "resnet18", "triggers": [trigger]}
    return [json.dumps(told).encode(), json.dumps({"py/state": told}).encode()]


def _mark(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind == b"y":
        decoding.whole_array(str(given(rest, "mark.npy")))
    else:
        decoding.some_arrays(str(given(rest, "mark.npz")), ["mark", "mask"])


def _marks() -> list[bytes]:
    mark = _array(np.zeros((4, 2, 2), np.float32))
    return [b"y" + mark, b"z" + _archive({"mark.npy": mark, "mask.npy": mark})]


def _answer(data: bytes) -> None:
    """What a reader says that was taken over."""
    file = os.fdopen(os.dup(_place("answer")[0]), "r+b")
    given(bytes(64) + data + struct.pack("<Q", len(data)), "answer")
    with file:
        try:
            told, found = transport.read(file)
            transport.together(told, found)
        except transport.BrokenAnswer as error:
            raise UsageError(str(error)) from error


_JSON = (
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"null",
    b"true",
    b"1e999",
    b"NaN",
    b"-1",
    b"\\u",
)

PARSERS: Mapping[str, Parser] = {
    "survey": Parser(_survey, _models, _OPS),
    "tensors": Parser(_opened, _models, _OPS),
    "checkpoint": Parser(_checkpoint, _models, _OPS),
    "npz": Parser(_npz, _npzs, (b"'descr'", b"'shape'", b"'fortran_order'", b"\x93NUMPY", b"'|O'")),
    "image": Parser(_image, _images, (b"IHDR", b"IDAT", b"acTL", b"Exif", b"\xff\xd8", b"II*\0")),
    "table": Parser(
        _table,
        lambda: [b"cfile,label\na.png,1\n", b'j{"a.png": 1}', b'j[{"file": "a", "label": "b"}]'],
        (*_JSON, b"file", b"label", b";", b"\t", b"\n"),
    ),
    "report": Parser(_report, _reports, _JSON),
    "trigger": Parser(_trigger, _triggers, _JSON),
    "packed": Parser(_packed, _packeds, _JSON),
    "state": Parser(_state, lambda: [hostile.saved({"a": torch.zeros(2), "b": [1, "x"]})], _OPS),
    "plan": Parser(
        _plan, _plans, (b"[[grid]]", b"include", b"seeds", b"options", b"setting", b"{", b"[", b"=")
    ),
    "config": Parser(_config, _configs, _JSON),
    "mark": Parser(_mark, _marks, (b"'descr'", b"'shape'", b"\x93NUMPY", b"'<f4'")),
    "calibration": Parser(
        lambda data: loaded(data, "a file"),
        lambda: [dumped("a", {"blend": fit("a", (0.0, 1.0), (2.0,), resamples=2)}, {}).encode()],
        (*_JSON, b"clean", b"backdoored", b"lines"),
    ),
    "answer": Parser(_answer, lambda: [b'{"value": 1, "tensors": [["float32", [1], 0]]}'], _JSON),
}


def parsed(name: str, data: bytes) -> str:
    """Run a parser; return why it refused its input, or nothing.

    Whatever else it raises is a fault.
    """
    try:
        PARSERS[name].run(data)
    except GifthorseError as error:
        return type(error).__name__
    except EXHAUSTED as error:
        return type(error).__name__
    return ""
