"""A model folder, opened: its configuration, its weights file by file, its preprocessing."""

from __future__ import annotations

from pathlib import Path

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.files import is_regular
from gifthorse.models.hub.config import read_json
from gifthorse.models.reading.entries import shown

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDEX = tuple(f"{name}.index.json" for name in WHOLE)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder with a configuration and weights, as hubs give them."""
    weights = any(is_regular(path / name) for name in (*WHOLE, *INDEX))
    return weights and is_regular(path / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, safetensors before all else.

    Raises:
        UnreadableModel: If there are none, or an index names a file that is not in the folder.
    """
    for whole, index in zip(WHOLE, INDEX, strict=True):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder, index)
    raise UnreadableModel(f"{shown(str(folder))!r} holds no weights", rule="FS003")


def _shards(folder: Path, index: str) -> list[Path]:
    named = read_json(folder / index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    odd = [n for n in names if Path(n).name != n or n.startswith(".")]
    gone = [n for n in names if not (folder / n).is_file()]
    if not names or odd:
        words = f"names {shown(odd[0])!r}, which is no file of the folder" if odd else "is empty"
        raise UnreadableModel(f"{index} {words}", rule="FS006" if odd else "FS003")
    if gone:
        raise UnreadableModel(
            f"{index} names {shown(gone[0])!r}, which is missing: download the folder again",
            rule="FS003",
        )
    return [folder / name for name in names]
