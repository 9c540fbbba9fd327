"""The leaderboard: read as text, and used in a browser as a person would."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pytest
from tests.bench.records import bench, framed, method, record, spread

from gifthorse.bench.figures import STEPS, Estimate, metric, over_seeds
from gifthorse.bench.leaderboard import write_leaderboard
from gifthorse.bench.results import cells
from gifthorse.core.errors import UsageError
from gifthorse.report.site import embedded

if TYPE_CHECKING:
    from playwright.sync_api import Page

VOID = {"meta", "link", "input", "br", "wbr", "img", "path", "circle", "line"}
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}\u202e\x1b[31m"


class Html(HTMLParser):
    """A page as a list of elements: tag, attributes, and all text within."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(path.read_text())
        self.close()
        assert self.open == [], f"{path.name} leaves elements open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.elements[place][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(said)) for name, attrs, said in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.elements[0][2]).split())

    def square(self, start: str, figure: str) -> tuple[str, str]:
        """What is printed on a square of a heat map, and the sentence about it."""
        inside = False
        for tag, attrs, said in self.elements:
            if tag == "div" and "data-figure" in attrs:
                inside = attrs["data-figure"] == figure
            if tag == "a" and inside and (attrs.get("aria-label") or "").startswith(f"{start}: "):
                return "".join(said), attrs["aria-label"] or ""
        raise AssertionError(f"no square {start} of {figure}")


def write_site(records: list[dict[str, Any]], folder: Path, name: str, **rest: Any) -> list[Path]:
    with framed(records) as con:
        return write_leaderboard(con, folder, name, **rest)


def site(folder: Path, records: list[dict[str, Any]], **rest: Any) -> Html:
    write_site(records, folder, "A bench", **rest)
    return Html(folder / "index.html")


def data(page: Html) -> dict[str, Any]:
    text = next(said for attrs, said in page.all("script") if attrs.get("id") == "data")
    found: dict[str, Any] = json.loads(text)
    return found


# 1. Without a browser -------------------------------------------------------------------------


def test_every_cell_has_a_page_with_its_command(tmp_path: Path) -> None:
    records = bench()
    written = write_site(records, tmp_path, "A bench")
    assert written[0] == tmp_path / "index.html"
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(written)
    for one in records:
        page = Html(tmp_path / "cell" / f"{one['key']}.html")
        assert one["command"] in [said for _, said in page.all("code")]
    links = {a.get("href") for a, _ in Html(written[0]).all("a")}
    # Squares lead to the first seed; from there all others are linked.
    assert {f"cell/{r['key']}.html" for r in records if r["cell"]["seed"] == 0} <= links
    rows = data(Html(written[0]))["rows"]
    assert [row[0] for row in rows] == [one["key"] for one in records]


def test_a_page_leads_to_other_seeds_the_twin_and_the_bare_model(tmp_path: Path) -> None:
    records = bench()
    site(tmp_path, records)

    def key(attack: str | None, defense: str | None, seed: int) -> str:
        def is_it(r: dict[str, Any]) -> bool:
            names = [(r["cell"][part] or {}).get("name") for part in ("attack", "defense")]
            return names == [attack, defense] and r["cell"]["seed"] == seed

        return str(next(r["key"] for r in records if is_it(r)))

    page = Html(tmp_path / "cell" / f"{key('badnet', 'strip', 1)}.html")
    links = {said: (a["href"] or "").removesuffix(".html") for a, said in page.all("a")}
    assert links["Seed 0"] == key("badnet", "strip", 0)
    assert links["Seed 2"] == key("badnet", "strip", 2)
    assert links["The clean twin"] == key(None, "strip", 1)
    assert links["Without a defense"] == key("badnet", None, 1)


def test_squares_show_the_mean_over_seeds_and_its_interval(tmp_path: Path) -> None:
    values = [0.10, 0.16, 0.25]
    records = [record("badnet", "smoothing", s, spread("asr", v)) for s, v in enumerate(values)]
    page = site(tmp_path, records)
    half = 4.302653 * stdev(values) / math.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5 %
    low, high = max(0.0, fmean(values) - half), fmean(values) + half
    printed, said = page.square("smoothing, badnet", "asr")
    assert printed == "17 %"
    assert f"17 % [{100 * low:.0f}, {100 * high:.0f}] over 3 seeds, 1,200 trials" in said


def test_one_seed_has_the_interval_of_its_record(tmp_path: Path) -> None:
    page = site(tmp_path, [record("badnet", "smoothing", 0, spread("asr", 0.4, 0.07))])
    assert page.square("smoothing, badnet", "asr") == (
        "40 %",
        "smoothing, badnet: attack success 40 % [33, 47] over 1 seed, 400 trials",
    )
    assert data(page)["rows"][0][-1] == {"0": [0.4, "40 % [33, 47]"]}


def test_an_interval_of_a_drop_may_reach_below_zero() -> None:
    def low(name: str) -> float | None:
        known = Estimate(name, 0.03, stdev([0.01, 0.05]), None, None, 2)
        return over_seeds(metric(name), known, 0).low

    assert low("cad") == pytest.approx(-0.2241, abs=1e-4)
    assert low("asr") == 0


def test_failures_are_shown_and_never_averaged(tmp_path: Path) -> None:
    error = "the time limit was over"
    records = [
        record("badnet", "smoothing", 0, spread("asr", 0.2)),
        record("badnet", "smoothing", 1, spread("asr", 0.9), "collapsed"),
        record("blended", "smoothing", 0, {}, "timeout", error=error),
        record("badnet", "fine_pruning", 0, {}, "error", error="IndexError: <b>"),
    ]
    page = site(tmp_path, records, planned=6)
    assert page.square("smoothing, badnet", "asr")[0] == "20 %1 of 2 ok"
    assert page.square("smoothing, blended", "asr")[0] == "timeout"
    assert error in page.square("smoothing, blended", "asr")[1]
    # It has no figure at all, and is yet in the map of its family.
    assert page.square("fine_pruning, badnet", "asr")[0] == "error"
    tones = [a["class"] for a, said in page.all("td") if said in ("timeout", "error")]
    assert tones == ["failed", "failed"]
    tiles = list(zip(page.all("dd"), page.all("dt"), strict=True))
    assert [f"{number} {words}" for (_, number), (_, words) in tiles][:3] == [
        "4 of 6 cells judged",
        "1 ok",
        "3 failed 1 collapsed, 1 timeout, 1 error",
    ]
    assert "IndexError: <b>" in page.text
    cell = Html(tmp_path / "cell" / f"{records[2]['key']}.html")
    assert f"timeout {error}" in cell.text


def test_verdicts_are_words(tmp_path: Path) -> None:
    labels = ["BACKDOORED", "BACKDOORED", "NO BACKDOOR FOUND"]
    records = [
        record("badnet", "tabor", seed, {"score": 1.0}, words={"label": label})
        for seed, label in enumerate(labels)
    ]
    printed, said = site(tmp_path, records).square("tabor, badnet", "verdict")
    assert printed == "backdoored2 of 3"
    assert said.endswith("BACKDOORED 2 of 3, NO BACKDOOR FOUND 1 of 3")


def test_methods_of_one_label_are_told_apart(tmp_path: Path) -> None:
    records = [
        record(method("badnet", "attack", "patch", {"size": size, "rate": "0.1"}), None, 0, figures)
        for size, figures in (("1", spread("asr", 0.2)), ("3", spread("asr", 0.8)))
    ]
    page = site(tmp_path, records)
    assert page.square("no defense, patch (size=1)", "asr")[0] == "20 %"
    assert page.square("no defense, patch (size=3)", "asr")[0] == "80 %"


def test_settings_are_never_mixed(tmp_path: Path) -> None:
    records = [
        record("badnet", None, 0, spread("asr", asr), setting={"images": images})
        for images, asr in ((1000, 0.2), (5000, 0.8))
    ]
    page = site(tmp_path, records)
    assert [said for _, said in page.all("h3")] == [
        f"cifar10 · resnet20 images={n}" for n in (1000, 5000)
    ]


def test_what_records_say_is_text(tmp_path: Path) -> None:
    bad = method(HOSTILE, "remedy", HOSTILE, {HOSTILE: HOSTILE})
    hostile = record(
        bad | {"family": HOSTILE},
        bad,
        0,
        {HOSTILE: 0.5, "asr": 0.5},
        HOSTILE,
        data=HOSTILE,
        net=HOSTILE,
        setting={HOSTILE: HOSTILE},
        error=HOSTILE,
        words={"label": HOSTILE},
        machine={HOSTILE: HOSTILE},
        command=HOSTILE,
        started=HOSTILE,
    )
    fine = record(bad, bad, 1, {HOSTILE: 0.5}, words={"label": HOSTILE})
    write_site([hostile, fine], tmp_path, HOSTILE, command=HOSTILE)
    for path in tmp_path.rglob("*.html"):
        page = Html(path)
        names = [name for _, attrs, _ in page.elements for name in attrs]
        assert not [name for name in names if name.startswith("on") or name == "style"]
        assert not page.all("img")
        assert not set("\u202e\x1b") & set(path.read_text())
        assert "{{ 7 * 7 }}" in page.text
        assert len(page.all("script")) == (2 if path.name == "index.html" else 0)
    assert data(Html(tmp_path / "index.html"))["rows"][0][6].startswith("</script><img")


@pytest.mark.parametrize("key", ["../../../etc/passwd", "", "ABCDEF0123456789", None, 7])
def test_a_key_is_no_path(tmp_path: Path, key: object) -> None:
    with pytest.raises(UsageError, match="key must be hexadecimal"):
        write_site([record() | {"key": key}], tmp_path, "A bench")


def test_what_is_no_number_is_no_figure() -> None:
    given = {"a": math.nan, "b": math.inf, "c": "1", "d": [1], "e": 10**400, "f": 1}
    with framed([record() | {"figures": given}]) as con:
        (found,) = cells(con)
    assert {name: figure.value for name, figure in found.figures.items()} == {
        **dict.fromkeys("abcde"),
        "f": 1.0,
    }


def test_embedded_json_cannot_end_its_element() -> None:
    text = embedded({"a": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2028"}


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    write_site(bench(), tmp_path, "https://example.org")
    for path in tmp_path.rglob("*.html"):
        page = Html(path)
        for _, attrs, _ in page.elements:
            for name in ("src", "href"):
                link = (attrs.get(name) or "").partition("#")[0]
                assert not link or (path.parent / link).is_file()
        policy = page.all("meta")[1][0]["content"] or ""
        assert policy.startswith("default-src 'none'; style-src 'self' file:")
        assert "unsafe" not in policy
    css = (tmp_path / "look.css").read_text()
    assert "url(" not in css
    assert "@import" not in css
    assert len((tmp_path / "board.js").read_text().splitlines()) < 200


def test_pages_that_stay_the_same_are_left_alone(tmp_path: Path) -> None:
    records = bench(seeds=1)
    before = {p: p.stat().st_mtime_ns for p in write_site(records, tmp_path, "A bench")}
    records[0]["command"] = "gifthorse"
    write_site(records, tmp_path, "A bench")
    changed = {p.stem for p, then in before.items() if p.stat().st_mtime_ns != then}
    assert changed == {records[0]["key"]}


def test_no_records_are_a_page_too(tmp_path: Path) -> None:
    assert "There are no cells yet." in site(tmp_path, [], planned=12).text


def luminance(color: str) -> float:
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_can_be_read_on_every_color(tmp_path: Path, dark: bool) -> None:
    site(tmp_path, [])
    css = (tmp_path / "look.css").read_text().partition("What a leaderboard has")[2]
    light, night = css.split("@media (prefers-color-scheme: dark)")[:2]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", night if dark else light))
    steps = [f"p{i}" for i in range(STEPS + 1)], [f"m{i}" for i in range(1, STEPS + 1)]
    for step in (*steps[0], *steps[1]):
        number = int(step[1])
        ink = colors["dark"] if number < 5 else "#14171c" if number == 5 else colors["pale"]
        bright, dim = sorted((luminance(colors[step]), luminance(ink)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, step
    # Lighter or darker from step to step, so that the scale is one without its hue, too.
    for scale in steps:
        tones = [luminance(colors[step]) for step in scale]
        assert all((a < b) == dark for a, b in pairwise(tones))


def test_a_chart_numbers_defenses_and_names_them_below(tmp_path: Path) -> None:
    spent = {None: 0.5, "fine_pruning": 100.0, "smoothing": 10.0}
    records = [
        record(attack, defense, 0, spread("asr", asr), seconds=seconds)
        for defense, seconds in spent.items()
        for attack, asr in (("badnet", 0.2), ("blended", 0.4), (None, 0.9))
    ]
    page = site(tmp_path, records)
    marks = {said: attrs for attrs, said in page.all("text") if attrs.get("class") == "number"}
    legend = [" ".join(said.split()) for _, said in page.all("li")]
    # The quicker one is 1; the clean twin is no attack that is counted.
    assert legend == ["smoothing 10 s, 30 %", "fine_pruning 1 min 40 s, 30 %"]
    assert float(marks["1"]["x"] or 0) < float(marks["2"]["x"] or 0)
    assert marks["1"]["y"] == marks["2"]["y"]
    height = {said: float(attrs["y"] or 0) for attrs, said in page.all("text")}
    share = (height["0 %"] - height["1"]) / (height["0 %"] - height["100 %"])
    assert share == pytest.approx(0.3, abs=1e-3)
    assert "none: 30 % without a defense" in page.text


# 2. In a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first page of a bench of 108 cells, one of which failed."""
    attacks = (None, *(f"attack_{i}" for i in range(8)))
    records = bench(attacks, (None, "fine_pruning", "strip", "neural_cleanse"))
    for i, one in enumerate(records):
        one["times"]["seconds"] = float(37 * i % 108)  # as text, 9 would come after 80
    records[5] |= {"status": "timeout", "error": "too slow", "figures": {}}
    return write_site(records, tmp_path_factory.mktemp("site"), "A bench")[0].as_uri()


def times(page: Page) -> list[float]:
    """Seconds in the order of the rows; all are below 10 or of whole seconds."""
    said = page.locator("#cells tbody tr td:last-child").all_inner_texts()
    found = [re.findall(r"(?:(\d+) min )?([\d.]+) s", text)[0] for text in said]
    return [60 * float(minutes or 0) + float(seconds) for minutes, seconds in found]


def fits(page: Page) -> bool:
    wide: bool = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    return wide


def test_columns_sort_both_ways_and_numbers_as_numbers(page: Page) -> None:
    head = page.locator("#cells th", has_text="Time")
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert times(page) == [float(i) for i in range(100)]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert times(page) == [float(i) for i in range(107, 7, -1)]
    page.get_by_role("button", name="Next").click()
    assert times(page) == [float(i) for i in range(7, -1, -1)]
    assert page.locator("#count").inner_text() == "101 to 108 of 108 cells"


def test_what_is_unknown_comes_last_either_way(page: Page) -> None:
    for way in ("ascending", "descending"):
        page.locator("#cells th", has_text="Attack success").get_by_role("button").click()
        said = page.locator("#cells tbody td:nth-child(7)").all_text_contents()
        known = [float(text.split("%")[0]) for text in said if text]
        assert len(known) == 47  # 8 attacks, bare and repaired, 3 seeds, less the one that failed
        assert known == sorted(known, reverse=way == "descending")
        assert not any(said[47:])


def test_the_filter_leaves_the_rows_with_all_words(page: Page) -> None:
    page.get_by_label("Filter").fill("ATTACK_3 strip")
    rows = page.locator("#cells tbody tr")
    assert rows.count() == 3
    assert all("attack_3" in text and "strip" in text for text in rows.all_inner_texts())
    page.get_by_label("Filter").fill("timeout")
    assert rows.count() == 1
    page.get_by_label("Filter").fill("nothing of the kind")
    assert rows.count() == 0
    assert page.locator("#count").inner_text() == "No cell matches."
    page.get_by_label("Filter").fill("")
    page.get_by_label("Status").select_option("timeout")
    assert rows.count() == 1
    page.get_by_label("Status").select_option("")
    page.get_by_label("Defenses").select_option("filter")
    assert rows.count() == 27
    assert page.locator("#cells th", has_text="Area under ROC").count() == 1


def test_a_row_opens_its_cell_and_the_way_back_keeps_the_view(page: Page) -> None:
    page.get_by_label("Filter").fill("attack_3 strip seed=1")
    page.locator("#cells tbody tr td:nth-child(4)").click()
    page.wait_for_url("**/cell/*.html")
    key = page.url.rsplit("/", 1)[1].removesuffix(".html")
    assert page.locator("pre.command").inner_text().endswith(f"--only {key}")
    assert page.locator("h1").inner_text() == "attack_3 against strip"
    assert fits(page)
    page.go_back()
    assert page.locator("#cells tbody tr").count() == 1


def test_the_figure_switches_maps_charts_and_the_table(page: Page) -> None:
    shown = page.locator("table.heat:visible")
    assert shown.count() == 1
    page.get_by_label("Figure").select_option("tpr")
    assert shown.locator("tbody th[scope=row]").all_inner_texts() == ["strip"]
    assert shown.locator("td").first.inner_text() == "71 %"  # the mean of 70, 71 and 72
    assert page.locator("#cost figure:visible").count() == 1
    assert page.locator("#cells th").nth(6).inner_text().startswith("Stamped images caught")
    page.get_by_label("Figure").select_option("verdict")
    assert shown.locator("td").first.inner_text().split("\n") == ["nothing", "3 of 3"]
    page.reload()
    assert page.get_by_label("Figure").input_value() == "verdict"


def test_a_square_says_its_interval_when_it_has_the_focus(page: Page) -> None:
    square = page.locator("table.heat:visible td a").nth(1)
    square.focus()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.inner_text() == square.get_attribute("aria-label")
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.evaluate("window.innerWidth")


def test_no_page_scrolls_sideways(page: Page) -> None:
    for name in ("asr", "verdict", "cad"):
        page.get_by_label("Figure").select_option(name)
        assert fits(page)
