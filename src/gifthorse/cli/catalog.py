"""What there is, by name: for `gifthorse list` and `gifthorse explain`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from textwrap import shorten, wrap
from typing import Any

from gifthorse.attacks import ATTACKS
from gifthorse.core.errors import UnknownMethod
from gifthorse.core.options import allowed, describe, meaning
from gifthorse.data import READERS
from gifthorse.data.packed import PACKED
from gifthorse.detection import BESIDE, DETECTORS, PRESETS, SECOND
from gifthorse.filtering import FILTERS
from gifthorse.inversion import INVERTERS
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.models.zoo import NETS
from gifthorse.remedies import REMEDIES
from gifthorse.report import WRITERS
from gifthorse.report.words import RULES

KINDS: dict[str, Mapping[str, Any]] = {
    "attacks": ATTACKS,
    "datasets": PACKED,
    "detectors": DETECTORS,
    "filters": FILTERS,
    "formats": WRITERS,
    "inverters": INVERTERS,
    "models": NETS,
    "normalizations": NORMALIZATIONS,
    "presets": PRESETS,
    "readers": READERS,
    "remedies": REMEDIES,
    "rules": RULES,
}
SHOWN = 3  # options by which a variant is told
COLUMN = 25  # where a table goes on behind the names
SINGULAR = {"remedies": "remedy"}
METHODS = (
    "detectors",
    "attacks",
    "inverters",
    "filters",
    "remedies",
)  # where `explain` looks first


def kinds() -> str:
    """Return the kinds, each with how many there are of it and the first names."""
    lines = []
    for kind, known in KINDS.items():
        names = shorten(", ".join(sorted(known)), 80 - COLUMN - 4, placeholder=" ...")
        lines.append(f"{kind:{COLUMN}}{len(known):3} {names}")
    return "\n".join(lines)


def entries(kind: str) -> dict[str, str]:
    """Return the names of a kind, each with a line about it.

    Raises:
        UnknownMethod: If there is no such kind.
    """
    if kind not in KINDS:
        raise UnknownMethod.among("kind", kind, KINDS)
    known = KINDS[kind]
    lines = {name: _line(kind, name, known[name]) for name in sorted(known)}
    first: dict[str, str] = {}  # of those that are told alike, the one with the shortest name
    for name in sorted(lines, key=len):
        base = first.setdefault(lines[name] or name, name)
        if base != name:
            lines[name] = _variant(base, known[base], known[name])
    return lines


def table(kind: str) -> str:
    """Return the names of a kind, each with what it is, as lines of at most 80 columns.

    A name that leaves no room for that has a line of its own.

    Raises:
        UnknownMethod: If there is no such kind.
    """
    lines, gap = [], " " * COLUMN
    for name, about in entries(kind).items():
        said = wrap(about, 80, initial_indent=gap, subsequent_indent=gap)
        if said and len(name) < COLUMN:
            said[0] = f"{name:{COLUMN}}{said[0].lstrip()}"
        else:
            said.insert(0, name)
        lines += said
    return "\n".join(lines)


def explain(name: str) -> str:
    """Return what a method does, assumes and costs, its source and its options; or a rule.

    Raises:
        UnknownMethod: If nothing is called that.
    """
    for kind in METHODS:
        if name in KINDS[kind]:
            return _method(name, SINGULAR.get(kind, kind[:-1]), KINDS[kind][name])
    if name in RULES:
        return f"{name}: {RULES[name]}"
    everything = {n for kind in METHODS for n in KINDS[kind]} | set(RULES)
    raise UnknownMethod.among("method or rule", name, everything)


def _method(name: str, kind: str, method: Any) -> str:
    parts = [f"{name} ({kind}, {type(method).__name__})", "", inspect.getdoc(method) or ""]
    inner = getattr(method, "inverter", None)
    if kind == "detector" and inner is not None:
        parts += ["", f"Inverter: {type(inner).__name__}", "", inspect.getdoc(inner) or ""]
    parts += ["", "Options (--set NAME=VALUE):"]
    for key, value in describe(method).items():
        parts.append(f"  {key:28} {value}")
        limit = allowed(method, key)
        about = f"[{limit}] " if limit else ""
        about += meaning(method, key) if "." in key else ""  # else the text above explains it
        parts += wrap(about, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(parts)


def _variant(base: str, one: Any, other: Any) -> str:
    """Return what a method has otherwise than one that is described alike."""
    usual = describe(one)
    unlike = [f"{k}={v}" for k, v in describe(other).items() if usual.get(k) != v]
    more = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
    return f"{base} with {', '.join(unlike[:SHOWN])}{more}"


def _line(kind: str, name: str, thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    if kind == "presets":
        near, more = BESIDE.get(name, ()), SECOND.get(name, ())
        beside = f"; beside them {', '.join(near)}" if near else ""
        return ", ".join(thing) + beside + (f"; in doubt {', '.join(more)}" if more else "")
    if kind == "normalizations":
        return f"mean {thing.mean}, std {thing.std}"
    if kind == "models":
        return ""
    inner = getattr(thing, "inverter", thing) if kind == "detectors" else thing
    doc = inspect.getdoc(inner) or ""
    first = doc.splitlines()[0] if doc else ""
    if kind == "formats":  # a function says what it returns, a list what a thing is
        first = first.removeprefix("Return ")
    return first[:1].upper() + first[1:]
