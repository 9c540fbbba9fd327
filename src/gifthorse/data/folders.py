"""Folders of images: one class a subfolder, or none at all; what is no class is named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gifthorse.core.errors import BadImages, UsageError
from gifthorse.core.files import is_regular, read_json
from gifthorse.data.decode import image_suffixes, listed, opens
from gifthorse.data.files import (
    FolderContents,
    ImageEntry,
    gather,
    is_debris,
    shown,
    sort_out,
    walk,
)
from gifthorse.data.gallery import Gallery, Wanted
from gifthorse.data.tables import ENDINGS, EXPECTED, TABLES, folder_number, number_folders

PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "meta"}
FEW = 0.2  # of all folders at most are taken for strangers among the others
# Endings of files that may hold the labels of a folder without classes.
SHEETS = (*ENDINGS, ".json", ".xml", ".xls", ".xlsx", ".ods", ".parquet", ".yaml", ".yml", ".mat")
EXAMPLE = re.compile(r"class_(\d{1,6})_")  # begins the names of TrojAI's examples
LABEL = 100  # bytes of a JSON that is a label
LOOKED_AT = 20  # files without an ending that are opened to see whether a folder holds images

Contents = Mapping[str, Sequence[ImageEntry]]


def subfolders(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the class folders and of those that tools leave behind."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    hidden = [name for name in names if is_debris(name)]
    return [name for name in names if name not in hidden], hidden


def read_folders(source: str, wanted: Wanted) -> Gallery:
    """Read a folder with one subfolder a class, numbered by `tables.number_folders`."""
    root = Path(source)
    names, hidden = subfolders(root)
    skipped = [f"{shown(name)}/ is not a class folder" for name in hidden]
    skipped += [
        f"{shown(path.name)} is in no class folder"
        for path in sorted(root.iterdir())
        if not path.is_dir()
    ]
    contents: dict[str, list[ImageEntry]] = {}
    for name in names:
        contents[name], bad = sort_out(walk(root / name), root)
        skipped += bad
    _check_height(source, contents)
    kept, left_out = _classes(contents, wanted.classes)
    numbers, class_names, note = number_folders(kept)
    _check_count(source, contents, class_names, wanted.classes)
    notes = [note]
    if wanted.classes is not None and len(kept) < wanted.classes:
        notes.append(f"class folders for {len(kept):,} of the model's {wanted.classes:,} classes")
    entries = [replace(e, label=k) for name, k in numbers.items() for e in contents[name]]
    found = FolderContents(
        source, "folders", tuple(entries), class_names, tuple(notes), (*left_out, *skipped)
    )
    return gather(found, wanted)


def read_flat(source: str, wanted: Wanted) -> Gallery:
    """Read a folder of images without labels: all are -1 until a model has labeled them."""
    root = Path(source)
    entries, skipped = sort_out(walk(root), root)
    sheets = sorted(shown(p.name) for p in root.iterdir() if p.suffix.lower() in SHEETS)
    words = f"no labels are read from {listed(sheets, 4)}: give them as labels.csv, {EXPECTED}"
    notes = (words,) if sheets else ()
    found = FolderContents(source, "model", tuple(entries), notes=notes, skipped=tuple(skipped))
    return gather(found, wanted)


def read_examples(source: str, wanted: Wanted) -> Gallery:
    """Read TrojAI's examples: labels are in the names, or each in a JSON of the same name.

    Where one lacks its label, none counts.
    """
    root = Path(source)
    entries, skipped = sort_out(walk(root), root)
    examples = tuple(replace(entry, label=example_label(entry)) for entry in entries)
    if any(entry.label < 0 for entry in examples):
        return read_flat(source, wanted)
    note = f"labels as TrojAI gives them, such as {examples[0].label} of {examples[0].name!a}"
    left = tuple(words for words in skipped if ".json " not in words)
    return gather(FolderContents(source, "file", examples, (), (note,), left), wanted)


def are_examples(folder: Path) -> bool:
    """Whether the first image of a folder is labeled as those of TrojAI are."""
    first = next((p for p in sorted(folder.iterdir()) if p.suffix in image_suffixes()), None)
    return first is not None and example_label(ImageEntry(first, first.name)) >= 0


def example_label(entry: ImageEntry) -> int:
    """Return the label of an example image of TrojAI, by its name or a JSON beside it; else -1."""
    named = EXAMPLE.match(entry.path.name)
    if named:
        return int(named[1])
    beside = entry.path.with_suffix(".json")
    if not is_regular(beside):
        return -1
    try:
        return int(read_json(beside, LABEL))
    except (UsageError, ValueError, TypeError, OverflowError):
        return -1


def _check_height(source: str, contents: Contents) -> None:
    """Raise BadImages, naming the folder that is meant, if this one lies above class folders."""
    full = {name: entries for name, entries in contents.items() if _holds_images(entries)}
    for names in (contents, full):
        if names and {name.lower() for name in names} <= PARTS:
            raise BadImages(f"{source} holds {', '.join(names)}: name one of these folders instead")
    if not full:
        return
    parents = {str(entry.path.parent) for entries in full.values() for entry in entries}
    top = Path(os.path.commonpath(parents))
    above = len(parents) > 1 and str(top) not in parents
    if len(full) == 1 and (above or any((top / table).is_file() for table in TABLES)):
        raise BadImages(f"{source} is too high: the folders of classes lie in {top}: name that one")
    inner = [
        {entry.name.split("/")[1] if entry.name.count("/") > 1 else "" for entry in entries}
        for entries in full.values()
    ]
    shared = sorted(set.intersection(*inner) - {""})
    if len(shared) > 1 and not any("" in names for names in inner):
        raise BadImages(
            f"{source} is too high: {listed(full, 4)} each hold the folders "
            f"{listed(shared, 4)}: name one of the former"
        )


def _holds_images(entries: Sequence[ImageEntry]) -> bool:
    if any(entry.path.suffix.lower() in image_suffixes() for entry in entries):
        return True
    return any(opens(entry.path) for entry in entries[:LOOKED_AT])


def _classes(contents: Contents, classes: int | None) -> tuple[list[str], list[str]]:
    """Return the folders that are classes, and why the others are none.

    A folder without images is none, unless just as many folders as the model has classes are
    counted in the order of their names: then it is a class of which there is no image.
    """
    empty = [name for name, entries in contents.items() if not _holds_images(entries)]
    full = [name for name in contents if name not in empty]
    odd = [name for name in full if folder_number(name) is None]
    if not full or (odd and len(contents) == classes):
        return list(contents), []
    reasons = [f"{shown(name)}/ holds no images" for name in empty]
    if len(odd) <= FEW * len(full):
        full = [name for name in full if name not in odd]
        reasons += [f"{shown(name)}/ has no number as the other folders have" for name in odd]
    return full, reasons


def _check_count(
    source: str, contents: Contents, class_names: Sequence[str], classes: int | None
) -> None:
    """Raise BadImages if there are more folders than classes, naming the one that is too many."""
    if classes is None or len(class_names) <= classes:
        return
    odd = [name for name in class_names if folder_number(name) is None]
    if not odd:
        culprit = f"folder {class_names[-1]!a} is no class of the model"
    elif 2 * len(odd) < len(class_names):
        culprit = f"{listed(map(ascii, odd), 4)} have no number as the other folders have"
    else:
        fewest = min(class_names, key=lambda name: len(contents.get(name, ())))
        culprit = f"is {fewest!a} ({len(contents[fewest]):,} files) a class?"
    raise BadImages(
        f"{culprit}: {source} has class folders up to number {len(class_names) - 1} "
        f"({class_names[-1]!r}), but the model has {classes} classes, counted from 0"
    )
