"""The measures of a made tree, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.house import House, circles, doubled, longest_chain, main, measures, reached

SIX = "".join(f"    x{i} = {i}\n" for i in range(6))
TREE = {
    "__init__.py": '"""A toy."""\n\n__all__ = ["run", "Step"]\n',
    "loose.py": f'''\
        """Loose: one of the two copies of six lines."""

        from toy import low  # a package by its name

        # 9 lines of code: the import above, `def`, six, `return`


        def six():
            """Not code."""
        {SIX}    return x5
        ''',
    "low/__init__.py": "from toy.low.store import Step\n",
    "low/store.py": f'''\
        import os


        class Step:
            """A class of this name stands in high, too."""

            def __init__(self):
                """Not code."""


        def six():
        {SIX}

        def _hidden(): ...
        ''',
    "high/__init__.py": "",
    "high/plan.py": """\
        from toy.loose import six
        from toy.low import store
        from toy.low.store import Step as Low


        class Step(Low): ...


        @decorated
        @twice
        def long(
            a,
        ):
            '''Not counted.'''
            import toy.high.late

            return [
                a,
            ]


        def _hidden(): ...
        """,
    "high/late.py": "from toy.high.plan import long\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "src" / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        path.write_text("\n".join(lines) + "\n" if text else "")
    return tmp_path


def test_imports_are_of_the_files_that_they_name(toy: Path) -> None:
    assert House(toy).imports == {
        "__init__.py": set(),
        "loose.py": {"low/__init__.py"},
        "low/__init__.py": {"low/store.py"},
        "low/store.py": set(),
        "high/__init__.py": set(),
        "high/plan.py": {"loose.py", "low/store.py", "high/late.py"},
        "high/late.py": {"high/plan.py"},
    }
    assert House(toy).parts == {"loose": {"low"}, "low": set(), "high": {"loose", "low"}}


def test_the_measures_of_the_toy(toy: Path) -> None:
    got = measures(House(toy))
    assert {name: value for name, value in got.items() if "code lines of" not in name} == {
        "modules at the root": "1",
        "packages": "2",
        "parts (both)": "3",
        "imports between parts": "3",
        "circles of parts": "0",
        "circles of files": "1",  # plan and late
        "import depth (files on the longest chain)": "4",  # these, loose, low, store
        "files": "7",
        "code lines": "37",
        "longest file (code lines)": "14, high/plan.py",
        "longest function (lines, no docstring)": "10, `long` in high/plan.py",
        "doubled lines": "37.8 %",  # 14 of 37: both times `def` and six
        "public class names in two files": "1",
        "public function names in two files": "1",  # six, not _hidden
        "names exported by `import toy`": "2",
    }
    assert [(name, value) for name, value in got.items() if "code lines of" in name] == [
        ("code lines of `high`", "15"),
        ("code lines of `low`", "12"),
        ("code lines of `the root`", "10"),
    ]


def test_circles_and_the_longest_chain_of_graphs() -> None:
    two = {"a": "b", "b": "ac", "c": "d", "d": "ef", "e": "d", "f": ""}
    assert circles(two) == [{"a", "b"}, {"d", "e"}]
    assert longest_chain(two) == 4  # a circle counts once: ab, c, de, f
    assert reached(two, "c") == {"d", "e", "f"}
    assert circles({"a": "a", "b": ""}) == []  # to import itself makes none
    assert longest_chain({"a": "bc", "b": "", "c": "b"}) == 3


def test_doubled_lines_overlap_and_may_stand_in_one_file() -> None:
    lines = [f"x{i}" for i in range(7)]
    assert doubled({"a": lines, "b": [*lines, "y"]}) == 14 / 15
    assert doubled({"a": [*lines, *lines[:6]]}) == 12 / 13
    assert doubled({"a": lines[:5], "b": lines[:5]}) == 0


def test_files_to_read_are_those_that_a_file_comes_to(toy: Path) -> None:
    folder = toy / "src" / "toy" / "detection"
    folder.mkdir()
    (folder / "mm_bd.py").write_text("import toy.loose\n")
    got = measures(House(toy))
    assert got["files to read for detection/mm_bd.py (code lines)"] == "4 (22)"
    assert "files to read for detection/weight_signature.py (code lines)" not in got


def test_the_table_has_a_column_a_checkout(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(toy)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["| measure | value |", "| --- | --- |", "| modules at the root | 1 |"]
    old = toy / "old"
    (old / "src" / "toy" / "low").mkdir(parents=True)
    (old / "src" / "toy" / "__init__.py").write_text("import os\nfrom sys import path as _p\n")
    (old / "src" / "toy" / "low" / "a.py").write_text("def f(): ...\n")
    main([str(toy), "--against", str(old)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| measure | before | after |"
    assert "| modules at the root | 0 | 1 |" in lines
    assert "| code lines of `high` | - | 15 |" in lines
    assert "| names exported by `import toy` | 1 | 2 |" in lines


def test_a_folder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="one package under src, found 0"):
        House(tmp_path)
