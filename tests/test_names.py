"""Names: no public class twice, and none of the words that the field has better ones for."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}

# Identifiers that were given up, whatever they name.
RETIRED = set(
    [
        "Adaptive",
        "Company",
        "Dice",
        "Divided",
        "Dossier",
        "Foes",
        "Form",
        "Guard",
        "Halving",
        "HeldNorms",
        "Hunt",
        "Intake",
        "Memory",
        "Pace",
        "Problem",
        "Received",
        "Spots",
        "Stage",
        "Standing",
        "Turns",
        "Turning",
        "Watched",
        "company",
        "drift",
        "exhibit",
        "foes",
        "heed",
        "hunt",
        "hunts",
        "intake",
        "meant",
        "notch",
        "pace",
        "paces",
        "rouse",
        "scrambled",
        "settle",
        "settled",
        "standing",
    ]
)
# Names of methods that were given up, and still may name something else.
METHODS = set(["confine", "enough", "freeze", "joined", "picture", "spots"])
KEEP = {ROOT / "src/gifthorse/core/options.py"}  # knows what options were called


def _identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield line, name
            case ast.keyword(arg=str(name)):
                yield line, name
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield line, name
            case ast.alias(name=name, asname=other):
                yield line, name.rpartition(".")[2]
                yield line, other or ""


def _methods(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((n.lineno, n.name) for n in node.body if isinstance(n, ast.FunctionDef))


def _quoted(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what docstrings name in backticks."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            words = ast.get_docstring(node) or ""
            for code in re.findall(r"`([^`\n]+)`", words):
                for name in re.findall(r"[A-Za-z_]\w*", code):
                    yield getattr(node, "lineno", 1), name


def test_no_public_class_name_stands_in_two_files() -> None:
    found = defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT / "src/gifthorse")))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert not twice, f"one name for one thing: {twice}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_retired_name_comes_back(path: Path) -> None:
    tree = TREES[path]
    names = [*_identifiers(tree), *_quoted(tree)] if path not in KEEP else []
    back = [(line, name) for line, name in names if name in RETIRED]
    back += [(line, name) for line, name in _methods(tree) if name in METHODS]
    assert not back, f"the field has other words for these: {back}"
