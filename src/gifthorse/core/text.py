"""Foreign text made harmless: for terminals, where characters act, and for spreadsheets."""

from __future__ import annotations

import unicodedata

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is computed


def inert(text: str) -> str:
    r"""Return text without what acts on a terminal: escapes, bidirectional marks, bells.

    Line breaks stay. Other white space becomes a space, a lone surrogate the replacement character.

    Example:
        >>> inert("a\x1b[31mb\u202e\n  c\td")
        'a[31mb\n  c d'
    """
    return "\n".join("".join(map(visible, line)) for line in text.split("\n"))


def visible(character: str) -> str:
    """Return what may be shown in place of one character."""
    category = unicodedata.category(character)
    if character in "\t\n\r\v\f" or category in ("Zl", "Zp"):
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category in ("Cc", "Cf") else character


def cell(value: object) -> object:
    """Return a value for a CSV cell; text that a spreadsheet would compute gets a quote before it.

    Example:
        >>> cell("=cmd()"), cell("stop"), cell(-0.5)
        ("'=cmd()", 'stop', -0.5)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
