"""The command line in the process of a test, whose handlers of signals must outlive it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from gifthorse.core.signals import STOPS


@contextmanager
def own_handlers() -> Iterator[None]:
    """Put handlers of signals back as they were."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
