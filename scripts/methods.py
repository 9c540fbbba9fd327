"""Write docs/methods.md from what `gifthorse explain` knows: docstrings and defaults.

python scripts/methods.py          # writes docs/methods.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gifthorse.attacks import ATTACKS
from gifthorse.detection import DETECTORS, Inspector
from gifthorse.examine import STANDARD
from gifthorse.inversion import INVERTERS
from gifthorse.options import describe

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """\
# Methods

This page is made from the code by `python scripts/methods.py`; a test compares the two. The same
text comes from `gifthorse explain NAME`, and every option can be changed with `--set NAME=VALUE`.
Why a method departs from its paper stands under *Differs*.
"""
DETECTION = """\
## Detectors

Every detector is an `Inspector` around an inverter. Its own options come first.
"""
VALUES = """\
### What the detectors are made of

`gifthorse scan` runs {} unless `--detector` names others. An empty field is an option that the
detector's inverter does not have.
"""


def page() -> str:
    """Return docs/methods.md."""
    parts = [HEAD, "## Attacks\n", "They exist to make labeled test models for defenses.\n"]
    parts += [method(name, attack) for name, attack in ATTACKS.items()]
    parts += [DETECTION, prose(Inspector), attributes(next(iter(DETECTORS.values())), depth=1)]
    standard = ", ".join(f"`{name}`" for name in STANDARD)
    parts += [VALUES.format(standard), presets(DETECTORS), "## Inverters\n"]
    parts += [method(name, inverter) for name, inverter in INVERTERS.items()]
    return "\n".join(parts)


def method(name: str, thing: object) -> str:
    """Return the section of one method."""
    return f"### {name}\n\n{prose(type(thing))}\n{attributes(thing)}"


def prose(kind: type) -> str:
    """Return a class's docstring without its attributes."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    kept = (p for p in paragraphs if not p.startswith("Attributes:"))
    return "".join(f"{p.replace('Source:', '*Source:*').replace('Differs:', '*Differs:*')}\n\n"
                   for p in kept).rstrip() + "\n"  # fmt: skip


def attributes(thing: object, depth: int = 9) -> str:
    """Return a table of a method's options down to a depth: name, default, meaning."""
    rows = [
        (f"`{name}`", f"`{value}`", meaning(thing, name))
        for name, value in describe(thing).items()
        if name.count(".") < depth
    ]
    return table(("option", "default", "meaning"), rows)


def meaning(thing: object, name: str) -> str:
    """Return what the docstring of the dataclass that owns a dotted option says about it."""
    *outer, last = name.split(".")
    for part in outer:
        thing = getattr(thing, part)
    text = inspect.getdoc(type(thing)) or ""
    found = re.search(rf"^    {last}: (.*(?:\n        .*)*)", text, re.MULTILINE)
    assert found is not None, f"{type(thing).__name__} does not say what {last} is"
    return " ".join(found[1].split()).replace("|", "\\|")


def presets(detectors: Mapping[str, Any]) -> str:
    """Return a table of all options of the detectors' inverters, a column a detector."""
    options = {
        name: {"inverter": type(d.inverter).__name__, "turns": type(d.turns).__name__} | describe(d)
        for name, d in detectors.items()
    }
    names = dict.fromkeys(n for values in options.values() for n in values)
    rows = [
        (f"`{n}`", *(f"`{v[n]}`" if n in v else "" for v in options.values()))
        for n in names
        if n in ("inverter", "turns") or "." in n
    ]
    return table(("option", *options), rows)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
