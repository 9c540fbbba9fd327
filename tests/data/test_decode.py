from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gifthorse.core.errors import BadImages
from gifthorse.core.resizing import Resize
from gifthorse.data.decode import as_pixels, conform, decode


def random_rgb(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_comes_back_as_it_was(tmp_path: Path) -> None:
    pixels = random_rgb()
    done = decode(saved(Image.fromarray(pixels), tmp_path / "a.png"), size=Resize((6, 5)))
    assert (done.pixels == pixels).all()
    assert done.steps == ()


@pytest.mark.parametrize(
    ("orientation", "oracle"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, oracle: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = random_rgb()
    done = decode(saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif))
    assert np.array_equal(done.pixels, oracle(pixels))
    assert done.steps == ("turned upright by the EXIF orientation",)


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257], [32768, 65407, 65535]], np.uint16)
    done = decode(saved(Image.fromarray(values), tmp_path / "a.png"), channels=1)
    assert done.pixels[..., 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert done.steps == ("scaled from 16-bit gray to 8 bits",)


def test_float_tiff(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    done = decode(saved(Image.fromarray(values), tmp_path / "a.tiff"), channels=1)
    assert done.pixels[..., 0].tolist() == [[0, 128, 255]]
    wrong = saved(Image.fromarray(values - 1), tmp_path / "b.tiff")
    with pytest.raises(BadImages, match="outside 0 to 1"):
        decode(wrong)


def test_gray_to_rgb_and_back(tmp_path: Path) -> None:
    gray = random_rgb()[..., 0]
    done = decode(saved(Image.fromarray(gray), tmp_path / "a.png"))
    assert (done.pixels == gray[..., None]).all()
    assert done.pixels.shape == (6, 5, 3)
    assert done.steps == ("converted from grayscale to RGB",)
    same = decode(tmp_path / "a.png", channels=1)
    assert (same.pixels[..., 0] == gray).all()
    assert same.steps == ()


def test_rgb_to_gray_is_the_rec_601_luma(tmp_path: Path) -> None:
    pixels = random_rgb()
    done = decode(saved(Image.fromarray(pixels), tmp_path / "a.png"), channels=1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(done.pixels[..., 0] - luma).max() <= 0.51
    assert done.steps == ("converted from RGB to grayscale",)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    done = decode(saved(Image.fromarray(rgba), tmp_path / "a.png"))
    assert done.pixels.tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert done.steps == ("with transparency laid on white",)


def test_opaque_alpha_is_just_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([random_rgb(), np.full((6, 5), 255, np.uint8)])
    done = decode(saved(Image.fromarray(rgba), tmp_path / "a.png"))
    assert (done.pixels == rgba[..., :3]).all()
    assert done.steps == ()


def test_gray_with_alpha(tmp_path: Path) -> None:
    both = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)])
    assert decode(saved(both, tmp_path / "a.png"), channels=1).pixels.tolist() == [[[204]]]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("L")
    image.putpalette([10, 20, 30, 200, 100, 0])
    plain = decode(saved(image, tmp_path / "a.png"))
    assert plain.pixels.tolist() == [[[10, 20, 30], [200, 100, 0]]]
    assert plain.steps == ("converted from a palette to RGB",)
    clear = decode(saved(image, tmp_path / "b.png", transparency=1))
    assert clear.pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_bilevel_and_cmyk(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode(saved(bits, tmp_path / "a.png")).pixels.tolist() == [[[0] * 3, [255] * 3]]
    inks = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    done = decode(saved(Image.fromarray(inks, mode="CMYK"), tmp_path / "b.tiff"))
    assert done.pixels.tolist() == [[[0, 255, 255], [0, 0, 0], [255, 255, 255]]]
    assert done.steps == ("converted from mode CMYK to RGB",)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), value) for value in (7, 200)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    done = decode(path)
    assert (done.pixels == 7).all()
    assert "with several frames reduced to the first" in done.steps


def test_resizing_averages_and_says_so(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 8))), tmp_path / "a.png")
    done = decode(path, channels=1, size=Resize((4, 2)))
    assert done.pixels.shape == (4, 2, 1)
    assert np.abs(done.pixels.astype(int) - 127).max() <= 16  # aliasing would give 0 or 255
    assert done.steps == ("resized to 4x2, aspect ratio not kept",)


# What cannot be used --------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [50_000, 10_000])  # Pillow raises for one, warns for the other
def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png_claiming(side, side))
    with pytest.raises(BadImages, match="is refused: it claims more than 89,478,485 pixels"):
        decode(tmp_path / "a.png", size=Resize((32, 32)))


def test_large_image_needs_a_size(tmp_path: Path) -> None:
    path = saved(Image.new("L", (4100, 1)), tmp_path / "a.png")
    with pytest.raises(BadImages, match="is 1x4100; above 4096 pixels a side give --input-size"):
        decode(path)
    assert decode(path, size=Resize((2, 2))).pixels.shape == (2, 2, 3)


def test_damaged_files_say_what_is_wrong(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(random_rgb(64, 64)), tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "vector.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    reasons = {
        "cut.jpg": "is truncated",
        "empty.png": "is empty",
        "text.png": "is not an image",
        "vector.png": "is not an image",
        "none.png": "is missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadImages, match=f"^{reason}$"):
            decode(tmp_path / name)


def test_every_cut_of_an_image_is_decoded_or_refused(tmp_path: Path) -> None:
    image = Image.fromarray(random_rgb(8, 8))
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.tiff", "a.ppm", "a.webp"):
        whole = saved(image, tmp_path / name).read_bytes()
        for end in range(0, len(whole), max(1, len(whole) // 30)):
            (tmp_path / name).write_bytes(whole[:end])
            try:
                assert decode(tmp_path / name).pixels.shape == (8, 8, 3)
            except BadImages as error:
                assert str(error).startswith(("is ", "cannot be decoded"))  # noqa: PT017


def test_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImages, match="is not a regular file"):
        decode(tmp_path / "a.png")


# Arrays ---------------------------------------------------------------------------------------


def test_array_layouts_agree() -> None:
    nhwc = np.stack([random_rgb(seed=s) for s in range(3)])
    nchw = nhwc.transpose(0, 3, 1, 2)
    assert (as_pixels(nhwc)[0] == nchw).all()
    assert (as_pixels(nchw)[0] == nchw).all()
    assert (as_pixels(nhwc[..., 0])[0] == nchw[:, :1]).all()


@pytest.mark.parametrize(
    ("array", "scale"),
    [
        (np.arange(256, dtype=np.float32) / 255, "0-1"),
        (np.arange(256, dtype=np.float64), "0-255"),
        (np.arange(256, dtype=np.int64), "0-255"),
        (np.arange(256, dtype=np.uint16) * 257, "0-65535"),
    ],
)
def test_other_number_types_are_scaled_to_8_bits(array: np.ndarray, scale: str) -> None:
    pixels, notes = as_pixels(array.reshape(1, 16, 16))
    assert pixels.ravel().tolist() == list(range(256))
    assert notes == (f"pixels converted from {array.dtype} in {scale} to 8 bits",)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 5), np.uint8), "have shape"),
        (np.zeros((0, 5, 5), np.uint8), "have shape"),
        (np.zeros((2, 3, 5, 3), np.uint8), "both the second and the last"),
        (np.zeros((2, 5, 5, 2), np.uint8), "neither the second nor the last"),
        (np.full((1, 2, 2), -0.5), "not normalized"),
        (np.full((1, 2, 2), np.nan), "not normalized"),
        (np.full((1, 2, 2), 70_000), "expected raw pixels"),
        (np.zeros((1, 2, 2), bool), "expected raw pixels"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(BadImages, match=words):
        as_pixels(array)


def test_conform_does_to_arrays_what_decode_does_to_files(tmp_path: Path) -> None:
    pixels = random_rgb()
    expected = decode(
        saved(Image.fromarray(pixels), tmp_path / "a.png"), channels=1, size=Resize((3, 3))
    )
    images, notes = conform(pixels.transpose(2, 0, 1)[None], channels=1, size=Resize((3, 3)))
    assert (images[0].transpose(1, 2, 0) == expected.pixels).all()
    assert notes == tuple(f"1 image {step}" for step in expected.steps)
    same, none = conform(images, channels=1, size=Resize((3, 3)))
    assert same is images
    assert none == ()
