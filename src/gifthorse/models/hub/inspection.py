"""What a model folder holds, listed without building its net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.types import Finding
from gifthorse.models import inspection
from gifthorse.models.hub.beside import beside
from gifthorse.models.hub.config import HubConfig, read_config
from gifthorse.models.hub.folder import weight_files
from gifthorse.models.hub.preprocess import read_preprocessing
from gifthorse.models.reading.files import digest_of
from gifthorse.models.reading.stance import stance
from gifthorse.models.reading.survey import finding


def inspect_folder(folder: Path) -> inspection.Inspection:
    """List what the files of a folder hold and say how it would be opened.

    Raises:
        UnreadableModel: If a file of it may not be read. Everything else is a finding.
    """
    files = weight_files(folder)
    parts = [inspection.inspect_file(path) for path in files]
    told, aside = beside(folder, files)
    config, notes, how = None, tuple[str, ...](), ""
    try:
        config = read_config(folder / "config.json")
        how, notes = _how(config), (*config.notes, *_notes(folder, config, len(files)))
    except UnreadableModel as error:
        told, how = (*told, finding(error)), f"not opened: {error}"
    return _joined(folder, parts, told, config, (*notes, *aside[:1]), how)


def _joined(
    folder: Path,
    parts: Sequence[inspection.Inspection],
    told: tuple[Finding, ...],
    config: HubConfig | None,
    notes: tuple[str, ...],
    how: str,
) -> inspection.Inspection:
    """Return one account of a folder's settings and of all its weights."""
    findings = (*told, *(f for part in parts for f in part.findings))
    imports = tuple(i for part in parts for i in part.imports)
    opinion = stance(findings, imports)
    return replace(
        parts[0],
        path=str(folder),
        bytes=sum(part.bytes for part in parts),
        sha256=digest_of((Path(part.path), part.sha256) for part in parts),
        format=f"{config.library} folder" if config else "folder",
        safety=opinion.safety,
        advice=opinion.advice,
        status=opinion.status,
        imports=imports,
        tensors=sum(part.tensors for part in parts),
        params=sum(part.params for part in parts),
        dtypes=tuple(sorted({d for part in parts for d in part.dtypes})),
        arch=(config.name or config.kind) if config else "",
        how=how,
        findings=findings,
        notes=notes,
        files=tuple(name for part in parts for name in part.files),
    )


def _how(config: HubConfig) -> str:
    return f"named in config.json: {config.classes} classes, {config.channels} input channels"


def _notes(folder: Path, config: HubConfig, files: int) -> tuple[str, ...]:
    """Return how the weights lie, and what would be done to images."""
    claim, resize = read_preprocessing(folder, config)
    notes = [f"weights in {files} files"] if files > 1 else []
    notes.append(f"images would be {resize.words}")
    if claim is not None:
        numbers = ("/".join(f"{v:g}" for v in values) for values in (claim.mean, claim.std))
        notes.append("pixels would be normalized by mean {} and deviation {}".format(*numbers))
    if config.labels:
        notes.append(f"classes: {', '.join(config.labels[:10])}")
    return tuple(notes)
