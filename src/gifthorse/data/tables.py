"""Labels beside the images: `labels.csv` or `labels.json`, and class numbers from names."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gifthorse.core.errors import BadImages
from gifthorse.data.gallery import MOST_CLASSES

TABLES = ("labels.csv", "labels.json")
FILE_COLUMNS = ("file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "target")
EXPECTED = (
    f"expected a column {' or '.join(FILE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}"
)


def load_table(path: Path) -> tuple[tuple[str, str], ...]:
    """Return pairs of file name and label as text from a CSV or JSON file.

    CSV: a header line, separated by comma, semicolon or tab. JSON: an object of file names and
    labels, or a list of records.

    Raises:
        BadImages: The file cannot be parsed, or lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json(text) if path.suffix.lower() == ".json" else _csv(text)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise BadImages(f"{path} cannot be read as a table of labels: {error}") from error
    return tuple(_pair(row, path) for row in rows)


def _csv(text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    mark = max(",;\t", key=header.count)
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True))


def _json(text: str) -> list[dict[str, Any]]:
    loaded = json.loads(text)
    if isinstance(loaded, dict):
        return [{"file": file, "label": label} for file, label in loaded.items()]
    if isinstance(loaded, list) and all(isinstance(row, dict) for row in loaded):
        return loaded
    raise ValueError("expected an object of file names and labels, or a list of records")


def _pair(row: Mapping[str, Any], path: Path) -> tuple[str, str]:
    lower = {str(key).strip().lower(): value for key, value in row.items()}
    file = next((lower[key] for key in FILE_COLUMNS if key in lower), None)
    label = next((lower[key] for key in LABEL_COLUMNS if key in lower), "")
    if not isinstance(file, str) or not set(LABEL_COLUMNS) & set(lower):
        raise BadImages(f"{path} has the columns {', '.join(lower)}; {EXPECTED}")
    if label is not None and not isinstance(label, str | int | float):
        raise BadImages(f"the label of {file!r} in {path} is {label!r}; expected a number or name")
    return file.strip(), "" if label is None else str(label).strip()


def number_labels(labels: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...], str]:
    """Give each label of a table its class number.

    Returns:
        Number by label, class names by number (empty if the labels are numbers), and a note.

    Example:
        >>> number_labels(["dog", "cat", "dog"])[:2]
        ({'cat': 0, 'dog': 1}, ('cat', 'dog'))
    """
    kinds = sorted(set(labels))
    if all(re.fullmatch(r"[0-9]{1,6}(\.0+)?", kind) for kind in kinds):
        return {kind: int(float(kind)) for kind in kinds}, (), "labels taken as class numbers"
    return _alphabetical(kinds, "labels")


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
    matches = {name: re.fullmatch(r"([0-9]+)([_\- .].*)?", name) for name in names}
    numbers = {name: int(match[1]) for name, match in matches.items() if match}
    if len(numbers) < len(names) or max(numbers.values()) >= MOST_CLASSES:
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
