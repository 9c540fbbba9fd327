"""Files that are small, and made to take all memory or time of whoever reads them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tests.cases.case import GIFT, QUICK, Case
from tests.models import hostile
from tests.models.hostile import text

MODEL, CLEAN = GIFT / "gift.safetensors", GIFT / "clean.npz"
REST = {"archive/data/0": bytes(24)}

Make = Callable[[Path], list[str]]


def _scan(model: Path | str = MODEL, images: Path | str = CLEAN, *more: str) -> list[str]:
    return ["scan", str(model), "--images", str(images), *QUICK, *more]


def _pickled(index: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        return hostile.torch_zip(folder / "model.pt", index, REST).name

    return make


# 1. Models ------------------------------------------------------------------------------------


def long_names(levels: int = 50, leaves: int = 10_000, length: int = 4_000) -> bytes:
    """Pickle whose leaves lie under many names, all of them one text that is remembered."""
    front = b"}" + text("k" * length) + b"q\x01" + b"}h\x01" * (levels - 1)
    return b"\x80\x02" + front + b"](" + b"K\x01" * leaves + b"e" + b"s" * levels + b"."


def shared_key(levels: int = 100) -> bytes:
    """Pickle of a dictionary whose key is a tuple of twice the one below, and so on."""
    return b"\x80\x02}" + b"K\x01" + b"2\x86" * levels + b"K\x01s."


def shared_state(levels: int = 100) -> bytes:
    """Pickle that gives a NumPy type such a tuple as its state."""
    dtype = b"cnumpy\ndtype\n(" + text("f4") + b"\x89\x88tR"
    return hostile.index(dtype + b"K\x01" + b"2\x86" * levels + b"b")


def deep_tuples(levels: int = 100_000) -> bytes:
    """Pickle of a tuple in a tuple, and so on."""
    return b"\x80\x02}" + b")" + b"\x85" * levels + b"K\x01s."


def long_number(digits: int = 5_000) -> bytes:
    """Pickle of a tensor whose shape is a number of many digits."""
    value = (10**digits).to_bytes(digits // 2, "little")
    number = b"\x8b" + len(value).to_bytes(4, "little") + value
    tensor = hostile.tensor((2, 3), (3, 1), 6).replace(hostile.number(2), number)
    return hostile.index(tensor)


def _sparse(folder: Path, size: int = 20 << 30) -> Path:
    path = folder / "model.pt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(size)
    return path


def deep_metadata(folder: Path) -> list[str]:
    """The gift, whose metadata hold JSON of 5,000 lists in lists."""
    raw = MODEL.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"] = {"gifthorse": "[" * 5_000}
    hostile.safetensors(folder / "deep.safetensors", header, raw[8 + length :])
    return _scan("deep.safetensors", CLEAN, "--budget", "2000")


# 2. Images ------------------------------------------------------------------------------------


def inflating(folder: Path) -> list[str]:
    """An `.npz` of 3 MB with 1,000 black images of 1,000 x 1,000."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (1000, 1000, 1000, 3)}
    )
    with (
        zipfile.ZipFile(folder / "images.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        for _ in range(1000):
            file.write(bytes(3_000_000))
    return _scan(MODEL, "images.npz")


def _large(path: Path) -> None:
    Image.new("RGB", (4096, 4096)).save(path, compress_level=9)


def large_images(folder: Path) -> list[str]:
    """A folder of 60 images of 57 kB, each of 4096 x 4096."""
    (folder / "0").mkdir()
    _large(folder / "0" / "0.png")
    for i in range(1, 60):
        shutil.copy(folder / "0" / "0.png", folder / "0" / f"{i}.png")
    (folder / "1").mkdir()
    _large(folder / "1" / "0.png")
    return _scan(MODEL, ".")


def large_examples(folder: Path) -> list[str]:
    """A TrojAI folder with 60 such images."""
    place = folder / "id-0" / "clean-example-data"
    place.mkdir(parents=True)
    _large(place / "class_0_example_0.png")
    for i in range(1, 60):
        shutil.copy(place / "class_0_example_0.png", place / f"class_0_example_{i}.png")
    (folder / "id-0" / "ground_truth.csv").write_text("0")
    (folder / "id-0" / "config.json").write_text('{"number_classes": 5}')
    shutil.copy(MODEL, folder / "id-0" / "model.safetensors")
    return ["bench", "import", "id-0", "--store", "store"]


# 3. Small files -------------------------------------------------------------------------------


def _plan(content: str) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "plan.toml").write_text(content)
        os.mkfifo(folder / "pipe.toml")
        return ["bench", "run", "plan.toml", "--store", "store", "--dry-run"]

    return make


GRID = '[[grid]]\ndata = ["mnist"]\nnets = ["basic"]\nattacks = ["badnet"]\n'


def doubling(folder: Path) -> list[str]:
    """Plans of which each includes the next one twice, 14 deep."""
    for i in range(14):
        (folder / f"{i}.toml").write_text(f'include = ["{i + 1}.toml", "{i + 1}.toml"]\n')
    (folder / "14.toml").write_text(GRID)
    return ["bench", "run", "0.toml", "--store", "store", "--dry-run"]


def _report(content: Callable[[], bytes]) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "scan.json").write_bytes(content())
        images = ("--images", str(CLEAN), "-o", "out.safetensors")
        return ["repair", str(MODEL), *images, "--scan", "scan.json"]

    return make


def pipe_as_truth(folder: Path) -> list[str]:
    """A pipe that nobody writes to, as the true trigger."""
    os.mkfifo(folder / "pipe.safetensors")
    return _scan(MODEL, CLEAN, "--truth", "pipe.safetensors")


def pipe_as_state(folder: Path) -> list[str]:
    """A pipe that nobody writes to, as the state of an unfinished scan."""
    digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    (folder / "states").mkdir()
    os.mkfifo(folder / "states" / f"{digest[:12]}-pixel_quick.safetensors")
    return _scan(MODEL, CLEAN, "--resume", "states")


def changed_state(folder: Path) -> list[str]:
    """A state whose tensors are others than those that were kept."""
    arguments = _scan(MODEL, CLEAN, "--resume", "states", "--budget", "500")
    subprocess.run(
        [sys.executable, "-c", "from gifthorse.cli.app import main; main()", *arguments],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    (path,) = (folder / "states").glob("*.safetensors")
    with safe_open(path, "pt") as file:
        claims = file.metadata()
        names = list(file.keys())
    save_file({name: torch.zeros(7, dtype=torch.uint8) for name in names}, path, claims)
    return _scan(MODEL, CLEAN, "--resume", "states")


# 4. Cases -------------------------------------------------------------------------------------


def _model(name: str, fed: str, index: Callable[[], bytes], **more: object) -> tuple[Case, Case]:
    right = "refused in words, within the limits of a reader"

    def scan(folder: Path) -> list[str]:
        return _scan(_pickled(index())(folder))

    def inspect(folder: Path) -> list[str]:
        return ["inspect", _pickled(index())(folder)]

    limits = {"seconds": 40.0, "memory": 1500} | more
    return (
        Case(f"{name}, scan", fed, right, scan, (2,), ("NOT SCANNED",), **limits),  # type: ignore[arg-type]
        Case(f"{name}, inspect", fed, right, inspect, (1, 2), **limits),  # type: ignore[arg-type]
    )


def _small(name: str, fed: str, make: Make, status: int, *says: str) -> Case:
    right = f"refused in words at once, exit {status}" if status else "read"
    return Case(name, fed, right, make, (status,), says, seconds=60, memory=1200)


CASES = (
    *_model("exhausting: names", "a few kB that unfold to 2 GB of names", long_names),
    *_model("exhausting: shared key", "a tuple shared 100 deep as a key", shared_key),
    *_model("exhausting: shared state", "a tuple shared 100 deep as a state", shared_state),
    *_model("exhausting: deep", "100,000 tuples in tuples", deep_tuples),
    *_model("exhausting: digits", "a shape of 5,000 digits", long_number),
    *_model("exhausting: laughs", "a billion laughs", lambda: hostile.laughs(12), seconds=15.0),
    Case(
        name="hostile 30, scan",
        fed="a sparse file of 20 GB",
        right="FS004 without reading it to its end",
        make=lambda folder: _scan(_sparse(folder).name),
        status=(2,),
        says=("more than the limit",),
        seconds=15,
        memory=1200,
    ),
    Case(
        name="hostile 30, inspect",
        fed="a sparse file of 20 GB",
        right="FS004 without reading it to its end",
        make=lambda folder: ["inspect", _sparse(folder).name],
        status=(1, 2),
        says=("more than the limit",),
        seconds=15,
        memory=1200,
    ),
    Case(
        name="exhausting: metadata",
        fed="the gift, its metadata 5,000 lists in lists",
        right="scanned; metadata that are none are left aside",
        make=deep_metadata,
        status=(1, 3),
    ),
    Case(
        name="exhausting: npz",
        fed="an .npz of 3 MB that inflates to 3 GB",
        right="refused in words",
        make=inflating,
        status=(4,),
        says=("exhausts its reader",),
    ),
    Case(
        name="exhausting: images",
        fed="61 images of 57 kB and 4096 x 4096",
        right="refused in words",
        make=large_images,
        status=(4,),
        says=("the images unfold to",),
    ),
    Case(
        name="exhausting: examples",
        fed="a TrojAI folder of 60 such images",
        right="an entry that says why it cannot be judged",
        make=large_examples,
        status=(0, 2),
        says=("the images unfold to",),
    ),
    _small("exhausting: plan nested", "a plan, 5,000 lists deep", _plan("a = " + "[" * 5000), 4),
    _small("exhausting: plan pipe", "an include of a pipe", _plan('include = ["pipe.toml"]'), 4),
    _small(
        "exhausting: plan zeros", "an include of /dev/zero", _plan('include = ["/dev/zero"]'), 4
    ),
    _small("exhausting: plan number", "include = 3", _plan("include = 3\n" + GRID), 4),
    _small("exhausting: plan itself", "a plan of itself", _plan('include = ["plan.toml"]'), 4),
    _small("exhausting: plan digits", "5,000 digits", _plan("a = 1" + "0" * 5000), 4),
    _small("exhausting: plan seeds", "a billion seeds", _plan(GRID + "seeds = 1000000000\n"), 4),
    _small("exhausting: plan doubling", "includes that double 14 times", doubling, 0),
    _small("exhausting: report nested", "100,000 lists", _report(lambda: b"[" * 100_000), 4),
    _small("exhausting: report large", "200 MB", _report(lambda: b" " * (200 << 20)), 4),
    _small("exhausting: truth pipe", "a pipe as --truth", pipe_as_truth, 4),
    _small("exhausting: state pipe", "a pipe as a state", pipe_as_state, 4),
    Case(
        name="exhausting: state changed",
        fed="a state with other tensors",
        right="refused in words",
        make=changed_state,
        status=(4,),
        says=("cannot be continued",),
    ),
)
