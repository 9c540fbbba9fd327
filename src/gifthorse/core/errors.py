"""What can go wrong, in words.

GifthorseError
  +- UsageError          wrong call or configuration           exit 4
  |    +- UnknownMethod  no such name in a registry
  |    +- BadOption      an option's name or value is off
  |    +- BadImages      the images cannot be used
  |    +- ShapeMismatch  a tensor has another shape than asked for
  |    +- NotApplicable  a method cannot be used on this model or these images
  |    +- Unwritable     a file cannot be written            exit 2
  +- UnreadableModel     the file cannot be opened             exit 2
  |    +- UnsafeModel    opening it would run its code
  |    +- UnknownArch    no architecture fits its tensors
  |    +- UnfitNet       its net fails on the images, or returns no logits
  |    +- SeveralNets    it holds more than one net, and none was named
  +- Unfetched           a model cannot be had from a hub      exit 2
  +- Incomplete          something was not examined            exit 3
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class GifthorseError(Exception):
    """Base of all errors that a user can act on.

    Attributes:
        exit_code: What the command line exits with.
        rule: Stable code for reports, e.g. `FS003`; empty if none applies.
    """

    exit_code = 2

    def __init__(self, message: str, *, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule


class UsageError(GifthorseError):
    """The call or the configuration is wrong."""

    exit_code = 4


MOST_NAMED = 60  # names that an error lists: all nets, but not all methods


class UnknownMethod(UsageError):
    """A name that is not in a registry."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownMethod:
        """Make the error for `name`, with the nearest of the `known` names."""
        names = sorted(known)
        near = get_close_matches(name, names, n=3)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif len(names) <= MOST_NAMED:
            hint = f"known: {', '.join(names)}"
        else:
            hint = f"{len(names)} are known: see gifthorse list"
        return cls(f"no {kind} is called {name!r}: {hint}")


class BadOption(UsageError):
    """An option does not exist, or its value does not fit."""


class BadImages(UsageError):
    """The images cannot be used as given."""


class ShapeMismatch(UsageError):
    """A tensor has another shape than the function needs."""


class NotApplicable(UsageError):
    """A method cannot be used on this model, or on these images, whatever its options.

    Or only with others than it was given: that no net has such a layer, or no set so many images,
    is known when the method meets them. A bench records it and goes on.
    """


class Unwritable(UsageError):
    """A file cannot be written: no such folder, no permission, no room."""

    exit_code = 2


class UnreadableModel(GifthorseError):
    """The model file cannot be opened.

    Attributes:
        origin: What is known of the bytes that were looked at, an `Origin`; None if nobody came so
            far as to look.
    """

    origin: Any = None


class UnsafeModel(UnreadableModel):
    """Opening the file would run code that came with it."""


class UnknownArch(UnreadableModel):
    """No architecture fits the tensors of the file."""


class UnfitNet(UnreadableModel):
    """The net of the file cannot be run on the images, or returns nothing that could be scanned."""


class SeveralNets(UnreadableModel):
    """Several parts of the file are whole nets, and nobody said which is meant."""


class Unfetched(GifthorseError):
    """A hub does not give a model: it does not answer, or does not let one in."""


class Incomplete(GifthorseError):
    """Something was not examined, so there is no verdict."""

    exit_code = 3


class Halted(BaseException):
    """A computation was left between two of its parts, since it must stop; the message says why.

    No `Exception`, as an interrupt is none: what catches whatever a stranger's net raises must not
    take it for a fault of the net.
    """


EXHAUSTED = ("can't allocate memory", "out of memory", "bad_alloc", "failed to map segment")


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the machine or of the device.

    Example:
        >>> exhausted(MemoryError()), exhausted(RuntimeError("CUDA out of memory."))
        (True, True)
    """
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(text in words for text in EXHAUSTED)
