"""The documentation as a site: links lead on, commands are calls, the build is strict."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from PIL import Image
from scripts import gallery
from scripts.pages import ELSEWHERE, moved, public_names, tutorial

import gifthorse
from gifthorse.cli.commands import app

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.py"))
QUESTIONS = (ROOT / "docs/questions.md").read_text()
CALLS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", QUESTIONS, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", CALLS)
def test_every_answer_is_a_call_that_parses(line: str) -> None:
    program, name, *words = shlex.split(line)
    assert program == "gifthorse"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, words)  # raises on what it does not know, and on what it lacks


def test_every_question_of_the_page_has_its_answer() -> None:
    questions = QUESTIONS.split("\n### ")[1:]
    assert len(questions) == 20
    assert all("```sh\ngifthorse" in question for question in questions)


@pytest.mark.parametrize(
    ("given", "folder", "led"),
    [
        ("[a](../README.md#two) [b](trust.md)", "docs", "[a](overview.md#two) [b](trust.md)"),
        ("[a](docs/trust.md#x) [b](LICENSE)", "", "[a](trust.md#x) b"),
        ("[a](../examples/gift) [b](#here)", "docs", "a [b](#here)"),
        ("[a](https://x.org/docs) [b](index.md)", "docs", "[a](https://x.org/docs) [b](index.md)"),
        ("![a](docs/report.png)", "", "![a](report.png)"),
        ("```\n[a](LICENSE)\n```\n[a](LICENSE)", "", "```\n[a](LICENSE)\n```\na"),
    ],
)
def test_links_lead_to_pages_of_the_site(given: str, folder: str, led: str) -> None:
    assert moved(given, folder) == led


def test_the_menu_has_every_page() -> None:
    named = set(re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    tutorials = {f"tutorials/{path.stem}.md" for path in TUTORIALS}
    assert named == pages | tutorials | set(ELSEWHERE.values()) | {"api.md"}


def test_a_script_is_read_as_a_page() -> None:
    page = tutorial('"""Two.\n\nAt once.\n"""\n\n# One and\n# one:\n\nx = 1\n\nprint(x + 1)\n')
    code = "```python\nx = 1\n\nprint(x + 1)\n```"
    assert page == f"# Two\n\nAt once.\n\nOne and\none:\n\n{code}"


@pytest.mark.slow
@pytest.mark.parametrize("script", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run_from_an_empty_folder(script: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_have_a_page() -> None:
    shown = set(re.findall(r"heading: gifthorse\.(\w+)", public_names()))
    assert shown == {name for name in gifthorse.__all__ if not name.isupper()}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name)
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = (tmp_path / "api/index.html").read_text()
    for name in gifthorse.__all__:
        assert name.isupper() or f"gifthorse.{name}" in names
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert not loaded, page


@pytest.mark.slow
def test_the_gallery_shows_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--attacks", "badnet", "--detectors", "pixel_quick", "weight_signature"]
    monkeypatch.setattr(sys, "argv", ["gallery.py", "-o", str(tmp_path), *asked])
    gallery.main()
    names = {"attack_badnet.png", "detector_pixel_quick.png"}  # the other shows no trigger
    assert {path.name for path in tmp_path.iterdir()} == {"gallery.md", *names}
    assert set(re.findall(r"\((\w+\.png)\)", (tmp_path / "gallery.md").read_text())) == names
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100


def test_every_attack_can_be_made_hasty() -> None:
    assert all(gallery.hasty(name) for name in gifthorse.ATTACKS)
