"""Whether a long computation may go on: asked between its parts, however deep they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Generator, Tensor

from gifthorse.core.errors import Halted

_ASKED: ContextVar[Callable[[bool], str] | None] = ContextVar("asked", default=None)


@contextmanager
def paced(reason: Callable[[bool], str]) -> Iterator[None]:
    """Let whatever computes inside be left at its next breath, once there is a reason to.

    Args:
        reason: Says why it must be left, in words; empty as long as it may go on. Is told whether
            all that was done so far is kept if it is left now.

    Example:
        >>> with paced(lambda kept: "the time is over"):
        ...     breathe()
        Traceback (most recent call last):
        ...
        gifthorse.core.errors.Halted: the time is over
    """
    token = _ASKED.set(reason)
    try:
        yield
    finally:
        _ASKED.reset(token)


def breathe(*, kept: bool = False) -> None:
    """Leave the computation here, if whoever began it has a reason to; else do nothing.

    Call it where what was done so far is whole, or can be put back.

    Args:
        kept: Whether it is whole.

    Raises:
        Halted: If there is a reason.
    """
    asked = _ASKED.get()
    reason = asked(kept) if asked is not None else ""
    if reason:
        raise Halted(reason)


@contextmanager
def undone(rngs: Sequence[Generator], *tensors: Tensor) -> Iterator[None]:
    """Put generators, and tensors that are changed in place, back if what is inside is left."""
    states, values = [rng.get_state() for rng in rngs], [t.clone() for t in tensors]
    try:
        yield
    except BaseException:
        for rng, state in zip(rngs, states, strict=True):
            rng.set_state(state)
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
        raise
