"""A release: its version is said once, it can be made, and what is promised is what is there."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from scripts.release import bill, release

import gifthorse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert str(Version(gifthorse.__version__)) == gifthorse.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in citation
    assert citation["license"] == PROJECT["license"]
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert gifthorse.__version__ in heads[:2]  # under what is not released yet, if anything is


def test_a_person_can_read_the_changelog() -> None:
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert len(newest) < 6_000


def test_the_page_on_stability_lists_the_public_names() -> None:
    page = (ROOT / "docs/stability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(gifthorse.__all__)


def test_the_bill_names_what_the_wheel_needs(tmp_path: Path) -> None:
    wheel = tmp_path / "gifthorse-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"")
    made = bill(wheel)
    schema = json.loads((ROOT / "tests/report/schemas/cyclonedx-1.6.json").read_text())
    jsonschema.Draft7Validator(schema).validate(made)
    assert made["metadata"]["component"]["version"] == "1.2.3"
    parts = {part["name"]: part["version"] for part in made["components"]}
    declared = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    assert set(declared) <= set(parts)
    assert all(r.specifier.contains(Version(parts[n]).public) for n, r in declared.items())
    assert "pytest" not in parts  # extras are not what the wheel needs
    refs = {part["bom-ref"] for part in (made["metadata"]["component"], *made["components"])}
    assert {edge["ref"] for edge in made["dependencies"]} == refs
    assert {ref for edge in made["dependencies"] for ref in edge["dependsOn"]} < refs
    assert bill(wheel) == made


@pytest.mark.slow
def test_a_release_is_made_twice_alike_and_runs_from_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    wheel, sdist, sbom, sums = sorted(release(tmp_path), key=lambda p: p.suffix != ".whl")
    assert "its twin is not" in capsys.readouterr().out
    assert wheel.name == f"gifthorse-{gifthorse.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
    source = ROOT / "src"
    ours = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert {n for n in ours if "__pycache__" not in n and ".egg-info" not in n} <= names
    assert "gifthorse/py.typed" in names
    with tarfile.open(sdist) as packed:
        held_there = {name.partition("/")[2] for name in packed.getnames()}
    assert {"tests/test_release.py", "CITATION.cff", "CHANGELOG.md", "pyproject.toml"} <= held_there
    assert sbom.name.endswith(".cdx.json")
    assert len(sums.read_text().splitlines()) == 3
