"""What stands between the commands and the world; it needs none of the libraries to do so.

Every stream takes any text, every signal has a handler, and an error that nobody foresaw becomes a
sentence and a file to send to the authors.
"""

from __future__ import annotations

import codecs
import io
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gifthorse import __version__
from gifthorse.core.errors import exhausted
from gifthorse.core.signals import STOPS
from gifthorse.core.text import inert

ERROR = 2  # exit status
STOPPED = 128  # and the number of the signal
PLAIN = {"→": "->", "…": "...", "±": "+/-", "²": "^2", "≥": ">="}


# 1. Streams -----------------------------------------------------------------------------------


class _Unread(io.FileIO):
    """A stream whose reader may go away: what it does not read is dropped."""

    def write(self, data: object, /) -> int:
        """Write, or seem to."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except BrokenPipeError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def open_streams() -> None:
    """Let standard output and error take every character, and outlive their readers."""
    codecs.register_error("gifthorse", _in_ascii)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for good
        elif os.name == "nt" and stream.isatty():  # a console there takes characters, not bytes
            stream.reconfigure(errors="gifthorse")
        elif stream is getattr(sys, f"__{name}__"):
            raw = _Unread(number, "w", closefd=False)
            lines = stream.isatty() or name == "stderr"
            made = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "gifthorse",
                                    line_buffering=lines)  # fmt: skip
            setattr(sys, name, made)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what a terminal cannot show by something that reads alike, or by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    parts = [PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found]
    return "".join(parts), error.end


def say(words: str) -> None:
    """Print one sentence on standard error."""
    sys.stderr.write(f"gifthorse: {inert(words)}\n")


def leave(status: int) -> NoReturn:
    """End with an exit status; what a full disk does not take of the output is an error."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        say(f"the output could not be written: {error}")
        status = ERROR
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes again at its end
    with suppress(ValueError):  # not the main thread
        for number in STOPS:  # all is said: a late signal must not change the status any more
            signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


# 2. Signals -----------------------------------------------------------------------------------


class Interrupted(SystemExit):
    """A signal stopped a command that has said what is kept."""

    def __init__(self) -> None:
        super().__init__(STOPPED + signal.SIGINT)


class Signals:
    """Ctrl-C, a polite kill and a closed terminal all interrupt; ignored ones stay ignored.

    Until `listen`, they end the process at once: libraries that are being imported may swallow an
    exception, or print it. After it, the first interrupts, and one more ends the process at once:
    what is said and put away on the way out must not be interrupted into a traceback.

    Attributes:
        status: What to exit with after the last signal.
    """

    def __init__(self) -> None:
        self.status, self._raised = STOPPED + signal.SIGINT, False
        self._heard = [n for n in STOPS if signal.getsignal(n) != signal.SIG_IGN]
        self._handle(self._at_once)

    def listen(self) -> None:
        """From now on, raise KeyboardInterrupt, once."""
        self._handle(self._raise)

    def _handle(self, handler: object) -> None:
        try:
            for number in self._heard:
                signal.signal(number, handler)  # type: ignore[arg-type]
        except ValueError:  # not the main thread: whoever is, handles them
            self._heard = []

    def _at_once(self, number: int, frame: FrameType | None) -> None:
        os.write(2, b"gifthorse: interrupted; nothing was done yet\n")
        os._exit(STOPPED + number)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._raised:
            os._exit(STOPPED + number)
        self.status, self._raised = STOPPED + number, True
        raise KeyboardInterrupt


# 3. What nobody foresaw -----------------------------------------------------------------------


def unforeseen(error: BaseException, doing: str = "") -> str:
    """Return a sentence for an error that nobody foresaw, and keep the details in a file.

    Args:
        error: Anything that was raised.
        doing: What it was raised by, such as a model's name.
    """
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SystemExit):
        what = f"code that is not ours ended the program (status {error.code})"
    elif exhausted(error):
        what = f"there is not enough memory ({what[:200]}): give it more, or fewer images"
    path = _logged(error)
    where = f"; attach {path} if you report it" if path else ""
    front = f"{inert(doing)}: " if doing else ""
    return f"{front}ERROR, not examined to the end: {inert(what)[:500]}{where}"


def _logged(error: BaseException) -> Path | None:
    """Write what led to an error to the working folder, or else to the temporary one."""
    lines = [
        f"gifthorse {__version__}, Python {platform.python_version()}, {sys.platform}",
        f"command: {shlex.join(['gifthorse', *sys.argv[1:]])}",
        *(line.rstrip("\n") for line in traceback.format_exception(error, limit=-50)),
    ]
    name = f"gifthorse-error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (Path(), Path(tempfile.gettempdir())):
        try:
            with (folder / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(inert("\n".join(lines)) + "\n\n")
        except OSError:
            continue
        return folder / name
    return None
