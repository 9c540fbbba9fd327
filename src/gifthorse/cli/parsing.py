"""What is written on a command line, read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from gifthorse.core.errors import BadOption, UnknownMethod
from gifthorse.report import WRITERS, FailOn

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def pairs(options: list[str] | None) -> dict[str, str]:
    """Read `name=value` texts.

    Raises:
        BadOption: If one has no `=`.
    """
    out = {}
    for text in options or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadOption(f"--set takes NAME=VALUE; got {text!r}")
        out[name.strip()] = value.strip()
    return out


def classes(text: str) -> tuple[int, ...]:
    """Read class numbers and ranges of them.

    Raises:
        BadOption: If it is something else.

    Example:
        >>> classes("0,3,7-9")
        (0, 3, 7, 8, 9)
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        row = range(int(found[1]), int(found[2] or found[1]) + 1) if found else range(0)
        if not row:
            raise BadOption(f"--classes takes numbers and ranges such as 0,3,7-9; got {text!r}")
        numbers |= set(row)
    return tuple(sorted(numbers))


def seconds(text: str | None) -> float | None:
    """Read a time as seconds.

    Raises:
        BadOption: If it is something else, or none at all.

    Example:
        >>> seconds("90"), seconds("1.5s"), seconds("10m"), seconds("1h")
        (90.0, 1.5, 600.0, 3600.0)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh]?)", text.strip(), re.ASCII)
    if found is None or not float(found[1]):
        raise BadOption(f"--time-limit takes a time such as 90, 90s, 10m or 1h; got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def size(text: str | None) -> tuple[int, int] | None:
    """Read `HxW`.

    Raises:
        BadOption: If it is something else.

    Example:
        >>> size("32x48")
        (32, 48)
    """
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise BadOption(f"--input-size takes HxW such as 32x32; got {text!r}")
    return int(height), int(width)


def fail_on(text: str) -> FailOn:
    """Read `--fail-on`.

    Raises:
        BadOption: If it is not a verdict to fail on.
    """
    for known in get_args(FailOn):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise BadOption(f"--fail-on takes {', '.join(get_args(FailOn))}; got {text!r}")


def outputs(
    output_format: str, extra: Sequence[str], models: int
) -> tuple[tuple[str, Path | None], ...]:
    """Read `--format` and `--out FORMAT=PATH`: (format, path or None for standard output).

    Raises:
        BadOption: If a format is unknown, or several models would write one file.
    """
    wanted: list[tuple[str, Path | None]] = [(output_format, None)]
    for text in extra:
        name, equals, path = text.partition("=")
        if not equals:
            raise BadOption(f"--out takes FORMAT=PATH such as html=report.html; got {text!r}")
        if models > 1 and "{name}" not in path:
            raise BadOption(f"{models} models would write {path}: put {{name}} into the path")
        wanted.append((name, Path(path)))
        if not Path(path).resolve().parent.parent.is_dir():
            raise BadOption(f"cannot write {path}: its folder does not exist")
    for name, _ in wanted:
        if name not in WRITERS:
            raise UnknownMethod.among("format", name, WRITERS)
    return tuple(wanted)
