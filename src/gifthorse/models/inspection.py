"""What a model file holds, listed without opening it: works for refused files, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from gifthorse.core.errors import SeveralNets, UnreadableModel
from gifthorse.core.types import Finding
from gifthorse.models import architectures as archs
from gifthorse.models import structure
from gifthorse.models.graphs.graph import choosing, described
from gifthorse.models.parts import Chosen, choose
from gifthorse.models.reading import isolation
from gifthorse.models.reading.isolation import PrivateCopy
from gifthorse.models.reading.ratings import Import
from gifthorse.models.reading.stance import stance
from gifthorse.models.reading.survey import Survey, finding


@dataclass(frozen=True)
class Inspection:
    """All that a file's bytes tell; nothing in it was run, inflated or unpickled.

    Attributes:
        path: The file as the user named it.
        bytes: Its size.
        sha256: Hex digest of its bytes.
        format: What it is, as of `sniff`.
        safety: Verdict on opening it, in words.
        advice: What to do where something speaks against it; else empty.
        status: Exit status of the command: 0, 1 for a finding, 2 for what cannot be examined.
        imports: Names that its pickles ask for, each rated.
        tensors: Number of tensors.
        params: Number of their elements.
        dtypes: Their data types, sorted.
        wrappers: Keys under which the state dict lies, outermost first.
        metadata: The file's own claims, cleaned; never to be trusted.
        arch: Architecture guessed from names and shapes; empty if none fits.
        how: How it was guessed, or why it was not.
        findings: What speaks against the file.
        notes: What would be opened, stripped and left aside.
        records: Names of a zip's records, at most 1000.
        files: Names of the files whose bytes `sha256` is of.
    """

    path: str
    bytes: int
    sha256: str
    format: str
    safety: str
    advice: str
    status: int
    imports: tuple[Import, ...]
    tensors: int
    params: int
    dtypes: tuple[str, ...]
    wrappers: tuple[str, ...]
    metadata: Mapping[str, str]
    arch: str
    how: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    records: tuple[str, ...]
    files: tuple[str, ...] = ()


def inspect_file(path: str | Path, part: str | None = None) -> Inspection:
    """List what a model file holds, from its bytes alone.

    Args:
        path: The file.
        part: Name of the part that is the net, of a file that holds several.

    Raises:
        UsageError: If there is no such file, or no such part in it.
        UnreadableModel: If it is a device or may not be read. Everything else is a finding.
    """
    path = Path(path)
    with isolation.private_copy(path) as copy:
        found, sha256, size, files = _surveyed(path, copy)
    chosen, findings, question = _chosen(found, part)
    arch, how = _architecture(chosen, found)
    opinion = stance(findings, found.imports)
    tensors = [e for e in found.entries if e.shape is not None]
    return Inspection(
        path=str(path),
        bytes=size,
        sha256=sha256,
        format=found.kind,
        safety=opinion.safety,
        advice=question or opinion.advice,
        status=opinion.status,
        imports=found.imports,
        tensors=len(tensors),
        params=sum(prod(e.shape or ()) for e in tensors),
        dtypes=tuple(sorted({e.type for e in tensors})),
        wrappers=chosen.wrappers,
        metadata=found.metadata,
        arch=arch,
        how=question or how,
        findings=findings,
        notes=(*chosen.notes, *(choosing(found.graph) if found.graph else ())),
        records=found.records,
        files=files,
    )


def _surveyed(path: Path, copy: PrivateCopy) -> tuple[Survey, str, int, tuple[str, ...]]:
    """Return what a file's bytes say, their hash, number and files, one beside it included."""
    found = Survey("unknown")
    try:
        found = isolation.survey(copy)
        with isolation.lent_beside(path, found, isolation.MEMORY) as beside:
            size = copy.size + (beside.size if beside else 0)
            sha256 = isolation.digest_with(path, copy, beside)
            return found, sha256, size, isolation.names_with(path, beside)
    except UnreadableModel as error:
        found = replace(found, findings=(*found.findings, finding(error)))
    return found, copy.sha256, copy.size, (path.name,)


def _chosen(found: Survey, part: str | None) -> tuple[Chosen, tuple[Finding, ...], str]:
    """Return the net's tensors, what speaks against the file, and what is to be asked."""
    nothing = Chosen({})
    if any(f.severity in ("CRITICAL", "HIGH") for f in found.findings):
        return nothing, found.findings, ""
    if found.graph is not None:
        return nothing, found.findings, ""
    try:
        return choose(found.entries, archs.within, part), found.findings, ""
    except SeveralNets as error:
        return nothing, found.findings, str(error)
    except UnreadableModel as error:
        return nothing, (*found.findings, finding(error)), ""


def _architecture(chosen: Chosen, found: Survey) -> tuple[str, str]:
    """Return the guessed name, and how or why not."""
    if found.graph is not None:
        return found.kind, described(found.graph)
    if not chosen.entries:
        return "", "not guessed: the file's tensors are not listed"
    shapes = {name: entry.shape or () for name, entry in chosen.entries.items()}
    stub = structure.own_net(found.layers, chosen.entries)
    try:
        told = structure.of_transformers(stub) if chosen.fit is None else None
    except UnreadableModel as error:
        return "", f"not opened: {error}"
    if told is not None:
        ends = f"{told.classes} classes, {told.channels} input channels"
        return told.name, f"described by the configuration in the file: {ends}"
    guess = chosen.fit or structure.of_library(stub, shapes)
    if guess is not None:
        ends = f"{guess.classes} classes, {guess.channels} input channels"
        also = f"; {', '.join(guess.ties)} would fit as well" * bool(guess.ties)
        return guess.arch, f"guessed from {len(chosen.entries)} tensors: {ends}{also}"
    return "", f"no known architecture fits; nearest: {archs.nearest(shapes)}"
