"""What the files of other benchmarks hold beside a net, decoded in a reader."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from gifthorse.core.errors import BadImages, UnreadableModel
from gifthorse.core.files import read_json
from gifthorse.data.archive import BROKEN, arrays, peek
from gifthorse.data.decode import decode
from gifthorse.data.files import FolderContents, gather, sort_out
from gifthorse.data.folders import example_label
from gifthorse.data.gallery import Wanted
from gifthorse.data.isolation import Parts, apart
from gifthorse.models.reading.entries import shown

TEXT = 16 << 20  # bytes of a JSON file


def stamped(folder: str, paths: Sequence[str], channels: int) -> Parts:
    """Decode images in a reader; return which could be, and these if they are of one size."""
    top, pixels, good = Path(folder), [], []
    for i, path in enumerate(paths):
        inside = top.joinpath(*PurePosixPath(path.replace("\\", "/")).parts[-3:])
        with suppress(BadImages, ValueError, OSError, RuntimeError):
            if inside.resolve().is_relative_to(top.resolve()):
                pixels.append(decode(inside, channels=channels).pixels.transpose(2, 0, 1))
                good.append(i)
    same = len({p.shape for p in pixels}) == 1
    return good, [torch.from_numpy(np.stack(pixels))] if same else []


def whole_array(path: str) -> Parts:
    """Read an `.npy` file in a reader.

    Raises:
        BadImages: If it is damaged.
    """
    try:
        kept = np.load(path, mmap_mode="r", allow_pickle=False)  # a map cannot be a bomb
        return None, [torch.from_numpy(np.array(kept)).float()]
    except (*BROKEN, TypeError, OverflowError) as error:
        raise BadImages(f"{Path(path).name} is no array of numbers: {error}") from error


def some_arrays(path: str, keys: Sequence[str]) -> Parts:
    """Read arrays of an `.npz` file in a reader.

    Raises:
        BadImages: If it lacks one.
    """
    if not set(keys) <= set(peek(Path(path))):
        raise BadImages(f"{Path(path).name} lacks {', '.join(keys)}")
    try:
        return None, [torch.from_numpy(v).float() for v in arrays(Path(path), keys).values()]
    except TypeError as error:
        raise BadImages(f"{Path(path).name} holds no numbers: {error}") from error


def named(value: Any, names: Collection[str], depth: int = 0) -> Iterator[Any]:
    """Yield what stands under some names anywhere in a JSON value; lists one by one."""
    pairs = value.items() if isinstance(value, dict) else ()
    for key, item in pairs:
        if str(key).lower() in names:
            yield from item if isinstance(item, list) else [item]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inside if depth < 32 else ():
        yield from named(item, names, depth + 1)


def table(path: Path) -> dict[str, Any]:
    """Return the table in a `config.json`; empty if there is none.

    Raises:
        UnreadableModel: If it is something else.
    """
    if not path.is_file():
        return {}
    try:
        value = read_json(path, TEXT)
    except (OSError, ValueError) as error:
        raise UnreadableModel(f"{path.name} is no JSON: {error}", rule="FS003") from error
    if not isinstance(value, dict):
        raise UnreadableModel(f"{path.name} is no JSON table, or too large", rule="FS003")
    state = value.get("py/state")
    return state if isinstance(state, dict) else value


def examples(place: str, kind: str) -> Parts:
    """Read example images in a reader: labels are in a JSON of the same name, or in the name.

    Raises:
        BadImages: If there are none.
    """
    folder = Path(place)
    fronts = (f"{kind}-example-data", f"{kind}_example_data") if kind else _CLEAN
    root = next((folder / name for name in fronts if (folder / name).is_dir()), None)
    if root is None:
        raise BadImages(f"{folder.name} has no folder {fronts[0]} of images")
    entries, skipped = sort_out(sorted(root.iterdir()), root)
    marked = [replace(entry, label=example_label(entry)) for entry in entries]
    skipped += [f"{shown(e.name)} has no label" for e in marked if e.label < 0]
    good = tuple(e for e in marked if e.label >= 0)
    told = named(table(folder / "config.json"), ("number_classes",))
    count = next((v for v in told if isinstance(v, int)), None)
    skipped = [s for s in skipped if ".json" not in s]
    found = FolderContents(str(root), "file", good, skipped=tuple(skipped))
    return apart(gather(found, Wanted(classes=count)))


_CLEAN = ("clean-example-data", "clean_example_data", "example_data")
