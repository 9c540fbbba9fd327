"""Open or inspect a model that nobody trusts, file or folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gifthorse.core.errors import BadOption
from gifthorse.models.hub import folder
from gifthorse.models.hub.folder import check_folder, is_folder, only_file
from gifthorse.models.hub.inspection import inspect_folder
from gifthorse.models.hub.opening import open_folder
from gifthorse.models.inspection import Inspection, inspect_file
from gifthorse.models.load import Opened, load_file
from gifthorse.models.reading import isolation
from gifthorse.models.reading.isolation import DEADLINE, MEMORY
from gifthorse.models.signatures import signed


def load(
    path: str | Path,
    arch: str | None = None,
    part: str | None = None,
    *,
    memory: int = MEMORY,
    deadline: float = DEADLINE,
) -> Opened:
    """Open a model without running anything in it.

    Args:
        path: A file of `safetensors`, `torch.save`, TorchScript or ONNX; a folder as hubs give
            them, with `config.json` beside the weights; or a folder with one such file.
        arch: Name for `build`; guessed from the tensors if None. A folder names its own.
        part: Name of the part that is the net, of a file that holds several.
        memory: Bytes that a file, and its reader beyond torch itself, may take.
        deadline: Seconds of processor time that reading a file may take.

    Raises:
        UnsafeModel: If it brings code; nothing of it was run.
        UnreadableModel: If it is damaged, too large, no model, or takes its reader too long.
        UnknownArch: If no net fits its tensors.
        SeveralNets: If several parts of it are whole nets, and none is named.
        UsageError: If there is no such file, or no such architecture.
    """
    path = only_file(Path(path))
    if not is_folder(path):
        check_folder(path)
        opened = load_file(path, arch, part, memory=memory, deadline=deadline)
    else:
        _check_named(arch, part)
        opened = open_folder(path, memory=memory, deadline=deadline)
    notes = (*opened.origin.notes, *signed(path))
    return replace(opened, origin=replace(opened.origin, notes=notes))


def inspect(path: str | Path, part: str | None = None) -> Inspection:
    """List what a model holds, from its bytes alone.

    Args:
        path: The file, or a folder as of `load`.
        part: Name of the part that is the net, of a file that holds several.

    Raises:
        UsageError: If there is no such file, or no such part in it.
        UnreadableModel: If it is a device or may not be read. Everything else is a finding.
    """
    path = only_file(Path(path))
    if not is_folder(path):
        check_folder(path)
        found = inspect_file(path, part)
    else:
        _check_named(None, part)
        found = inspect_folder(path)
    return replace(found, notes=(*found.notes, *signed(path)))


def digest_now(path: str | Path) -> str:
    """Return the hash of a model by now, as `Origin.sha256` has it of one that was opened.

    Raises:
        GifthorseError: If it cannot be read any more.
    """
    path = only_file(Path(path))
    return folder.digest_now(path) if is_folder(path) else isolation.digest_now(path)


def _check_named(arch: str | None, part: str | None) -> None:
    if arch is not None or part is not None:
        raise BadOption("a model folder names its own net: leave out --arch and --part")
