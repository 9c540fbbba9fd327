"""Which code a result depends on: the modules that make it, and all of ours that they import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gifthorse

PACKAGE = Path(gifthorse.__file__).parent

# Named by many, though each result is of one net: it counts by itself, or all do if asked for.
REGISTRY = "gifthorse.models.zoo"


@cache
def code_digest(modules: frozenset[str], package: Path = PACKAGE) -> str:
    """Return a digest of some modules and of everything in the package that they import.

    Docstrings, comments and layout do not count, nor do imports that only types need, so that a
    better sentence throws no result away. Of a package's `__init__` only what it hands on is
    followed: registries name every method, and a result is of one. The net of a result and the
    methods in it are for the caller to name.

    Args:
        modules: Full names, such as `gifthorse.search.loop`.
        package: The folder of gifthorse.
    """
    found: dict[str, _Source] = {}
    todo = sorted(modules)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = _source(name, package)
            todo += found[name].imports - {REGISTRY}
    every = sorted((name, source.digest) for name, source in found.items())
    return hashlib.sha256(repr(every).encode()).hexdigest()[:24]


def modules_of(value: object) -> frozenset[str]:
    """Return the modules of ours that a method, and every value in its fields, is written in.

    Example:
        >>> from gifthorse.training import Recipe
        >>> sorted(modules_of(Recipe()))
        ['gifthorse.training.fit']
    """
    return frozenset(name for name in _modules(value) if name.startswith("gifthorse."))


def spelled(value: object) -> Any:
    """Return what a callable does in words that are the same in every process.

    Example:
        >>> spelled(partial(int, base=2))
        ['builtins.int', [], {'base': '2'}]
    """
    if isinstance(value, partial):
        given = {name: spelled(v) for name, v in sorted(value.keywords.items())}
        return [spelled(value.func), [spelled(v) for v in value.args], given]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)


def _modules(value: object) -> Iterator[str]:
    if isinstance(value, partial):
        yield from _modules((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        yield from _modules(tuple(value.values()))
    elif isinstance(value, tuple | list | set | frozenset):
        for one in value:
            yield from _modules(one)
    elif callable(value) and hasattr(value, "__qualname__"):  # a function or a class
        yield value.__module__
    else:
        yield type(value).__module__
        if is_dataclass(value):
            yield from _modules([getattr(value, f.name) for f in fields(value)])


# Reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    digest: str
    imports: frozenset[str]


@cache
def _source(name: str, package: Path) -> _Source:
    tree = _tree(name, package)
    digest = hashlib.sha256(_plain(tree).encode()).hexdigest()
    return _Source(digest, frozenset(_imports(tree, package)))


@cache
def _tree(name: str, package: Path) -> ast.Module:
    path = _file(name, package)
    assert path is not None, f"{name} is no module of gifthorse"
    return ast.parse(path.read_text(encoding="utf-8"))


def _file(name: str, package: Path) -> Path | None:
    place = package.joinpath(*name.split(".")[1:])
    tried = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in tried if path.is_file()), None)


def _imports(tree: ast.Module, package: Path) -> Iterator[str]:
    """Yield the modules of ours that a module imports, wherever in it, but for types."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("gifthorse."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gifthorse"):
            homes = (_home(node.module or "", alias.name, package) for alias in node.names)
            yield from (home for home in homes if home)


def _home(module: str, name: str, package: Path) -> str:
    """Return the module that a name comes from; empty for what an `__init__` defines itself."""
    if _file(f"{module}.{name}", package):
        return f"{module}.{name}"
    path = _file(module, package)
    if path is None or path.name != "__init__.py":
        return module
    for node in _tree(module, package).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gifthorse"):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return _home(node.module or "", alias.name, package)
    return ""


def _plain(node: object) -> str:
    """Return code as text that is the same however it is laid out, and in every Python.

    Empty parts are left out: each version of Python adds some.
    """
    if isinstance(node, ast.AST):
        parts = ((name, getattr(node, name, None)) for name in node._fields)
        inner = ",".join(f"{name}={_plain(v)}" for name, v in parts if v not in (None, []))
        return f"{type(node).__name__}({inner})"
    if isinstance(node, list):
        return f"[{','.join(_plain(part) for part in node if not _docstring(part))}]"
    return repr(node)


def _docstring(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
