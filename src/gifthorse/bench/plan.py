"""Plans: which data, nets, attacks and defenses a bench crosses, read from TOML."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gifthorse.bench.tasks import (
    DEFENSES,
    FAMILIES,
    IMPORTED,
    Cell,
    Choice,
    Family,
    Setting,
    family,
)
from gifthorse.core.errors import BadOption, UnknownMethod, UsageError
from gifthorse.core.files import read_file
from gifthorse.core.options import describe, suggestion, vary
from gifthorse.models.zoo import NETS

PROFILES = ("smoke", "small", "paper")
MOST_CELLS, MOST_FILES, MOST_BYTES = 200_000, 100, 2**22
EVERY = "*"  # options of all methods of a family that have them


class Pick(BaseModel):
    """A method in a grid that is not taken as it is in its registry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    use: str
    label: str = Field("", alias="as")
    set: dict[str, Any] = {}


class Grid(BaseModel):
    """What is crossed with what."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: list[str]
    nets: list[str]
    attacks: list[str | Pick] = []
    defenses: list[str | Pick] = []
    seeds: int | list[int] = 1
    twins: bool = True


class ImportedGrid(BaseModel):
    """Imported models, by key, and what they are judged with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    models: list[str]
    defenses: list[str | Pick] = []
    seeds: int | list[int] = 1


class PlanTable(BaseModel):
    """A plan as it stands in its file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = ""
    about: str = ""
    profile: str = ""
    include: list[str] = []
    setting: dict[str, Any] = {}
    options: dict[str, dict[str, dict[str, Any]]] = {}
    grid: list[Grid] = []
    imported: list[ImportedGrid] = []


TABLES: dict[str, type[BaseModel]] = {
    "": PlanTable,
    "grid": Grid,
    "imported": ImportedGrid,
    "attacks": Pick,
    "defenses": Pick,
}


@dataclass(frozen=True)
class BenchPlan:
    """A bench, ready to be run.

    Attributes:
        name: What it is called.
        about: What it is for, in a sentence.
        cells: Everything to judge, each once, in the order of the tables.
    """

    name: str
    about: str
    cells: tuple[Cell, ...]


def read(path: Path) -> BenchPlan:
    """Read a plan.

    The clean twin of every model is judged by the same defenses unless `twins` is false, and every
    model once without a defense.

    Raises:
        UsageError: If the file cannot be read, or has a key that no plan has.
        BadOption: If a method has no such option, or a value does not fit.
        UnknownMethod: If there is no such method, net or profile.
    """
    table = _table(_merged(path, (), {}), path)
    if not table.grid and not table.imported:
        raise UsageError(f"{path} crosses nothing: it needs a [[grid]] with data and nets")
    setting = vary(Setting(), dict(_flat(table.setting)))
    _check_options(table.options)
    count = sum(_count(grid) for grid in table.grid) + sum(_count(g) for g in table.imported)
    if count > MOST_CELLS:
        raise UsageError(
            f"{path} crosses {count:,} cells, more than {MOST_CELLS:,}: take fewer seeds or methods"
        )
    cells: dict[Cell, None] = {}
    for grid in table.grid:
        cells |= dict.fromkeys(_cells(grid, setting, table.options))
    for lent in table.imported:
        cells |= dict.fromkeys(_lent(lent, setting, table.options))
    return BenchPlan(table.name or path.stem, table.about, tuple(cells))


def _count(grid: Grid | ImportedGrid) -> int:
    """Return how many cells a grid has at most, before any is made."""
    seeds = max(0, grid.seeds) if isinstance(grid.seeds, int) else len(grid.seeds)
    of = len(grid.data) * len(grid.nets) * (len(grid.attacks) + 1) if isinstance(grid, Grid) else (
        len(grid.models)
    )  # fmt: skip
    return seeds * of * (len(grid.defenses) + 1)


def _cells(grid: Grid, setting: Setting, options: Mapping[str, Any]) -> Iterator[Cell]:
    for net in grid.nets:
        if net not in NETS:
            raise UnknownMethod.among("net", net, NETS)
    attacks: list[Choice | None] = [_choice("attack", a, options) for a in grid.attacks]
    defenses: list[Choice | None] = [_choice(None, d, options) for d in grid.defenses]
    seeds = _seeds(grid.seeds)
    twin: list[Choice | None] = [None] if grid.twins or not attacks else []
    for data, net, seed in product(grid.data, grid.nets, seeds):
        for attack, defense in product([*twin, *attacks], [None, *defenses]):
            yield Cell(data, net, attack, defense, seed, setting)


def _lent(lent: ImportedGrid, setting: Setting, options: Mapping[str, Any]) -> Iterator[Cell]:
    defenses: list[Choice | None] = [_choice(None, d, options) for d in lent.defenses]
    seeds = _seeds(lent.seeds)
    for model, seed, defense in product(lent.models, seeds, [None, *defenses]):
        yield Cell(IMPORTED + model, "imported", None, defense, seed, setting)


def _seeds(given: int | list[int]) -> Sequence[int]:
    return range(given) if isinstance(given, int) else given


def _choice(kind: Family | None, pick: str | Pick, options: Mapping[str, Any]) -> Choice:
    """Return a method with the plan's options for all, then for it, then the pick's own."""
    chosen = Pick.model_validate({"use": pick}) if isinstance(pick, str) else pick
    kind = kind or family(chosen.use)
    name = chosen.use.partition(":")[2] or chosen.use
    if name not in FAMILIES[kind]:
        raise UnknownMethod.among(kind, name, FAMILIES[kind])
    known, of_kind = describe(FAMILIES[kind][name]), options.get(kind, {})
    shared = {k: v for k, v in _flat(of_kind.get(EVERY, {})) if k in known}
    changed = shared | dict(_flat(of_kind.get(name, {}))) | dict(_flat(chosen.set))
    frozen = tuple(sorted((k, _frozen(v)) for k, v in changed.items()))
    choice = Choice(kind, name, chosen.label or chosen.use, frozen)
    assert choice.method is not None  # an option that does not fit is an error now, not in a cell
    return choice


def _check_options(options: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Raise if options are for a family or a method that does not exist, or that none has."""
    for kind, by_name in options.items():
        if kind not in FAMILIES:
            raise UnknownMethod.among("family of methods", kind, FAMILIES)
        registry = next(FAMILIES[k] for k in ("attack", *DEFENSES) if k == kind)
        for name, table in by_name.items():
            if name != EVERY and name not in registry:
                raise UnknownMethod.among(kind, name, registry)
            if name == EVERY:
                has = {k for method in registry.values() for k in describe(method)}
                for option, _ in _flat(table):
                    if option not in has:
                        hint = suggestion(option, has) or "see gifthorse explain"
                        raise BadOption(f"no {kind} has an option {option}: {hint}")


def _merged(
    path: Path, above: tuple[Path, ...], read: dict[Path, dict[str, Any]]
) -> dict[str, Any]:
    """Return a plan's table over those it includes, over its profile; `read` gains each once."""
    place = Path(os.path.realpath(path))
    if place in above:
        raise UsageError(f"{path} includes itself")
    if place in read:
        return read[place]
    if len(read) + len(above) >= MOST_FILES:
        raise UsageError(f"{(*above, place)[0]} includes more than {MOST_FILES} plans")
    own = _own(path)
    out: dict[str, Any] = {}
    if profile := own.get("profile"):
        if profile not in PROFILES:
            raise UnknownMethod.among("profile", str(profile), PROFILES)
        out = tomllib.loads(files(__package__).joinpath(f"profiles/{profile}.toml").read_text())
    others = own.get("include", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise UsageError(f"{path}: include takes a list of plans; got {others!r:.80}")
    for other in others:
        out = _over(out, _merged(path.parent / other, (*above, place), read))
    read[place] = _over(out, own)
    return read[place]


def _own(path: Path) -> dict[str, Any]:
    """Return a plan's own table; paths in it are from where it lies."""
    own = _toml(path)
    setting = own.get("setting")
    if isinstance(setting, dict) and "benign" in setting:
        setting["benign"] = os.path.realpath(path.parent / str(setting["benign"]))
    return own


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(path, MOST_BYTES).decode())
    except UsageError as error:
        raise UsageError(f"the plan {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers too long, tables too deep, no text
        raise UsageError(f"{path} is no TOML: {str(error)[:500]}") from error


def _over(under: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return two tables as one, key by key; where both have a value, the upper one's."""
    out = dict(under)
    for key, value in upper.items():
        below = out.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        out[key] = _over(below, value) if both else value  # type: ignore[arg-type]
    return out


def _table(raw: dict[str, Any], path: Path) -> PlanTable:
    try:
        return PlanTable.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path}: {_said(error.errors())}") from error


def _said(errors: Sequence[Any]) -> str:
    """Return what is wrong with a plan, in words: where, and the nearest key that there is."""
    # Of what may be text or a table, both complain: an unknown key says more than "no text".
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    loc = [part for part in error["loc"] if part not in ("str", "Pick")]
    where = ".".join(str(part) for part in loc)
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].lower()}; got {error['input']!r:.200}"
    parents = [part for part in loc[:-1] if part in TABLES]
    table = TABLES[parents[-1] if parents else ""]
    names = sorted(f.alias or name for name, f in table.model_fields.items())
    near = get_close_matches(str(loc[-1]), names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    return f"there is no key {where}: {hint}"


def _flat(table: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a table, in TOML nested or dotted."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{front}{key}.")
        else:
            yield front + key, value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
