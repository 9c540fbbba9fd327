"""Images whose labels stand in a table: which table, and which file each of its rows means."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from gifthorse.core.errors import BadImages
from gifthorse.core.files import is_regular
from gifthorse.data.files import FolderContents, ImageEntry, gather, shown, sort_out, walk
from gifthorse.data.gallery import Gallery, Wanted
from gifthorse.data.tables import ENDINGS, TABLES, load_table, names_files_and_labels, number_labels


def find_table(folder: Path) -> Path | None:
    """Return the table of labels in a folder, by its usual names or by its columns.

    Raises:
        BadImages: If several could be meant.
    """
    for name in TABLES:
        if is_regular(folder / name):
            return folder / name
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in ENDINGS and is_regular(path) and names_files_and_labels(path)
    ]
    if len(found) > 1:
        names = ", ".join(shown(path.name) for path in found[:4])
        raise BadImages(f"{folder} holds several tables of labels ({names}): name one of them")
    return found[0] if found else None


def read_table(source: str, wanted: Wanted) -> Gallery:
    """Read a folder by the table of labels in it, or by a table given itself."""
    given = Path(source)
    table = (find_table(given) or given / TABLES[0]) if given.is_dir() else given
    root = table.parent
    rows = load_table(table)
    numbers, class_names, note = number_labels(label for _, label in rows if label)
    files = walk(root)
    places = _Places(root, files, [file for file, _ in rows])
    entries: list[ImageEntry] = []
    skipped: list[str] = []
    for file, label in rows:
        if reason := _unfit(file, label):
            skipped.append(f"{shown(file[:200])} {reason}")
        elif label not in numbers:
            skipped.append(f"{shown(file)} has the label {label[:40]!a}, which is no class number")
        else:
            path = places.of(file)
            name = path.relative_to(root).as_posix() if path in places.known else file
            entries.append(ImageEntry(path, name, numbers[label]))
    named = {entry.path for entry in entries}
    others = [e for e in sort_out(files, root)[0] if e.path not in named]
    skipped += [f"{shown(e.name)} is not in {table.name}" for e in others]
    found = FolderContents(source, "file", tuple(entries), class_names, (note,), tuple(skipped))
    return gather(found, wanted)


def _unfit(file: str, label: str) -> str:
    for path in (PurePosixPath(file), PureWindowsPath(file)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            return "leads out of the folder"
    return "" if label else "has no label"


class _Places:
    """Finds the files that a table names, also as another system writes them.

    Backslashes count as slashes, letters and accents may be composed or not, and capitals do not
    count unless two files differ by them alone. If a table names no file where it is, files are
    found by their last names.
    """

    def __init__(self, root: Path, files: Sequence[Path], rows: Sequence[str]) -> None:
        self.root, self.known = root, set(files)
        self._alike: dict[str, list[Path]] = defaultdict(list)
        self._ends: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            self._alike[_key(path.relative_to(root).as_posix())].append(path)
            self._ends[_key(path.name)].append(path)
        self._by_end = not any(self._found(file) for file in rows)

    def of(self, file: str) -> Path:
        """Return the file that is meant, or where it should be."""
        end = self._ends[_key(file).rpartition("/")[2]] if self._by_end else []
        return self._found(file) or (end[0] if len(end) == 1 else self.root / file)

    def _found(self, file: str) -> Path | None:
        if self.root / file in self.known:
            return self.root / file
        alike = self._alike.get(_key(file), [])
        return alike[0] if len(alike) == 1 else None


def _key(name: str) -> str:
    r"""Return what names have in common that only differ by the system they were written on.

    Example:
        >>> _key("IMG\\\\A.png") == _key("img/a.png")
        True
    """
    posix = PurePosixPath(name.replace("\\", "/")).as_posix()
    return unicodedata.normalize("NFC", posix).casefold()
