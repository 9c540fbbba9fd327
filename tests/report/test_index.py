"""Pages over many results: read as text, and used in a browser as a person would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.bench.test_leaderboard import HOSTILE, Html, fits
from tests.report.examples import backdoored, inconclusive, nothing_found
from tests.report.test_hostile import ACTING, poisoned

from gifthorse.cli.commands import run
from gifthorse.core.types import Confidence, Origin, Report
from gifthorse.report import WRITERS
from gifthorse.report.index import HEIGHT, WIDTH, histories, marks, write_index
from gifthorse.report.json import collect

if TYPE_CHECKING:
    from playwright.sync_api import Page


def scan(report: Report, path: str, day: int, sha256: str = "") -> Report:
    """A report on a model of this path, of this day."""
    origin = replace(report.origin, path=path, sha256=sha256 or f"{day:064x}")
    started = f"2026-03-{day:02}T09:14:07+00:00"
    return replace(report, origin=origin, run=replace(report.run, started=started))


def many() -> list[Report]:
    """Three scans of a model that turned bad, and one each of 118 others."""
    sure = replace(nothing_found(), confidence=Confidence(0.1, 0.02, 0.3, "40 nets"))
    told = [scan(sure, "nets/turned.pt", 1), scan(nothing_found(), "nets/turned.pt", 2)]
    told = [scan(backdoored(), "nets/turned.pt", 3), *told]  # in no order
    told += [scan(nothing_found(), f"nets/{n}.pt", 1 + n % 20) for n in range(100)]
    told += [scan(inconclusive(), f"nets/odd {n}.pt", 4) for n in range(10)]
    low = Confidence(0.8, 0.7, 0.9, "40 nets")
    return told + [
        scan(replace(backdoored(), confidence=replace(low, value=0.5 + n / 100)), f"b{n}.pt", 5)
        for n in range(8)
    ]


def site(folder: Path, reports: list[Report], name: str = "Models") -> list[Path]:
    named = [(Path(f"{n}.json"), collect(report)) for n, report in enumerate(reports)]
    return write_index(named, folder, name, "gifthorse index")


# 1. As text -----------------------------------------------------------------------------------


def test_a_file_that_was_not_read_and_sizes_that_no_file_has_are_shown(tmp_path: Path) -> None:
    words = "no model"
    unread = Report("NOT SCANNED", words, Origin(path="a.pt"), None, (), (), (), (), None)
    huge = scan(nothing_found(), "b.pt", 1)
    huge = replace(huge, origin=replace(huge.origin, bytes=10**400))
    pages = site(tmp_path, [unread, huge])
    assert "NOT SCANNED" in Html(pages[0]).text
    assert len(pages) == 3 + 2


def test_the_latest_scan_of_each_model_counts_and_the_gravest_come_first(tmp_path: Path) -> None:
    pages = site(tmp_path, many())
    assert len(pages) == 3 + 119
    page = Html(pages[0])
    assert "121 scans of 119 models" in page.text
    rows = [" ".join(said.split()) for _, said in page.all("tr")][1:]
    assert rows[8].startswith("nets/turned.pt BACKDOORED was NO BACKDOOR FOUND class 14")
    assert all("BACKDOORED" in row and "NO" not in row for row in rows[:8])
    assert [said for _, said in page.all("dd")] == ["9", "10", "100"]
    assert [row.split() for row in rows[-2:]] == [
        ["BD001", "patch,", "all", "classes", "to", "one9"],
        ["IN001", "poor", "clean", "accuracy10"],
    ]


def test_the_page_of_a_model_shows_its_scans_in_time(tmp_path: Path) -> None:
    pages = site(tmp_path, many()[:3])
    page = Html(pages[-1])
    assert "It was NO BACKDOOR FOUND in the scan before." in page.text
    scans = json.loads(page.all("script")[0][1])
    assert [s["name"][:13] for s in scans] == [f"{n}: 2026-03-0{n}" for n in (1, 2, 3)]
    assert [s["facts"]["verdict"] for s in scans] == ["NO BACKDOOR FOUND"] * 2 + ["BACKDOORED"]
    assert scans[2]["facts"]["trigger"] == "9 pixels"
    (model,) = histories([(Path("x"), collect(report)) for report in many()[:3]])
    first, second, third = marks(model.scans)
    assert (first.x, second.x, third.x) == (0, WIDTH / 2, WIDTH)
    assert first.y == pytest.approx(0.9 * HEIGHT)
    assert second.y is None  # uncalibrated
    assert (third.y, third.low, third.high) == pytest.approx(
        tuple(HEIGHT * (1 - p) for p in (0.97, 0.91, 0.99))
    )


def test_what_results_say_is_text(tmp_path: Path) -> None:
    bad = poisoned(HOSTILE)
    again = replace(bad, run=replace(bad.run, started=HOSTILE, versions={HOSTILE: HOSTILE}))
    pages = site(tmp_path, [bad, again, poisoned("\ud800"), nothing_found()], HOSTILE)
    for path in pages:
        if path.suffix != ".html":
            continue
        page = Html(path)
        names = [name for _, attrs, _ in page.elements for name in attrs]
        assert not [name for name in names if name.startswith("on") or name == "style"]
        assert not page.all("img")
        assert not ACTING.search(path.read_text())
        assert "{{ 7 * 7 }}" in page.text
        policy = page.all("meta")[1][0]["content"] or ""
        assert policy.startswith("default-src 'none'; style-src 'self' file:")
        for _, attrs, _ in page.elements:
            for link in filter(None, (attrs.get("src"), attrs.get("href"))):
                local = link.partition("#")[0]
                assert not local or (path.parent / local).is_file()
    assert len({path.name for path in pages}) == len(pages)


def test_no_results_are_a_page_too(tmp_path: Path) -> None:
    assert "There are no results yet." in Html(site(tmp_path, [])[0]).text


def test_the_command_leaves_out_what_is_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for n, report in enumerate(many()[:3]):
        (tmp_path / "in" / f"{n}.json").write_text(WRITERS["json"](report))
    asked = ["index", str(tmp_path / "in"), "-o", str(tmp_path / "site"), "--name", "Ours"]
    assert run(asked) == 0
    assert "wrote 4 files of 3 results; open" in capsys.readouterr().out
    (tmp_path / "in" / "other.json").write_text("{}")
    assert run(asked) == 2
    out, err = capsys.readouterr()
    assert "3 results" in out
    assert "other.json is no result" in " ".join(err.split())
    assert run(["report", str(tmp_path / "in"), "-f", "csv"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4  # a heading and three results
    assert "other.json is no result" in " ".join(err.split())
    assert run(["report", str(tmp_path / "in" / "other.json")]) == 4
    before = (tmp_path / "site" / "look.css").stat().st_mtime_ns
    run(asked)
    assert (tmp_path / "site" / "look.css").stat().st_mtime_ns == before


# 2. In a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return site(tmp_path_factory.mktemp("site"), many())[0].as_uri()


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#cells tbody tr:visible td:nth-child({number})").all_inner_texts()


@pytest.mark.slow
def test_models_are_sorted_both_ways_and_what_is_unknown_comes_last(page: Page) -> None:
    head = page.locator("#cells th", has_text="Probability")
    for way in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == way
        said = column(page, 4)
        known = [float(text.split()[0]) for text in said[:9]]
        assert known == sorted(known, reverse=way == "descending")
        assert {text.strip() for text in said[9:]} == {"uncalibrated", ""}
    page.reload()
    assert head.get_attribute("aria-sort") == "descending"  # the address keeps it
    page.locator("#cells th", has_text="Model").get_by_role("button").click()
    names = column(page, 1)
    assert names.index("nets/9.pt") < names.index("nets/10.pt")


@pytest.mark.slow
def test_models_are_filtered(page: Page) -> None:
    assert page.locator("#count").inner_text() == "119 models"
    page.get_by_label("Filter").fill("ODD inconclusive")
    assert len(column(page, 1)) == 10
    assert page.locator("#count").inner_text() == "10 of 119 models"
    page.get_by_label("Filter").fill("")
    page.get_by_label("Verdict").select_option("changed")
    assert column(page, 1) == ["nets/turned.pt"]
    page.get_by_label("Verdict").select_option("BACKDOORED")
    assert len(column(page, 1)) == 9
    page.get_by_label("Filter").fill("nothing of the kind")
    assert column(page, 1) == []


@pytest.mark.slow
def test_two_scans_are_put_side_by_side(page: Page) -> None:
    assert fits(page)
    page.get_by_label("Filter").fill("turned")
    page.locator("#cells tbody tr:visible td").nth(4).click()
    page.wait_for_url("**/model/*.html")
    assert fits(page)
    rows = page.locator("#compared tbody tr")
    said = {text.split("\t")[0]: text.split("\t")[1:] for text in rows.all_inner_texts()}
    assert said["verdict"] == ["NO BACKDOOR FOUND", "BACKDOORED"]
    assert "seed" not in said
    page.get_by_label("also what is the same").check()
    assert "seed" in " ".join(rows.all_inner_texts())
    page.locator("#old").select_option("2")
    page.locator("#all").uncheck()
    assert page.locator("#count").inner_text() == "Nothing differs."
    page.go_back()
    assert column(page, 1) == ["nets/turned.pt"]
