from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.report.examples import backdoored, inconclusive, nothing_found, spoiled

from gifthorse.core.errors import UsageError
from gifthorse.core.types import Report
from gifthorse.report import SUMMARIES, WRITERS
from gifthorse.report.json import collect, encoded
from gifthorse.report.overview import document
from gifthorse.report.reading import read_results, result_files


@pytest.mark.parametrize("make", [backdoored, nothing_found, inconclusive])
@pytest.mark.parametrize("spoil", [False, True])
def test_a_result_reads_back_and_is_drawn_alike(
    tmp_path: Path, make: Callable[[], Report], spoil: bool
) -> None:
    report = make()
    report = spoiled(report) if spoil and report.verdicts else report
    path = tmp_path / "result.json"
    path.write_text(WRITERS["json"](report))
    (read,) = read_results(path)
    assert encoded(read) == encoded(collect(report))
    for write in SUMMARIES.values():
        assert write([read]) == write([collect(report)])


def test_what_is_no_number_is_none_and_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(WRITERS["json"](spoiled(nothing_found())))
    first = read_results(path)[0].detectors[0]
    assert math.isnan(first.score)
    assert math.isnan(first.statistics["ratio"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no result of `gifthorse scan -o json=`"),
        ('{"schema_version": "1"}', "schema_version"),
        ('{"schema_version": "2"}', "tool: Field required"),
    ],
)
def test_another_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"x\.json") as caught:
        read_results(path)
    assert message in str(caught.value)


def test_a_wrong_type_is_refused_beside_a_gap(tmp_path: Path) -> None:
    tree = json.loads(WRITERS["json"](spoiled(nothing_found())))
    tree["verdict"]["label"] = "SAFE"
    (tmp_path / "x.json").write_text(json.dumps(tree))
    with pytest.raises(UsageError, match=r"verdict\.label"):
        read_results(tmp_path / "x.json")


def test_folders_give_their_json_files_once(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.txt", "in/d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [p.name for p in result_files([tmp_path, tmp_path / "a.json"])]
    assert names == ["a.json", "b.json", "d.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \.json file in"):
        result_files([tmp_path / "empty"])


def test_results_of_many_models_in_one_file_are_read_in_order(tmp_path: Path) -> None:
    one = json.loads(WRITERS["json"](nothing_found()))
    other = one | {"target": one["target"] | {"path": "other.pt"}}
    path = tmp_path / "all.json"
    path.write_text(document([one, other], "gifthorse scan", "0"))
    assert [r.target.path for r in read_results(path)] == [one["target"]["path"], "other.pt"]
    path.write_text(json.dumps({"scans": [one, {}]}))
    with pytest.raises(UsageError, match="is no result of"):
        read_results(path)
