"""What Linux can take from a process for good: rights to files, calls to the kernel, a long life.

Each function does what the running kernel knows of, and nothing where it knows none of it; what
then still holds is the audit hook and the limits of `confinement`.

Source: Linux, Documentation/userspace-api: landlock.rst, seccomp_filter.rst, no_new_privs.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_PDEATHSIG, _NO_NEW_PRIVS, _SECCOMP = 1, 38, 22
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # landlock's calls, alike on all architectures
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RIGHTS = (13, 13, 14, 15, 15, 16)  # how many rights to files ABI 0 ... 5 know; later ones no more


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


# Made once, before anything is confined: to load a library is forbidden later.
_LIBC = _libc()


def _prctl(option: int, *values: object) -> bool:
    if _LIBC is None:
        return False
    rest = [ctypes.c_ulong(0)] * (4 - len(values))
    return int(_LIBC.prctl(ctypes.c_int(option), *values, *rest)) == 0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; at once if it has ended already."""
    _prctl(_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


# 1. Files: Landlock ---------------------------------------------------------------------------


def landlock(readable: Iterable[Path]) -> bool:
    """Give up all rights to files but reading below some paths, and TCP; say whether it worked."""
    if _LIBC is None:
        return False
    abi = int(_LIBC.syscall(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1)))
    if abi < 1:
        return False
    net, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    rights = (1 << _RIGHTS[min(abi, 5)]) - 1
    rules = struct.pack("QQQ", rights, net, scoped)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = int(
        _LIBC.syscall(ctypes.c_long(_CREATE), rules, ctypes.c_size_t(len(rules)), ctypes.c_uint(0))
    )
    if ruleset < 0:
        return False
    for path in readable:
        _permit(ruleset, path)
    _prctl(_NO_NEW_PRIVS, ctypes.c_ulong(1))
    done = int(_LIBC.syscall(ctypes.c_long(_RESTRICT), ctypes.c_int(ruleset), ctypes.c_uint(0)))
    os.close(ruleset)
    return done == 0


def _permit(ruleset: int, path: Path) -> None:
    """Permit reading below a path, if it is there."""
    assert _LIBC is not None
    try:
        place = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    except OSError:
        return
    rule = struct.pack("=Qi", _READ_FILE | (_READ_DIR if path.is_dir() else 0), place)
    _LIBC.syscall(
        ctypes.c_long(_ADD), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0)
    )
    os.close(place)


# 2. Calls: seccomp ----------------------------------------------------------------------------

# Numbers on x86-64 and on ARM64, 0 where a call does not exist.
DENIED: dict[str, tuple[int, int]] = {
    "creat": (85, 0), "openat2": (437, 437), "io_uring_setup": (425, 425),
    "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47),
    "rename": (82, 0), "renameat": (264, 38), "renameat2": (316, 276),
    "mkdir": (83, 0), "mkdirat": (258, 34), "rmdir": (84, 0),
    "link": (86, 0), "linkat": (265, 37), "symlink": (88, 0), "symlinkat": (266, 36),
    "unlink": (87, 0), "unlinkat": (263, 35), "mknod": (133, 0), "mknodat": (259, 33),
    "chmod": (90, 0), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0), "fchownat": (260, 54),
    "utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202),
    "fork": (57, 0), "vfork": (58, 0), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_OPEN, _OPENAT, _CLONE, _CLONE3 = (2, 0), (257, 56), (56, 220), (435, 435)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x10000  # CLONE_THREAD
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def seccomp() -> bool:
    """Have the kernel refuse what only writers, programs and connections need; say if it does."""
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return False
    column, arch = _MACHINES[platform.machine()]
    program = b"".join(_filter(column, arch))
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if not _prctl(_NO_NEW_PRIVS, ctypes.c_ulong(1)):
        return False
    return _prctl(_SECCOMP, ctypes.c_ulong(2), fprog)


def _filter(column: int, arch: int) -> Iterator[bytes]:
    """Yield a program of the Berkeley packet filter, 8 bytes an instruction."""
    deny, allow = _step(0x06, _ERRNO | errno.EPERM), _step(0x06, _ALLOW)
    yield _step(0x20, 4)  # the architecture
    yield _step(0x15, arch, 1, 0)
    yield deny
    yield _step(0x20, 0)  # the call
    yield _step(0x35, 0x40000000, 0, 1)  # x32, which numbers otherwise
    yield deny
    for numbers in DENIED.values():
        if numbers[column]:
            yield _step(0x15, numbers[column], 0, 1)
            yield deny
    yield _step(0x15, _CLONE3[column], 0, 1)  # libc then takes clone, whose flags can be seen
    yield _step(0x06, _ERRNO | errno.ENOSYS)
    for call, word, bits, when in (
        (_OPEN[column], 1, _WRITING, deny),
        (_OPENAT[column], 2, _WRITING, deny),
        (_CLONE[column], 0, _THREAD, allow),
    ):
        if call:
            yield _step(0x15, call, 0, 4)
            yield _step(0x20, 16 + 8 * word)  # the low half of an argument
            yield _step(0x45, bits, 0, 1)
            yield when
            yield allow if when is deny else deny
    yield allow


def _step(code: int, value: int, then: int = 0, other: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, other, value)
