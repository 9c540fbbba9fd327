"""The process that readers are forked from: it imports what they need and parses nothing itself.

It is started with one end of a socket as its standard input, gets requests with open files there,
forks a process for each, which confines itself and reads, and says how that ended. When the other
end closes, it kills what still reads and ends.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from gifthorse.core.errors import GifthorseError
from gifthorse.core.isolated import kernel, transport
from gifthorse.core.isolated.confinement import Limits, confine

MOST = 1 << 20  # bytes of a request
FILES = 4


def send(link: socket.socket, message: object, files: tuple[int, ...] = ()) -> None:
    """Send a JSON value, its length first, and open files."""
    text = json.dumps(message).encode()
    data = len(text).to_bytes(4, "little") + text
    sent = socket.send_fds(link, [data], list(files)) if files else link.send(data)
    link.sendall(data[sent:])


def receive(link: socket.socket) -> tuple[Any, list[int]]:
    """Return what `send` sent.

    Raises:
        EOFError: If the other end is closed.
    """
    data, files, _, _ = socket.recv_fds(link, 1 << 16, FILES)
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        more = link.recv(1 << 16) if data else b""
        if not more or len(data) > MOST:
            raise EOFError("the other end is closed")
        data += more
    return json.loads(data[4:]), files


def main() -> None:
    """Serve requests until the other end closes."""
    link = socket.socket(fileno=os.dup(0))
    while True:
        try:
            request, files = receive(link)
        except (EOFError, OSError):
            return
        ended = _watched(link, request, files, _found(request["call"]))
        for file in files:
            os.close(file)
        send(link, ended)


def _found(call: str) -> Callable[..., Any]:
    module, _, name = call.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _watched(
    link: socket.socket, request: Any, files: list[int], function: Callable[..., Any]
) -> dict[str, Any]:
    """Fork a reader; return its wait status, or that it took too long."""
    inner, outer = os.pipe()
    here = os.getpid()
    child = os.fork()
    if child == 0:
        link.close()
        os.close(inner)
        kernel.die_with_parent(here)
        _read(request, files, function)
    os.close(outer)
    watched: list[Any] = [link, inner]
    ready, _, _ = select.select(watched, [], [], request["wall"])
    if inner not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(inner)
    if link in ready:  # nobody asks while we work: the other end is gone
        sys.exit(0)
    return {"status": os.waitstatus_to_exitcode(status), "late": not ready}


def _read(request: Any, files: list[int], function: Callable[..., Any]) -> None:
    """Confine this process, read, write the answer and end."""
    with contextlib.suppress(BaseException):
        os.chdir(request["folder"])
        os.close(0)
        streams = [os.fdopen(file, "rb") for file in files[1:]]
        out = os.fdopen(files[0], "wb")
        confine(Limits(request["memory"], request["seconds"]), request["readable"])
        try:
            value, tensors = function(*streams, *request["arguments"])
            transport.write(out, {"is": value}, tensors)
        except Exception as error:
            transport.write(out, said(error), ())
        os._exit(0)
    os._exit(1)


def said(error: Exception) -> dict[str, str]:
    """Put an error into words: one of ours by its name, others by what they mean for the file."""
    words = str(error)[:2000]
    if isinstance(error, GifthorseError):
        return {"error": type(error).__name__, "words": words, "rule": error.rule}
    large = isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOMEM)
    memory = isinstance(error, RuntimeError) and ("alloc" in words or "memory" in words)
    if isinstance(error, MemoryError) or large or memory:
        return {"exhausted": "it needs more memory than allowed"}
    if isinstance(error, RecursionError):
        return {"exhausted": "it is nested too deeply"}
    return {"failed": f"{type(error).__name__}: {words}"}
