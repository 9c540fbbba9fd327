"""The comparison: its pickle is bad and stays shut, rows are Markdown, who is absent is said."""

from __future__ import annotations

import pickletools
import shutil
import sys
from pathlib import Path

import pytest
from scripts import compare


def test_the_pickle_asks_for_a_command_and_is_found_to(tmp_path: Path) -> None:
    *nets, bad = compare.files(tmp_path)
    names = [arg for _, arg, _ in pickletools.genops(bad.read_bytes()) if isinstance(arg, str)]
    assert "system" in names
    assert {"posix", "nt"} & {*names}
    assert [path.name for path in nets] == ["gift.safetensors", "twin.safetensors"]


@pytest.mark.parametrize("tool", compare.PEERS, ids=lambda tool: tool.name)
def test_a_tool_that_is_absent_is_said_to_be(tool: compare.Tool, tmp_path: Path) -> None:
    rows = list(compare.theirs(tool, str(tmp_path), [tmp_path], tmp_path))
    assert rows == [f"| {tool.name} | | | | not installed |"]


def test_a_row_has_status_words_and_no_bars_of_its_own() -> None:
    said = compare.Said(3, 1.26, "\n No issues found! \nTotal skipped: 1 - run\nNo issues found!\n")
    row = compare.row("modelscan 1", "a.pkl", said, compare.PEERS[0].lines)
    assert row == "| modelscan 1 | a.pkl | 3 | 1.3 | No issues found!; Total skipped: 1 |"
    assert compare.row("x", "y", compare.Said(0, 0, "a|b"), ".+").endswith("| a\\|b |")


@pytest.mark.parametrize("tool", compare.PEERS, ids=lambda tool: tool.name)
def test_an_installed_tool_finds_the_pickle_and_not_the_gift(
    tool: compare.Tool, tmp_path: Path
) -> None:
    if shutil.which(tool.program) is None:
        pytest.skip(f"{tool.name} is not installed")
    gift, _, bad = compare.theirs(tool, None, compare.files(tmp_path), tmp_path)
    assert "| gift.safetensors | 1 |" not in gift
    assert "| weights.pkl | 1 |" in bad
    assert "system" in bad


def test_a_command_is_run_with_its_status(tmp_path: Path) -> None:
    script = "import os, sys; print(os.environ['NO_ANALYTICS']); sys.exit(3)"
    said = compare.ran((sys.executable, "-c", script), tmp_path)
    assert (said.status, said.text) == (3, "1\n")
