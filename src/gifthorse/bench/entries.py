"""Records as pages show them: read without trust, with names that tell methods apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gifthorse.core.errors import UsageError
from gifthorse.report import words

LABEL, TEXT = 80, 2000  # most characters that are shown of a label, and of any other text


@dataclass(frozen=True)
class Method:
    """An attack or a defense as records name it."""

    family: str
    name: str
    label: str
    options: tuple[tuple[str, str], ...] = ()


CLEAN = Method("attack", "", "clean")
BARE = Method("none", "", "no defense")


@dataclass(frozen=True)
class Value:
    """A figure with what is known of its precision; `n` counts trials."""

    value: float
    low: float | None = None
    high: float | None = None
    n: float | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """A record, read without trust: every text is printable and of bounded length."""

    key: str
    data: str
    net: str
    seed: int
    attack: Method
    defense: Method
    setting: tuple[tuple[str, str], ...]
    status: str
    error: str
    figures: Mapping[str, Value | None]
    words: Mapping[str, str]
    times: Mapping[str, float | str]
    command: str
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether its figures count."""
        return self.status == "ok"

    @property
    def place(self) -> tuple[Any, ...]:
        """What it has in common with the cells of one heat map."""
        return self.data, self.net, self.setting

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        known = self.times.get("seconds")
        return known if isinstance(known, float) else None


# 1. Reading -----------------------------------------------------------------------------------


def read(record: Mapping[str, Any]) -> Entry:
    """Return a record as an entry.

    Raises:
        UsageError: If it is no record of a cell.
    """
    key, cell = record.get("key"), record.get("cell")
    if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{8,64}", key):
        raise UsageError(f"a record's key must be hexadecimal digits; got {key!r:.80}")
    if not isinstance(cell, Mapping) or not isinstance(cell.get("seed"), int):
        raise UsageError(f"the record of {key} names no cell: delete it, and resume")
    return Entry(
        key=key,
        data=text(cell.get("data"), LABEL),
        net=text(cell.get("net"), LABEL),
        seed=int(cell["seed"]),
        attack=_method(cell.get("attack"), CLEAN),
        defense=_method(cell.get("defense"), BARE),
        setting=tuple(flat(cell.get("setting")).items()),
        status=text(record.get("status") or "error", LABEL),
        error=text(record.get("error") or ""),
        figures=_figures(record.get("figures")),
        words=flat(record.get("words")),
        times=_times(record.get("times")),
        command=text(record.get("command") or ""),
        about={part: flat(record.get(part)) for part in ("models", "versions", "machine")},
    )


def text(value: object, limit: int = TEXT) -> str:
    """Return anything as printable text on one line."""
    plain = str(value)
    short = len(plain) <= limit and plain.isprintable()
    return plain if short else words.printable(plain, limit)


def flat(table: object, front: str = "") -> dict[str, str]:
    """Return a table as dotted names and text, without what is empty."""
    out: dict[str, str] = {}
    for key, value in table.items() if isinstance(table, Mapping) else ():
        if isinstance(value, Mapping):
            out |= flat(value, f"{front}{text(key, LABEL)}.")
        elif value is not None:
            out[front + text(key, LABEL)] = text(value)
    return out


def _method(said: object, default: Method) -> Method:
    if not isinstance(said, Mapping):
        return default
    family, name = text(said.get("family"), LABEL), text(said.get("name"), LABEL)
    label = text(said.get("label") or name, LABEL)
    return Method(family, name, label, tuple(flat(said.get("options")).items()))


def _figures(said: object) -> dict[str, Value | None]:
    """Return figures with their companions folded into them."""
    raw = said if isinstance(said, Mapping) else {}
    known = {text(key, LABEL): number(value) for key, value in raw.items()}
    companion = re.compile("(.+)_(low|high|n)")
    out: dict[str, Value | None] = {}
    for name, value in known.items():
        found = companion.fullmatch(name)
        if found and found[1] in known:
            continue
        rest = (known.get(f"{name}_{end}") for end in ("low", "high", "n"))
        out[name] = None if value is None else Value(value, *rest)
    return out


def _times(said: object) -> dict[str, float | str]:
    raw = said if isinstance(said, Mapping) else {}
    return {
        text(key, LABEL): text(value) if number(value) is None else float(value)
        for key, value in raw.items()
        if value is not None
    }


def number(value: object) -> float | None:
    """Return a finite number as it is, None for anything else."""
    if not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None  # false of NaN, too


# 2. Names -------------------------------------------------------------------------------------


def titles(methods: Iterable[Method]) -> dict[Method, str]:
    """Return a name for each method: its label, and what sets it apart from others of that label.

    Example:
        >>> one, two = (Method("attack", "badnet", "bad", (("size", s),)) for s in "12")
        >>> list(titles([one, two, CLEAN]).values())
        ['bad (size 1)', 'bad (size 2)', 'clean']
    """
    by_label: dict[str, list[Method]] = {}
    for method in dict.fromkeys(methods):
        by_label.setdefault(method.label, []).append(method)
    out = {}
    for label, same in by_label.items():
        tables = [{"family": m.family, "method": m.name, **dict(m.options)} for m in same]
        for method, apart in zip(same, distinct(tables), strict=True):
            plain = method in (CLEAN, BARE) or not apart
            out[method] = label if plain else text(f"{label} ({apart})", 2 * LABEL)
    return out


def distinct(tables: Sequence[Mapping[str, str]]) -> list[str]:
    """Return in words what each table has that not all of them have."""
    names = dict.fromkeys(name for table in tables for name in table)
    apart = [name for name in names if len({table.get(name) for table in tables}) > 1]
    return [", ".join(f"{n} {t[n]}" for n in apart if t.get(n)) for t in tables]
