"""Small files that users name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gifthorse.core.files import open_regular, parse_json, read_json, read_small


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_files_are_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    assert read_small(tmp_path / "a", 3) == b"[1]"
    assert read_json(tmp_path / "a", 3) == [1]
    with pytest.raises(OSError, match="more than 2 bytes"):
        read_small(tmp_path / "a", 2)


def test_json_is_refused_by_one_error() -> None:
    for text in ("[" * 100_000, "{", b"\xff", "1" * 5_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
