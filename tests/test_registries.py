"""Registries are complete, their methods are frozen values, and every option does something."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import typing
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from gifthorse.attacks import ATTACKS
from gifthorse.core.options import describe, vary
from gifthorse.core.types import Attack, Detector, Filter, Inverter, Remedy
from gifthorse.detection import DETECTORS
from gifthorse.filtering import FILTERS
from gifthorse.inversion import INVERTERS
from gifthorse.remedies import REMEDIES

SOURCE = Path(__file__).parents[1] / "src" / "gifthorse"
REGISTRIES: dict[str, tuple[Mapping[str, Any], type]] = {
    "attacks": (ATTACKS, Attack),
    "inversion": (INVERTERS, Inverter),
    "detection": (DETECTORS, Detector),
    "filtering": (FILTERS, Filter),
    "remedies": (REMEDIES, Remedy),
}
METHODS = [
    pytest.param(registry[name], protocol, id=f"{folder}-{name}")
    for folder, (registry, protocol) in REGISTRIES.items()
    for name in registry
]
methods = pytest.mark.parametrize(("method", "protocol"), METHODS)
# Machinery of several methods of a folder.
SHARED = {"poisoning", "training", "stimulation", "suspects"}


@pytest.mark.parametrize("folder", ["attacks", "inversion"])
def test_every_file_is_in_its_registry_under_its_name(folder: str) -> None:
    registry, _ = REGISTRIES[folder]
    names = {p.stem for p in (SOURCE / folder).glob("*.py")} - {"__init__"} - SHARED
    names |= {p.parent.name for p in (SOURCE / folder).glob("*/__init__.py")}
    assert names <= set(registry)
    for name, method in registry.items():
        home = type(method).__module__.split(".")[2]  # a file, or the folder of one method
        assert name == home or name.startswith(f"{home}_"), "a variant starts with its file's name"


@pytest.mark.parametrize("folder", REGISTRIES)
def test_what_a_folder_exports_is_sorted_and_there(folder: str) -> None:
    module = importlib.import_module(f"gifthorse.{folder}")
    names = module.__all__
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), n))
    assert all(hasattr(module, name) for name in names)


@methods
def test_methods_fit_their_protocol(method: Any, protocol: type) -> None:
    wanted = inspect.signature(protocol.__call__).parameters
    have = inspect.signature(type(method).__call__).parameters
    assert list(have) == list(wanted)
    assert [p.kind for p in have.values()] == [p.kind for p in wanted.values()]
    hints = get_type_hints(type(method).__call__)
    assert hints == get_type_hints(protocol.__call__)


@methods
def test_methods_are_frozen_values(method: Any, protocol: type) -> None:
    assert is_dataclass(method)
    assert hash(method) == hash(vary(method, {}))
    assert repr(method).startswith(type(method).__name__)
    with pytest.raises(FrozenInstanceError):
        setattr(method, fields(method)[0].name, None)


def text(value: object) -> str:
    """An option's value as a user would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return json.dumps(value)
    return "null" if value is None else str(value)


@methods
def test_options_round_trip_as_values_and_as_text(method: Any, protocol: type) -> None:
    options = describe(method)
    assert options
    assert vary(method, options) == method
    assert vary(method, {name: text(value) for name, value in options.items()}) == method


@methods
def test_a_changed_number_comes_back(method: Any, protocol: type) -> None:
    for name, value in describe(method).items():
        if isinstance(value, int) and not isinstance(value, bool):
            assert describe(vary(method, {name: str(value + 1)}))[name] == value + 1
        elif isinstance(value, float):
            changed = describe(vary(method, {name: str(value / 2)}))[name]
            assert changed == value / 2


@methods
def test_options_are_described(method: Any, protocol: type) -> None:
    kinds, todo = [], [method]
    while todo:
        kinds.append(todo.pop())
        todo += [v for f in fields(kinds[-1]) if is_dataclass(v := getattr(kinds[-1], f.name))]
    for kind in kinds:
        words = inspect.getdoc(type(kind)) or ""
        for f in fields(kind):
            assert f"{f.name}:" in words, f"{type(kind).__name__}.{f.name}"
    assert "Source:" in (inspect.getdoc(type(method)) or "")


def reads(*paths: Path) -> set[str]:
    """Every attribute name that these files read."""
    return {
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def unread(path: Path, read: set[str]) -> list[str]:
    """The fields of a file's dataclasses that are not among the names read."""
    module = ".".join(("gifthorse", *path.relative_to(SOURCE).with_suffix("").parts))
    kinds = [
        kind
        for kind in vars(importlib.import_module(module)).values()
        if inspect.isclass(kind) and is_dataclass(kind) and kind.__module__ == module
    ]
    return [f"{k.__name__}.{f.name}" for k in kinds for f in fields(k) if f.name not in read]


def test_every_option_of_what_methods_share_is_read() -> None:
    searching, inverting = ((SOURCE / name).rglob("*.py") for name in ("search", "inversion"))
    parts = sorted(searching)
    read = reads(*parts, *inverting)
    assert [name for path in parts for name in unread(path, read)] == []
    fitting = sorted((SOURCE / "training").glob("*.py"))
    for path in (SOURCE / "attacks" / "poisoning.py", *fitting):
        assert unread(path, reads(path, *fitting)) == []


@pytest.mark.parametrize("folder", REGISTRIES)
def test_every_option_of_a_method_is_read_in_its_folder(folder: str) -> None:
    paths = sorted((SOURCE / folder).rglob("*.py"))
    read = reads(*paths)
    registry, _ = REGISTRIES[folder]
    assert {Path(inspect.getfile(type(method))) for method in registry.values()} <= set(paths)
    assert [name for path in paths for name in unread(path, read)] == []


def test_literal_options_refuse_other_words() -> None:
    for registry, _ in REGISTRIES.values():
        for method in registry.values():
            for f in fields(method):
                if typing.get_origin(get_type_hints(type(method))[f.name]) is typing.Literal:
                    with pytest.raises(Exception, match=f.name):
                        vary(method, {f.name: "no such word"})
