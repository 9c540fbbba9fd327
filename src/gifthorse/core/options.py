"""Options are dataclass fields: read them by dotted name, change them in a typed copy."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import limits

M = TypeVar("M")

RENAMED = {  # what parts of options' dotted names were called in version 0.1, and may be now
    "pace": ("config", "delta_lr"),
    "terms": ("evaluation",),
    "turns": ("scheduler",),
    "bar": ("success_threshold",),
    "chunk": ("max_batch",),
    "floor": ("min_steps",),
    "gain": ("min_delta",),
    "heed": ("failed_test_patience",),
    "images": ("max_images",),
    "least": ("min_rounds",),
    "notch": ("min_improvement",),
    "settle": ("warmup",),
    "wait": ("patience",),
}


def describe(method: object) -> dict[str, Any]:
    """Return every option of a method by dotted name, with its value.

    Example:
        >>> from gifthorse.training import Recipe
        >>> describe(Recipe(epochs=3))["epochs"]
        3
    """
    out: dict[str, Any] = {}
    for f in fields(method):  # type: ignore[arg-type]
        value = getattr(method, f.name)
        if is_dataclass(value):
            out |= {f"{f.name}.{name}": inner for name, inner in describe(value).items()}
        else:
            out[f.name] = value
    return out


def meaning(method: object, name: str) -> str:
    """Return what the docstring of a method's class says of an option, in one line.

    Args:
        method: A frozen dataclass instance.
        name: Dotted name of the option: `recipe.epochs`.

    Example:
        >>> from gifthorse.training import Recipe
        >>> meaning(Recipe(), "epochs")
        'Passes over the training set.'
    """
    kind, last = _owner(method, name)
    words = inspect.getdoc(kind) or ""
    found = re.search(rf"^    {last}: (.*(?:\n {{8}}.*)*)", words, re.MULTILINE)
    return " ".join(found.group(1).split()) if found else ""


def allowed(method: object, name: str) -> str:
    """Return what an option's values must be, in words; nothing if the type says it all.

    Args:
        method: A frozen dataclass instance.
        name: Dotted name of the option: `recipe.epochs`.

    Example:
        >>> from gifthorse.training import Recipe
        >>> allowed(Recipe(), "batch")
        'at least 1'
    """
    kind, last = _owner(method, name)
    return limits(kind).get(last, "")


def vary(method: M, options: Mapping[str, Any]) -> M:
    """Return a copy of a method with some options changed; text is read as the field's type.

    Args:
        method: A frozen dataclass instance.
        options: Values by dotted name: `{"rate": "0.05", "recipe.epochs": "5"}`.

    Raises:
        BadOption: If a name does not exist or a value does not fit its type.

    Example:
        >>> from gifthorse.training import Recipe
        >>> vary(Recipe(), {"epochs": "5"}).epochs
        5
    """
    every = describe(method)
    for name in options:  # before any part of the name is cut off
        if name not in every and (new := renamed(name, every)):
            raise BadOption(f"option {name} is now {new}")
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        head, _, rest = name.partition(".")
        if head not in known or (rest and not is_dataclass(getattr(method, head))):
            raise BadOption(_unknown(method, name))
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changed[head] = _read(type(method), head, value)
    # All at once, so that options which only fit together may come in any order.
    for head, rest_of in inner.items():
        changed[head] = vary(getattr(method, head), rest_of)
    return replace(method, **changed)  # type: ignore[type-var]


def _owner(method: object, name: str) -> tuple[type, str]:
    *path, last = name.split(".")
    for part in path:
        method = getattr(method, part)
    return type(method), last


def renamed(name: str, known: Collection[str]) -> str:
    """Return what an option of version 0.1 is called now; nothing if it is none of the known.

    Args:
        name: Dotted name of an option, or of a group of them, that does not exist.
        known: Dotted names of those that do.

    Example:
        >>> renamed("inverter.wait", ["inverter.patience", "inverter.up"])
        'inverter.patience'
    """
    ways = product(*((part, *RENAMED.get(part, ())) for part in name.split(".")))
    there = {".".join(k.split(".")[:n]) for k in known for n in range(1, k.count(".") + 2)}
    return next((new for new in map(".".join, ways) if new != name and new in there), "")


def suggestion(name: str, known: Collection[str]) -> str:
    """Return what to try in place of an option that does not exist, in words; nothing if unknown.

    Args:
        name: Dotted name as it was given.
        known: Dotted names of the options that there are.
    """
    if new := renamed(name, known):
        return f"{name} is now {new}"
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _read(kind: type, name: str, value: Any) -> Any:
    hint = get_type_hints(kind)[name]
    adapter = TypeAdapter(hint)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9_]{19,}", value.strip()):
        raise BadOption(f"option {name} of {kind.__name__} cannot be {value[:40]}: it is too large")
    attempts = [value]
    if isinstance(value, str) and value[:1] in "[{n":  # lists, tables and null are JSON
        with suppress(json.JSONDecodeError):
            attempts.append(json.loads(value))
    error: ValidationError | None = None
    for attempt in attempts:
        try:
            return adapter.validate_python(attempt)
        except ValidationError as caught:
            error = caught
    assert error is not None
    reason = "; ".join(
        ": ".join((*map(str, e["loc"]), e["msg"].lower())) for e in error.errors()[:2]
    )
    raise BadOption(f"option {name} of {kind.__name__} cannot be {value!r}: {reason}")


def _unknown(method: object, name: str) -> str:
    names = sorted(describe(method))
    hint = suggestion(name, names) or f"it has: {', '.join(names)}"
    return f"{type(method).__name__} has no option {name}: {hint}"
