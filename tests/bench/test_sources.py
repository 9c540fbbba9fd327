"""Keys of results: what they depend on changes them, and nothing else does."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gifthorse.attacks import ATTACKS
from gifthorse.bench import sources, tasks
from gifthorse.bench.sources import PACKAGE, code_digest, modules_of, spelled
from gifthorse.bench.tasks import FAMILIES, JUDGING, MAKING, Cell, Choice, judging
from gifthorse.core.options import vary
from gifthorse.detection import DETECTORS
from gifthorse.inversion import INVERTERS
from gifthorse.models.nets.resnet import Bottleneck, resnet


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that may be edited."""
    place = tmp_path / "gifthorse"
    shutil.copytree(PACKAGE, place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def edited(package: Path, module: str, change: Callable[[str], str]) -> Path:
    """Return a copy of a package with one module changed."""
    place = package.parent / f"edited_{len(list(package.parent.iterdir()))}" / "gifthorse"
    shutil.copytree(package, place)
    file = place / f"{module.replace('.', '/')}.py"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    return place


def constant(text: str) -> str:
    return text + "\nANOTHER = 1\n"


def prose(text: str) -> str:
    """Change a module's first docstring, lay it out anew and comment it."""
    return text.replace('"""', '"""Otherwise said: ', 1) + "\n\n\n# a comment\n"


# What the inverter in a detector's field imports, and what judges, trains and draws data.
METHOD = modules_of(DETECTORS["pixel"])


@pytest.mark.parametrize("module", ["inversion.pixel", "search.loop", "detection.inspector",
                                    "detection.statistics", "core.tensors"])  # fmt: skip
def test_code_far_below_a_method_changes_its_key_and_prose_does_not(
    package: Path, module: str
) -> None:
    before = code_digest(METHOD, package)
    assert code_digest(METHOD, edited(package, module, constant)) != before
    assert code_digest(METHOD, edited(package, module, prose)) == before


@pytest.mark.parametrize("module", ["training.fit", "training.loop", "data.augment",
                                    "data.packed", "workflows.make", "bench.making"])  # fmt: skip
def test_code_that_trains_changes_the_key_of_a_net(package: Path, module: str) -> None:
    roots = frozenset({MAKING})
    before = code_digest(roots, package)
    assert code_digest(roots, edited(package, module, constant)) != before
    assert code_digest(roots, edited(package, module, prose)) == before


@pytest.mark.parametrize(
    "module",
    [
        "bench.judge",
        "bench.filters",
        "bench.outcome",
        "core.metrics.classification",
        "workflows.evaluate",
    ],
)
def test_code_that_judges_changes_the_key_of_a_cell(package: Path, module: str) -> None:
    roots = frozenset({JUDGING})
    assert code_digest(roots, edited(package, module, constant)) != code_digest(roots, package)


def test_what_a_result_does_not_use_leaves_its_key(package: Path) -> None:
    before = code_digest(METHOD, package)
    for module in ("detection.mm_bd", "attacks.badnet", "report.text", "bench.store", "__init__"):
        assert code_digest(METHOD, edited(package, module, constant)) == before
    made = code_digest(frozenset({MAKING}), package)
    for module in ("bench.judge", "bench.worker", "models.zoo", "models.load", "report.text"):
        assert code_digest(frozenset({MAKING}), edited(package, module, constant)) == made


def test_a_method_is_of_the_modules_of_all_its_values() -> None:
    method = DETECTORS["pixel"]
    assert {"gifthorse.detection.inspector", "gifthorse.inversion.pixel"} <= modules_of(method)
    other = replace(method, inverter=INVERTERS["uap"])  # type: ignore[type-var]
    assert "gifthorse.inversion.uap" in modules_of(other) - modules_of(method)
    badnet = modules_of(vary(ATTACKS["badnet"], {"stamp.size": 4}))
    assert {"gifthorse.triggers.stamp", "gifthorse.training.fit"} <= badnet


def test_every_method_has_code_that_can_be_followed() -> None:
    for registry in FAMILIES.values():
        for method in registry.values():
            assert modules_of(method)
            assert len(code_digest(modules_of(method))) == 24


def test_only_registries_are_defined_where_they_are_not_followed() -> None:
    """What a package's `__init__` defines itself is in no key, so no method may take from there."""
    for family in ("attacks", "detection", "filtering", "remedies", "inversion", "search"):
        for file in sorted((PACKAGE / family).glob("[!_]*.py")):
            name = f"gifthorse.{family}.{file.stem}"
            for node in ast.walk(sources._tree(name, PACKAGE)):
                if isinstance(node, ast.ImportFrom) and node.module:
                    for alias in node.names if node.module.startswith("gifthorse.") else ():
                        assert sources._home(node.module, alias.name, PACKAGE), (name, alias.name)


def test_a_net_is_spelled_by_what_it_is_made_of() -> None:
    net = partial(resnet, depths=(3, 4), block=Bottleneck)
    said = ["gifthorse.models.nets.resnet.resnet", [],
            {"block": "gifthorse.models.nets.resnet.Bottleneck", "depths": "(3, 4)"}]  # fmt: skip
    assert spelled(net) == said
    assert modules_of(net) == {"gifthorse.models.nets.resnet"}


def test_another_net_or_recipe_or_code_trains_anew(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    badnet, strip = Choice("attack", "badnet", "badnet"), Choice("filter", "strip", "strip")
    cell = Cell("mnist", "basic", badnet, strip, 0)
    keys = judging(cell)
    tasks._models.cache_clear()
    changed = edited(package, "models.nets.small", constant)
    monkeypatch.setattr(tasks, "code_digest", partial(code_digest, package=changed))
    tasks._identity.cache_clear()
    anew = judging(cell)
    other = judging(replace(cell, net="resnet20"))
    monkeypatch.undo()
    tasks._models.cache_clear()
    tasks._identity.cache_clear()
    assert anew.benign != keys.benign  # and with it all that is made of it
    assert anew.implant != keys.implant
    assert anew.key != keys.key
    assert other.benign == judging(replace(cell, net="resnet20")).benign
