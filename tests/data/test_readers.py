from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.isolated.confinement import Limits
from gifthorse.core.resizing import Resize
from gifthorse.data import READERS, Gallery, isolation, read
from gifthorse.data.archive import arrays
from gifthorse.data.files import FolderContents, ImageEntry, gather
from gifthorse.data.gallery import Wanted, balanced
from gifthorse.data.readers import sniff


def draw(path: Path, value: int, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def labels_by_name(gallery: Gallery) -> dict[str, int]:
    return dict(zip(gallery.names, gallery.samples.labels.tolist(), strict=True))


# Class folders --------------------------------------------------------------------------------


def test_numeric_folders_are_class_numbers(tmp_path: Path) -> None:
    for value, name in enumerate(["10", "2", "0", "00014", "1"]):
        draw(tmp_path / name / "a.png", value)
    gallery = read(str(tmp_path))
    assert labels_by_name(gallery) == {
        "0/a.png": 0,
        "1/a.png": 1,
        "2/a.png": 2,
        "10/a.png": 10,
        "00014/a.png": 14,
    }
    assert gallery.samples.images[:, 0, 0, 0].tolist() == [2, 4, 1, 0, 3]
    assert gallery.samples.classes == 15
    assert gallery.class_names[13:] == ("13", "00014")
    assert gallery.notes == ("folder names taken as class numbers (0 to 14)",)
    assert gallery.labels_from == "folders"


def test_number_and_name(tmp_path: Path) -> None:
    draw(tmp_path / "1_yield" / "a.png", 1)
    draw(tmp_path / "0_stop" / "deeper" / "a.png", 0)
    gallery = read(str(tmp_path), classes=5)
    assert labels_by_name(gallery) == {"0_stop/deeper/a.png": 0, "1_yield/a.png": 1}
    assert gallery.class_names == ("0_stop", "1_yield")
    assert gallery.samples.classes == 5
    assert "class folders for 2 of the model's 5 classes" in gallery.notes


def test_names_are_numbered_alphabetically_as_imagefolder_does(tmp_path: Path) -> None:
    for value, name in enumerate(["dog", "Cat", "10", "ant"]):
        draw(tmp_path / name / "a.png", value)
    gallery = read(str(tmp_path))
    assert gallery.class_names == ("10", "Cat", "ant", "dog")
    assert gallery.samples.images[:, 0, 0, 0].tolist() == [2, 1, 3, 0]
    note = "in alphabetical order, as torchvision's ImageFolder does: 0 = '10', 1 = 'Cat', 3 = 'dog"
    assert note in gallery.notes[0]


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        draw(tmp_path / "a" / name / "a.png", int(name))
    with pytest.raises(BadImages, match=r"number 2 \('2'\), but the model has 2 classes, counted"):
        read(str(tmp_path / "a"), classes=2)
    draw(tmp_path / "a" / "01" / "a.png", 1)
    with pytest.raises(BadImages, match="have one number"):
        read(str(tmp_path / "a"))
    draw(tmp_path / "b" / "train" / "cat" / "a.png", 1)
    (tmp_path / "b" / "val").mkdir()
    with pytest.raises(BadImages, match="holds train, val: name one of these folders"):
        read(str(tmp_path / "b"))


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    draw(tmp_path / "0" / "a.png", 1)
    cut = draw(tmp_path / "0" / "b.jpg", 2, (64, 64))
    cut.write_bytes(cut.read_bytes()[:300])
    (tmp_path / "0" / "c.txt").write_text("x")
    (tmp_path / "0" / ".hidden").write_text("x")
    (tmp_path / "0" / "d\x1b[2J.png").touch()
    draw(tmp_path / "loose.png", 3)
    (tmp_path / ".git").mkdir()
    gallery = read(str(tmp_path))
    assert gallery.names == ("0/a.png",)
    assert gallery.notes[-1] == (
        "6 files skipped: .git/ is not a class folder, loose.png is in no class folder, "
        "0/.hidden is hidden, 0/c.txt is not an image, 0/b.jpg is truncated, "
        "'0/d\\x1b[2J.png' is empty"
    )


def test_steps_are_counted(tmp_path: Path) -> None:
    for value in range(3):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    draw(tmp_path / "3.png", 3, (8, 8))
    gallery = read(str(tmp_path), size=(4, 4))
    assert gallery.notes == (
        "3 images converted from grayscale to RGB",
        "1 image resized to 4x4, aspect ratio not kept",
    )
    assert read(str(tmp_path), size=(4, 4), channels=1).samples.shape == (1, 4, 4)


def test_duplicates_are_left_out(tmp_path: Path) -> None:
    for name, value in {"0/a": 1, "0/b": 1, "0/c": 2, "1/d": 1}.items():
        draw(tmp_path / f"{name}.png", value)
    gallery = read(str(tmp_path))
    assert gallery.names == ("0/a.png", "0/c.png")
    assert gallery.notes[-1] == (
        "2 duplicate images left out, 1 of them under another label than the first"
    )


def test_links_are_followed_but_not_in_rings(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "a.png", 1)
    root = tmp_path / "set"
    (root / "0").mkdir(parents=True)
    (root / "0" / "far").symlink_to(tmp_path / "elsewhere")
    (root / "0" / "ring").symlink_to(root / "0")
    (root / "0" / "dead.png").symlink_to(tmp_path / "nowhere")
    gallery = read(str(root))
    assert gallery.names == ("0/far/a.png",)
    assert gallery.notes[-1] == "1 file skipped: 0/dead.png is missing"


def test_sizes_must_agree_or_be_given(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "b.png", 2)
    draw(tmp_path / "c.png", 3, (6, 5))
    with pytest.raises(BadImages, match=r"4x4 \(2\), 5x6 \(1\); give the size .*--input-size HxW"):
        read(str(tmp_path))


def test_limit_is_balanced_and_comes_before_decoding(tmp_path: Path) -> None:
    for label, count in enumerate([10, 2, 5]):
        for i in range(count):
            path = draw(tmp_path / str(label) / f"{i:02}.png", 20 * label + i)
            if label == 0 and i not in (2, 7):
                path.write_text("not opened, or it would be listed")
    gallery = read(str(tmp_path), limit=6)
    names = ("0/02", "0/07", "1/00", "1/01", "2/01", "2/03")
    assert gallery.names == tuple(f"{name}.png" for name in names)
    assert gallery.notes[1:] == ("6 of 17 images taken, evenly over the classes",)


@pytest.mark.parametrize("limit", range(1, 20))
def test_balanced_takes_as_evenly_as_the_counts_allow(limit: int) -> None:
    labels = np.repeat([3, 1, 7], [9, 1, 6])
    chosen = balanced(labels, limit)
    assert len(chosen) == min(limit, 16) == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all()
    few, most = sorted([np.sum(labels[chosen] == 7), np.sum(labels[chosen] == 3)])
    assert most - few <= 1 or few == 6


def test_balanced_spreads_over_the_classes_if_there_are_too_many() -> None:
    assert balanced(np.arange(100), 4).tolist() == [0, 25, 50, 75]


# Flat folders and tables ----------------------------------------------------------------------


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name, value in {"b": 1, "a": 2}.items():
        draw(tmp_path / f"{name}.png", value)
    (tmp_path / "labels.txt").write_text("a.png 1\nb.png 2\n")
    gallery = read(str(tmp_path), classes=10)
    assert labels_by_name(gallery) == {"a.png": -1, "b.png": -1}
    assert any("no labels are read from labels.txt" in note for note in gallery.notes)
    assert gallery.labels_from == "model"
    assert gallery.samples.classes == 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\na.png,3\nsub/b.png,0\n"),
        ("labels.csv", "\ufeffFilename;Class\r\na.png;3\r\nsub/b.png;0\r\n"),
        ("labels.csv", 'id\timage\ttarget\n1\t"a.png"\t3\n2\tsub/b.png\t0.0\n'),
        ("labels.json", '{"a.png": 3, "sub/b.png": 0}'),
        ("labels.csv", "file|label\na.png|3e+00\nsub/b.png|0,0\n"),
        ("labels.json", '{"file": "a.png", "label": 3}\n{"file": "sub/b.png", "label": 0}\n'),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "label": 3}\n\n{"file": "sub/b.png", "class": 0}',
        ),
        ("metadata.txt", "file label\tlabel\tfile\n1\t3\ta.png\n2\t0\tsub/b.png\n"),
        ("labels.json", '[{"image": "a.png", "label": "3"}, {"file": "sub/b.png", "class": 0}]'),
    ],
)
def test_tables_of_class_numbers(tmp_path: Path, name: str, text: str) -> None:
    draw(tmp_path / "a.png", 1)
    draw(tmp_path / "sub" / "b.png", 2)
    (tmp_path / name).write_text(text, encoding="utf-8")
    for source in (tmp_path, tmp_path / name):
        gallery = read(str(source))
        assert labels_by_name(gallery) == {"a.png": 3, "sub/b.png": 0}
        assert gallery.labels_from == "file"
        assert gallery.notes[0] == "labels taken as class numbers"


def test_tables_of_names_with_odd_rows(tmp_path: Path) -> None:
    for value, name in enumerate(["a", "b", "c", "d"]):
        draw(tmp_path / "set" / f"{name}.png", value)
    draw(tmp_path / "secret.png", 9)
    rows = {"a.png": "dog", "b.png": "cat", "c.png": None, "e.png": "cat", "../secret.png": "dog"}
    (tmp_path / "set" / "labels.json").write_text(json.dumps(rows))
    gallery = read(str(tmp_path / "set"))
    assert labels_by_name(gallery) == {"a.png": 1, "b.png": 0}
    assert gallery.class_names == ("cat", "dog")
    assert gallery.notes == (
        "labels numbered in alphabetical order: 0 = 'cat', 1 = 'dog'",
        "5 files skipped: c.png has no label, ../secret.png leads out of the folder, "
        "c.png is not in labels.json, d.png is not in labels.json, e.png is missing",
    )


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.csv", "a.png,3\n", "no usable image"),
        ("labels.csv", "a.png,3\nb.png,4\n", "has the columns a.png, 3; expected a column file"),
        ("labels.csv", 'file,label\n"a.png,3\n', "cannot be read as a table of labels"),
        ("labels.csv", "file,score\na.png,3\n", "has the columns file, score; expected"),
        ("labels.json", "{", "cannot be read as a table of labels"),
        ("labels.json", "[1]", "expected an object of file names and labels"),
        ("labels.json", "[" * 100_000, "cannot be read as a table of labels"),
        ("labels.json", '{"a.png": [3]}', "expected a number or name"),
        ("labels.json", '{"a.png": 3}', "labels go up to 3, but the model has 3 classes"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    draw(tmp_path / "a.png", 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(BadImages, match=words):
        read(str(tmp_path), classes=3)


# Arrays ---------------------------------------------------------------------------------------


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": PIXELS, "labels": np.array([0, 1, 0, 1], np.uint8)},
        {"x": PIXELS.transpose(0, 3, 1, 2), "y": np.array([[0], [1], [0], [1]])},
        {"data": PIXELS / np.float32(255), "targets": np.array([0.0, 1.0, 0.0, 1.0])},
    ],
)
def test_npz_forms_agree(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    gallery = read(str(tmp_path / "a.npz"))
    chw = PIXELS.transpose(0, 3, 1, 2)
    assert (gallery.samples.images.numpy() == chw).all()
    assert gallery.samples.labels.tolist() == [0, 1, 0, 1]
    assert gallery.samples.classes == 2
    assert gallery.labels_from == "npz"
    state = hashlib.sha256(b"(4, 3, 6, 5)" + chw.tobytes())
    state.update(np.array([0, 1, 0, 1], "<i8").tobytes())
    assert gallery.sha256 == state.hexdigest()


def test_npz_without_labels_limited_and_deduplicated(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=PIXELS[[0, 1, 1, 2], ..., 0], class_names=["p", "q"])
    gallery = read(str(tmp_path / "a.npz"), channels=1)
    assert gallery.samples.images[:, 0].numpy().tolist() == PIXELS[:3, ..., 0].tolist()
    assert gallery.samples.labels.tolist() == [-1] * 3
    assert gallery.labels_from == "model"
    assert gallery.class_names == ("p", "q")
    assert gallery.notes == ("1 duplicate image left out",)
    fewer = read(str(tmp_path / "a.npz"), limit=2)
    assert fewer.samples.shape == (3, 6, 5)
    assert fewer.notes == (
        "2 of 4 images taken, evenly over the classes",
        "2 images converted from grayscale to RGB",
    )


def test_object_arrays_are_refused_unopened(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    array = np.array([Boom()], object)
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=array)
    with pytest.raises(BadImages, match=r"array 'labels' of .* holds Python objects.*run code"):
        read(str(tmp_path / "a.npz"))
    assert not (tmp_path / "pwned").exists()


def npz_member(shape: tuple[int, ...]) -> bytes:
    np.lib.format.write_array_header_1_0(
        file := io.BytesIO(), {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npz_member((10**6, 224, 224, 3)), "claims 150,528,000,000 bytes; at most"),
        (npz_member((10, 32, 32, 3)), "claims 30,720 bytes but holds 128"),
        (b"not an array", "is not a readable .npz file"),
    ],
)
def test_claims_are_checked_before_memory_is_taken(
    tmp_path: Path, member: bytes, words: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", member)
    with pytest.raises(BadImages, match=words):
        read(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": PIXELS}, "holds 'pictures'; expected the images under one of images, x"),
        ({"x": PIXELS, "y": np.arange(3)}, r"labels of .* are int64 \(3,\); expected 4"),
        ({"x": PIXELS, "y": np.array(list("abab"))}, "expected 4 class numbers"),
        ({"x": PIXELS, "y": np.eye(4)}, "expected 4 class numbers"),
        ({"x": PIXELS, "y": np.array([0.5, 0, 0, 0])}, "must be class numbers"),
        ({"x": PIXELS, "y": np.array([np.nan, 0, 0, 0])}, "must be class numbers"),
        ({"x": PIXELS, "y": np.array([-2, 0, 0, 0])}, "must be class numbers"),
        ({"x": PIXELS, "y": np.array([10**9, 0, 0, 0])}, "label 1000000000 is no class number"),
        ({"x": np.array(3, np.uint8)}, "have shape"),
    ],
)
def test_unusable_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(BadImages, match=words):
        read(str(tmp_path / "a.npz"))


# Kinds and options ----------------------------------------------------------------------------


def test_every_kind_has_a_reader(tmp_path: Path) -> None:
    draw(tmp_path / "flat" / "a.png", 1)
    draw(tmp_path / "folders" / "x" / "a.png", 1)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "labels.csv").touch()
    np.savez(tmp_path / "npz", x=PIXELS)
    np.savez(tmp_path / "packed", images=PIXELS, labels=[0] * 4, split=[0] * 4)
    draw(tmp_path / "examples" / "class_3_example_0.png", 1)
    sources = ["examples", "flat", "folders", "table", "npz.npz", "packed.npz"]
    assert {sniff(str(tmp_path / source)) for source in sources} == set(READERS)
    assert sniff("mnist:test") == "packed"


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImages, match=r"is no file or folder, and no packed data set \(cifar10"):
        read(str(tmp_path / "nothing"))
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(BadImages, match=r"is not a readable \.npz file"):
        read(str(tmp_path / "a.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadImages, match=r"no usable image in .*: it is empty"):
        read(str(tmp_path / "empty"))
    (tmp_path / "empty" / "a.png").touch()
    with pytest.raises(BadImages, match=r"no usable image in .*: a\.png is empty"):
        read(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"limit": 0}, "limit must be 1 or more; got 0"),
        ({"size": (0, 8)}, "size must be 1 to 4096 pixels a side; got 0x8"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption, match=words):
        read("mnist", **options)


def test_images_that_unfold_to_far_more_than_their_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gifthorse.data.files.LEAST", Limits(1 << 20, 1.0))
    for i in range(8):
        Image.new("RGB", (512, 512), (i, 0, 0)).save(tmp_path / f"{i}.png")
    entries = tuple(ImageEntry(tmp_path / f"{i}.png", str(i)) for i in range(8))
    found = FolderContents(str(tmp_path), "model", entries)
    with pytest.raises(BadImages, match=r"unfold to .* --input-size"):
        gather(found, Wanted())
    assert len(gather(found, Wanted(size=Resize((64, 64)))).samples) == 8


def test_of_a_flat_folder_every_image_is_read_without_labels_and_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, place in enumerate(("a", "b/c")):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / place / f"{i}.png")
    asked: list[object] = []
    apart = isolation.decoded

    def seen(function: Any, arguments: Any, source: Path) -> Any:
        asked.append(source)
        return apart(function, arguments, source)

    monkeypatch.setattr(isolation, "decoded", seen)
    gallery = read(str(tmp_path), flat=True)
    assert gallery.samples.labels.tolist() == [-1, -1]
    assert asked == [tmp_path]


# Examples of TrojAI ---------------------------------------------------------------------------


def _examples(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / name)
    return folder


def test_examples_are_labeled_by_their_names(tmp_path: Path) -> None:
    names = ["class_0_example_0.png", "class_12_example_3.png", "class_4_example_10.png"]
    gallery = read(str(_examples(tmp_path / "a", names)), classes=13)
    assert gallery.samples.labels.tolist() == [0, 12, 4]
    assert gallery.labels_from == "file"
    assert "labels as TrojAI gives them" in gallery.notes[0]


def test_examples_are_labeled_by_what_lies_beside_them(tmp_path: Path) -> None:
    folder = _examples(tmp_path / "a", ["0.png", "1.png"])
    (folder / "0.json").write_text("3")
    assert read(str(folder)).labels_from == "model"  # not all have a label
    (folder / "1.json").write_text("1")
    gallery = read(str(folder), classes=4)
    assert gallery.samples.labels.tolist() == [3, 1]
    assert read(str(folder), flat=True).labels_from == "model"
    assert gallery.skipped == ()


def test_npz_for_which_memory_does_not_suffice_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    np.savez(tmp_path / "a.npz", images=PIXELS)
    monkeypatch.setattr(npy, "read_array", full)
    with pytest.raises(MemoryError):
        arrays(tmp_path / "a.npz", ["images"])
