"""Files whose path somebody else chose, and text that somebody else wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gifthorse.core.atomic import atomic, check_writable
from gifthorse.core.errors import Unwritable, UsageError
from gifthorse.core.files import (
    is_regular,
    open_regular,
    owned,
    parse_json,
    read_file,
    read_json,
)
from gifthorse.core.text import cell, inert


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="no file, but"):
            open_regular(path)
    with pytest.raises(UsageError, match="there is no file"):
        open_regular(tmp_path / "missing")


def test_files_are_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    assert read_file(tmp_path / "a", 3) == b"[1]"
    assert read_json(tmp_path / "a", 3) == [1]
    with pytest.raises(UsageError, match="more than 2 bytes"):
        read_file(tmp_path / "a", 2)


def test_json_is_refused_by_one_error() -> None:
    for text in ("[" * 100_000, "{", b"\xff", "1" * 5_000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


@pytest.mark.parametrize("name", ["pipe", "folder", "gone", "x" * 5000, "a\0b", "ring"])
def test_only_regular_files_are_read_and_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    assert not is_regular(tmp_path / name)
    with pytest.raises(UsageError, match=r"there is no file|is no file, but a folder"):
        read_file(tmp_path / name)


def test_no_more_is_read_than_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    assert len(read_file(tmp_path / "a", 100)) == 100
    with pytest.raises(UsageError, match="has more than 99 bytes"):
        read_file(tmp_path / "a", 99)
    with pytest.raises(UsageError, match="is no file"):
        read_file(Path("/dev/zero"))


def test_a_state_has_one_owner(tmp_path: Path) -> None:
    store = tmp_path / "state.safetensors"
    with owned(store), pytest.raises(UsageError, match="another run keeps its state"), owned(store):
        pass
    with owned(store):  # free again
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_a_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null"), tmp_path / "no" / "such" / "x"):
        with pytest.raises(Unwritable, match="cannot write"):
            check_writable(path)
        with pytest.raises(Unwritable, match="cannot write"), atomic(path):
            pass
    check_writable(tmp_path / "new" / "x")
    assert list((tmp_path / "new").iterdir()) == []


def test_cells_are_no_formulas() -> None:
    for text in ("=cmd()", "+1", "-1", "@x", "\tx", "\rx"):
        assert cell(text) == f"'{text}"
    assert [cell(value) for value in ("a=b", -1, None)] == ["a=b", -1, None]


def test_nothing_acts_on_a_terminal() -> None:
    text = "".join(map(chr, range(0x110000 - 1)))
    shown = inert(text)
    assert all(c.isprintable() or c == "\n" or ord(c) > 0x7F for c in shown)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u200b", "\r"} & set(shown)
    shown.encode()  # no lone surrogates are left
