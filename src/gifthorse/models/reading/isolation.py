"""The parent's side of the reader process: starts it, limits it, believes only safetensors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gifthorse.core.errors import Incomplete, UnreadableModel
from gifthorse.models.reading import child
from gifthorse.models.reading.entries import PLAIN, CheckpointEntry, shown

FACTS = 256 << 20  # bytes of facts that are read back

# Of the parent's environment, only what a dynamic linker may need.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


def read(
    path: Path,
    kind: str,
    expected: Sequence[CheckpointEntry],
    folder: Path,
    *,
    memory: int,
    deadline: float,
) -> list[Tensor | None]:
    """Read a checked file in a process of its own.

    Args:
        path: A private copy of the file, so that what is read is what was checked.
        kind: `safetensors`, `pytorch` or `legacy`.
        expected: The leaves that its bytes were seen to hold.
        folder: Private folder for the results.
        memory: Bytes that the reader may take beyond what torch itself needs.
        deadline: Seconds that it may take.

    Returns:
        One tensor an expected leaf, None for what is no plain tensor.

    Raises:
        UnreadableModel: If the file is refused, needs too much memory, or reads differently from
            what was expected.
        Incomplete: If the deadline passes.
    """
    _run(path, kind, folder, memory=memory, deadline=deadline)
    entries = _facts(folder).get("entries")
    seen = [_plain(keys, dtype, shape) for keys, dtype, shape in entries or ()]
    source = path if kind == "safetensors" else folder / child.TENSORS
    try:
        tensors = load_file(source)
    except (SafetensorError, OSError) as error:
        raise UnreadableModel(f"its tensors cannot be read: {error}", rule="FS003") from error
    if kind == "safetensors":
        found = [tensors.get(entry.path[0]) for entry in expected]
    else:
        found = [tensors.get(str(i)) for i in range(len(expected))]
        _compare(expected, seen)
    if any(_differs(e, t) for e, t in zip(expected, found, strict=True)):
        raise _unequal()
    return found


def _plain(keys: Any, dtype: Any, shape: Any) -> CheckpointEntry:
    return CheckpointEntry(tuple(keys), dtype, None if shape is None else tuple(shape))


def _compare(expected: Sequence[CheckpointEntry], seen: Sequence[CheckpointEntry]) -> None:
    wanted = [e for e in expected if e.shape is not None and e.type in PLAIN]
    got = [e for e in seen if e.shape is not None]
    if len(expected) != len(seen) or wanted != got:
        raise _unequal()


def _differs(entry: CheckpointEntry, tensor: Tensor | None) -> bool:
    if entry.shape is None or entry.type not in PLAIN:
        return False
    same = tensor is not None and str(tensor.dtype) == f"torch.{entry.type}"
    return not same or tensor is None or tuple(tensor.shape) != entry.shape


def _unequal() -> UnreadableModel:
    return UnreadableModel(
        "the file reads differently by its bytes and by torch: it is damaged or made to deceive; "
        "get it again from its source",
        rule="FS003",
    )


def _run(path: Path, kind: str, folder: Path, *, memory: int, deadline: float) -> None:
    request = {
        "path": str(path),
        "kind": kind,
        "folder": str(folder),
        "memory": memory,
        "seconds": deadline,
        "sys_path": [os.path.abspath(p) for p in sys.path if p],
    }
    try:
        # A script by its path, so that the package and all it imports stay out of the reader.
        done = subprocess.run(  # noqa: S603 - our interpreter, our script, no shell
            [sys.executable, "-I", "-B", "-W", "ignore", str(Path(child.__file__).resolve())],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=deadline,
            start_new_session=True,
            cwd=folder,
            env=_environment(folder),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _late(deadline) from error
    if done.returncode != 0:
        raise _failure(done, folder, memory, deadline)


def _environment(folder: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **threads, "HOME": str(folder), "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}


def _late(deadline: float) -> Incomplete:
    return Incomplete(
        f"reading the file took longer than {deadline:g} seconds and was stopped: allow more time "
        "if you expect a file that large, or distrust it",
        rule="IN003",
    )


def _failure(
    done: subprocess.CompletedProcess[bytes], folder: Path, memory: int, deadline: float
) -> UnreadableModel | Incomplete:
    if done.returncode == -getattr(signal, "SIGXCPU", 0):
        return _late(deadline)
    facts = _facts(folder)
    rule = facts.get("rule", "FS004" if done.returncode == -9 else "FS003")
    why = facts.get("error") or f"its reader ended with status {done.returncode}"
    limit = f" (limit: {memory / 2**20:,.0f} MiB and {deadline:g} seconds)"
    return UnreadableModel(
        f"the file cannot be read: {shown(str(why), 500)}{limit if rule == 'FS004' else ''}",
        rule=str(rule),
    )


def _facts(folder: Path) -> dict[str, Any]:
    """Return what the reader wrote down; empty if it did not get that far."""
    path = folder / child.FACTS
    if not path.is_file() or path.stat().st_size > FACTS:
        return {}
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
