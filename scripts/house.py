"""Measure how a checkout of the package is laid out, and print a Markdown table.

python scripts/house.py                       # this checkout
python scripts/house.py PATH --against OLD    # another one, beside an older one

Nothing is imported, only read, so any commit can be measured. The modules of `src/PACKAGE` are the
files, its packages and the modules at its root are the parts; an import counts wherever in a file
it stands. `from package import name` imports the module of that name if there is one, else the
package's `__init__`.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = 6  # code lines that must stand elsewhere to count as doubled
READ = ("detection/mm_bd.py", "detection/weight_signature.py")  # detectors without sizes

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = Mapping[str, Collection[str]]

# 1. Lines -------------------------------------------------------------------------------------


def docstring_lines(node: ast.Module | ast.ClassDef | Function) -> set[int]:
    """Return the lines of a node's docstring."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and ast.get_docstring(node) is not None:
        return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return set()


def code_lines(path: Path) -> set[int]:
    """Return the lines of a file that are not blank, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    skip |= {tokenize.ENDMARKER, tokenize.ENCODING}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            lines -= docstring_lines(node)
    return lines


def function_lines(f: Function) -> int:
    """Return the lines of a function with its decorators, without its docstring."""
    first = min([f.lineno, *(d.lineno for d in f.decorator_list)])
    return len(set(range(first, (f.end_lineno or f.lineno) + 1)) - docstring_lines(f))


# 2. Graphs ------------------------------------------------------------------------------------


def reached(graph: Graph, start: str) -> set[str]:
    """Return what can be come to from a node in one step or more."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph[node]
    return seen


def circles(graph: Graph) -> list[set[str]]:
    """Return the groups of two nodes or more that can all be come to from each other."""
    reach = {node: reached(graph, node) for node in graph}
    found: list[set[str]] = []
    for node in sorted(graph):
        circle = {other for other in reach[node] if node in reach[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def longest_chain(graph: Graph) -> int:
    """Return the nodes on the longest way down a graph; those of a circle count once."""
    home = {node: frozenset([node]) for node in graph}
    home |= {node: frozenset(circle) for circle in circles(graph) for node in circle}

    @cache
    def depth(group: frozenset[str]) -> int:
        below = {home[other] for node in group for other in graph[node]} - {group}
        return 1 + max((depth(other) for other in below), default=0)

    return max(map(depth, home.values()), default=0)


# 3. A checkout --------------------------------------------------------------------------------


class House:
    """The files of the one package under `src` of a checkout, by their paths within it.

    Args:
        root: Folder of the checkout.

    Raises:
        SystemExit: If there is not exactly one package under `src`.
    """

    def __init__(self, root: Path) -> None:
        found = sorted(root.glob("src/*/__init__.py"))
        if len(found) != 1:
            raise SystemExit(f"{root}: needs one package under src, found {len(found)}")
        self.source = found[0].parent
        paths = sorted(self.source.rglob("*.py"))
        self.files = {path.relative_to(self.source).as_posix(): path for path in paths}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Every file, parsed."""
        return {
            name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()
        }

    @cached_property
    def code(self) -> dict[str, list[str]]:
        """The code lines of every file, without their indentation."""
        return {name: list(_code(path)) for name, path in self.files.items()}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Which files each file imports."""
        modules = {self._module(name): name for name in self.files}
        return {
            name: {modules[m] for m in _named(tree, modules) if m in modules} - {name}
            for name, tree in self.trees.items()
        }

    @cached_property
    def parts(self) -> dict[str, set[str]]:
        """Which parts each part imports: the packages and the modules at the root but its own."""
        graph: dict[str, set[str]] = {_part(n): set() for n in self.files if n != "__init__.py"}
        for name, others in self.imports.items():
            for other in others - {"__init__.py"}:
                if name != "__init__.py" and _part(other) != _part(name):
                    graph[_part(name)].add(_part(other))
        return graph

    @property
    def exported(self) -> list[str]:
        """What `import PACKAGE` offers: its `__all__`, else what is public in its `__init__`."""
        body = self.trees["__init__.py"].body
        for node in body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" in _targets(node):
                assert node.value is not None
                return list(ast.literal_eval(node.value))
        return sorted({n for node in body for n in _defined(node) if not n.startswith("_")})

    def _module(self, name: str) -> str:
        parts = (self.source.name, *name.removesuffix(".py").split("/"))
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def _code(path: Path) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return (lines[i - 1].strip() for i in sorted(code_lines(path)))


def _named(tree: ast.Module, modules: Collection[str]) -> Iterator[str]:
    """Yield the modules that imports name, absolute ones alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return _targets(node)
    if isinstance(node, ast.ClassDef | Function):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        return [] if future else [a.asname or a.name.split(".")[0] for a in node.names]
    return []


# 4. Measures ----------------------------------------------------------------------------------


def doubled(code: Mapping[str, list[str]]) -> float:
    """Return the share of code lines that lie in a block of six that stands elsewhere as well."""
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, lines in code.items():
        for i in range(len(lines) - BLOCK + 1):
            places[tuple(lines[i : i + BLOCK])].append((name, i))
    several = [place for found in places.values() if len(found) > 1 for place in found]
    marked = {(name, i + j) for name, i in several for j in range(BLOCK)}
    return len(marked) / max(1, sum(map(len, code.values())))


def named_twice(trees: Mapping[str, ast.Module], kinds: tuple[type[ast.stmt], ...]) -> list[str]:
    """Return the public names at the top of two files or more that are of these kinds."""
    counts = Counter(
        name
        for tree in trees.values()
        for name in {n for node in tree.body if isinstance(node, kinds) for n in _defined(node)}
        if not name.startswith("_")
    )
    return sorted(name for name, count in counts.items() if count > 1)


def measures(house: House) -> dict[str, str]:
    """Return what is measured, in words, with its value."""
    packages = {_part(name) for name in house.files if "/" in name}
    loose = [name for name in house.files if "/" not in name and name != "__init__.py"]
    found = circles(house.parts)
    told = "; ".join(" = ".join(sorted(circle)) for circle in found)
    return {
        "modules at the root": f"{len(loose)}",
        "packages": f"{len(packages)}",
        "parts (both)": f"{len(house.parts)}",
        "imports between parts": f"{sum(map(len, house.parts.values()))}",
        "circles of parts": f"{len(found)} ({told})" if found else "0",
        "circles of files": f"{len(circles(house.imports))}",
        "import depth (files on the longest chain)": f"{longest_chain(house.imports)}",
        **_sizes(house),
        "doubled lines": f"{100 * doubled(house.code):.1f} %",
        **_names(house),
        **_reading(house),
        **{f"code lines of `{part}`": f"{n:,}" for part, n in _per_package(house)},
    }


def _sizes(house: House) -> dict[str, str]:
    file = max(house.files, key=lambda name: len(house.code[name]))
    longest = max(
        (function_lines(node), f"`{node.name}` in {name}")
        for name, tree in house.trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )
    return {
        "files": f"{len(house.files)}",
        "code lines": f"{sum(map(len, house.code.values())):,}",
        "longest file (code lines)": f"{len(house.code[file])}, {file}",
        "longest function (lines, no docstring)": f"{longest[0]}, {longest[1]}",
    }


def _names(house: House) -> dict[str, str]:
    classes = named_twice(house.trees, (ast.ClassDef,))
    functions = named_twice(house.trees, (ast.FunctionDef, ast.AsyncFunctionDef))
    return {
        "public class names in two files": f"{len(classes)}",
        "public function names in two files": f"{len(functions)}",
        f"names exported by `import {house.source.name}`": f"{len(house.exported)}",
    }


def _reading(house: House) -> dict[str, str]:
    told: dict[str, str] = {}
    for name in READ:
        if name in house.files:
            others = reached(house.imports, name) | {name}
            code = sum(len(house.code[other]) for other in others)
            told[f"files to read for {name} (code lines)"] = f"{len(others)} ({code:,})"
    return told


def _per_package(house: House) -> Iterable[tuple[str, int]]:
    sums: Counter[str] = Counter()
    for name, lines in house.code.items():
        sums[_part(name) if "/" in name else "the root"] += len(lines)
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Return measures side by side, by the name of their column, as a Markdown table."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [["measure", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(column.get(row, "-") for column in columns.values())] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", default=ROOT, help="a checkout (this one)")
    parser.add_argument("--against", type=Path, metavar="PATH", help="an older one, shown first")
    given = parser.parse_args(arguments)
    roots = {"before": given.against, "after": given.path} if given.against else {"": given.path}
    columns = {title or "value": measures(House(root)) for title, root in roots.items()}
    print(table(columns))


if __name__ == "__main__":
    main()
