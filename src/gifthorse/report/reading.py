"""Results that earlier scans wrote, read again; whoever wrote them is not trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gifthorse.core.errors import UsageError
from gifthorse.core.files import read_json
from gifthorse.report.json import SCHEMA_VERSION, ScanResult
from gifthorse.report.words import printable

LARGEST = 64 << 20  # bytes of a result


def read_results(path: Path) -> tuple[ScanResult, ...]:
    """Read a JSON result of `gifthorse scan`, of one model or of many; null numbers become NaN.

    Raises:
        UsageError: If it cannot be read, or is no such result.
    """
    try:
        tree = read_json(path, LARGEST)
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}): give what `-o json=` wrote") from error
    try:
        many = tree.get("scans") if isinstance(tree, dict) else None
        return tuple(map(checked, many if isinstance(many, list) else [tree]))
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(map(str, first["loc"])), 80) or "the whole"
        raise UsageError(
            f"{path} is no result of `gifthorse scan -o json=` (schema version "
            f"{SCHEMA_VERSION}): {place}: {first['msg']}"
        ) from error


def result_files(sources: Iterable[Path]) -> tuple[Path, ...]:
    """Return files as they are, and of folders the JSON files in them, by name.

    Raises:
        UsageError: If a folder has none.
    """
    found: list[Path] = []
    for source in sources:
        inner = sorted(source.rglob("*.json")) if source.is_dir() else [source]
        if not inner:
            raise UsageError(f"there is no .json file in {source}: write some with scan -o json=")
        found += inner
    return tuple(dict.fromkeys(found))


def checked(tree: Any) -> ScanResult:
    """Return the result that parsed JSON holds; numbers that are null in it become NaN.

    Raises:
        ValidationError: If it is none.
    """
    try:
        return _adapter().validate_python(tree)
    except ValidationError as error:
        gaps = [
            e["loc"] for e in error.errors() if e["type"] == "float_type" and e["input"] is None
        ]
        if len(gaps) < error.error_count():
            raise
        for *way, last in gaps:
            _inside(tree, way)[last] = math.nan
        return _adapter().validate_python(tree)


def _inside(tree: Any, way: Sequence[int | str]) -> Any:
    for step in way:
        tree = tree[step]
    return tree


@cache
def _adapter() -> TypeAdapter[ScanResult]:
    return TypeAdapter(ScanResult)
