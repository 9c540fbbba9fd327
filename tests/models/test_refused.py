from __future__ import annotations

import hashlib
import importlib
import os
import re
import time
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import hostile
from tests.models.hostile import saved
from torch import nn

from gifthorse.core.errors import UnreadableModel, UnsafeModel, UsageError
from gifthorse.core.types import Finding
from gifthorse.models import inspect, load, sniff
from gifthorse.models.reading import isolation
from gifthorse.models.reading.ratings import Import
from gifthorse.models.reading.stance import GRAVITY, stance
from gifthorse.models.reading.survey import survey
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import scan

loading = importlib.import_module(
    "gifthorse.models.load"
)  # the package has a function of that name

GOOD = hostile.index(hostile.tensor((2, 3), (3, 1), 6))
NUMBERS = {"archive/data/0": bytes(24)}
ONE = {"w": hostile.span(0, 4, (1,))}


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(isolation, "read", refuse)


def write(data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def code_in(record: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        code = hostile.code_pickles(path.parent / "marker")["os.system"]
        return hostile.torch_zip(path, GOOD, {**NUMBERS, record: code})

    return make


def zipped(*names: str, index: bytes = GOOD) -> Callable[[Path], Path]:
    records = {**NUMBERS, **dict.fromkeys(names, b"x")}
    return lambda path: hostile.torch_zip(path, index, records)


def scripted(path: Path, module: nn.Module | None = None) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module or nn.Linear(2, 2)), str(path))
    return path


def patched(at: int, value: bytes) -> Callable[[Path], Path]:
    """A good archive with some bytes of its first local header overwritten."""

    def make(path: Path) -> Path:
        data = bytearray(hostile.torch_zip(path, GOOD, NUMBERS).read_bytes())
        data[at : at + len(value)] = value
        path.write_bytes(data)
        return path

    return make


def deflated(path: Path) -> Path:
    big = hostile.index(hostile.tensor((5_000_000,), (1,), 5_000_000))
    records = {"archive/data/0": bytes(20_000_000)}
    return hostile.torch_zip(path, big, records, method=zipfile.ZIP_DEFLATED)


def around(before: bytes, after: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        data = hostile.torch_zip(path, GOOD, NUMBERS).read_bytes()
        path.write_bytes(before + data + after)
        return path

    return make


def truncated(share: float) -> Callable[[Path], Path]:
    data = saved({"fc.weight": torch.zeros(20, 3)})
    return write(data[: int(len(data) * share)])


def tensors(header: object, data: bytes = b"", *, length: int = -1) -> Callable[[Path], Path]:
    return lambda path: hostile.safetensors(path, header, data, length=length)


def stretched(path: Path) -> Path:
    bomb = hostile.index(hostile.tensor((10**6, 10**6), (0, 0), 1))
    return hostile.torch_zip(path, bomb, {"archive/data/0": bytes(4)})


TWICE = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2
DOUBLE = b"{" + TWICE[1:].replace(b",{", b",")[:-1] + b"}"
HIDDEN = bytes(4) + b"PK\x05\x06" + bytes(18)

REFUSED: dict[str, tuple[str, Callable[[Path], Path], str, str]] = {
    "empty": ("a.pt", write(b""), "FS003", "empty"),
    "text": ("a.pt", write(b"hello"), "FS003", "not a model"),
    "lfs": ("a.pt", write(b"version https://git-lfs.github.com/spec/v1"), "FS003", "git lfs pull"),
    "png zip": ("a.pt", around(b"\x89PNG\r\n", b""), "FS008", "hidden"),
    "onnx": ("a.onnx", write(b"\x08\x07\x12\x07pytorch"), "FS009", "ONNX"),
    "hdf5": ("a.h5", write(b"\x89HDF\r\n\x1a\n"), "FS009", "HDF5"),
    "keras": (
        "a.keras",
        lambda p: _plain_zip(p, "config.json", "model.weights.h5"),
        "FS009",
        "Keras",
    ),
    "npz": ("a.pt", lambda p: _plain_zip(p, "x.npy"), "FS009", "NumPy arrays"),
    "code": (
        "a.pt",
        lambda p: hostile.torch_zip(p, hostile.code_pickles(p.parent / "marker")["memo"]),
        "FS001",
        r"posix\.system",
    ),
    "bare pickle": (
        "a.pth",
        lambda p: write(hostile.code_pickles(p.parent / "marker")["os.system"])(p),
        "FS001",
        r"posix\.system",
    ),
    "protocol 0": (
        "a.pth",
        lambda p: write(hostile.code_pickles(p.parent / "marker")["protocol 0"])(p),
        "FS001",
        r"posix\.system",
    ),
    "second pickle": ("a.pt", code_in("archive/extra.pkl"), "FS001", r"in archive/extra\.pkl"),
    "code as numbers": ("a.pt", code_in("archive/data/1"), "FS001", r"in archive/data/1"),
    "module without weights": ("a.pt", write(saved(nn.ReLU())), "FS002", "save_file"),
    "module without weights, legacy": (
        "a.pt",
        write(saved(nn.ReLU(), _use_new_zipfile_serialization=False)),
        "FS002",
        "whole pickled model",
    ),
    "torchscript without weights": (
        "a.pt",
        lambda p: scripted(p, nn.ReLU()),
        "FS002",
        r"TorchScript.*name ends in '\.pt'",
    ),
    "pt2": ("a.pt2", lambda p: _plain_zip(p, "m/archive_format"), "FS002", "torch.export"),
    "stride 0": ("a.pt", stretched, "FS004", "4,000,000,000,000 bytes"),
    "deflated": ("a.pt", deflated, "FS004", "compressed"),
    "storage too small": ("a.pt", zipped(index=hostile.index(b"}")), "FS009", "no weights"),
    "record missing": ("a.pt", lambda p: hostile.torch_zip(p, GOOD), "FS003", "is missing"),
    "record short": (
        "a.pt",
        lambda p: hostile.torch_zip(p, GOOD, {"archive/data/0": bytes(20)}),
        "FS003",
        "should have 24 bytes, but its record has 20",
    ),
    "behind the index": ("a.pt", zipped(index=GOOD + b"."), "FS003", "follows the pickle"),
    "laughs": ("a.pt", zipped(index=hostile.laughs(30)), "FS004", "unfolds"),
    "path": ("a.pt", zipped("archive/../../x"), "FS006", "forbidden name"),
    "absolute": ("a.pt", zipped("/etc/x"), "FS006", "forbidden name"),
    "colliding": ("a.pt", zipped("archive/Version"), "FS006", "forbidden name"),
    "encrypted": ("a.pt", patched(6, b"\x01"), "FS003", "headers"),
    "other name": ("a.pt", patched(30, b"b"), "FS003", "headers|damaged"),
    "bytes behind": ("a.pt", around(b"", b"tail"), "FS003", "appended"),
    "length": ("a.safetensors", tensors(ONE, bytes(4), length=2**40), "FS003", "claims"),
    "not json": ("a.safetensors", tensors(b"{nonsense}"), "FS003", "JSON"),
    "not utf-8": ("a.safetensors", tensors(b'{"\xff":1}'), "FS003", "UTF-8"),
    "deep": ("a.safetensors", tensors(b'{"a":' + b"[" * 99_999), "FS003", "JSON"),
    "twice": ("a.safetensors", tensors(DOUBLE, bytes(4)), "FS003", "names 'w' twice"),
    "short": ("a.safetensors", tensors(ONE, bytes(3)), "FS003", "too early"),
    "hole": (
        "a.safetensors",
        tensors({"w": hostile.span(4, 8, (1,))}, bytes(8)),
        "FS003",
        "hole",
    ),
    "overlap": (
        "a.safetensors",
        tensors({"w": hostile.span(0, 8, (2,)), "v": hostile.span(4, 12, (2,))}, bytes(12)),
        "FS003",
        "overlap",
    ),
    "negative": ("a.safetensors", tensors({"w": hostile.span(-4, 0, (1,))}), "FS003", "place"),
    "huge": ("a.safetensors", tensors({"w": hostile.span(0, 4, (2**62, 4))}), "FS003", "shape"),
    "wrong size": ("a.safetensors", tensors({"w": hostile.span(0, 4, (2,))}), "FS003", "4 bytes"),
    "zip tail": ("a.safetensors", tensors(ONE, HIDDEN), "FS008", "hidden"),
    "no tensors": ("a.safetensors", tensors({}), "FS009", "no weights"),
    "five bytes": ("a.safetensors", write(b"\1\2\3\4\5"), "FS003", "claims"),
}


def _plain_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


@pytest.mark.parametrize("case", list(REFUSED))
@pytest.mark.usefixtures("never_opened")
def test_hostile_files_are_refused_by_their_bytes(case: str, tmp_path: Path) -> None:
    name, make, rule, words = REFUSED[case]
    path = make(tmp_path / name)
    seen = inspect(path)
    assert rule in [f.rule for f in seen.findings]
    assert "nothing in it can run" not in seen.safety
    if case in ("no tensors", "storage too small"):  # these do reach the reader
        return
    with pytest.raises(UnreadableModel, match=f"(?s){words}") as caught:
        load(path)
    assert caught.value.rule == rule
    assert isinstance(caught.value, UnsafeModel) == (rule in ("FS001", "FS002"))
    assert not (tmp_path / "marker").exists()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.usefixtures("never_opened")
def test_truncated_archives_are_refused(tmp_path: Path) -> None:
    for step in range(20):
        path = truncated(0.01 + step * 0.05)(tmp_path / "a.pt")
        with pytest.raises(UnreadableModel) as caught:
            load(path)
        assert caught.value.rule == "FS003"


@pytest.mark.usefixtures("never_opened")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*missing"):
        load(tmp_path / "missing.pt")
    with pytest.raises(UsageError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "dangling.pt").symlink_to("nowhere")
    with pytest.raises(UsageError, match="no file"):
        inspect(tmp_path / "dangling.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    start = time.monotonic()
    for path in (tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(UnreadableModel, match="not a file"):
            load(path)
    assert time.monotonic() - start < 1


@pytest.mark.usefixtures("never_opened")
def test_a_file_above_the_limit_is_not_even_copied(tmp_path: Path) -> None:
    with (tmp_path / "sparse.pt").open("wb") as stream:
        stream.truncate(20 << 30)
    with pytest.raises(UnreadableModel, match="allow more memory") as caught:
        load(tmp_path / "sparse.pt", memory=4 << 30)
    assert caught.value.rule == "FS004"


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"\x1f\x8b", "gzip archive.*unpack"),
        (b"BZh9", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "Zstandard"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07", "RAR"),
        (bytes(257) + b"ustar", "tar archive.*unpack"),
        (bytes(4) + b"TFL3", "TFLite"),
        (b"GGUF", "GGUF"),
        (b'{"weight_map": {"a": "m-1-of-2.safetensors"}}', "name a shard: m-1-of-2"),
        (b"\x80\x07N.", "protocol 7"),
    ],
)
def test_what_is_known_and_no_model_is_named(start: bytes, word: str) -> None:
    seen = survey(BytesIO(start if start[:1] == b"{" else start + bytes(600)), "model.pt")
    assert [f.rule for f in seen.findings] == ["FS009"]
    assert re.search(word, seen.findings[0].message)
    assert stance(seen.findings).status == 2
    assert "Do not use" not in stance(seen.findings).advice


def test_only_what_is_hostile_is_not_to_be_used() -> None:
    advice = {
        rule: "Do not use" in stance([Finding(rule, "HIGH", 1.0, "")]).advice for rule in GRAVITY
    }
    assert [rule for rule, hostile in advice.items() if hostile] == [
        "FS001",
        "FS008",
        "FS004",
        "FS006",
    ]
    paths = (Import("pathlib", "PosixPath", "object"),)
    told = [stance([Finding("FS002", s, 1.0, "")]).status for s in ("HIGH", "MEDIUM", "LOW")]
    assert told == [1, 1, 0]
    assert stance([Finding("FS002", "HIGH", 1.0, "")], paths).status == 2


def test_sniffing(tmp_path: Path) -> None:
    kinds = {
        "pytorch": write(saved({})),
        "legacy": write(saved({}, _use_new_zipfile_serialization=False)),
        "safetensors": tensors(ONE, bytes(4)),
        "torchscript": scripted,
        "pt2": lambda p: _plain_zip(p, "m/archive_format", "m/models/model.json"),
        "onnx": write(b"\x08\x07\x12\x07pytorch"),
        "empty": write(b""),
        "unknown": write(b"hello, world"),
    }
    for kind, make in kinds.items():
        assert sniff(make(tmp_path / "model.bin")) == kind


def test_inspecting_a_program_lists_what_is_inside(tmp_path: Path) -> None:
    seen = inspect(scripted(tmp_path / "a.ts"))
    assert seen.format == "torchscript"
    assert any(name.endswith(".py") for name in seen.records)
    assert seen.safety.startswith("brings code")
    module = inspect(write(saved(nn.Linear(2, 2)))(tmp_path / "m.pt"))
    ratings = {str(i): i.safety for i in module.imports}
    assert ratings["torch.nn.modules.linear.Linear"] == "class"
    assert ratings["collections.OrderedDict"] == "harmless"


def test_the_report_of_a_refused_file_is_of_the_bytes_that_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"not a model at all")
    before, read = hashlib.sha256(path.read_bytes()).hexdigest(), loading.read_tensors

    def swapped(*given: Any) -> Any:
        path.write_bytes(b"something else, which nobody has looked at")
        return read(*given)

    monkeypatch.setattr(loading, "read_tensors", swapped)
    report = scan(str(path), Inputs("nowhere", device="cpu"))
    assert report.label == "NOT SCANNED"
    assert (report.origin.sha256, report.origin.bytes) == (before, 18)
    assert report.origin.path == str(path)
