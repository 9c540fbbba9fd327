"""OpenSSF model signatures beside a model: what one says that it covers; not whether it is true."""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from gifthorse.core.errors import UnreadableModel, UsageError
from gifthorse.core.files import is_regular, parse_json, read_file
from gifthorse.models.reading.entries import shown

NAME = "model.sig"
LARGEST = 16 << 20  # bytes of a signature: one line a file of the model
LISTED = 10_000  # files of a folder that are compared with what is signed
SHOWN = 5  # files that a note names
PREDICATES = ("https://model_signing/signature/v1.0", "https://model_signing/Digests/v0.1")
# What a bundle holds to check it with: in words, and how the signers' own command verifies it.
_KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "publicKey": ("a key", "key {} --public_key KEY"),
        "x509CertificateChain": ("a certificate", "certificate {} --certificate_chain ROOT"),
        "certificate": ("a Sigstore identity", "{} --identity WHO --identity_provider URL"),
    }
)


@dataclass(frozen=True)
class ModelSignature:
    """What a signature says of itself; nobody has verified it.

    Attributes:
        kind: Key of the bundle's verification material.
        names: Files that it says it covers, relative to the model; `.` for the model, if a file.
        bundle: All of it, as its JSON holds it.
        payload: What is signed.
        statement: The same, as its JSON holds it.
    """

    kind: str
    names: frozenset[str]
    bundle: Mapping[str, Any] = field(default_factory=dict, repr=False)
    payload: bytes = field(default=b"", repr=False)
    statement: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def words(self) -> str:
        """What it was made with."""
        return _KINDS[self.kind][0]

    @property
    def whole(self) -> bool:
        """Whether it covers one file that is the model, not those of a folder."""
        return self.names == {"."}


def signed(model: Path) -> tuple[str, ...]:
    """Return notes on the signature of a model: that it is there, and what it leaves out.

    Args:
        model: The file or folder.
    """
    folder = model if os.path.isdir(model) else model.parent
    path = beside(model)
    if path is None:
        return ()
    name = shown(path.name, 60)
    try:
        told = read_signature(path)
    except UnreadableModel as error:
        return (f"{name} is no signature that can be read: {error}",)
    count = len(told.names)
    claim = "this file" if told.whole else f"{count:,} file" + "s" * (count > 1)
    note = f"signed with {told.words}, not verified: {name} claims to cover {claim}"
    left = [] if told.whole else list(islice(_uncovered(folder, path, told), LISTED))
    how = f"to verify the signature: {command(model, path, told)}"
    return (note, how, *([f"not covered by {name}: {some(left)}"] if left else []))


def command(model: Path, path: Path, told: ModelSignature) -> str:
    """Return how a signature is verified: with an option of ours, or by the signers' command."""
    folder = model if os.path.isdir(model) else model.parent
    verify = _KINDS[told.kind][1].format(shlex.quote(str(model if told.whole else folder)))
    ours = "give --signer-key FILE, or " if told.kind == "publicKey" else ""
    return f"{ours}model_signing verify {verify} --signature {shlex.quote(str(path))}"


def some(names: Sequence[str]) -> str:
    """Return the first of many names, cut to what can be read.

    Example:
        >>> some(["a", "b", "c", "d", "e", "f", "g"])
        'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(shown(n, 60) for n in names[:SHOWN])}{more}"


def read_signature(path: Path) -> ModelSignature:
    """Read what a signature says.

    Raises:
        UnreadableModel: If it is too large, damaged, or no signature of a model.
    """
    try:
        bundle = parse_json(read_file(path, LARGEST))
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
        material, statement = bundle["verificationMaterial"], parse_json(payload)
        if statement["predicateType"] not in PREDICATES:
            raise ValueError("it is a statement on something else than a model")
        kind = next((k for k in _KINDS if k in material.keys()), None)  # noqa: SIM118 - no text
        names = _names(statement)
    except UsageError as error:
        raise UnreadableModel(str(error), rule="FS004") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise UnreadableModel("it is no Sigstore bundle on a model", rule="FS003") from error
    except ValueError as error:
        raise UnreadableModel(shown(str(error)), rule="FS003") from error
    if kind is None or not names:
        lacks = "files" if kind else "key or certificate"
        raise UnreadableModel(f"it names no {lacks}", rule="FS003")
    return ModelSignature(kind, names, bundle, payload, statement)


def _names(statement: Mapping[str, Any]) -> frozenset[str]:
    """Return the files that a statement names; parts of one file count as that file."""
    if statement["predicateType"] == PREDICATES[1]:  # before 1.0 each file was a subject
        return frozenset(str(subject["name"]) for subject in statement["subject"])
    predicate = statement["predicate"]
    parts = predicate["serialization"]["method"] == "shards"
    names = (str(resource["name"]) for resource in predicate["resources"])
    return frozenset(name.rsplit(":", 2)[0] if parts else name for name in names)


def beside(model: Path) -> Path | None:
    """Return the signature of a model: one of its name, `model.sig`, or the only one there."""
    folder = model if os.path.isdir(model) else model.parent
    own = () if model is folder else (f"{model.name}.sig", f"{model.stem}.sig")
    known = next((folder / n for n in (*own, NAME) if is_regular(folder / n)), None)
    try:
        names = os.listdir(folder)
    except OSError:
        return known
    found = [n for n in names if n.endswith(".sig")]
    if known is not None or len(found) != 1 or not is_regular(folder / found[0]):
        return known
    stem = found[0].removesuffix(".sig")
    of_another = any(stem in (n, Path(n).stem) for n in names if n != found[0])
    return None if of_another else folder / found[0]


def _uncovered(folder: Path, signature: Path, told: ModelSignature) -> Iterator[str]:
    """Yield the files of a folder that a signature does not name, those of Git left out."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f != ".git")
        for name in sorted(files):
            path = Path(place, name)
            own = str(PurePosixPath(path.relative_to(folder)))
            if path != signature and own not in told.names and not name.startswith(".git"):
                yield own
