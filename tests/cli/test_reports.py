"""`gifthorse report` and what it says of wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.examples import backdoored, nothing_found
from tests.report.test_formats import drawn

from gifthorse.cli.commands import run
from gifthorse.report import WRITERS


@pytest.fixture
def results(tmp_path: Path) -> list[str]:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, report in zip(paths, (backdoored(), nothing_found()), strict=True):
        path.write_text(WRITERS["json"](report))
    return list(map(str, paths))


def test_results_are_put_into_other_formats(
    results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = (backdoored(), nothing_found())
    assert run(["report", *results]) == 0
    assert capsys.readouterr().out == drawn("md", both)
    out = tmp_path / "all.sarif"
    assert run(["report", str(tmp_path), "-o", f"sarif={out}"]) == 0
    assert capsys.readouterr().out == ""
    assert out.read_text() == drawn("sarif", both)
    assert run(["report", *results, "-f", "csv", "-o", f"junit={out}"]) == 0
    assert capsys.readouterr().out == drawn("csv", both)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-f", "html"), "no format of many results is called 'html'"),
        (("-o", "sarif={0}"), "would replace a file of"),
        (("-o", "sarif"), "--out takes FORMAT=PATH"),
        (("-o", "md=x", "-o", "csv=./x"), "two reports would be written to ./x"),
        (("-o", f"md={'a' * 300}/b/c"), "its folder does not exist"),
    ],
)
def test_a_wrong_flag_is_named(
    results: list[str], capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    given = [flag.replace("{0}", results[0]) for flag in flags]
    assert run(["report", *results, *given]) == 4
    assert message in " ".join(capsys.readouterr().err.split())


def test_pages_replace_no_result(results: list[str], tmp_path: Path) -> None:
    place = tmp_path / "results.js"
    place.write_bytes(Path(results[0]).read_bytes())
    assert run(["index", str(place), "-o", str(tmp_path)]) == 4
    assert place.read_bytes() == Path(results[0]).read_bytes()
