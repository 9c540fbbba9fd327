"""What the pages say is so: examples and snippets run, commands, links and generated pages fit."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer.main
from scripts.house import code_lines
from tests.report.examples import backdoored, nothing_found
from tests.toys import BANDS, band_images, bands, blob_images, blobs, corner
from torch import Generator

from gifthorse.cli import commands as cli
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inversion, Report, Verdict
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import DETECTORS
from gifthorse.inversion import INVERTERS
from gifthorse.report import WRITERS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def module(path: str) -> ModuleType:
    """A file of the repository, imported by its path."""
    spec = importlib.util.spec_from_file_location(f"page_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return loaded


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors that stop after four rounds: what they say is worth nothing, but it is said."""
    for name, detector in DETECTORS.items():
        known = describe(detector)
        short = {"inverter.config.rounds": 4, "inverter.config.min_rounds": 0}
        few = {option: value for option, value in short.items() if option in known}
        monkeypatch.setitem(DETECTORS, name, vary(detector, few))


# 1. Pages -------------------------------------------------------------------------------------


def test_the_page_of_methods_is_made_from_the_code() -> None:
    made: str = module("scripts/methods.py").page()
    assert (ROOT / "docs/methods.md").read_text() == made, "run python scripts/methods.py"


def test_the_page_of_papers_is_up_to_date_and_its_figures_stand_where_it_says() -> None:
    made = module("scripts/papers.py")
    assert (ROOT / "docs/papers.md").read_text() == made.page(), "run python scripts/papers.py"
    for paper in made.papers():
        for claim in paper.claims:
            assert not claim.ours or claim.at, claim
            known = made.section(claim.at) if claim.at else ""
            missing = [n for n in re.findall(r"\d+(?:\.\d+)?", claim.ours) if n not in known]
            assert not missing, (claim.item, claim.at, missing)
            for name in re.findall(r"plans/(\w+\.toml)", claim.why):
                assert (ROOT / "plans" / name).is_file(), name


def test_tables_name_every_detector_and_inverter() -> None:
    for page, registry in (("README.md", DETECTORS), ("docs/index.md", INVERTERS)):
        rows = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
        named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert set(registry) <= named, page


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        found = page.parent / target if target else page
        assert found.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)", found.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert anchor in anchors, link


@pages
def test_commands_exist_with_their_flags(page: Path) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for text in blocks(page, "sh"):
        for line in re.split(r"\n| && ", text.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            if words[:1] != ["gifthorse"] or words[1:2] == ["--version"]:
                continue
            command = commands.get(words[1], commands["scan"])
            if inner := getattr(command, "commands", None):
                assert words[2] in inner, line
                command = inner[words[2]]
            known = {flag for p in command.params for flag in p.opts} | {"--help"}
            flags = {w.partition("=")[0] for w in words[2:] if w.startswith("-")}
            assert flags <= known, line


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w/.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text()
    named = re.findall(r"`make (\w+)`", text) + re.findall(r"^make (\w+)", text, re.MULTILINE)
    assert set(named) <= set(targets)


@pages
def test_python_blocks_are_python(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md"])
@pytest.mark.usefixtures("hasty")
def test_snippets_run(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (snippet,) = blocks(ROOT / page, "python")
    exec(compile(snippet, page, "exec"), {"__name__": page})
    assert capsys.readouterr().out


def test_methods_of_the_page_on_adding_run() -> None:
    """Blocks define an attack, an inverter, a detector, a filter and a remedy."""
    made: list[Any] = []
    for text in blocks(ROOT / "docs/adding.md", "python"):
        space: dict[str, Any] = {"__name__": "adding"}
        exec(compile(text, "docs/adding.md", "exec", dont_inherit=True), space)
        made += [v for v in space.values() if isinstance(v, type) and v.__module__ == "adding"]
    methods = {kind.__name__: kind for kind in made}
    subject, clean, goals = bands(1), band_images(), [Goal(k) for k in range(BANDS)]
    inversion: Inversion = methods["Aside"]()(subject, clean, goals, Generator().manual_seed(0))
    inversion.step(torch.arange(BANDS))
    assert inversion.progress.penalty.isfinite().all()
    for planted in (1, None):
        rng = Generator().manual_seed(0)
        verdict: Verdict = methods["NoiseVote"]()(bands(planted), clean, rng, Run())
        assert verdict.label == ("NO BACKDOOR FOUND" if planted is None else "SUSPICIOUS")
    over = Run(seconds=0)
    rng = Generator().manual_seed(0)
    assert methods["NoiseVote"]()(subject, clean, rng, over).label == "INCONCLUSIVE"
    stamped = InMemory((corner()(whole(clean)[0]) * 255).byte(), clean.labels, BANDS)
    plain, marked = (
        methods["Certainty"]()(subject, clean, s, rng, Run()) for s in (clean, stamped)
    )
    elsewhere = clean.labels != 1  # class 1 is what the net is sure of anyway
    assert marked[elsewhere].min() > plain[elsewhere].max()
    given = blobs()
    tuned = methods["ShortTuning"]()(given, blob_images(each=8), rng, Run())
    moved = [not torch.equal(a, b) for a, b in zip(
        given.net.parameters(), tuned.net.parameters(), strict=True
    )]  # fmt: skip
    assert all(moved)


# 2. Examples ----------------------------------------------------------------------------------


def test_examples_are_five_short_files() -> None:
    examples = list((ROOT / "examples").glob("*.py"))
    assert len(examples) == 5
    assert all(len(code_lines(path)) <= 70 for path in examples)


@pytest.mark.usefixtures("hasty")
def test_scan_a_file_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = module("examples/scan_a_file.py")
    report: Report = example.main(html=str(tmp_path / "report.html"))
    out = capsys.readouterr().out
    assert out.startswith(f"{report.label}: ")
    assert out.count("  class ") == 3 * sum(bool(v.arms) for v in report.verdicts)
    assert "not looked for: class-pair triggers" in out
    assert "<html" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_scan_a_file_finds_the_gift_and_spares_its_twin() -> None:
    example = module("examples/scan_a_file.py")
    report: Report = example.main()
    assert report.label in ("BACKDOORED", "SUSPICIOUS")
    assert next(f.goal.target for f in report.verdicts[0].findings if f.goal) == 14
    assert example.main(str(example.GIFT / "twin.safetensors")).label == "NO BACKDOOR FOUND"


def test_implant_and_scan_finds_what_it_implanted() -> None:
    verdict = module("examples/implant_and_scan.py").main(target=2)
    assert verdict.label == "BACKDOORED"
    assert verdict.findings[0].goal.target == 2


def test_add_an_attack_takes_over_the_twin() -> None:
    clean, success = module("examples/add_an_attack.py").main()
    assert clean >= 0.7
    assert success >= 0.9


def test_add_an_inverter_finds_the_planted_pixel() -> None:
    verdict = module("examples/add_an_inverter.py").main()
    assert [arm.size for arm in verdict.arms] == [4, 4, 4, 4, 1, 4]
    assert verdict.label == "BACKDOORED"


@pytest.mark.parametrize(("make", "passes"), [(backdoored, False), (nothing_found, True)])
def test_read_a_report_gates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, passes: bool
) -> None:
    assert callable(make)
    report: Report = make()
    path = tmp_path / "report.json"
    path.write_text(WRITERS["json"](report))
    assert module("examples/read_a_report.py").main(str(path)) is passes
    out = capsys.readouterr().out
    assert report.origin.path in out
    for finding in json.loads(path.read_text())["findings"]:
        assert f"{finding['rule']} {finding['severity']}" in out
