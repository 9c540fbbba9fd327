"""Open or inspect a model that nobody trusts, file or folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gifthorse.core.errors import BadOption, UnreadableModel
from gifthorse.models.hub import folder
from gifthorse.models.hub.folder import check_folder, is_folder, only_file
from gifthorse.models.hub.inspection import inspect_folder
from gifthorse.models.hub.opening import open_folder
from gifthorse.models.inspection import Inspection, inspect_file
from gifthorse.models.load import Opened, load_file
from gifthorse.models.reading import isolation
from gifthorse.models.reading.isolation import DEADLINE, MEMORY
from gifthorse.models.reading.stance import stance
from gifthorse.models.reading.survey import finding
from gifthorse.models.signatures import signed
from gifthorse.models.verification import RULE, read_key, sealed


def load(
    path: str | Path,
    arch: str | None = None,
    part: str | None = None,
    *,
    memory: int = MEMORY,
    deadline: float = DEADLINE,
    signer: Path | None = None,
) -> Opened:
    """Open a model without running anything in it.

    Args:
        path: A file of `safetensors`, `torch.save`, TorchScript or ONNX; a folder as hubs give
            them, with `config.json` beside the weights; or a folder with one such file.
        arch: Name for `build`; guessed from the tensors if None. A folder names its own.
        part: Name of the part that is the net, of a file that holds several.
        memory: Bytes that a file, and its reader beyond torch itself, may take.
        deadline: Seconds of processor time that reading a file may take.
        signer: Public key of whoever must have signed it, in PEM; None opens it signed or not.

    Raises:
        UnsafeModel: If it brings code; nothing of it was run.
        UnreadableModel: If it is damaged, too large, no model, or takes its reader too long.
        UnknownArch: If no net fits its tensors.
        SeveralNets: If several parts of it are whole nets, and none is named.
        UsageError: If there is no such file, or no such architecture.
    """
    path, key = only_file(Path(path)), read_key(signer) if signer is not None else None
    _check_kind(path, arch, part)
    seal = sealed(path, key) if key is not None else None
    if is_folder(path):
        opened = open_folder(path, memory=memory, deadline=deadline)
    else:
        opened = load_file(path, arch, part, memory=memory, deadline=deadline)
    if seal is not None:
        seal.hold(opened.files, opened.origin.sha256)
    notes = (*opened.origin.notes, *(signed(path) if seal is None else seal.notes))
    origin = replace(opened.origin, notes=notes, signer=seal.signer if seal is not None else None)
    return replace(opened, origin=origin)


def inspect(path: str | Path, part: str | None = None, *, signer: Path | None = None) -> Inspection:
    """List what a model holds, from its bytes alone.

    Args:
        path: The file, or a folder as of `load`.
        part: Name of the part that is the net, of a file that holds several.
        signer: Public key of whoever must have signed it, as of `load`.

    Raises:
        UsageError: If there is no such file, or no such part in it.
        UnreadableModel: If it is a device or may not be read. Everything else is a finding.
    """
    path, key = only_file(Path(path)), read_key(signer) if signer is not None else None
    _check_kind(path, None, part)
    found: Inspection | None = None
    try:
        seal = sealed(path, key) if key is not None else None
        found = _looked_at(path, part)
        if seal is not None:
            seal.hold(found.files, found.sha256)
    except UnreadableModel as error:
        if error.rule != RULE:
            raise
        return _against(found or _looked_at(path, part), error)
    notes = (*found.notes, *(signed(path) if seal is None else seal.notes))
    return replace(found, notes=notes)


def _looked_at(path: Path, part: str | None) -> Inspection:
    return inspect_folder(path) if is_folder(path) else inspect_file(path, part)


def _against(found: Inspection, error: UnreadableModel) -> Inspection:
    """Return what was seen of a model whose signature does not hold."""
    findings = (*found.findings, finding(error))
    opinion = stance(findings, found.imports)
    return replace(
        found,
        safety=opinion.safety,
        advice=opinion.advice,
        status=opinion.status,
        findings=findings,
    )


def digest_now(path: str | Path) -> str:
    """Return the hash of a model by now, as `Origin.sha256` has it of one that was opened.

    Raises:
        GifthorseError: If it cannot be read any more.
    """
    path = only_file(Path(path))
    return folder.digest_now(path) if is_folder(path) else isolation.digest_now(path)


def _check_kind(path: Path, arch: str | None, part: str | None) -> None:
    """Say what a folder lacks to be a model, or that it is one that names its own net."""
    if not is_folder(path):
        check_folder(path)
    elif arch is not None or part is not None:
        raise BadOption("a model folder names its own net: leave out --arch and --part")
