"""Files that are known and are no weights: named, with what to do to get at the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from zipfile import ZipFile

from gifthorse.models.reading.entries import shown

HEAD = 512  # bytes that tell what a file is
INDEX = 16 << 20  # bytes of an index of sharded weights
UNPACK = "unpack it and name the model file inside"
POINTER, PAGE = "a Git LFS pointer", "a web page"  # come in place of the file
CONVERT = "export the weights of the network as safetensors"

# What a file is that begins with these bytes, and what to do.
_STARTS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs": (POINTER, "run git lfs pull"),
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ\0": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a Zstandard (zst) archive", UNPACK),
    b"\x04\x22\x4d\x18": ("an LZ4 archive", UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", UNPACK),
    b"\x1f\x9d": ("a compress (Z) archive", UNPACK),
    b"GGUF": ("a GGUF file (a language model)", "name an image classifier"),
    b"ggjt": ("a GGML file (a language model)", "name an image classifier"),
    b"lmgg": ("a GGML file (a language model)", "name an image classifier"),
    b"\x93NUMPY": ("a NumPy array", "save the weights as safetensors, each under its name"),
    b"\x89PNG\r\n": ("a PNG image", "name the model; images go to --images"),
    b"\xff\xd8\xff": ("a JPEG image", "name the model; images go to --images"),
    b"GIF8": ("a GIF image", "name the model; images go to --images"),
    b"II*\0": ("a TIFF image", "name the model; images go to --images"),
    b"MM\0*": ("a TIFF image", "name the model; images go to --images"),
    b"%PDF": ("a PDF document", "name the model"),
    b"\x7fELF": ("a program for Linux (ELF)", "name the model; do not run it"),
    b"MZ": ("a program for Windows", "name the model; do not run it"),
    b"SQLite format 3\0": ("an SQLite database", "name the model"),
    b"PAR1": ("a Parquet table", "name the model"),
    b"ARROW1": ("an Arrow table", "name the model"),
}
# The same for bytes that stand further back.
_INSIDE: Mapping[tuple[int, bytes], tuple[str, str]] = {
    (4, b"TFL3"): ("a TensorFlow Lite (TFLite) model", CONVERT),
    (8, b"WEBP"): ("a WebP image", "name the model; images go to --images"),
    (257, b"ustar"): ("a tar archive", UNPACK),
}
# Zip archives by a record that they have.
_ZIPPED: Mapping[str, tuple[str, str]] = {
    "[Content_Types].xml": ("an Office document", "name the model"),
    "META-INF/MANIFEST.MF": ("a Java archive", "name the model"),
}


def stranger(head: bytes) -> tuple[str, str]:
    """Say in words what a file is that begins with `head`, and what to do; empty if unknown."""
    for start, words in _STARTS.items():
        if head.startswith(start):
            return words
    for (at, inside), words in _INSIDE.items():
        if head[at : at + len(inside)] == inside:
            return words
    if _is_old_tar(head):
        return "a tar archive", UNPACK
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:100].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")):
        return PAGE, "the download failed"
    return "", ""


def _is_old_tar(head: bytes) -> bool:
    """Whether these 512 bytes are a header of tar from before POSIX, by its checksum."""
    try:
        told = int(head[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        return False
    return len(head) >= HEAD and told == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def zipped(archive: ZipFile) -> tuple[str, str]:
    """Say what a zip archive is that torch.save did not write, and what to do."""
    names = archive.namelist()
    for name, words in _ZIPPED.items():
        if name in names:
            return words
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (npz)", "save the weights as safetensors"
    models = [n for n in names if n.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".bin"))]
    inside = ", such as " + ", ".join(shown(n, 60) for n in models[:3]) if models else ""
    return "a zip archive without data.pkl", UNPACK + inside


def listed(data: bytes) -> tuple[str, str]:
    """Say what a JSON text is, and what to do; an index names its shards. Empty if it is none."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return "", ""
    table = told.get("weight_map") if isinstance(told, dict) else None
    if not isinstance(table, dict):
        return ("a JSON text", "name the model file") if isinstance(told, dict | list) else ("", "")
    files = sorted({name for name in table.values() if isinstance(name, str)})
    shards = ", ".join(shown(name, 60) for name in files[:3]) + ", ..." * (len(files) > 3)
    return "an index of sharded weights", f"name a shard: {shards or 'it lists none'}"
