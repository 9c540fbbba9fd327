"""What lies in a model folder beside its weights, and is not read: other programs may read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gifthorse.core.errors import GifthorseError
from gifthorse.core.types import Finding
from gifthorse.models.reading import isolation
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.isolation import private_copy
from gifthorse.models.reading.stance import stance

PICKLED = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
RUN = PICKLED | {".py"}  # what usual loaders may run
MOST, LARGEST = 20, 1 << 30  # files and bytes that are looked at
GRAVE = ("FS001", "FS004", "FS006", "FS008")  # made to harm, not merely more than weights


def beside(folder: Path, weights: Sequence[Path]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Look at the files that a careless loader of a folder may run.

    Args:
        folder: The folder.
        weights: The files that are read.

    Returns:
        What speaks against files that are pickles, by their bytes; and notes that name all.
    """
    others = sorted(p for p in folder.iterdir() if p.suffix.lower() in RUN and p not in weights)
    if not others:
        return (), ()
    names = ", ".join(shown(path.name, 60) for path in others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    pickled = [path for path in others[:MOST] if path.suffix.lower() in PICKLED]
    found = tuple(finding for path in pickled for finding in _against(path))
    notes = (f"not read, but others may run it: {names}{more}", *(f.message for f in found))
    return found, notes


def _against(path: Path) -> tuple[Finding, ...]:
    """Return a finding if a file is hostile; none if it cannot be looked at."""
    try:
        with private_copy(path, LARGEST) as copy:
            told = isolation.survey(copy)
    except (GifthorseError, OSError):
        return ()
    grave = [f for f in told.findings if f.rule in GRAVE and f.severity in ("CRITICAL", "HIGH")]
    if not grave:
        return ()
    words = f"{shown(path.name, 60)} beside the weights is {stance(grave, told.imports).safety}"
    return (Finding(grave[0].rule, grave[0].severity, grave[0].score, words),)
