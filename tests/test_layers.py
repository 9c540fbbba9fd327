"""Who imports whom: read from the source, nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from scripts.house import House, circles

SOURCE = Path(__file__).parents[1] / "src" / "gifthorse"

# Right may import left, never the reverse; parts within braces never import each other. A report is
# drawn from data, so `report` imports `core` only, its figures also what `analysis` measured.
LAYERS: list[set[str]] = [
    {"core"},
    {"models", "data", "triggers"},
    {"training"},
    {"search"},
    {"inversion", "analysis"},
    {"filtering"},
    {"attacks"},
    {"detection", "remedies"},
    {"workflows"},
    {"bench"},
    {"cli"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

ARROWS = 120  # pairs of packages of which one imports the other

# A report is drawn from data, not from methods, and only what puts a scan together draws one.
REPORT_READERS = {"workflows", "bench", "cli"}
ATTACK_READERS = {"bench/", "cli/", "workflows/make.py"}  # nothing that scans


def part(path: Path) -> str:
    """The top-level part of the package that a file belongs to: `search`, `training` ..."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it the import stands."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            name = node.module or ""
            modules |= {f"{name}.{a.name}" for a in node.names} if name == "gifthorse" else {name}
    ours = {m.split(".")[1] for m in modules if m.startswith("gifthorse.")}
    return {m for m in ours if not m.startswith("__")}


FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.name != "__init__.py")
files = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))


def test_every_part_has_a_layer() -> None:
    parts = {part(path) for path in FILES}
    assert parts == set(RANK) | {"report"}


def test_packages_import_each_other_in_no_circle_and_by_few_arrows() -> None:
    parts = House(SOURCE.parents[1]).parts
    assert circles(parts) == []
    assert sum(map(len, parts.values())) <= ARROWS


def test_nothing_is_loose_at_the_root() -> None:
    assert [path.name for path in SOURCE.glob("*.py")] == ["__init__.py"]


@files
def test_imports_point_left(path: Path) -> None:
    me = part(path)
    if me == "report":
        drawn = {"analysis"} if "figures" in path.parts else set()
        assert imported(path) - {"report"} <= {"core"} | drawn
        return
    wrong = {other for other in imported(path) - {me, "report"} if RANK[other] >= RANK[me]}
    assert not wrong, f"{me} imports {', '.join(sorted(wrong))}"


@files
def test_only_the_outer_parts_import_attacks_and_reports(path: Path) -> None:
    me, others = part(path), imported(path)
    place = str(path.relative_to(SOURCE))
    assert "attacks" not in others or place.startswith(("attacks/", *ATTACK_READERS))
    assert "report" not in others or me in REPORT_READERS | {"report"}


def test_slow_libraries_are_imported_late() -> None:
    slow = {"kornia", "sklearn", "matplotlib", "captum", "duckdb", "ray", "fsspec"}
    for path in FILES:
        top = [
            n
            for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        for node in top:
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
            )
            found = {n.split(".")[0] for n in names} & slow
            assert not found, f"{path.name} imports {found} at the top"
