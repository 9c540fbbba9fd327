"""What a model file holds, listed without opening it: works for refused files, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gifthorse.core.errors import UnreadableModel
from gifthorse.core.types import Finding
from gifthorse.models import architectures as archs
from gifthorse.models.reading import isolation
from gifthorse.models.reading.entries import Chosen, choose, variants
from gifthorse.models.reading.pickles import Import
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
    """

    path: str
    bytes: int
    sha256: str
    format: str
    safety: str
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


def inspect(path: str | Path) -> Inspection:
    """List what a model file holds, from its bytes alone.

    Raises:
        UsageError: If there is no such file.
        UnreadableModel: If it is a device or may not be read. Everything else is a finding.
    """
    path = Path(path)
    with isolation.private_copy(path) as copy:
        try:
            found = isolation.survey(copy)
        except UnreadableModel as error:
            found = Survey("unknown", (finding(error),))
    chosen, findings = _chosen(found)
    arch, how, notes = _architecture(chosen)
    tensors = [e for e in found.entries if e.shape is not None]
    return Inspection(
        path=str(path),
        bytes=copy.size,
        sha256=copy.sha256,
        format=found.kind,
        safety=_safety(findings),
        imports=found.imports,
        tensors=len(tensors),
        params=sum(prod(e.shape or ()) for e in tensors),
        dtypes=tuple(sorted({e.type for e in tensors})),
        wrappers=chosen.wrappers,
        metadata=found.metadata,
        arch=arch,
        how=how,
        findings=findings,
        notes=(*chosen.notes, *notes),
        records=found.records,
    )


def _chosen(found: Survey) -> tuple[Chosen, tuple[Finding, ...]]:
    nothing = Chosen({}, (), ())
    if any(f.severity in ("CRITICAL", "HIGH") for f in found.findings):
        return nothing, found.findings
    try:
        return choose(found.entries), found.findings
    except UnreadableModel as error:
        return nothing, (*found.findings, finding(error))


def _architecture(chosen: Chosen) -> tuple[str, str, tuple[str, ...]]:
    """Return the guessed name, how or why not, and the prefixes stripped for it."""
    if not chosen.entries:
        return "", "not guessed: the file's tensors are not listed", ()
    shapes = {name: entry.shape or () for name, entry in chosen.entries.items()}
    for bare, notes in variants(shapes):
        guess = archs.find(bare)
        if guess is not None:
            ends = f"{guess.classes} classes, {guess.channels} input channels"
            also = f"; {', '.join(guess.ties)} would fit as well" * bool(guess.ties)
            return guess.arch, f"guessed from {len(bare)} tensors: {ends}{also}", notes
    return "", f"no known architecture fits; nearest: {archs.nearest(bare)}", notes


def _safety(findings: tuple[Finding, ...]) -> str:
    rules = {f.rule for f in findings if f.severity in ("CRITICAL", "HIGH")}
    if "FS001" in rules:
        return "dangerous: opening it as usual would run commands"
    if "FS002" in rules:
        return "brings code: opening it as usual would run it"
    if rules:
        return "not to be trusted: it is malformed, or made to exhaust or deceive its reader"
    return "weights only: nothing in it can run"
