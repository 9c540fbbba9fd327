"""Reader process: opens one checked file and writes its tensors as safetensors, nothing else.

It is run as a script, imports nothing of the package, and gets its request as JSON on standard
input: `path`, `kind`, `folder`, `memory` in bytes, `seconds`, `sys_path`. It leaves `facts.json`
and, for pickles, `tensors.safetensors` in the folder.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FACTS, TENSORS = "facts.json", "tensors.safetensors"
DEPTH = 100
LEAVES = 200_000
OPEN_FILES = 64

# As in entries.PLAIN, which is not imported because that would load the whole package.
PLAIN = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"

# Audit events of what a reader has no business doing, by their first letters.
FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.symlink",
    "os.link",
    "os.chmod",
    "shutil.",
    "pty.",
    "urllib.",
)


def main() -> int:
    """Serve the request on standard input; return 0, or 1 after writing what went wrong."""
    request = json.load(sys.stdin)
    sys.path[:] = request["sys_path"]
    folder = Path(request["folder"])
    try:
        if request["kind"] == "safetensors":
            confine(request["memory"], request["seconds"], folder)
            facts: dict[str, Any] = {"entries": read_safetensors(request["path"])}
        else:
            import torch  # noqa: F401 - before the limits, which count from here

            confine(request["memory"], request["seconds"], folder)
            facts = {"entries": read_pickle(request["path"], folder / TENSORS)}
    except MemoryError:
        facts = {"rule": "FS004", "error": "it needs more memory than allowed"}
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, OSError) as error:
        facts = {"rule": "FS003", "error": f"{type(error).__name__}: {error}"[:2000]}
    except (RuntimeError, AssertionError, pickle.UnpicklingError) as error:
        memory = "alloc" in str(error) or "memory" in str(error)
        facts = {"rule": "FS004" if memory else "FS003", "error": str(error)[:2000]}
    (folder / FACTS).write_text(json.dumps(facts))
    return 1 if "error" in facts else 0


# 1. Limits ------------------------------------------------------------------------------------


def confine(memory: int, seconds: float, folder: Path) -> None:
    """Give up the network, other programs, foreign files and unlimited resources, for good."""
    sys.addaudithook(lambda event, args: refuse(event, args, folder))
    if sys.platform != "linux":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, limit in (
        (resource.RLIMIT_AS, mapped + memory),
        (resource.RLIMIT_CPU, int(spent + seconds) + 1),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(what)
        value = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(what, (value, value))


def refuse(event: str, args: tuple[Any, ...], folder: Path) -> None:
    """Audit hook: raise on events that reading weights never causes.

    Raises:
        PermissionError: On network, processes, and files written outside `folder`.
    """
    if event.startswith(FORBIDDEN):
        raise PermissionError(f"the reader process may not do {event}")
    if event == "open" and isinstance(args[2], int):
        writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        if writes and not str(args[0]).startswith(str(folder)):
            raise PermissionError("the reader process may not write outside its folder")


# 2. Formats -----------------------------------------------------------------------------------


def read_safetensors(path: str) -> list[tuple[list[str], str, list[int] | None]]:
    """Let the safetensors library check a file; return names, data types and shapes.

    Raises:
        ValueError: If the library refuses it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            names = list(opened.keys())
            return [([n], "", list(opened.get_slice(n).get_shape())) for n in names]
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def read_pickle(path: str, out: Path) -> list[tuple[list[str], str, list[int] | None]]:
    """Open a state dict with torch's restricted reader and write its plain tensors to `out`.

    Returns:
        Path, data type (or a type's name) and shape of each leaf; tensor number `i` of the list is
        called `i` in `out`, and has shape None if it is not plain.
    """
    import torch
    from safetensors.torch import save_file

    with torch.serialization.safe_globals(numpy_scalars()):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    facts: list[tuple[list[str], str, list[int] | None]] = []
    tensors: dict[str, torch.Tensor] = {}
    for keys, value in flatten(loaded):
        kind = type_of(value)
        plain = isinstance(value, torch.Tensor) and kind in PLAIN.split()
        if plain:
            # Copies, since the format has no views and no shared memory.
            copy = value.detach().clone(memory_format=torch.contiguous_format)
            tensors[str(len(facts))] = copy
        facts.append((keys, kind, list(value.shape) if plain else None))
    save_file(tensors, str(out))
    return facts


def numpy_scalars() -> list[Any]:
    """Return what the restricted reader must know to read NumPy's numbers and plain arrays."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {
        type(np.dtype(code))
        for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]
    }
    array = np.zeros(0).__reduce__()[0]
    makers = [
        (make, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for make, name in ((scalar, "scalar"), (array, "_reconstruct"))
    ]
    return [*makers, (np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray"), *kinds]


def flatten(value: Any) -> Iterator[tuple[list[str], Any]]:
    """Yield the keys and the value of each leaf of nested dictionaries, lists and tuples.

    Raises:
        ValueError: If it is nested too deeply or has too many leaves.
    """
    stack: list[tuple[list[str], Any]] = [([], value)]
    count = 0
    while stack:
        path, part = stack.pop()
        count += 1
        if count > LEAVES or len(path) > DEPTH:
            raise ValueError(f"more than {LEAVES} values or {DEPTH} levels")
        if type(part) in (dict, OrderedDict):
            pairs = [(_key(key), item) for key, item in part.items()]
        elif type(part) in (list, tuple):
            pairs = [(str(i), item) for i, item in enumerate(part)]
        else:
            yield path, part
            continue
        stack.extend(([*path, key], item) for key, item in reversed(pairs))


def _key(key: Any) -> str:
    return str(key) if type(key) in (str, int, float, bool) else "<key>"


def type_of(value: Any) -> str:
    """Name a leaf's data type: `float32`, `quantized qint8`, `sparse`, `meta`, or its class."""
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_quantized:
        return f"quantized {str(value.dtype).removeprefix('torch.')}"
    if value.layout is not torch.strided:
        return "sparse"
    return "meta" if value.is_meta else str(value.dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main())
