"""Models by their name on a hub: only the files that are needed, each by its hash, never code."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from gifthorse.core.errors import BadOption, Unfetched, UnreadableModel, UsageError
from gifthorse.core.types import Origin
from gifthorse.models.hub.beside import RUN
from gifthorse.models.hub.folder import FILES, INDEX, WHOLE, is_name, shard_names
from gifthorse.models.hub.preprocess import FILES as PROCESSORS
from gifthorse.models.reading.entries import shown

PREFIX = "hf:"
NAME = re.compile(r"hf:((?:[\w.-]+/)?[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")
PART = 1 << 20  # bytes that are hashed at once
SHOWN = 5  # files that a note names
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
Told = Callable[[str], None]  # is told in words what is fetched


@dataclass(frozen=True)
class Fetched:
    """Files of a repository, in the cache that the hub's own library keeps.

    Attributes:
        path: The folder with them, or the one file if it is no folder of a hub.
        name: `hf:ORG/NAME@COMMIT`.
        notes: Where from, and the hash of each file.
    """

    path: Path
    name: str
    notes: tuple[str, ...]

    def named(self, origin: Origin) -> Origin:
        """Return what is known of the opened model, under its name on the hub."""
        return replace(origin, path=self.name, notes=(*self.notes, *origin.notes))


def is_hub_name(name: str) -> bool:
    """Whether a model is given by its name on a hub.

    Example:
        >>> is_hub_name("hf:org/name@main"), is_hub_name("hf/name.pt")
        (True, False)
    """
    return name.startswith(PREFIX)


def check_fetched(name: str, signer: Path | None) -> None:
    """Say so if a signature is asked for of what is fetched without one.

    Raises:
        BadOption: If the model is given by its name on a hub, and the signer by his key.
    """
    if signer is not None and is_hub_name(name):
        raise BadOption(
            f"--signer-key needs every file that was signed, and of {shown(name)!r} only what is "
            "read would be fetched: get all of it (`hf download ORG/NAME --local-dir DIR`), and "
            "name that folder"
        )


def fetch(name: str, told: Told = lambda words: None) -> Fetched:
    """Fetch what is needed of a repository, or find it in the cache.

    Files that are there are not fetched again; a connection that breaks is taken up where it was.
    What comes is compared with the hash that the hub has for it. Code is left there, whatever asks
    for it.

    Args:
        name: `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`.
        told: Told what is fetched.

    Raises:
        BadOption: If the hub's library is not installed.
        UsageError: If it is no such name, or there is no such repository or revision.
        Unfetched: If the hub does not answer, or does not let one in.
        UnreadableModel: If a file is not the one that the hub names, or none holds weights.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{shown(name)!r} is no name on a hub: expected hf:ORG/NAME[@REVISION]")
    hub = _library()
    repository, revision = found[1], found[2] or "main"
    with _connected(hub) as online, _in_words(hub, name):
        listed = _asked(hub, repository, revision) if online else None
        if listed is None:
            return _cached(hub, name, repository, revision)
        return _fetched(hub, (repository, revision), listed, told)


# 1. The hub's library -------------------------------------------------------------------------


def _library() -> Any:
    try:
        hub: Any = import_module("huggingface_hub")
        for part in ("constants", "errors", "utils"):
            import_module(f"huggingface_hub.{part}")
    except ImportError as error:
        raise BadOption(
            "a model by its name on a hub needs its library: pip install 'gifthorse[hub]'"
        ) from error
    except ValueError as error:  # it reads the address of the hub as it is imported
        raise BadOption(
            f"the hub's library refuses its settings (HF_ENDPOINT?): {error}"
        ) from error
    hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    hub.utils.disable_progress_bars()
    hub.utils.logging.set_verbosity_error()  # else it prints where a redirect led
    return hub


@contextmanager
def _connected(hub: Any) -> Iterator[bool]:
    """Let the library connect, unless the environment forbids it; afterwards nothing may."""
    off = any(os.environ.get(key, "").upper() in ("1", "ON", "YES", "TRUE") for key in OFFLINE)
    hub.constants.HF_HUB_OFFLINE = off
    try:
        yield not off
    finally:
        hub.constants.HF_HUB_OFFLINE = True


@contextmanager
def _in_words(hub: Any, name: str) -> Iterator[None]:
    """Turn what the library raises into what to do; its own words may hold addresses and keys."""
    errors, end = hub.errors, hub.constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise Unfetched(
            f"{name} is gated: ask for access on {end}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no {name} on {end}, or it is private: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{name} has no such revision: name a branch, tag or commit") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{shown(name)!r} is no name on a hub: expected hf:ORG/NAME") from error
    except (OSError, ValueError, errors.HfHubHTTPError, *_network(hub)) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        what = f"status {status}" if status else type(error).__name__
        raise Unfetched(
            f"{name} could not be fetched from {end} ({what}); files that came whole are kept: "
            "run it again to go on"
        ) from error


def _network(hub: Any) -> tuple[type[Exception], ...]:
    """Return what the client below the library raises, whichever it has."""
    http = hub.errors.HfHubHTTPError.__mro__[1]
    module = import_module(http.__module__.split(".")[0])
    names = ("RequestError", "RequestException")
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


# 2. Which files -------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubListing:
    """What a repository holds at a commit: names with sizes and hashes."""

    commit: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]


def _asked(hub: Any, repository: str, revision: str) -> HubListing | None:
    """Return what the hub lists; None if it does not answer and something may be in the cache."""
    limit = hub.constants.HF_HUB_ETAG_TIMEOUT
    try:
        told = hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=limit
        )
    except _network(hub):
        if hub.try_to_load_from_cache(repository, "config.json", revision=revision):
            return None
        raise
    except (AttributeError, KeyError, TypeError) as error:
        raise Unfetched("what answers lists no files: is it a hub?") from error
    if not COMMIT.fullmatch(str(told.sha)):
        raise UnreadableModel("the hub names no commit for it", rule="FS003")
    files = {f.rfilename: f for f in told.siblings or () if is_name(f.rfilename)}
    return HubListing(
        told.sha,
        {name: f.size or 0 for name, f in files.items()},
        {name: (f.lfs.sha256 if f.lfs else f.blob_id) or "" for name, f in files.items()},
    )


def wanted(names: Sequence[str]) -> tuple[list[str], str]:
    """Return the settings that are read, and the weights or their index.

    Raises:
        UnreadableModel: If no file holds weights that are read.
        UsageError: If several do, and nothing says which.

    Example:
        >>> wanted(["config.json", "model.safetensors", "pytorch_model.bin", "modeling.py"])
        (['config.json'], 'model.safetensors')
    """
    settings = [name for name in ("config.json", *PROCESSORS) if name in names]
    known = [name for pair in zip(WHOLE, INDEX, strict=True) for name in pair if name in names]
    if known:
        return settings, known[0]
    others = sorted(name for name in names if Path(name).suffix.lower() in FILES)
    if len(others) > 1:
        some = ", ".join(shown(name, 60) for name in others[:SHOWN])
        raise UsageError(f"it holds several model files ({some}): fetch one, and scan that file")
    if not others:
        raise UnreadableModel(
            f"the repository holds no weights that are read ({' or '.join(WHOLE)})", rule="FS003"
        )
    return [], others[0]


def _fetched(hub: Any, asked: tuple[str, str], listed: HubListing, told: Told) -> Fetched:
    repository, revision = asked

    def get(file: str) -> Path:
        told(f"fetching {shown(file, 60)}, {listed.sizes[file] / 1e6:.1f} MB")
        path = Path(hub.hf_hub_download(repository, file, revision=revision))
        if path.parent.name != listed.commit:
            raise Unfetched(f"{revision} of {repository} was changed meanwhile: run it again")
        hashes.append((file, verified(path, listed.hashes[file])))
        return path

    hashes: list[tuple[str, str]] = []
    settings, weights = wanted(list(listed.sizes))
    paths = [get(file) for file in (*settings, weights)]
    if weights in INDEX:
        shards = shard_names(paths[-1].parent, weights)
        if gone := [name for name in shards if name not in listed.sizes]:
            raise UnreadableModel(f"{weights} names {shown(gone[0])!r}, which is missing",
                                  rule="FS003")  # fmt: skip
        paths += [get(shard) for shard in shards]
    left = sorted(
        n for n in listed.sizes if Path(n).suffix.lower() in RUN and n not in dict(hashes)
    )
    notes = [f"fetched from {hub.constants.ENDPOINT}, {repository} at commit {listed.commit}"]
    notes += [f"{shown(file, 60)}: sha256 {digest}, as the hub has it" for file, digest in hashes]
    if left:
        some = ", ".join(shown(name, 60) for name in left[:SHOWN])
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        notes.append(f"not fetched, but others may run it: {some}{more}")
    place = paths[-1].parent if settings or weights in (*WHOLE, *INDEX) else paths[-1]
    return Fetched(place, f"{PREFIX}{repository}@{listed.commit}", tuple(notes))


def _cached(hub: Any, name: str, repository: str, revision: str) -> Fetched:
    """Return what the cache has of a repository, without a question to the hub."""

    def known(file: str) -> Path | None:
        path = hub.try_to_load_from_cache(repository, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    weights = next((p for file in (*WHOLE, *INDEX) if (p := known(file))), None)
    if weights is None:
        raise Unfetched(f"{name} is not in the cache, and the hub was not asked: go online first")
    files = ["config.json", *PROCESSORS, weights.name]
    files += shard_names(weights.parent, weights.name) if weights.name in INDEX else []
    hashes = [(file, verified(path, path.resolve().name)) for file in files
              if (path := known(file))]  # fmt: skip
    notes = [f"from the cache, the hub was not asked: {repository} at commit {weights.parent.name}"]
    notes += [f"{shown(file, 60)}: sha256 {digest}" for file, digest in hashes]
    return Fetched(weights.parent, f"{PREFIX}{repository}@{weights.parent.name}", tuple(notes))


def verified(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file that is the expected one.

    Args:
        path: The file.
        expected: Its SHA-256, or the name that Git has for its content; another text is no hash.

    Raises:
        UnreadableModel: If it is another file.
    """
    sha256, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    git.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while part := file.read(PART):
            sha256.update(part)
            git.update(part)
    mine = sha256.hexdigest() if DIGEST.fullmatch(expected) else git.hexdigest()
    if (DIGEST.fullmatch(expected) or COMMIT.fullmatch(expected)) and mine != expected:
        raise UnreadableModel(
            f"{shown(path.name, 60)} is not what the hub has (its hash is {mine[:12]}, expected "
            f"{expected[:12]}): it was damaged or replaced; delete {path.resolve()} and try again",
            rule="FS003",
        )
    return sha256.hexdigest()
