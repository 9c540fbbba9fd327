"""Where a bench keeps what it made: models by key, and one JSON a cell, which are the truth."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gifthorse.core.atomic import atomic
from gifthorse.core.errors import UsageError
from gifthorse.core.files import is_regular

SCHEMA = 2  # of keys and records; a new number makes every cell a new one
SPEC = "spec.json"  # written last: a model without it is not there


class Store:
    """A folder, or a folder behind any URL that fsspec knows, such as `s3://bucket/bench`.

    Everything is written under a name that nobody reads and then given its own, so that a reader,
    or a run that goes on, never sees half a file; several machines may write at once, since the
    same name always has the same content.

    Args:
        root: Path or URL; made when something is written.

    Raises:
        UsageError: If the URL's protocol is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        from fsspec.core import url_to_fs  # late: slow

        self.root = str(root)
        try:
            self._fs, self._base = url_to_fs(self.root)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{root} cannot be opened: {error}") from error
        self._local = Path(self._base) if "file" in _protocols(self._fs) else None

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if there is no such file."""
        try:
            if self._local:
                path = self._local / name
                return path.read_bytes() if is_regular(path) else None
            return bytes(self._fs.cat_file(f"{self._base}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            UsageError: If the folder cannot be written to.
        """
        if not self._local:
            self._fs.makedirs(f"{self._base}/{name}".rsplit("/", 1)[0], exist_ok=True)
            self._fs.pipe_file(f"{self._base}/{name}", content)
            return
        path = self._local / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.root}: {error.strerror}") from error
        with atomic(path) as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        try:
            self._fs.rm_file(f"{self._base}/{name}")
        except FileNotFoundError:
            return

    def names(self, folder: str) -> list[str]:
        """Return the names of all files below a folder, sorted; unfinished ones are left out."""
        if self._local:
            top, cut = self._local / folder, len(str(self._local)) + 1
            walk = os.walk(top)  # a hundred thousand records: a tenth of the time of rglob
            found = [f"{place[cut:]}/{name}" for place, _, inside in walk for name in inside]
        else:
            cut = len(self._base.rstrip("/")) + 1
            found = [path[cut:] for path in self._fs.find(f"{self._base}/{folder}")]
        return sorted(n for n in found if not n.rsplit("/", 1)[-1].startswith("."))

    def sweep(self, seconds: float = 3600.0) -> None:
        """Delete what runs that were killed left unfinished, so long ago that nobody writes it."""
        if self._local:
            for part in self._local.glob("[mr]*/**/.*.part"):
                if time.time() - part.stat().st_mtime > seconds:
                    part.unlink(missing_ok=True)

    def mend(self) -> list[str]:
        """Delete records and specs that are damaged, so that they are made anew; return their keys.

        Nothing here writes half a file, but a copy from elsewhere or a bad disk can hold one.
        """
        files = [(key, _record(key)) for key in sorted(self.recorded())]
        files += [(key, f"{_model(key)}/{SPEC}") for key in sorted(self.models())]
        damaged = []
        for key, name in files:
            content = self.read(name)
            try:
                if content is not None:
                    _json(content, key)
            except UsageError:
                self.delete(name)
                damaged.append(key)
        return damaged

    # Records ----------------------------------------------------------------------------------

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a cell by its key, or None if it was not judged yet."""
        content = self.read(_record(key))
        return None if content is None else _json(content, key)

    def keep(self, record: dict[str, Any]) -> None:
        """Write the record of a cell."""
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        self.write(_record(record["key"]), (text + "\n").encode())

    def forget(self, key: str) -> None:
        """Delete a record, so that its cell is judged again."""
        self.delete(_record(key))

    def recorded(self) -> set[str]:
        """Return the keys of all cells that have a record."""
        return {Path(n).stem for n in self.names("records") if n.endswith(".json")}

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield all records, by key.

        Raises:
            UsageError: If one is damaged.
        """
        for name in self.names("records"):
            if name.endswith(".json"):
                yield _json(self.read(name) or b"", Path(name).stem)

    # Models -----------------------------------------------------------------------------------

    def spec(self, key: str) -> dict[str, Any] | None:
        """Return what is known of a model by its key, or None if it is not there yet.

        A training that failed has a spec with an `error`.
        """
        content = self.read(f"{_model(key)}/{SPEC}")
        return None if content is None else _json(content, key)

    def put(self, key: str, folder: Path, spec: dict[str, Any]) -> None:
        """Keep a model: the files of a folder, then what is known of it."""
        for path in sorted(folder.iterdir()):
            self.write(f"{_model(key)}/{path.name}", path.read_bytes())
        text = json.dumps(spec, indent=1, sort_keys=True)
        self.write(f"{_model(key)}/{SPEC}", text.encode())

    @contextmanager
    def open(self, key: str) -> Iterator[Path]:
        """Lend a folder with a model's files; from afar, a copy that goes when it is given back."""
        if self._local:
            yield self._local / _model(key)
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in self.names(_model(key)):
                (Path(folder) / Path(name).name).write_bytes(self.read(name) or b"")
            yield Path(folder)

    def abandon(self, key: str) -> None:
        """Delete what is known of a model, so that it is trained again."""
        self.delete(f"{_model(key)}/{SPEC}")

    def models(self) -> set[str]:
        """Return the keys of all models that are there or failed."""
        return {Path(n).parent.name for n in self.names("models") if n.endswith(f"/{SPEC}")}


def _record(key: str) -> str:
    return f"records/{key[:2]}/{key}.json"


def _model(key: str) -> str:
    return f"models/{key[:2]}/{key}"


def _json(content: bytes, key: str) -> dict[str, Any]:
    try:
        known = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"the file of {key} is damaged ({error}): bench resume makes it anew"
        ) from error
    if not isinstance(known, dict):
        raise UsageError(f"the file of {key} is no record: bench resume makes it anew")
    return known


def _protocols(fs: Any) -> tuple[str, ...]:
    found = fs.protocol
    return (found,) if isinstance(found, str) else tuple(found)
