"""Memory that was freed stays with the process, since the next step wants as much again."""

from __future__ import annotations

import ctypes
import sys

# Of mallopt(3), see malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
SETTINGS = ((MMAP_THRESHOLD, 1 << 30), (TRIM_THRESHOLD, 1 << 30), (TOP_PAD, 1 << 26))


def keep_freed() -> bool:
    """Ask the C library to give large freed blocks to whoever wants some next.

    By default glibc maps every block above 32 MiB anew and hands it back when it is freed. Each
    step of a search allocates the same activations, so the system would clear the same pages again
    and again. For programs alone, since it is the whole process's.

    Returns:
        Whether it took all of it; elsewhere than with glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all([bool(mallopt(name, value)) for name, value in SETTINGS])
