"""Labels beside the images: `labels.csv` or `labels.json`, and class numbers from names."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gifthorse.core.errors import BadImages, UsageError
from gifthorse.core.files import read_file
from gifthorse.data.gallery import MOST_CLASSES

TABLES = ("labels.csv", "labels.json")
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl")  # of tables that are known by their columns
# Names of columns without marks and spaces, the likeliest first; GTSRB has Filename and ClassId,
# one of its copies Path.
FILE_COLUMNS = ("file", "filename", "image", "path", "filepath", "imagepath", "imagefile", "img")
LABEL_COLUMNS = ("label", "class", "target", "classid", "labelid", "classlabel", "category")
EXPECTED = (
    f"expected a column {' or '.join(FILE_COLUMNS[:4])} and a column "
    f"{' or '.join(LABEL_COLUMNS[:4])}"
)
MOST_BYTES = 256 * 2**20
MOST_LABEL = 1_000_000
NUMBERED = 0.8  # share of labels that are numbers from which the others are odd ones out
UNKNOWN = {"", "?", "-", "na", "n/a", "nan", "none", "null", "unknown", "unlabeled", "unlabelled"}


def load_table(path: Path) -> tuple[tuple[str, str], ...]:
    """Return pairs of file name and label as text from a CSV or JSON file.

    CSV: a header line, separated by comma, semicolon, tab or bar. JSON: an object of file names
    and labels, a list of records, or one record a line.

    Raises:
        BadImages: The file cannot be parsed, or lacks a column.
    """
    try:
        text = _decoded(read_file(path, MOST_BYTES))
        rows = _json(text) if path.suffix.lower().startswith(".json") else _csv(text)
    except (UsageError, ValueError, RecursionError, csv.Error) as error:
        raise BadImages(f"{path} cannot be read as a table of labels: {error}") from error
    return tuple(_pair(row, path) for row in rows)


def names_files_and_labels(path: Path) -> bool:
    """Whether the first line of a file names a column of files and one of labels."""
    try:
        with path.open("rb") as file:
            text = _decoded(file.readline(10_000))
        lines = path.suffix.lower() == ".jsonl"
        keys = [_bare(key) for key in (_json(text)[0] if lines else next(_reader(text)))]
    except (OSError, ValueError, IndexError, RecursionError, StopIteration, csv.Error):
        return False
    return bool({*FILE_COLUMNS} & {*keys}) and bool({*LABEL_COLUMNS} & {*keys})


def _decoded(content: bytes) -> str:
    """Return text in UTF-8, in UTF-16 if it says so, or else as old spreadsheets write it."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _reader(text: str) -> Iterator[list[str]]:
    first, _, rest = text.partition("\n")
    if re.fullmatch(r"sep=.\s*", first):  # what Excel tells itself
        text = rest
    header = next(iter(text.splitlines()), "")
    mark = max(",;\t|", key=header.count)
    return csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)


def _csv(text: str) -> list[dict[str, Any]]:
    rows = _reader(text)
    header = next(rows, [])
    return [dict(zip_longest(header, row[: len(header)])) for row in rows if any(row)]


def _json(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(line.lstrip()[0] == "{" and line.rstrip()[-1] == "}" for line in lines):
        records = [json.loads(line) for line in lines]  # one a line
        if len(lines) > 1 or {*FILE_COLUMNS} & {*map(_bare, records[0])}:
            return records
    loaded = json.loads(text)
    if isinstance(loaded, dict):
        return [{"file": file, "label": label} for file, label in loaded.items()]
    if isinstance(loaded, list) and all(isinstance(row, dict) for row in loaded):
        return loaded
    raise ValueError("expected an object of file names and labels, or records in a list or lines")


def _bare(name: object) -> str:
    """Return the name of a column without what people write it with: `Class_Id` is `classid`."""
    return re.sub(r"[\s_.\-]+", "", str(name)).lower()


def _pair(row: Mapping[str, Any], path: Path) -> tuple[str, str]:
    lower = {_bare(key): value for key, value in row.items()}
    file = next((lower[key] for key in FILE_COLUMNS if key in lower), None)
    label = next((lower[key] for key in LABEL_COLUMNS if key in lower), "")
    if not isinstance(file, str) or not set(LABEL_COLUMNS) & set(lower):
        given = ", ".join(str(key).strip()[:40] for key in list(row)[:12])
        raise BadImages(f"{path} has the columns {given}; {EXPECTED}")
    if label is not None and not isinstance(label, str | int | float):
        raise BadImages(f"the label of {file!r} in {path} is {label!r}; expected a number or name")
    return file.strip(), "" if label is None else str(label).strip()


def number_labels(labels: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...], str]:
    """Give each label of a table its class number.

    Returns:
        Number by label, class names by number (empty if the labels are numbers), and a note. If
        nearly all are numbers, labels that are not, such as -1, have none.

    Example:
        >>> number_labels(["dog", "cat", "dog"])[:2]
        ({'cat': 0, 'dog': 1}, ('cat', 'dog'))
        >>> number_labels(["1.0", "2,0", "1.2e+01"])[0]
        {'1.0': 1, '1.2e+01': 12, '2,0': 2}
    """
    counts = Counter(labels)
    kinds = sorted(counts)
    numbers = {kind: k for kind in kinds if (k := _whole(kind)) is not None}
    unknown = [k for k in kinds if re.fullmatch(r"-[0-9.]+", k) or k.lower() in UNKNOWN]
    known = counts.total() - sum(counts[kind] for kind in unknown)
    if (numbers or not known) and sum(counts[kind] for kind in numbers) >= NUMBERED * known:
        return numbers, (), "labels taken as class numbers"
    return _alphabetical(kinds, "labels")


def _whole(label: str) -> int | None:
    """Return the whole number that a label is, as programs write it: `7`, `7.0`, `7,0`, `7e+00`."""
    plain = re.fullmatch(r"[0-9]{1,6}([.,][0-9]{1,30})?(e[+-]?[0-9]{1,2})?", label, re.IGNORECASE)
    value = float(label.replace(",", ".")) if plain else -1.0
    return int(value) if 0 <= value < MOST_LABEL and value.is_integer() else None


def folder_number(name: str) -> int | None:
    """Return the number that a folder's name starts with, as in `7` or `14_stop`, or None."""
    match = re.fullmatch(r"([0-9]{1,9})([_\- .].*)?", name)
    return int(match[1]) if match else None


def number_folders(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...], str]:
    """Give each class folder its class number.

    If all names start with a number, as in `7`, `00014` or `14_stop`, that is the class number;
    otherwise they are counted in alphabetical order, as torchvision's `ImageFolder` does.

    Returns:
        Number by folder, class names by number, and a note that says which rule was used.

    Raises:
        BadImages: Two folders have one number.

    Example:
        >>> number_folders(["10", "2_b"])[0]
        {'2_b': 2, '10': 10}
    """
    found = {name: folder_number(name) for name in names}
    numbers = {name: number for name, number in found.items() if number is not None}
    if len(numbers) < len(names) or max(numbers.values(), default=MOST_CLASSES) >= MOST_CLASSES:
        return _alphabetical(sorted(names), "folders")
    numbers = dict(sorted(numbers.items(), key=lambda item: item[1]))
    by_number = {number: name for name, number in numbers.items()}
    if len(by_number) < len(numbers):
        twice = next(name for name, number in numbers.items() if by_number[number] != name)
        raise BadImages(f"folders {twice!r} and {by_number[numbers[twice]]!r} have one number")
    class_names = tuple(by_number.get(i, str(i)) for i in range(max(by_number) + 1))
    span = f"{min(by_number)} to {max(by_number)}"
    return numbers, class_names, f"folder names taken as class numbers ({span})"


def _alphabetical(names: Sequence[str], what: str) -> tuple[dict[str, int], tuple[str, ...], str]:
    ends = names if len(names) <= 3 else (*names[:2], names[-1])
    example = ", ".join(f"{names.index(name)} = {name!a}" for name in ends)
    like = ", as torchvision's ImageFolder does" if what == "folders" else ""
    note = f"{what} numbered in alphabetical order{like}: {example}"
    return {name: i for i, name in enumerate(names)}, tuple(names), note
