"""Scans of many models as jobs: what is kept, what is not scanned again, what is said of all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report import examples

from gifthorse.bench import scanning
from gifthorse.bench.runner import Done, Executor, RunStatus, Serial
from gifthorse.bench.scanning import Scanner, jobs_of, scan_all
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import READING
from gifthorse.core.errors import UsageError
from gifthorse.core.types import Finding, Origin, Report
from gifthorse.report import WRITERS, overview
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request


class Oracle:
    """Says of a model what its name says; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Path | None]] = []

    def __call__(self, path: str, inputs: Inputs, request: Request) -> Report:
        name = Path(path).stem
        self.asked.append((name, inputs.device, request.resume))
        if name == "bug":
            raise RuntimeError("odd")
        if name == "gone":
            raise UsageError("there is no file 'gone'")
        told = Report("NO BACKDOOR FOUND", name, Origin(path=path), None, (), (), (), (), None)
        if name == "bad":
            return replace(told, label="BACKDOORED")
        stopped = (Finding("IN003", "LOW", 0.0, "the limit was reached"),)
        return replace(told, label="INCONCLUSIVE", checks=stopped) if name == "late" else told


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    made = Oracle()
    monkeypatch.setattr(scanning, "scan", made)
    return made


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    for name in ("fine", "bad", "late", "bug"):
        (tmp_path / f"{name}.pt").write_text(name)
    return [str(tmp_path / f"{name}.pt") for name in ("fine", "bad", "late", "bug", "gone")]


def ran(
    models: list[str], place: Path, *, request: Request | None = None, html: Path | None = None
) -> list[Mapping[str, Any]]:
    inputs = Inputs("nowhere", device="cpu")
    rows = tuple((("html", html / f"{Path(m).stem}.html"),) if html else () for m in models)
    jobs = jobs_of(models, inputs, request or Request(), rows)
    scanner = Scanner(str(place))
    executor: Executor = Serial(scanner)
    return scan_all(jobs, Store(place), scanner, executor, lambda status: None)


def asked(oracle: Oracle) -> list[str]:
    names = [name for name, _, _ in oracle.asked]
    oracle.asked.clear()
    return names


def test_all_are_scanned_and_what_fails_keeps_no_other(
    oracle: Oracle, models: list[str], tmp_path: Path
) -> None:
    found = ran(models, tmp_path / "store")
    assert asked(oracle) == ["fine", "bad", "late", "bug", "gone"]
    assert [r["scan"]["verdict"]["label"] for r in found] == [
        *("NO BACKDOOR FOUND", "BACKDOORED", "INCONCLUSIVE", "ERROR", "ERROR")
    ]
    assert [r["statuses"]["suspicious"] for r in found] == [0, 1, 3, 2, 4]
    assert [r["statuses"]["inconclusive"] for r in found] == [0, 1, 1, 2, 4]
    assert "RuntimeError: odd" in found[3]["scan"]["verdict"]["reason"]


def test_what_is_finished_is_not_scanned_again(
    oracle: Oracle, models: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = ran(models, store)
    asked(oracle)
    again = ran(models, store)
    assert asked(oracle) == ["late", "bug", "gone"]  # more time, or another day, may change these
    assert again[:3] == first[:3]
    Path(models[0]).write_text("other bytes")
    ran(models[:2], store)
    assert asked(oracle) == ["fine"]
    ran(models[:2], store, request=Request(preset="quick"))
    assert asked(oracle) == ["fine", "bad"]
    ran(models[:2], store, request=Request(preset="quick", command="otherwise"))
    assert asked(oracle) == []


def test_each_scan_has_a_folder_of_its_own_for_its_state(
    oracle: Oracle, models: list[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    ran(models[:2], store, request=Request(resume=store))
    folders = {folder for _, _, folder in oracle.asked}
    assert len(folders) == 2
    assert {folder.parent for folder in folders if folder} == {store / "states"}


def test_reports_that_are_gone_are_made_again(
    oracle: Oracle, models: list[str], tmp_path: Path
) -> None:
    ran(models[:2], tmp_path / "store", html=tmp_path)
    assert (tmp_path / "bad.html").read_text().startswith("<!doctype html>")
    asked(oracle)
    (tmp_path / "bad.html").unlink()
    ran(models[:2], tmp_path / "store", html=tmp_path)
    assert asked(oracle) == ["bad"]
    found = ran(models[:1], tmp_path / "store", html=tmp_path / "no" / "such")
    assert found[0]["statuses"]["suspicious"] == 2  # a report that could not be written
    assert not found[0]["finished"]


def test_what_an_executor_gives_up_is_an_error(models: list[str], tmp_path: Path) -> None:
    (job,) = jobs_of(models[:1], Inputs("nowhere", device="cpu"), Request(time_limit=5.0), ((),))
    assert job.limit == 2 * 5 + READING
    assert job.words == models[0]
    Scanner(str(tmp_path)).failed(job, Done(job.key, "it died"))
    record = Store(tmp_path).record(job.key)
    assert record is not None
    assert (record["finished"], record["statuses"]["suspicious"]) == (False, 2)
    assert record["scan"]["verdict"]["reason"] == "it died"


def test_images_that_change_are_others(oracle: Oracle, models: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()

    def key() -> str:
        return jobs_of(models[:1], Inputs(str(folder), device="cpu"), Request(), ((),))[0].key

    first = key()
    assert key() == first
    (folder / "a.png").write_bytes(b"1")
    assert key() != first


def test_one_table_and_one_json_of_all(oracle: Oracle, models: list[str], tmp_path: Path) -> None:
    scans = [record["scan"] for record in ran(models, tmp_path / "store")]
    lines = overview.table(scans).splitlines()
    assert lines[0].split() == ["verdict", "model", "why", "s"]
    assert lines[1].startswith("BACKDOORED")  # the gravest first
    assert lines[-1] == "5 models: 1 BACKDOORED, 1 NO BACKDOOR FOUND, 1 INCONCLUSIVE, 2 ERROR"
    assert all(len(line) <= 80 for line in lines)
    told = json.loads(overview.document(scans, "gifthorse scan", "1.0"))
    assert told["verdicts"] == {
        "BACKDOORED": 1, "NO BACKDOOR FOUND": 1, "INCONCLUSIVE": 1, "ERROR": 2,
    }  # fmt: skip
    assert [scan["target"]["path"] for scan in told["scans"]] == models


def test_a_name_that_acts_on_a_terminal_is_shown_harmless(tmp_path: Path) -> None:
    scan = json.loads(WRITERS["json"](examples.nothing_found()))
    scan["target"]["path"] = "a\x1b[2Jb"
    assert "\x1b" not in overview.table([scan])


def test_progress_is_told(oracle: Oracle, models: list[str], tmp_path: Path) -> None:
    seen: list[RunStatus] = []
    jobs = jobs_of(models[:2], Inputs("nowhere", device="cpu"), Request(), ((), ()))
    scanner = Scanner(str(tmp_path / "store"), threads=1)
    scan_all(jobs, Store(tmp_path / "store"), scanner, Serial(scanner), seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].ended) == (2, 2, True)
