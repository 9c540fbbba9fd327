"""The caller's side: starts the server of readers, asks it, and believes only plain answers."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any

from torch import Tensor

from gifthorse.core import errors
from gifthorse.core.errors import GifthorseError, UsageError
from gifthorse.core.isolated import server, transport
from gifthorse.core.isolated.confinement import Limits

GRACE = 120.0  # seconds that the server itself may take, such as for importing torch

# Of the caller's environment, only what a dynamic linker may need.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from gifthorse.core.isolated.server import main; main()"
)


class _Server:
    """A process that readers are forked from; nothing else holds its link."""

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise UsageError("files that nobody trusts are read apart, which needs Linux or macOS")
        self.pid = os.getpid()
        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - our interpreter, our module, no shell
                [
                    *(sys.executable, "-I", "-B", "-W", "ignore", "-c", _START),
                    *(os.path.abspath(path) for path in sys.path if path),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env=environment(),
            )

    def stop(self) -> None:
        """End it and all that it forked."""
        self.link.close()
        if self.pid != os.getpid():
            self.process.returncode = 0  # it is another process that waits for it
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def environment() -> dict[str, str]:
    """Return the few harmless variables that readers get."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    one = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**kept, **dict.fromkeys(one, "1"), "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}


_lock = threading.Lock()
_servers: list[_Server] = []


def _server() -> _Server:
    """Return the running server of this process; start one if there is none."""
    if _servers and (_servers[0].pid != os.getpid() or _servers[0].process.poll() is not None):
        stop()
    if not _servers:
        _servers.append(_Server())
    return _servers[0]


@atexit.register
def stop() -> None:
    """End the server of readers, if there is one; the next call starts another."""
    while _servers:
        _servers.pop().stop()


def _forked() -> None:
    """Let go of the server in a process that was forked: it is that of the other one."""
    global _lock
    _lock = threading.Lock()
    stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def prepare() -> None:
    """Start the server ahead of time: it imports while the caller does."""
    with _lock:
        _server()


def call(
    function: Callable[..., tuple[Any, Sequence[Tensor]]],
    arguments: Sequence[object],
    *,
    what: str,
    error: type[GifthorseError],
    limits: Limits,
    streams: Sequence[IO[bytes]] = (),
    readable: Sequence[str] = (),
) -> tuple[Any, list[Tensor]]:
    """Call a function of this package in a process that can only read.

    Args:
        function: Of a module of its own right; it gets the open files, then the arguments, and
            returns a JSON value and tensors.
        arguments: JSON values.
        what: What is read, to begin a sentence with.
        error: What to raise if it cannot be read.
        limits: Memory and seconds.
        streams: Open files that it reads.
        readable: Files and folders that it may open by itself.

    Returns:
        What the function returned.

    Raises:
        GifthorseError: What the function raised, if it is one of ours. Else `error`, with the rule
            `FS004` if the reader ended, was too slow or took too much, else `FS003`.
    """
    with scratch() as out:
        request = {
            "call": f"{function.__module__}:{function.__qualname__}",
            "arguments": list(arguments),
            "memory": limits.memory,
            "seconds": limits.seconds,
            "wall": limits.wall,
            "readable": [os.path.abspath(path) for path in readable],
            "folder": os.getcwd(),
        }
        files = (out.fileno(), *(stream.fileno() for stream in streams))
        with _lock:
            ended = _asked(request, files, limits.wall + GRACE)
        if ended.get("late"):
            reason = f"reading took longer than {limits.wall:g} seconds and was stopped"
            raise _exhausted(what, error, reason, limits)
        if status := ended.get("status"):
            raise _exhausted(what, error, _death(status), limits)
        try:
            told, tensors = transport.read(out)
        except transport.BrokenAnswer as broken:
            raise error(f"{what} cannot be read: {broken}", rule="FS003") from broken
    if "is" in told:
        return told["is"], tensors
    raise _raised(told, what, error, limits)


def scratch() -> IO[bytes]:
    """Return an open file that no folder names; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("gifthorse"), "w+b")
    return tempfile.TemporaryFile()


def _asked(request: object, files: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Return how a reader ended; whatever comes between leaves no server that is out of step."""
    try:
        link = _server().link
        link.settimeout(seconds)
        server.send(link, request, files)
        ended, _ = server.receive(link)
    except TimeoutError:
        stop()
        return {"late": True}
    except (EOFError, OSError):
        stop()
        return {"status": -signal.SIGKILL}
    except BaseException:
        stop()
        raise
    return dict(ended)


def _death(status: int) -> str:
    if status == -getattr(signal, "SIGXCPU", 0):
        return "it took more processor time than allowed"
    if status < 0:
        return f"its reader was ended by {signal.Signals(-status).name}"
    return f"its reader ended with status {status}"


def _exhausted(
    what: str, error: type[GifthorseError], reason: str, limits: Limits
) -> GifthorseError:
    return error(
        f"{what} exhausts its reader: {reason} (limit: {limits}); allow more if you expect that, "
        "or distrust it",
        rule="FS004",
    )


def _raised(
    told: dict[str, str], what: str, error: type[GifthorseError], limits: Limits
) -> GifthorseError:
    """Return the error that a reader told of."""
    if "exhausted" in told:
        return _exhausted(what, error, told["exhausted"], limits)
    kind = getattr(errors, told.get("error", ""), None)
    if isinstance(kind, type) and issubclass(kind, GifthorseError):
        return kind(told["words"], rule=told["rule"])
    return error(f"{what} cannot be read: {told.get('failed', 'no reason is known')}", rule="FS003")
