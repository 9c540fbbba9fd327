"""OpenSSF model signatures, verified with a key that the user trusts, over what is read."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeAlias

from gifthorse.core.errors import BadOption, UnreadableModel
from gifthorse.core.files import read_file
from gifthorse.core.types import Signer
from gifthorse.models.hub.folder import INDEX, is_folder
from gifthorse.models.hub.preprocess import FILES as PROCESSORS
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.files import digest_of, open_file
from gifthorse.models.signatures import (
    PREDICATES,
    ModelSignature,
    beside,
    command,
    read_signature,
    some,
)

RULE = "FS010"
SETTINGS = ("config.json", *PROCESSORS, *INDEX)  # what a folder is read by, beside its weights
CURVES = ("secp256r1", "secp384r1", "secp521r1")
LARGEST_KEY = 1 << 16  # bytes
MOST = 100_000  # files of a folder
LARGEST = 64 << 30  # bytes of all its files, which are hashed
GIT = (".git", ".gitattributes", ".github", ".gitignore")  # what signers leave out by themselves
_HASHES: Mapping[str, str] = MappingProxyType(  # names in a signature, and in the library's options
    {"sha256": "sha256", "blake2b": "blake2", "blake3": "blake3"}
)
_Stamp: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class PublicKey:
    """A key that the user trusts.

    Attributes:
        pem: The key alone, as PEM.
        sha256: Hex digest of that, by which signatures name their key.
    """

    pem: bytes
    sha256: str


@dataclass(frozen=True)
class Seal:
    """A signature that was verified.

    Attributes:
        model: The file or folder.
        signer: Whose it is.
        digests: SHA-256 of the files that it covers, by name; None for each that has another.
        stamps: Number, size and times of these files, from before they were hashed.
        left: Files that lie there and that the signer left out.
    """

    model: Path
    signer: Signer
    digests: Mapping[str, str | None]
    stamps: Mapping[str, _Stamp]
    left: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        out = (f"left out by its signer: {some(self.left)}",) if self.left else ()
        return (self.signer.words, *out)

    def hold(self, files: Sequence[str], sha256: str) -> None:
        """Make sure that what was read is what was signed.

        Args:
            files: Names of the files whose numbers were read.
            sha256: Their hash, as an `Origin` has it.

        Raises:
            UnreadableModel: If one of them, or a setting beside them, is not covered, or was
                changed since.
        """
        folder = self.model if is_folder(self.model) else self.model.parent
        beside_ = SETTINGS if is_folder(self.model) else ()
        read = [*files, *(name for name in beside_ if os.path.lexists(folder / name))]
        open_ = [name for name in read if name not in self.stamps]
        if open_:
            raise _refused(f"{self.signer.signature} does not cover what is read: {some(open_)}")
        moved = [name for name in read if _stamp(folder / name) != self.stamps[name]]
        known = [(Path(name), self.digests[name]) for name in files]
        hashes = [(path, digest) for path, digest in known if digest is not None]
        single = len(hashes) == 1 and not is_folder(self.model)
        expected = hashes[0][1] if single else digest_of(hashes)
        if moved or (len(hashes) == len(known) and expected != sha256):
            raise _refused(f"changed since its signature was verified: {some(moved or files)}")


# 1. The key -----------------------------------------------------------------------------------


def read_key(path: Path) -> PublicKey:
    """Read the public key of a signer.

    Raises:
        BadOption: If it is none, or the library that verifies signatures is not installed.
        UsageError: If there is no such file.
    """
    try:
        import model_signing.verifying  # noqa: F401 - all of it must be there
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    except ImportError as error:
        raise BadOption(
            "--signer-key needs the library that verifies signatures: "
            f"pip install 'gifthorse[signing]' ({error})"
        ) from error
    content, name = read_file(path, LARGEST_KEY), shown(str(path))
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadOption(
            f"--signer-key takes a public key in PEM; {name!r} is none: `openssl pkey -in PRIVATE "
            "-pubout` makes one"
        ) from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise BadOption(
            f"--signer-key takes a key on the curve P-256, P-384 or P-521, as model signatures "
            f"are made with; {name!r} is another"
        )
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = key.public_bytes(serialization.Encoding.PEM, form)
    return PublicKey(pem, hashlib.sha256(pem).hexdigest())


# 2. The signature -----------------------------------------------------------------------------


def sealed(model: Path, key: PublicKey) -> Seal:
    """Verify the signature beside a model, and the files that it covers.

    The signature is read once. Of what was read, the parts that are looked at here are handed to
    the library in a private folder, so that both look at the same.

    Args:
        model: The file, or a folder of a hub.
        key: The only one that may have signed it.

    Raises:
        UnreadableModel: `FS010` if it has no signature, or one that is not of this key, or does not
            fit the files.
        UsageError: If there is no such file.
    """
    if not is_folder(model):
        open_file(model).close()
    path = beside(model)
    if path is None:
        raise _refused("no signature lies beside it: none of its author's, or it was taken away")
    name = shown(path.name, 60)
    try:
        told = read_signature(path)
        _check_kind(told, key, f"verify it with {command(model, path, told)}")
        method = _method(told)
    except UnreadableModel as error:
        raise _refused(f"{name}: {error}") from error
    place = model if told.whole else path.parent.resolve()  # the user may name a folder by a link
    names = {model.name: place} if told.whole else {n: place / n for n in sorted(told.names)}
    left = () if told.whole else _compared(place, path, told)
    stamps = {n: _stamp(file) for n, file in names.items()}
    if sum(stamp[0] for stamp in stamps.values()) > LARGEST:
        raise _refused(f"{name} covers more than {LARGEST:,} bytes, which no model here has")
    _verify(place, path, told, method, key)
    digests = _digests(told)
    if told.whole:
        digests = {model.name: digests["."]}
    return Seal(model, Signer(key.sha256, name, len(names)), digests, stamps, left)


def _check_kind(told: ModelSignature, key: PublicKey, how: str) -> None:
    if told.kind != "publicKey":
        raise UnreadableModel(f"made with {told.words}, not with a key: {how}")
    material = told.bundle["verificationMaterial"]
    hint = material["publicKey"].get("hint") if isinstance(material["publicKey"], dict) else ""
    if hint is not None and hint != key.sha256:
        raise UnreadableModel(
            f"made with the key SHA-256 {shown(str(hint), 64)}, not with the one that is given, "
            f"{key.sha256}"
        )


def _method(told: ModelSignature) -> Mapping[str, Any]:
    """Return how files were hashed, in the library's words.

    Raises:
        UnreadableModel: If it is in a way that the library does not know.
    """
    if told.statement["predicateType"] == PREDICATES[1]:
        return {"hash_type": "sha256", "shard_size": 0, "allow_symlinks": False, "ignore_paths": []}
    how = told.statement["predicate"]["serialization"]
    size, ignored = how.get("shard_size", 0), how.get("ignore_paths", [])
    kind = _HASHES.get(str(how.get("hash_type")))
    parts = how.get("method") == "shards" and kind != "blake3" and isinstance(size, int | float)
    whole = how.get("method") == "files"
    texts = isinstance(ignored, list) and all(isinstance(p, str) for p in ignored)
    if kind is None or not texts or not (whole or (parts and 1 <= size <= LARGEST)):
        raise UnreadableModel("its files were hashed in a way that cannot be checked here")
    return {
        "hash_type": kind,
        "shard_size": int(size) if parts else 0,
        "allow_symlinks": how.get("allow_symlinks") is True,
        "ignore_paths": ignored,
    }


def _digests(told: ModelSignature) -> dict[str, str | None]:
    """Return the SHA-256 that a signature has of each file, None where it has another digest."""
    if told.statement["predicateType"] == PREDICATES[1]:
        return {s["name"]: s["digest"]["sha256"].lower() for s in told.statement["subject"]}
    found: dict[str, str | None] = dict.fromkeys(told.names)
    for resource in told.statement["predicate"]["resources"]:
        if resource["algorithm"] == "sha256":
            found[resource["name"]] = resource["digest"].lower()
    return found


# 3. The files ---------------------------------------------------------------------------------


def _compared(folder: Path, path: Path, told: ModelSignature) -> tuple[str, ...]:
    """Return the files of a folder that the signer left out.

    Raises:
        UnreadableModel: If there is one that he did not know, or one of his is not there.
    """
    out = [PurePosixPath(path.name)]
    if told.statement["predicateType"] == PREDICATES[0]:
        out += map(PurePosixPath, _method(told)["ignore_paths"])
    if not _signs_git(told.names):
        out += map(PurePosixPath, GIT)
    there = set(_files(folder))
    new = sorted(n for n in there - told.names if not _within(n, out))
    gone = sorted(told.names - there)
    name = shown(path.name, 60)
    if new:
        raise _refused(f"{name} does not cover what lies in the folder: {some(new)}")
    if gone:
        raise _refused(f"{name} covers what is missing in the folder: {some(gone)}")
    usual = [PurePosixPath(path.name), *map(PurePosixPath, GIT)]
    return tuple(sorted(n for n in there - told.names if not _within(n, usual)))


def _within(name: str, places: Collection[PurePosixPath]) -> bool:
    return any(PurePosixPath(name).is_relative_to(place) for place in places)


def _signs_git(names: Collection[str]) -> bool:
    return any(_within(name, [PurePosixPath(g) for g in GIT]) for name in names)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a folder, those of folders in it with their path.

    Raises:
        UnreadableModel: If there are more than any model has.
    """
    count = 0
    for place, _, files in os.walk(folder):
        for name in files:
            count += 1
            if count > MOST:
                raise _refused(f"the folder holds more than {MOST:,} files, as no model does")
            yield str(PurePosixPath(Path(place, name).relative_to(folder)))


def _stamp(path: Path) -> _Stamp:
    """Return what is another for other bytes: size, number and times of a file."""
    try:
        seen = path.stat()
    except (OSError, ValueError):
        return (0,)
    return (seen.st_size, seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns)


# 4. The library -------------------------------------------------------------------------------


def _verify(
    place: Path, path: Path, told: ModelSignature, method: Mapping[str, Any], key: PublicKey
) -> None:
    """Have the library verify a signature and the files.

    Raises:
        UnreadableModel: If either does not hold.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    name = shown(path.name, 60)
    with tempfile.TemporaryDirectory(prefix="gifthorse-") as private:
        signature, pem = Path(private, "model.sig"), Path(private, "key.pub")
        try:
            signature.write_text(_plain(told), encoding="utf-8")
            pem.write_bytes(key.pem)
            asked = verifying.Config().use_elliptic_key_verifier(public_key=pem)
            asked.set_hashing_config(_hashing(path, told, method))
            with redirect_stdout(StringIO()):  # it prints of signatures that are old
                asked.verify(place, signature)
        except InvalidSignature as error:
            raise _refused(
                f"{name} was not made with the key SHA-256 {key.sha256}, or what it says was "
                "changed since"
            ) from error
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            raise _refused(f"{name} does not hold: {_why(str(error))}") from error


def _plain(told: ModelSignature) -> str:
    """Return a signature with nothing in it but what was looked at.

    Raises:
        LookupError, TypeError: If it lacks something.
    """
    envelope, hint = told.bundle["dsseEnvelope"], None
    material = told.bundle["verificationMaterial"]["publicKey"]
    if isinstance(material, dict):
        hint = material.get("hint")
    (signature,) = envelope["signatures"]  # of several the library looks at the first
    return json.dumps(
        {
            "mediaType": told.bundle["mediaType"],
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(told.payload).decode(),
                "payloadType": envelope["payloadType"],
                "signatures": [{"sig": signature["sig"], "keyid": ""}],
            },
        }
    )


def _hashing(path: Path, told: ModelSignature, method: Mapping[str, Any]) -> Any:
    """Return how the library is to hash files: as they were when they were signed.

    What it guesses by itself follows no links and takes sizes of parts for broken numbers.
    """
    from model_signing import hashing

    config, size = hashing.Config(), method["shard_size"]
    if size:
        config.use_shard_serialization(hashing_algorithm=method["hash_type"], shard_size=size)
    else:
        config.use_file_serialization(hashing_algorithm=method["hash_type"])
    git = not _signs_git(told.names)
    return config.set_ignored_paths(
        paths=[Path(path.name)], ignore_git_paths=git
    ).set_allow_symlinks(method["allow_symlinks"])


def _why(words: str) -> str:
    """Return in short what the library says."""
    changed = re.findall(r"Hash mismatch for \\?'(.*?)\\?': Expected", words)
    if changed:
        return f"changed since it was signed: {some(changed)}"
    return shown(words, 300)


def _refused(words: str) -> UnreadableModel:
    return UnreadableModel(words, rule=RULE)
