"""Files, functions and the package stay small enough to read in one sitting; nothing prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.house import Function, code_lines, docstring_lines

SOURCE = Path(__file__).parents[1] / "src" / "gifthorse"
FILES = sorted(SOURCE.rglob("*.py"))

FILE, METHOD, FUNCTION, PARAMETERS = 300, 150, 40, 8

# Folders with one file a method, and in them the machinery that several methods share.
METHODS = {"attacks", "inversion", "detection", "analysis", "filtering", "remedies"}
SHARED = {"blind.py", "inspector.py", "k_arm.py", "dltnd.py", "poisoning.py", "training.py"}

files = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))


def is_command(f: Function) -> bool:
    """Whether a function is a command: then its parameters are the options of a command line."""
    return any("command" in ast.dump(d) or "callback" in ast.dump(d) for d in f.decorator_list)


def own_lines(f: Function) -> int:
    """Lines of a function without its docstring; without its options, if it is a command."""
    first = f.body[0].lineno if is_command(f) else f.lineno
    return len(set(range(first, (f.end_lineno or first) + 1)) - docstring_lines(f))


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


@files
def test_a_file_is_short(path: Path) -> None:
    assert len(code_lines(path)) <= FILE


@files
def test_a_method_is_shorter(path: Path) -> None:
    if path.relative_to(SOURCE).parts[0] in METHODS and path.name not in SHARED:
        assert len(code_lines(path)) <= METHOD


@files
def test_functions_are_short(path: Path) -> None:
    for f in functions(path):
        assert own_lines(f) <= FUNCTION, f"{f.name} has {own_lines(f)} lines"


@files
def test_functions_take_few_parameters(path: Path) -> None:
    for f in functions(path):
        a = f.args
        names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        count = len([n for n in names if n not in ("self", "cls")])
        assert count <= PARAMETERS or is_command(f), f"{f.name} has {count} parameters"


@files
def test_nothing_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"


def test_a_function_has_ten_lines_at_the_median() -> None:
    sizes = sorted(own_lines(f) for path in FILES for f in functions(path))
    assert sizes[len(sizes) // 2] <= 10
