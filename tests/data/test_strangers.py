"""Folders, tables and arrays as strangers have them: what is no image or label is left out."""

from __future__ import annotations

import io
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gifthorse.core.errors import BadImages
from gifthorse.data import Gallery, read
from gifthorse.data.decode import as_pixels


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value, 90, 30)).save(path)


def labels(gallery: Gallery) -> dict[str, int]:
    return dict(zip(gallery.names, gallery.samples.labels.tolist(), strict=True))


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    for k in range(6):
        draw(tmp_path / "clean" / f"{k:02} sign" / "a.png", k)
    return tmp_path / "clean"


# Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lost+found", None),
        ("annotations", "boxes.xml"),
        ("empty", None),
        ("notes", "README"),
        ("@eaDir", "thumb.png"),
        ("strange", "cat.png"),
    ],
)
def test_folders_that_are_no_classes_are_left_out_and_said(
    signs: Path, name: str, file: str | None
) -> None:
    (signs / name).mkdir()
    if file is not None:
        (signs / name / file).write_text("text")
        if file == "cat.png":
            draw(signs / name / file, 99)
    gallery = read(str(signs), classes=6)
    assert sorted(labels(gallery).values()) == [0, 1, 2, 3, 4, 5]
    assert any(f"{name}/" in note for note in gallery.notes)


def test_an_empty_folder_counts_where_order_decides(tmp_path: Path) -> None:
    for k, name in enumerate(["ant", "cat", "dog"]):
        draw(tmp_path / name / "a.png", k)
    (tmp_path / "bee").mkdir()
    assert labels(read(str(tmp_path), classes=4))["cat/a.png"] == 2
    assert labels(read(str(tmp_path), classes=3))["cat/a.png"] == 1


def test_a_folder_too_many_is_named_first(tmp_path: Path) -> None:
    for k, name in enumerate(["ant", "bee", "cat", "dog"]):
        for i in range(3 if name != "cat" else 1):
            draw(tmp_path / name / f"{i}.png", 9 * k + i)
    with pytest.raises(BadImages, match=r"^is 'cat' \(1 files\) a class\?"):
        read(str(tmp_path), classes=3)


@pytest.mark.parametrize("deep", ["clean", "a/clean"])
def test_one_folder_too_high_names_the_right_one(tmp_path: Path, deep: str) -> None:
    for k in range(3):
        draw(tmp_path / "top" / deep / str(k) / "a.png", k)
    with pytest.raises(BadImages, match=rf"lie in .*top/{deep}: name that one"):
        read(str(tmp_path / "top"), classes=3)


def test_parts_that_hold_the_same_folders_are_not_classes(tmp_path: Path) -> None:
    for part in ("fold1", "fold2"):
        for k in range(3):
            draw(tmp_path / part / str(k) / "a.png", k)
    with pytest.raises(BadImages, match="fold1, fold2 each hold the folders 0, 1, 2: name one"):
        read(str(tmp_path), classes=3)


# Tables ---------------------------------------------------------------------------------------


def table(folder: Path, content: str | bytes, name: str = "labels.csv") -> Gallery:
    if isinstance(content, str):
        content = content.encode()
    (folder / name).write_bytes(content)
    return read(str(folder), classes=43)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for k in range(10):
        draw(tmp_path / "img" / f"{k}.png", k)
    return tmp_path


ROWS = [f"img/{k}.png,{k}" for k in range(10)]


@pytest.mark.parametrize("odd", ["-1", "-7", "?", "none", "unknown", "20130812"])
def test_an_odd_label_does_not_renumber_the_others(flat: Path, odd: str) -> None:
    rows = [*ROWS[:9], f"img/9.png,{odd}"]
    gallery = table(flat, "file,label\n" + "\n".join(rows))
    assert labels(gallery) == {f"img/{k}.png": k for k in range(9)}
    assert any(f"img/9.png has the label {odd!a}" in note for note in gallery.notes)


def test_unknown_labels_may_be_most(flat: Path) -> None:
    rows = [f"img/{k}.png,{k if k < 3 else -1}" for k in range(10)]
    gallery = table(flat, "file,label\n" + "\n".join(rows))
    assert labels(gallery) == {f"img/{k}.png": k for k in range(3)}
    with pytest.raises(BadImages, match="has the label '-1', which is no class number"):
        table(flat, "file,label\n" + "\n".join(f"img/{k}.png,-1" for k in range(10)))


@pytest.mark.parametrize(
    "text",
    [
        "file,label\n" + "\n".join(row.replace("/", "\\") for row in ROWS),
        "file,label\n" + "\n".join(f"./{row}" for row in ROWS),
        "file,label\n" + "\n".join(row.upper() for row in ROWS),
        "file,label\n" + "\n".join(row.removeprefix("img/") for row in ROWS),
        "file,label\n" + "\n".join(f"data/set/{row}" for row in ROWS),
        "\ufefffile;label\r\n" + "\r\n".join(row.replace(",", ";") for row in ROWS),
        "sep=;\r\nfile;label\r\n" + "\r\n".join(row.replace(",", ";") for row in ROWS),
        "Width\tPath\tClass Id\n" + "\n".join("6\t" + row.replace(",", "\t") for row in ROWS),
        ("file,label\n" + "\n".join(ROWS)).encode("utf-16"),
        "file,label\n" + "\n".join(ROWS) + "\n\n",
    ],
    ids=["win", "dots", "caps", "bare", "moved", "bom", "sep", "tabs", "utf16", "end"],
)  # fmt: skip
def test_tables_of_other_systems_are_read(flat: Path, text: str | bytes) -> None:
    assert sorted(table(flat, text).samples.labels.tolist()) == list(range(10))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("code", ["utf-8", "cp1252"])
def test_accents_may_be_composed_or_not(tmp_path: Path, form: Any, code: str) -> None:
    if (form, code) == ("NFD", "cp1252"):
        pytest.skip("has no separate accents")
    other = "NFD" if form == "NFC" else "NFC"
    draw(tmp_path / unicodedata.normalize(other, "Größe é.png"), 3)  # type: ignore[arg-type]
    text = "file,label\n" + unicodedata.normalize(form, "Größe é.png") + ",3\n"
    assert table(tmp_path, text.encode(code)).samples.labels.tolist() == [3]


@pytest.mark.parametrize("name", ["GT-final_test.csv", "labels.csv", "Test.csv", "truth.txt"])
def test_the_table_of_gtsrb_is_read_under_any_name(flat: Path, name: str) -> None:
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    rows = "\n".join(f"img/{k}.png;6;6;1;1;5;5;{k}" for k in range(10))
    gallery = table(flat, head + rows, name)
    assert (gallery.labels_from, gallery.samples.labels.tolist()) == ("file", list(range(10)))


def test_two_tables_are_asked_about(flat: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (flat / name).write_text("file,label\n" + "\n".join(ROWS))
    with pytest.raises(BadImages, match=r"several tables of labels \(a\.csv, b\.csv\): name one"):
        read(str(flat))


def test_what_is_missing_is_named_first(flat: Path) -> None:
    with pytest.raises(BadImages, match=r"no usable image in .*: gone\.png is missing"):
        table(flat, "file,label\ngone.png,3\n")


def test_a_name_that_no_file_can_have_is_missing(flat: Path) -> None:
    rows = "\n".join([*ROWS, f"{'x' * 5000}.png,3", "a\0b.png,3", "C:\\secret.png,1"])
    gallery = table(flat, "file,label\n" + rows)
    assert len(gallery.samples) == 10
    assert "leads out of the folder" in gallery.notes[-1]


def test_a_label_too_high_names_its_file(flat: Path) -> None:
    with pytest.raises(BadImages, match=r"^img/9\.png has label 99: the labels go up to 99"):
        table(flat, "file,label\n" + "\n".join([*ROWS[:9], "img/9.png,99"]))


# Arrays ---------------------------------------------------------------------------------------

RAMP = np.arange(256, dtype=np.float64).reshape(4, 8, 8) / 255


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (RAMP * (1 + 1e-6), "1 values from 0 to 1 clipped"),
        (RAMP - 1e-7, "1 values from -1e-07 to 1 clipped"),
        (np.where(RAMP == 1, 1.2, RAMP), "1 values from 0 to 1.2 clipped"),
        (RAMP * 255.01, "1 values from 0 to 255.01 clipped"),
        (RAMP, ""),
        (RAMP * 255, ""),
    ],
)
def test_floats_a_hair_out_of_range_are_clipped_and_said(array: Any, said: str) -> None:
    pixels, notes = as_pixels(array)
    assert np.abs(pixels.ravel().astype(int) - np.arange(256)).max() <= 1
    assert notes[1:] == ((said,) if said else ())


@pytest.mark.parametrize("array", [RAMP * 2 - 1, RAMP * 4.5 - 2, RAMP * 3, RAMP * 400])
def test_normalized_floats_are_no_pixels(array: Any) -> None:
    with pytest.raises(BadImages, match="not normalized"):
        as_pixels(array)


def test_an_image_of_unknown_label_takes_none_from_the_others(tmp_path: Path) -> None:
    images = (np.arange(5 * 108) % 251).astype(np.uint8).reshape(5, 6, 6, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, -1, 1, 0])
    gallery = read(str(tmp_path / "a.npz"))
    assert gallery.samples.labels.tolist() == [0, 1, 1, 0]
    assert "1 image with the label -1 left out" in gallery.notes
    every = read(str(tmp_path / "a.npz"), repeats=True)
    assert every.samples.labels.tolist() == [0, 1, -1, 1, 0]


GOOD = np.zeros((3, 6, 6, 3), np.uint8)
ODD: dict[str, Any] = {
    "text": np.array(["a", "b", "c"]),
    "dates": np.array(["2026-01-01"] * 3, "datetime64[D]"),
    "structured": np.zeros((3, 4, 4), [("r", "u1"), ("g", "u1")]),
    "void": np.zeros((3, 4, 4), "V3"),
    "complex": np.zeros((3, 4, 4), complex),
    "scalar": np.array(3),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("key", ["images", "labels"])
def test_arrays_of_odd_kinds_are_refused_in_words(tmp_path: Path, kind: str, key: str) -> None:
    arrays: dict[str, Any] = {"images": GOOD, "labels": [0, 1, 2]} | {key: ODD[kind]}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadImages):
        read(str(tmp_path / "a.npz"))


def member(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(144)


def good() -> bytes:
    file = io.BytesIO()
    np.save(file, GOOD)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x09\x09", b"text", member(b"{"), member(b"()"),
        member(b"{'descr': '|u1', 'fortran_order': False}"),
        member(b"{'descr': 3, 'fortran_order': False, 'shape': (3,)}"),
        member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 4)}"),
        member(b"{'descr': '|u1', 'fortran_order': False, 'shape': 'x'}"),
        member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 4, 4)}" % 10**30),
        member(b"[" * 200), member(b"\xff\xfe\x00" * 9),
        member(b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 4, 4)}"),
    ],
)  # fmt: skip
def test_broken_headers_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", content)
    with pytest.raises(BadImages):
        read(str(tmp_path / "a.npz"))


def test_a_member_that_hides_behind_another_name_is_not_read(tmp_path: Path) -> None:
    huge = member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % 2**44)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", good())
        archive.writestr("images", huge)
    assert len(read(str(tmp_path / "a.npz"), repeats=True).samples) == 3
