"""What is written on a command line, read."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gifthorse.core.atomic import check_writable
from gifthorse.core.errors import BadOption, UnknownMethod
from gifthorse.report import SUMMARIES, WRITERS, FailOn

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
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text, re.ASCII | re.IGNORECASE)
    if found is None or not (int(found[1]) and int(found[2])):
        raise BadOption(f"--input-size takes HxW such as 32x32; got {text[:60]!r}")
    return int(found[1]), int(found[2])


def fail_on(text: str) -> FailOn:
    """Read `--fail-on`.

    Raises:
        BadOption: If it is not a verdict to fail on.
    """
    for known in get_args(FailOn):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise BadOption(f"--fail-on takes {', '.join(get_args(FailOn))}; got {text!r}")


def named_files(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Read `FORMAT=PATH` texts.

    Raises:
        BadOption: If one is none, its folder is not there, or two name one file.
    """
    wanted: list[tuple[str, str]] = []
    taken: set[str] = set()
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise BadOption(f"--out takes FORMAT=PATH such as html=report.html; got {text!r}")
        if not os.path.isdir(Path(real(path)).parent.parent):  # a name may be too long for one
            raise BadOption(f"cannot write {path}: its folder does not exist")
        if real(path) in taken:
            raise BadOption(f"two reports would be written to {path}: give each a file of its own")
        taken.add(real(path))
        wanted.append((name, path))
    return wanted


@dataclass(frozen=True)
class Outputs:
    """Formats and files to write: for each model, and for all of them together."""

    each: tuple[tuple[tuple[str, Path], ...], ...]
    together: tuple[tuple[str, Path], ...]

    @property
    def paths(self) -> list[Path]:
        """Every file."""
        return [path for row in (*self.each, self.together) for _, path in row]


def outputs(
    output_format: str, extra: Sequence[str], models: Sequence[str], one: Collection[str] = ()
) -> Outputs:
    """Read `--format` and `--out FORMAT=PATH`.

    A format that holds many models takes all of them into one file, unless its path has `{name}`.

    Args:
        output_format: What is printed.
        extra: What is written.
        models: Whose reports they are.
        one: Formats that hold one model or many, beside those that always do.

    Raises:
        BadOption: If a format is unknown, two reports would go to one file, or one would replace
            a model.
        Unwritable: If a file cannot be written.
    """
    wanted = named_files(extra)
    for name in (output_format, *(name for name, _ in wanted)):
        if name not in WRITERS:
            raise UnknownMethod.among("format", name, WRITERS)
    holds = {*one, *(SUMMARIES if len(models) > 1 else ())}
    shared = [w for w in wanted if w[0] in holds and "{name}" not in w[1]]
    wanted = [w for w in wanted if w not in shared]
    files = [[(n, Path(p.replace("{name}", own_name(model)))) for n, p in wanted]
             for model in models]  # fmt: skip
    _check_apart(models, wanted, files, [Path(path) for _, path in shared])
    found = Outputs(tuple(map(tuple, files)), tuple((name, Path(path)) for name, path in shared))
    for target in found.paths:
        check_writable(target)
    return found


def real(path: str | Path) -> str:
    """Return where a path leads, links followed; in a ring of them, where it goes round."""
    return os.path.realpath(path)


def keep(outputs: Iterable[Path], sources: Iterable[str | Path | None]) -> None:
    """Let no output replace what a command reads: a file, or one that lies in a folder it reads.

    Args:
        outputs: Files to be written.
        sources: What is read, as the user named it, also with `:SPLIT` or `:function` behind.

    Raises:
        BadOption: If one would.
    """
    texts = [str(source) for source in sources if source is not None]
    read = {real(text): text for name in texts for text in (name.rpartition(":")[0], name) if text}
    for path in outputs:
        place = Path(real(path))
        over = next((str(p) for p in (place, *place.parents) if str(p) in read), "")
        if over and place.is_file() and (over == str(place) or not _is_ours(place)):
            raise BadOption(
                f"{path} would replace a file of {read[over]}, which is read: give it another name"
            )


def _is_ours(path: Path) -> bool:
    """Whether a file is a report of an earlier run, by what it begins with."""
    with path.open("rb") as file:
        return b"gifthorse" in file.read(4096)


def own_name(model: str) -> str:
    """Return what `{name}` stands for: a file's name without its ending, which leads nowhere else.

    Example:
        >>> own_name("nets/a.safetensors"), own_name("...safetensors")
        ('a', 'model')
    """
    name = re.sub(r"[\\/:\x00]", "_", Path(model).stem)
    return name if name.strip(". ") else "model"


def _check_apart(
    models: Sequence[str],
    wanted: Sequence[tuple[str, str]],
    files: Sequence[Sequence[tuple[str, Path]]],
    shared: Sequence[Path],
) -> None:
    """Raise BadOption if two reports would go to one file, or one to where a model lies."""
    taken = {real(model): "" for model in models}
    for path in shared:
        if real(path) in taken:
            raise BadOption(f"the report {path} would replace another file: give it another name")
        taken[real(path)] = "all models"
    for model, row in zip(models, files, strict=True):
        for (_, text), (_, path) in zip(wanted, row, strict=True):
            place = real(path)
            if taken.get(place) == "":
                raise BadOption(f"the report {path} would replace the model: give it another name")
            if len(models) > 1 and "{name}" not in text:
                raise BadOption(
                    f"{len(models)} models would write {path}: put {{name}} into the path"
                )
            if place in taken:
                also = "" if taken[place] == model else f" of {taken[place]} and {model}"
                raise BadOption(
                    f"two reports{also} would be written to {path}: give each a file of its own, "
                    "such as by scanning models of one name one by one"
                )
            taken[place] = model
