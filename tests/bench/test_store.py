"""A store: whole files or none, the same on a disk and behind a URL."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from gifthorse.bench.store import Store
from gifthorse.core.errors import UsageError


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "new" if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def record(key: str, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "status": "ok",
        "figures": {"asr": 0.5, "tmc": None},
    } | more


def test_a_record_comes_back_and_can_be_forgotten(store: Store) -> None:
    assert store.record("ab12") is None
    assert store.recorded() == set()
    store.keep(record("ab12"))
    store.keep(record("cd34"))
    assert store.record("ab12") == record("ab12")
    assert store.recorded() == {"ab12", "cd34"}
    assert [r["key"] for r in store.records()] == ["ab12", "cd34"]
    store.forget("ab12")
    store.forget("ab12")
    assert store.recorded() == {"cd34"}


def test_the_same_record_has_the_same_bytes(store: Store) -> None:
    store.keep(record("ab12"))
    first = store.read("records/ab/ab12.json")
    store.keep(dict(reversed(record("ab12").items())))
    assert store.read("records/ab/ab12.json") == first


def test_a_model_is_there_when_its_spec_is(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    assert store.spec("ef56") is None
    assert store.models() == set()
    store.put("ef56", folder, {"error": None})
    assert store.models() == {"ef56"}
    assert store.spec("ef56") == {"error": None}
    with store.open("ef56") as lent:
        assert (lent / "model.safetensors").read_bytes() == b"weights"
    store.abandon("ef56")
    assert store.models() == set()


def test_half_a_file_is_not_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(record("ab12"))
    (tmp_path / "records/ab/.ab13.json.x.part").write_text('{"key"')
    assert store.recorded() == {"ab12"}
    assert len(list(store.records())) == 1


def test_old_half_files_are_swept_away_and_new_ones_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(record("ab12"))
    old, new = (tmp_path / f"records/ab/.{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (1.0, 1.0))
    store.sweep()
    assert (old.exists(), new.exists(), store.recorded()) == (False, True, {"ab12"})


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.keep(record("ab12"))
    (tmp_path / "records/ab/ab12.json").write_text("{")
    with pytest.raises(UsageError, match=r"ab12 is damaged .*bench resume makes it anew"):
        store.record("ab12")


def test_what_is_cut_at_any_byte_is_made_anew(store: Store) -> None:
    store.keep(record("ab12"))
    store.keep(record("ab13"))
    name = "records/ab/ab12.json"
    whole = store.read(name)
    assert whole is not None
    for length in range(len(whole) - 1):  # the last byte is a line's end
        store.write(name, whole[:length])
        assert (store.mend(), store.recorded()) == (["ab12"], {"ab13"})
    store.write("models/ef/ef56/spec.json", b'{"net": ')
    store.write("models/ef/ef56/model.json", b"{")  # a model's own file is none of ours
    assert (store.mend(), store.mend(), store.models()) == (["ef56"], [], set())


def test_numbers_that_json_lacks_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.keep(record("ab12", figures={"aiv": float("inf")}))
    assert store.recorded() == set()


def test_a_store_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Store("nowhere://bucket")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Store(tmp_path / "file").keep(record("ab12"))
