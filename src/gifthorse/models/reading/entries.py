"""What a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field


def shown(text: str, limit: int = 200) -> str:
    """Return text from a file, fit to print: one line, no control or bidi marks, cut at `limit`.

    Example:
        >>> shown("a" + chr(27) + "[2J")
        'a?[2J'
    """
    cut = text[:limit] + "..." * (len(text) > limit)
    return "".join(c if c.isprintable() else "?" for c in cut)


# Data types that can be cast to float32 or kept; all others are refused by name.
_PLAIN = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
PLAIN = frozenset(_PLAIN.split())


@dataclass(frozen=True)
class CheckpointEntry:
    """One leaf of a checkpoint.

    Attributes:
        path: Keys from the outermost container to the leaf.
        type: Data type of a tensor, e.g. `float32` or `quantized qint8`; else a type's name.
        shape: Of a tensor; None for everything else.
        place: Where the numbers of a tensor of a pickle lie, the same for one that is there twice.
    """

    path: tuple[str, ...]
    type: str
    shape: tuple[int, ...] | None = None
    place: str = field(default="", compare=False)
