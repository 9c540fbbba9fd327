"""Images and labels as strangers have them."""

import json
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.cases.case import GIFT, QUICK, Case

MODEL = str(GIFT / "gift.safetensors")
JUDGED = (1, 3)  # the gift is never passed
Array = np.ndarray[Any, Any]


@cache
def _gift() -> tuple[Array, Array]:
    with np.load(GIFT / "clean.npz") as stored:
        return stored["images"], stored["labels"]


def _command(source: str) -> list[str]:
    return ["scan", MODEL, "--images", source, "--normalize", "gtsrb", *QUICK]


def _folders(root: Path, form: str = "{:02} sign") -> Path:
    images, labels = _gift()
    for i, (image, k) in enumerate(zip(images, labels, strict=True)):
        place = root / form.format(k)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")
    return root


def _flat(root: Path, name: str = "{:03}.png") -> list[tuple[str, int]]:
    images, labels = _gift()
    rows = []
    for i, (image, k) in enumerate(zip(images, labels, strict=True)):
        path = root / name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        rows.append((name.format(i), int(k)))
    return rows


def _beside(
    make: Callable[[Path], object], form: str = "{:02} sign"
) -> Callable[[Path], list[str]]:
    """Class folders, and something else beside them."""

    def build(folder: Path) -> list[str]:
        make(_folders(folder / "clean", form))
        return _command("clean")

    return build


def _table(
    write: Callable[[list[tuple[str, int]]], str],
    name: str = "labels.csv",
    file: str = "img/{:03}.png",
    code: str = "utf-8",
) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        rows = _flat(folder / "set", file)
        (folder / "set" / name).write_bytes(write(rows).encode(code))
        return _command("set")

    return build


def _csv(rows: Iterable[tuple[object, object]], mark: str = ",", end: str = "\n") -> str:
    return end.join([f"file{mark}label", *(f"{a}{mark}{b}" for a, b in rows), ""])


def _npz(change: Callable[[Array, Array], dict[str, Any]]) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        np.savez(folder / "x.npz", **change(*_gift()))
        return _command("x.npz")

    return build


def _nested(folder: Path) -> list[str]:
    _folders(folder / "nested" / "clean")
    return _command("nested")


def _odd(bad: Callable[[int], dict[str, Any]]) -> Callable[[Path], list[str]]:
    return _npz(lambda x, y: {"x": x, "y": y} | bad(len(x)))


def _junk(folder: Path) -> None:
    image = Image.fromarray(_gift()[0][0])
    (folder / "00 sign" / "empty.png").touch()
    (folder / "00 sign" / "text.png").write_text("text")
    whole = folder / "00 sign" / "cut.jpg"
    image.resize((99, 99)).save(whole)
    whole.write_bytes(whole.read_bytes()[:400])
    for mode in ("CMYK", "L", "P", "RGBA", "I;16", "1"):
        kind = "jpg" if mode == "CMYK" else "png"
        image.convert("L" if mode == "I;16" else mode).save(
            folder / "01 sign" / f"m{mode[0]}.{kind}"
        )
    image.save(folder / "02 sign" / "film.gif", save_all=True, append_images=[image] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "02 sign" / "turned.jpg", exif=exif)


def _gtsrb(rows: list[tuple[str, int]]) -> str:
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    return "\n".join([head, *(f"{a};32;32;1;1;30;30;{k}" for a, k in rows), ""])


def _draw(place: Path) -> None:
    place.mkdir()
    Image.fromarray(_gift()[0][0]).save(place / "a.png")


FOLDERS = (
    Case(
        "faults 28a",
        "a folder without images beside class folders",
        "left out, said",
        _beside(lambda root: (root / "lost+found").mkdir(), "sign_{:02}"),
        JUDGED,
        ("lost+found",),
    ),
    Case(
        "images: stranger with images",
        "a folder of another kind with an image",
        "left out, said",
        _beside(lambda root: _draw(root / "strange")),
        JUDGED,
        ("strange/",),
    ),
    Case(
        "images: @eaDir",
        "thumbnails of a storage box",
        "left out, said",
        _beside(lambda root: _draw(root / "@eaDir")),
        JUDGED,
        ("@eaDir",),
    ),
    Case(
        "images: a class too many",
        "44 folders, in the order of names",
        "names the likely one",
        _beside(lambda root: _draw(root / "sign_bq"), "sign_{:02}"),
        (4,),
        ("is 'sign_bq'",),
    ),
    Case(
        "faults 29", "one folder too high", "names the right one", _nested, (4,), ("nested/clean",)
    ),
    Case(
        "hostile 44",
        "empty, cut, text, CMYK, gray, palette, GIF, turned images",
        "skipped with a list or converted",
        _beside(_junk),
        JUDGED,
        ("empty.png is empty", "cut.jpg is truncated", "text.png is not an image"),
    ),
    Case(
        "images: loop of links",
        "a link to the folder above",
        "no ring",
        _beside(lambda root: (root / "00 sign" / "up").symlink_to(root)),
        JUDGED,
    ),
)

TABLES = (
    Case(
        "faults 30",
        "one label -1",
        "row left out, said",
        _table(lambda rows: _csv([(rows[0][0], -1), *rows[1:]])),
        JUDGED,
        ("label '-1'",),
    ),
    Case(
        "faults 31a",
        "backslashes",
        "read",
        _table(lambda rows: _csv([(a.replace("/", "\\"), k) for a, k in rows])),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "faults 32a",
        "GTSRB's table as labels.csv",
        "read",
        _table(_gtsrb),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "faults 32b",
        "the same under its own name",
        "read",
        _table(_gtsrb, "GT-final_test.csv"),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: tabs, BOM, CRLF",
        "tabs, BOM, CRLF",
        "read",
        _table(lambda rows: "\ufeff" + _csv(rows, "\t", "\r\n")),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: metadata.jsonl",
        "one record a line",
        "read",
        _table(
            lambda rows: "\n".join(json.dumps({"file_name": a, "label": k}) for a, k in rows),
            "metadata.jsonl",
            "{:03}.png",
        ),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: labels of savetxt",
        "numbers such as 7.0e+00, separated by bars",
        "read",
        _table(lambda rows: _csv([(a, f"{k:.18e}") for a, k in rows], "|")),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: labels.txt",
        "names and numbers without columns",
        "said that they are not read",
        _table(lambda rows: "".join(f"{a} {k}\n" for a, k in rows), "labels.txt", "{:03}.png"),
        JUDGED,
        ("no labels are read from labels.txt",),
    ),
    Case(
        "images: UTF-16",
        "a table as Excel saves it",
        "read",
        _table(lambda rows: _csv(rows, "\t", "\r\n"), code="utf-16"),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: accents",
        "composed in the table, apart on the disk",
        "read",
        _table(
            lambda rows: _csv([(unicodedata.normalize("NFC", a), k) for a, k in rows]),
            file=unicodedata.normalize("NFD", "über/é{:03}.png"),
        ),
        JUDGED,
        ("labels taken as class numbers",),
    ),
    Case(
        "images: a name of 5,000 characters",
        "one row with it",
        "row left out, said",
        _table(lambda rows: _csv([*rows, ("x" * 5000 + ".png", 3)])),
        JUDGED,
        ("is missing",),
    ),
    Case(
        "images: all rows are missing",
        "another folder's table",
        "says that they are missing",
        _table(lambda rows: _csv([(f"other/no{a[-6:]}", k) for a, k in rows])),
        (4,),
        ("is missing",),
    ),
    Case(
        "images: names with escapes",
        "labels with escape codes",
        "nothing acts on a terminal",
        _table(lambda rows: _csv([(a, f"\x1b[2J\u202e{k}") for a, k in rows])),
        (3, 4),
        never=("\x1b", "\u202e"),
    ),
)


def _hidden(folder: Path) -> list[str]:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}\n" % 2**44
    np.savez(folder / "x.npz", images=_gift()[0], labels=_gift()[1])
    with zipfile.ZipFile(folder / "x.npz", "a") as archive:
        archive.writestr("images", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    return _command("x.npz")


def _header(text: bytes) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        member = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(99)
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            archive.writestr("images.npy", member)
        return _command("x.npz")

    return build


ARRAYS = (
    Case(
        "images: a hair above 1",
        "floats up to 1.0000001",
        "clipped, said",
        _npz(lambda x, y: {"x": x / 255 * (1 + 1e-6), "y": y}),
        JUDGED,
        ("clipped",),
    ),
    Case(
        "images: floats in 0-255",
        "floats",
        "read",
        _npz(lambda x, y: {"x": x.astype(np.float32), "y": y}),
        JUDGED,
    ),
    Case(
        "images: normalized",
        "floats of mean 0",
        "refused",
        _npz(lambda x, y: {"x": x / 127.5 - 1, "y": y}),
        (4,),
        ("not normalized",),
    ),
    Case(
        "images: npz of some -1",
        "one label -1",
        "left out, said",
        _npz(lambda x, y: {"x": x, "y": np.where(np.arange(len(y)) == 3, -1, y)}),
        JUDGED,
        ("1 image with the label -1 left out",),
    ),
    Case(
        "hostile 48",
        "every image twice",
        "once is enough",
        _npz(lambda x, y: {"x": np.concatenate([x, x]), "y": np.concatenate([y, y])}),
        JUDGED,
        ("duplicate images left out",),
    ),
    Case(
        "hostile 43 none", "no image", "status 4", _npz(lambda x, y: {"x": x[:0], "y": y[:0]}), (4,)
    ),
    Case(
        "hostile 43 one",
        "one image",
        "no verdict",
        _npz(lambda x, y: {"x": x[:1], "y": y[:1]}),
        (3,),
        ("Only 1 clean image",),
    ),
    Case(
        "hostile 43 one class",
        "one class only",
        "no verdict",
        _npz(
            lambda x, y: {
                "x": x[y == 3].repeat(9, 0) + np.arange(18, dtype=np.uint8)[:, None, None, None],
                "y": [3] * 18,
            }
        ),
        (3,),
    ),
    Case(
        "images: hidden array",
        "a member that hides 16 TiB behind another",
        "not read",
        _hidden,
        JUDGED,
    ),
    *(
        Case(f"images: npz of {name}", name, "status 4", _odd(bad), (4,))
        for name, bad in (
            ("text", lambda n: {"y": np.array(["a"] * n)}),
            ("dates", lambda n: {"x": np.zeros((n, 8, 8), "datetime64[D]")}),
            ("structures", lambda n: {"x": np.zeros((n, 8, 8), [("r", "u1")])}),
            ("void", lambda n: {"x": np.zeros((n, 8, 8), "V3")}),
            ("objects", lambda n: {"y": np.array([None] * n)}),
        )
    ),
    *(
        Case(f"images: header {number}", repr(text[:40]), "status 4", _header(text), (4,))
        for number, text in enumerate(
            (
                b"{",
                b"()",
                b"[" * 300,
                b"\xff\xfe",
                b"{'descr': 3, 'fortran_order': 1, 'shape': 2}",
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 4)}",
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % 10**30,
            )
        )
    ),
)

CASES = (*FOLDERS, *TABLES, *ARRAYS)
