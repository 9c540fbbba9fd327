"""How a reader gives up everything but reading: limits, an audit hook, and what the kernel has."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gifthorse.core.isolated import kernel

OPEN_FILES = 64
BUSY = 4
OWN = 64 << 20  # bytes that a reader needs for itself, before it has read anything

# Audit events of what a reader does, by their first letters; all others are refused.
ALLOWED = (
    *("import", "exec", "compile", "marshal.", "code.", "function.", "object.", "builtins.id"),
    *("id", "pickle.find_class", "mmap.__new__", "array.__new__", "array._array_reconstructor"),
    *("os.listdir", "os.scandir", "os.walk", "os.fwalk", "pathlib.", "glob.", "gc.", "sys."),
    *("cpython.", "_thread.start", "time.sleep", "os.putenv", "os.unsetenv"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Beside the modules of Python, what the standard library and NumPy look at.
_SYSTEM = (
    *("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/proc/self", "/sys/devices/system/cpu"),
    *("/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/etc/localtime"),
)


@dataclass(frozen=True)
class Limits:
    """What a reader may take.

    Attributes:
        memory: Bytes for what is read, beyond what its reader needs for itself.
        seconds: Of processor time.
    """

    memory: int = 1 << 30
    seconds: float = 60.0

    @property
    def wall(self) -> float:
        """Seconds on the wall: more, since on a busy machine other programs take their share."""
        return BUSY * self.seconds

    def __str__(self) -> str:
        return f"{self.memory / 2**20:,.0f} MiB and {self.seconds:g} seconds"


def confine(limits: Limits, readable: Iterable[str]) -> None:
    """Give up the network, other programs, all files but readable ones, and unlimited resources.

    Args:
        limits: Memory and time from now on.
        readable: Files and folders that may be read beside open ones and Python's own modules.
    """
    roots = [Path(os.path.realpath(path)) for path in (*_python(), *_SYSTEM, *readable)]
    _limit(limits)
    kernel.landlock(roots)
    kernel.seccomp()
    places = tuple(str(root) for root in roots)
    sys.addaudithook(lambda event, args: refuse(event, args, places))


def _python() -> list[str]:
    found = [path for path in sys.path if path]
    return [*found, sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)]


def _limit(limits: Limits) -> None:
    import resource

    bounds = [
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + 1),
        (resource.RLIMIT_FSIZE, OWN + limits.memory),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ]
    if sys.platform == "linux":  # others do not heed it, or count otherwise
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        bounds.append((resource.RLIMIT_AS, mapped + OWN + limits.memory))
    for what, bound in bounds:
        most = resource.getrlimit(what)[1]
        free = most == resource.RLIM_INFINITY
        value = bound if free else min(bound, most)
        # Of processor time, the soft limit sends a signal that tells why, the hard one kills.
        hard = value + 5 if free and what == resource.RLIMIT_CPU else value
        resource.setrlimit(what, (value, hard))


def refuse(event: str, args: tuple[Any, ...], readable: tuple[str, ...]) -> None:
    """Audit hook: raise on events that reading never causes.

    Raises:
        PermissionError: On network, processes, any kind of writing, and files that are not below
            `readable`.
    """
    if event == "open":
        path, _, flags = args
        if isinstance(path, int):
            return  # open already
        if isinstance(flags, int) and flags & WRITING:
            raise PermissionError("a reader may not write")
        if not _below(os.path.realpath(path), readable):
            raise PermissionError("a reader may not open other files")
    elif not event.startswith(ALLOWED):
        raise PermissionError(f"a reader may not do {event}")


def _below(path: str | bytes, readable: tuple[str, ...]) -> bool:
    name = os.fsdecode(path)
    return any(name == root or name.startswith(root.rstrip("/") + "/") for root in readable)
