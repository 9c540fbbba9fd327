from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.data import load_packed, packed, read, whole
from gifthorse.data.archive import arrays

LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)
SPLIT = np.array([0, 0, 0, 0, 1, 1], np.uint8)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(packed, "user_cache_path", lambda name: folder / name)
    return folder / "gifthorse" / "packed"


def encode(images: np.ndarray, kind: str = "PNG") -> dict[str, np.ndarray]:
    blobs = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), kind)
        blobs.append(buffer.getvalue())
    ends = np.cumsum([0] + [len(blob) for blob in blobs])
    return {"data": np.frombuffer(b"".join(blobs), np.uint8), "offsets": ends}


def write(path: Path, **changes: Any) -> Path:
    arrays = {
        "labels": LABELS,
        "split": SPLIT,
        "class_names": np.array(["a", "b", "c"]),
        "track": np.array([5, 5, 6, 7, -1, -1], np.int16),
        **changes,
    }
    if "images" not in changes and "data" not in changes:
        arrays |= encode(PIXELS)
    np.savez(path, **arrays)
    return path


def test_encoded_round_trip_with_extras(tmp_path: Path) -> None:
    gallery = load_packed(write(tmp_path / "set.npz"))
    assert (gallery.samples.images.numpy() == PIXELS[:4].transpose(0, 3, 1, 2)).all()
    assert gallery.samples.labels.tolist() == [0, 1, 2, 0]
    assert gallery.samples.classes == 3
    assert gallery.class_names == ("a", "b", "c")
    assert gallery.labels_from == "packed"
    assert gallery.extras["track"].tolist() == [5, 5, 6, 7]
    assert gallery.extras["track"].dtype == torch.int64
    test = load_packed(tmp_path / "set.npz", "test")
    assert (test.samples.images.numpy() == PIXELS[4:].transpose(0, 3, 1, 2)).all()
    assert test.sha256 != gallery.sha256


def test_raw_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", images=PIXELS[..., 0])
    images = load_packed(path, "test").samples.images
    assert (images.numpy() == PIXELS[4:, None, :, :, 0]).all()
    colored = load_packed(write(tmp_path / "rgb.npz", images=PIXELS))
    assert (colored.samples.images.numpy() == PIXELS[:4].transpose(0, 3, 1, 2)).all()


def test_jpeg_and_gray_become_rgb(tmp_path: Path) -> None:
    flat = np.full((6, 8, 8), 90, np.uint8)
    images = load_packed(write(tmp_path / "set.npz", **encode(flat, "JPEG"))).samples.images
    assert images.shape == (4, 3, 8, 8)
    assert (images == 90).all()


def test_second_call_maps_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "set.npz")
    first = load_packed(path)
    assert [file.suffix for file in sorted(cache.iterdir())] == [".lock", ".npy", ".sha256"]

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("decoded again")

    monkeypatch.setattr(packed, "_decode", refuse)
    second = load_packed(path)
    assert second.sha256 == first.sha256
    before = (stored := next(cache.glob("*.npy"))).read_bytes()
    second.samples.images.zero_()  # copy on write: the file must not change
    assert stored.read_bytes() == before
    assert load_packed(path, limit=3).samples.images.sum() > 0


def test_damaged_cache_is_replaced(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "set.npz")
    first = load_packed(path)
    stored = next(cache.glob("*.npy"))
    for junk in (b"", stored.read_bytes()[:200]):
        stored.unlink()
        stored.write_bytes(junk)
        assert load_packed(path).sha256 == first.sha256


def test_a_cache_with_other_pixels_is_noticed(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "set.npz")
    first = load_packed(path)
    stored = next(cache.glob("*.npy"))
    poisoned = np.load(stored).copy()
    poisoned[0, 0, 0, 0] ^= 255
    stored.unlink()
    np.save(stored, poisoned)
    assert load_packed(path).sha256 == first.sha256
    assert "was changed since it was written" in caplog.text
    assert load_packed(path).sha256 == first.sha256


def test_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    first = load_packed(write(tmp_path / "set.npz"))
    changed = load_packed(write(tmp_path / "set.npz", **encode(255 - PIXELS)))
    assert (changed.samples.images == 255 - first.samples.images).all()


def test_unwritable_cache_is_no_obstacle(tmp_path: Path, cache: Path) -> None:
    cache.parent.parent.touch()  # a file where a folder should be
    assert len(load_packed(write(tmp_path / "set.npz")).samples) == 4


def test_limit_decodes_only_what_it_takes(tmp_path: Path, cache: Path) -> None:
    gallery = load_packed(write(tmp_path / "set.npz"), limit=3)
    assert gallery.samples.labels.tolist() == [1, 2, 0]
    assert gallery.extras["track"].tolist() == [5, 6, 7]
    assert gallery.notes == ("3 of 4 images taken, evenly over the classes",)
    assert not cache.exists()


def test_name_needs_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GIFTHORSE_DATA", raising=False)
    with pytest.raises(BadImages, match=r"GIFTHORSE_DATA.*not set.*folder that holds gtsrb32\.npz"):
        load_packed("gtsrb")
    monkeypatch.setenv("GIFTHORSE_DATA", str(tmp_path))
    with pytest.raises(BadImages, match=r"has no gtsrb32\.npz"):
        load_packed("gtsrb")
    write(tmp_path / "gtsrb32.npz")
    assert len(load_packed("gtsrb").samples) == 4
    with pytest.raises(BadImages, match="neither a file nor a packed data set; known: cifar10"):
        load_packed("gtrsb")


def test_read_by_name_and_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIFTHORSE_DATA", str(tmp_path))
    write(tmp_path / "gtsrb32.npz")
    assert read("gtsrb:train").samples.labels.tolist() == [0, 1, 2, 0]
    plain = read("gtsrb")
    assert plain.samples.labels.tolist() == [1, 2]
    assert plain.notes == ("test images of gtsrb",)
    gray = read(f"{tmp_path / 'gtsrb32.npz'}:test", channels=1, size=(5, 4), classes=3)
    assert gray.samples.shape == (1, 5, 4)
    assert gray.sha256 != plain.sha256
    with pytest.raises(BadImages, match="labels go up to 2, but the model has 2 classes"):
        read("gtsrb", classes=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": LABELS[:3]}, "labels of .* must be 6 integers"),
        ({"split": SPLIT.astype(float)}, "split of .* must be 6 integers"),
        ({"split": np.ones(6, np.uint8)}, "no images marked 'train'"),
        ({"images": PIXELS.astype(np.float32)}, "must be uint8"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.arange(7)}, "image 0 .* cannot be decoded"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.arange(7) + 9}, "must rise from 0 to 9"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.arange(6, -1, -1)}, "must rise"),
        ({"data": np.zeros(9, np.uint8), "offsets": np.array(6)}, "labels of"),
        ({"images": np.array(0, np.uint8)}, "labels of"),
    ],
)
def test_malformed_sets_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadImages, match=words):
        load_packed(write(tmp_path / "set.npz", **changes))


def test_two_sizes_in_one_set_are_refused(tmp_path: Path) -> None:
    one, two = encode(PIXELS[:3]), encode(PIXELS[:3, :4])
    both = {
        "data": np.concatenate([one["data"], two["data"]]),
        "offsets": np.concatenate([one["offsets"], two["offsets"][1:] + one["offsets"][-1]]),
    }
    with pytest.raises(BadImages, match=r"image 3 of .* is 4x4, others are 5x4"):
        load_packed(write(tmp_path / "set.npz", **both))


def test_other_files_and_splits_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=PIXELS)
    with pytest.raises(BadImages, match="no packed set"):
        load_packed(tmp_path / "a.npz")
    with pytest.raises(BadOption, match="split must be train or test; got 'val'"):
        load_packed(tmp_path / "a.npz", "val")  # type: ignore[arg-type]


@pytest.mark.skipif(
    not (Path(os.environ.get("GIFTHORSE_DATA", "")) / "cifar10.npz").is_file(),
    reason="GIFTHORSE_DATA does not lead to cifar10.npz",
)
def test_cifar10_has_5000_training_images_a_class() -> None:
    gallery = load_packed("cifar10", limit=100)
    assert gallery.notes == ("100 of 50,000 images taken, evenly over the classes",)
    images, labels = whole(gallery.samples)
    assert images.shape == (100, 3, 32, 32)
    assert labels.bincount().tolist() == [10] * 10
    path = packed.locate("cifar10")
    table = arrays(path, ["labels", "split"])
    assert np.bincount(table["labels"][table["split"] == 0]).tolist() == [5000] * 10
