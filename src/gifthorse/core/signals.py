"""Signals to stop, held back until a step is done whole."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger("gifthorse")

# Ctrl-C, a polite kill, a terminal that is closed; not all of them exist everywhere.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
STOPS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Hold:
    """The signals that came while they were held back."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: int | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self._came is not None

    def obey(self) -> None:
        """Do what the signal that came would have done at once; nothing if none came."""
        if self._came is not None:
            self._handlers[self._came](self._came, None)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._came is not None:
            self._handlers[number](number, frame)
        self._came = number
        log.warning("stopping after this step; once more stops at once")


@contextmanager
def held(kept: bool = True) -> Iterator[Hold]:
    """Hold back the first signal to stop, so that no step is left half done; a second acts at once.

    Whoever steps asks between steps whether one came, saves, and obeys. Signals that nobody handles
    in Python keep their meaning, and so do all in threads other than the main one.

    Args:
        kept: Whether anything is saved after a step; nothing is held back otherwise.
    """
    hold = Hold()
    if kept and threading.current_thread() is threading.main_thread():
        for number in STOPS:
            handler = signal.getsignal(number)
            if callable(handler):
                hold._handlers[number] = handler
                signal.signal(number, hold._keep)
    try:
        yield hold
    finally:
        for number, handler in hold._handlers.items():
            signal.signal(number, handler)
    hold.obey()
