"""A model folder, opened: settings, weights file by file, and what it says of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.types import Origin
from gifthorse.models.hub.beside import beside
from gifthorse.models.hub.build import build_net
from gifthorse.models.hub.config import HubConfig, read_config
from gifthorse.models.hub.folder import weight_files
from gifthorse.models.hub.preprocess import read_preprocessing
from gifthorse.models.load import (
    Opened,
    check_plain,
    check_torch,
    nonfinite,
    read_tensors,
    to_float32,
)
from gifthorse.models.reading import isolation
from gifthorse.models.reading.files import digest_of
from gifthorse.models.reading.isolation import private_copy


@dataclass
class _Weights:
    """The tensors of all files so far, and what was seen of these."""

    state: dict[str, Tensor] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    size: int = 0


def open_folder(folder: Path, *, memory: int, deadline: float) -> Opened:
    """Open a folder of weights that its own `config.json` describes.

    Args:
        folder: The folder.
        memory: Bytes that its files together, and a reader beyond torch itself, may take.
        deadline: Seconds of processor time that reading a file may take.

    Raises:
        UnsafeModel: If it asks for code of its own, or a file of it brings some.
        UnreadableModel: If it cannot be opened.
        UnknownArch: If the weights do not fit the net that it describes.
        BadOption: If the library of its net is not installed.
    """
    check_torch()
    origin = Origin(path=str(folder), format="folder")
    try:
        config = read_config(folder / "config.json")
        files = weight_files(folder)
        weights = _weights(files, memory, deadline)
        state, casts = to_float32(weights.state)
        net, notes = build_net(config, state)
        claim, resize = read_preprocessing(folder, config)
        _, aside = beside(folder, files)
    except UnreadableModel as error:
        error.origin = error.origin or origin
        raise
    origin = Origin(
        path=str(folder),
        sha256=weights.digest,
        bytes=weights.size,
        format=f"{config.library} folder",
        arch=config.name or config.kind,
        how="named in config.json",
        tensors=len(weights.state),
        params=sum(p.numel() for p in net.parameters()),
        dtypes=tuple(sorted(weights.dtypes)),
        notes=(*weights.notes, *notes, *casts, *aside),
        metadata=_told(config),
    )
    ends = net, config.classes, config.channels
    names = tuple(path.name for path in files)
    return Opened(*ends, origin, nonfinite(net), claim, resize, config.labels, names)


def _weights(files: Sequence[Path], memory: int, deadline: float) -> _Weights:
    """Read every file of weights, each checked and apart, like a file by itself."""
    found, hashes, left = _Weights(), list[tuple[Path, str]](), memory
    for path in files:
        with private_copy(path, left) as copy:
            told = isolation.survey(copy, deadline)
            tensors = read_tensors(copy, told, left, deadline)
            left -= max(copy.size, told.full)
            hashes.append((path, copy.sha256))
            found.size += copy.size
            found.notes += [f.message for f in told.findings if f.rule == "FS002"]
        for entry, tensor in zip(told.entries, tensors, strict=True):
            if entry.shape is not None:
                check_plain(entry)
            if tensor is None or len(entry.path) != 1:
                continue
            found.state[entry.path[0]] = tensor
            found.dtypes.add(entry.type)
    if not found.state:
        raise UnreadableModel("the weights are no state dict: names and tensors", rule="FS003")
    found.digest = digest_of(hashes)
    return found


def _told(config: HubConfig) -> dict[str, str]:
    """Return the folder's claims that a report shows."""
    names = ", ".join(f"{k} {name}" for k, name in enumerate(config.labels[:20]))
    return {"classes": names} if names else {}
