"""A model folder, opened: its configuration, its weights file by file, its preprocessing."""

from __future__ import annotations

import os
from pathlib import Path

from gifthorse.core.errors import UnreadableModel, UsageError
from gifthorse.core.files import is_regular
from gifthorse.models.hub.config import read_json
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.files import ENDINGS, digest, digest_of, open_file

WHOLE = ("model.safetensors", "pytorch_model.bin")
MOST_SHARDS = 1000
NET_KEYS = ("model_type", "architectures", "architecture", "pretrained_cfg")
FILES = {
    e
    for kind in ("safetensors", "pytorch", "torchscript", "onnx", "keras", "hdf5")
    for e in ENDINGS[kind]
}
INDEX = tuple(f"{name}.index.json" for name in WHOLE)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder with a configuration and weights, as hubs give them."""
    weights = any(is_regular(path / name) for name in (*WHOLE, *INDEX))
    return weights and is_regular(path / "config.json")


def check_folder(path: Path) -> None:
    """Say what a folder lacks to be a model, where it looks like one.

    Raises:
        UsageError: If it is the cache of a hub, or has settings and no weights that are read.
    """
    revisions = sorted(path.glob("snapshots/*/config.json"))[:3] if os.path.isdir(path) else []
    if revisions:
        names = " or ".join(shown(str(config.parent)) for config in revisions)
        raise UsageError(f"{shown(str(path))!r} is a hub's cache: name a snapshot in it: {names}")
    if is_regular(path / "config.json") and not is_folder(path):
        raise UsageError(
            f"{shown(str(path))!r} has a config.json but no weights that are read "
            f"({' or '.join(WHOLE)}, or their index): download the folder whole"
        )


def only_file(path: Path) -> Path:
    """Return the one model file of a folder that is no hub's, such as TrojAI's; else the path.

    Raises:
        UsageError: If the folder holds several.
    """
    if not os.path.isdir(path) or is_folder(path) or _is_described(path):
        return path
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in FILES and is_regular(p))
    if len(files) > 1:
        names = ", ".join(shown(p.name, 60) for p in files[:5])
        raise UsageError(
            f"{shown(str(path))!r} is a folder of {len(files)} model files ({names}"
            f"{', ...' * (len(files) > 5)}): name one of them"
        )
    return files[0] if files else path


def _is_described(folder: Path) -> bool:
    """Whether a folder has a configuration that says what net it holds, as those of hubs do."""
    if not is_regular(folder / "config.json"):
        return False
    try:
        return not read_json(folder / "config.json").keys().isdisjoint(NET_KEYS)
    except UnreadableModel:
        return True


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


def is_name(name: str) -> bool:
    """Whether a text is the name of a file in the same folder."""
    return (
        Path(name).name == name
        and name[:1] not in ("", ".")
        and name.isprintable()
        and len(name) < 200
    )


def shard_names(folder: Path, index: str) -> list[str]:
    """Return the names of the files that an index names, which may be in the folder or not.

    Raises:
        UnreadableModel: If it is no index, or names something that is no file beside it.
    """
    named = read_json(folder / index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    odd = [n for n in names if not is_name(n)]
    if len(names) > MOST_SHARDS:
        raise UnreadableModel(f"{index} names {len(names):,} files", rule="FS004")
    if not names or odd:
        words = f"names {shown(odd[0])!r}, which is no file of the folder" if odd else "is empty"
        raise UnreadableModel(f"{index} {words}", rule="FS006" if odd else "FS003")
    return names


def _shards(folder: Path, index: str) -> list[Path]:
    names = shard_names(folder, index)
    gone = [n for n in names if not (folder / n).is_file()]
    if gone:
        raise UnreadableModel(
            f"{index} names {shown(gone[0])!r}, which is missing: download the folder again",
            rule="FS003",
        )
    return [folder / name for name in names]


def digest_now(folder: Path) -> str:
    """Return the hash of the weights that lie in a folder by now.

    Raises:
        UnreadableModel: If there are none, or one may not be read.
    """
    hashes = []
    for path in weight_files(folder):
        with open_file(path) as stream:
            hashes.append((path, digest(stream)))
    return digest_of(hashes)
