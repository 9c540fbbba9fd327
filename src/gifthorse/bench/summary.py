"""Records of a bench as tables in the shape of TrojanZoo's: defenses down, attacks across."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator

from gifthorse.bench.sheets import Entry, Figure, Row, Sheet, Unit
from gifthorse.core.metrics import model_auc, rate

LEAST = 3  # models of either kind that an area under the curve is worth saying of

# What has another range or look than a share in [0, 1]: unit, least, most.
RANGES: dict[str, tuple[Unit, float, float]] = {
    **dict.fromkeys(("accuracy", "asr", "ra"), ("%", 0.0, 1.0)),
    **dict.fromkeys(("ard", "cad"), ("%", -1.0, 1.0)),
    **dict.fromkeys(("aiv", "mln", "seconds"), ("", 0.0, math.inf)),
    **dict.fromkeys(
        ("suspected", "confirmed", "flag_clean", "flag_correct", "flag_correct_set", "flag_wrong"),
        ("count", 0.0, 1.0),
    ),
}


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Attributes:
        name: Short, the same in every bench.
        title: What is shown, in words.
        family: Whose rows it has; empty for all defenses, None for none.
        figures: What stands in an entry.
        form: How they are put together.
        base: What stands in the row of the model as it is; nothing if empty.
        twin: Whether there is a column for the clean twin.
        always: Whether it is drawn even if no model has such a figure, because all failed.
        how: How to read an entry, where it is no mean over seeds.
    """

    name: str
    title: str
    family: str | None
    figures: tuple[str, ...]
    form: str = "{}"
    base: tuple[str, ...] = ()
    twin: bool = False
    always: bool = False
    how: str = ""


_ALL = ("asr", "accuracy", "tmc")
_KINDS = ("flag_correct", "flag_correct_set", "flag_wrong", "flag_clean")
LAYOUTS = (
    Layout("models", "Success % / accuracy % / confidence, undefended", None, _ALL, "{} / {} / {}",
           base=_ALL, twin=True, always=True),
    Layout("ard", "Success taken away, % (target confidence left)", "remedy", ("ard", "tmc"),
           "{} ({})", base=("asr", "tmc"), always=True),
    Layout("cad", "Accuracy lost, %", "remedy", ("cad",), base=("accuracy",), twin=True,
           always=True),
    Layout("after", "Accuracy % / success % / robust accuracy % after repair", "remedy",
           ("accuracy", "asr", "ra"), "{} / {} / {}"),
    Layout("nsr", "Neurons that triggers and clean images do not share", "remedy", ("nsr",),
           base=("nsr",), twin=True),
    Layout("maps", "Shift of attribution maps, original / target class", None,
           ("map_original", "map_target"), "{} / {}", base=("map_original", "map_target"),
           twin=True),
    Layout("tpr", "Stamped images flagged (clean ones flagged)", "filter", ("tpr", "fpr"),
           "{} ({})", always=True),
    Layout("filtering", "F1 / precision / share of right decisions", "filter",
           ("f1", "precision", "decided"), "{} / {} / {}"),
    Layout("auroc", "Area under the ROC curve over images", "filter", ("auroc",)),
    Layout("alarms", "Clean images flagged, whatever the net makes of them", "filter",
           ("fpr_all",), twin=True),
    Layout("verdicts", "Models called backdoored or suspicious (clean: false alarms)", "detector",
           ("suspected",), twin=True, always=True,
           how="how many of the models [95 % interval of the share]"),
    Layout("targets", "Target alone / among others / others alone / nothing flagged", "detector",
           _KINDS, "{} / {} / {} / {}", how="how many of the models"),
    Layout("aiv", "Anomaly index of the target (clean: the largest)", "detector", ("aiv",),
           twin=True),
    Layout("triggers", "Recovered trigger: size in pixels / overlap with the true one", "detector",
           ("mln", "mjs"), "{} / {}"),
    Layout("auc", "Area under the ROC curve over models, against clean twins", "detector",
           ("auc",),
           how="[95 % interval by bootstrap over models; of no width if no scores overlap]"),
    Layout("seconds", "Seconds for a model", "", ("seconds",), twin=True),
)  # fmt: skip
NAMES = {name for layout in LAYOUTS for name in (*layout.figures, *layout.base)} | {"score"}
KEPT = frozenset(f"{name}{end}" for name in NAMES for end in ("", "_low", "_high"))


class Method(NamedTuple):
    """An attack or a defense of a record: what it is called, and what it is."""

    label: str
    name: str
    family: str
    options: str


class Seen(NamedTuple):
    """What is kept of a record."""

    status: str
    error: str
    started: str
    figures: dict[str, float | None]


NONE = Method("", "", "", "")
ALL = Method("all attacks", "", "", "")
Place: TypeAlias = tuple[str, str, str]  # data, net, setting as JSON
Seeds: TypeAlias = dict[int, Seen]


@dataclass(frozen=True)
class _Group:
    """All records of one data set, net and setting."""

    place: Place
    setting: str
    cells: dict[tuple[Method, Method], Seeds]
    seeds: int
    older: int


def tables(records: Iterable[Mapping[str, Any]], *, reference: bool = False) -> list[Sheet]:
    """Return tables of records, for each data set, net and setting apart.

    An entry is the mean over the seeds whose status is ok, with its sample standard deviation and
    95 % interval: of a share, or whatever has bounds, by t and cut to them; of counts, Wilson's;
    of a single model, the interval in its record. Failures are counted and said. Of records of the
    same cell by several versions of the code the newest counts.

    Args:
        records: Records of cells, in any order; each is read once.
        reference: Whether to put the papers' figures below, where they have the same method on the
            same data.
    """
    out: list[Sheet] = []
    for group in _grouped(records):
        for layout in LAYOUTS:
            sheet = _sheet(group, layout)
            if sheet is not None:
                out.append(_referred(sheet, group) if reference else sheet)
    return out


# Gathering ------------------------------------------------------------------------------------


def _grouped(records: Iterable[Mapping[str, Any]]) -> list[_Group]:
    cells: dict[Place, dict[tuple[Method, Method], Seeds]] = {}
    older: Counter[Place] = Counter()
    said = _Spoken()
    for record in records:
        cell, times = record["cell"], record.get("times", {})
        place = (cell["data"], cell["net"], said(cell.get("setting", {})))
        methods = (_method(cell["attack"], said), _method(cell["defense"], said))
        figures = {name: v for name, v in record["figures"].items() if name in KEPT}
        figures["seconds"] = times.get("seconds")
        started = times.get("started") or ""
        seen = Seen(record["status"], record["error"] or "", started, figures)
        seeds = cells.setdefault(place, {}).setdefault(methods, {})
        other = seeds.get(cell["seed"])
        older[place] += other is not None
        if other is None or other.started <= seen.started:
            seeds[cell["seed"]] = seen
    settings = _apart(list(cells))
    return [
        _Group(p, settings[p], cells[p], len({s for v in cells[p].values() for s in v}), older[p])
        for p in sorted(cells)
    ]


class _Spoken:
    """Tables as JSON with sorted keys; the same few come again and again, and JSON is slow."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def __call__(self, table: Mapping[str, Any]) -> str:
        short = repr(table)
        if short not in self.known:
            self.known[short] = json.dumps(table, sort_keys=True)
        return self.known[short]


def _method(choice: Mapping[str, Any] | None, said: _Spoken) -> Method:
    if choice is None:
        return NONE
    options = said(choice.get("options", {}))
    return Method(choice["label"], choice["name"], choice["family"], options)


def _apart(places: Sequence[Place]) -> dict[Place, str]:
    """Return for each place what its setting has that others of the same data and net have not."""
    out = {}
    for place in places:
        others = [p for p in places if p[:2] == place[:2]]
        out[place] = _difference(place[2], [p[2] for p in others])
    return out


def _difference(own: str, others: Sequence[str]) -> str:
    """Return, as text, the entries of a JSON table in which it differs from others."""
    mine, tables = json.loads(own), [json.loads(other) for other in others]
    differ = [k for k in sorted(mine) if any(t.get(k) != mine[k] for t in tables)]
    return ", ".join(f"{k}={mine[k]}" for k in differ)


def _labels(methods: Iterable[Method]) -> dict[Method, str]:
    """Return what each method is called: its label, with options where several share one."""
    known = sorted(set(methods))
    out = {}
    for method in known:
        same = [m.options for m in known if m.label == method.label]
        more = (_difference(method.options, same) or method.family) if len(same) > 1 else ""
        out[method] = f"{method.label} ({more})" if more else method.label
    return out


# One table ------------------------------------------------------------------------------------


def _sheet(group: _Group, layout: Layout) -> Sheet | None:
    """Return a table, or None if there is nothing to put in it."""
    attacks = _labels(a for a, _ in group.cells if a != NONE)
    columns = [*([NONE] if layout.twin and _has_twins(group) else []), *attacks]
    columns += [ALL] if layout.name == "auc" and len(attacks) > 1 else []
    defenses = _labels(d for _, d in group.cells if d != NONE and _belongs(d, layout))
    bare = [_entry(group, (a, NONE), layout.base) for a in columns if layout.base]
    base, rows = [Row("no defense", tuple(bare))] * any(bare), []
    for defense, label in defenses.items():
        if layout.name == "auc":
            own = [_auc(group, attack, defense) for attack in columns]
        else:
            own = [_entry(group, (attack, defense), layout.figures) for attack in columns]
        rows.append(Row(label, tuple(own)))
    reasons = base if layout.family is None else rows
    if not any(_drawn(entry, layout) for row in reasons for entry in row.entries):
        return None
    called = {NONE: "clean", ALL: ALL.label} | attacks
    names = tuple(called[attack] for attack in columns)
    data, net, _ = group.place
    older = f"{group.older} older records of the same cells are left out"
    notes = (older,) if group.older else ()
    about = (layout.name, layout.title, data, net, group.setting, layout.form)
    return Sheet(*about, names, (*base, *rows), group.seeds, layout.how, notes)


def _has_twins(group: _Group) -> bool:
    return any(attack == NONE for attack, _ in group.cells)


def _belongs(defense: Method, layout: Layout) -> bool:
    return layout.family is not None and layout.family in ("", defense.family)


def _drawn(entry: Entry | None, layout: Layout) -> bool:
    """Return whether an entry is a reason to draw its table."""
    if entry is None:
        return False
    return layout.always or any(f.n or f.value is not None for f in entry.figures)


def _entry(group: _Group, methods: tuple[Method, Method], names: Sequence[str]) -> Entry | None:
    """Return an entry of a table, or None if there is no such record or figure."""
    seeds = group.cells.get(methods, {})
    good = [seen.figures for seen in seeds.values() if seen.status == "ok"]
    failed = Counter(seen.status for seen in seeds.values() if seen.status != "ok")
    applies = [name for name in names if any(name in figures for figures in good)]
    if not applies and not failed:
        return None
    figures = tuple(_figure(name, good) for name in names)
    said = [*_failures(seeds), *(_undefined(f, good) for f in figures if f.name in applies)]
    if len(seeds) < group.seeds:
        said.append(f"{len(seeds)} of {group.seeds} seeds recorded")
    return Entry(figures, dict(failed), "; ".join(words for words in said if words))


def _failures(seeds: Seeds) -> list[str]:
    """Return for each status but ok how often it is, and what was said the first time."""
    out = []
    errors: dict[str, list[str]] = {}
    for _, seen in sorted(seeds.items()):
        if seen.status != "ok":
            errors.setdefault(seen.status, []).append(seen.error)
    for status, words in sorted(errors.items()):
        first = " ".join(words[0].split())[:120]
        out.append(f"{len(words)} of {len(seeds)} {status}" + (f": {first}" if first else ""))
    return out


def _undefined(figure: Figure, good: Sequence[Mapping[str, float | None]]) -> str:
    lacking = sum(known.get(figure.name) is None for known in good)
    return f"{figure.name} undefined in {lacking} of {len(good)}" if lacking else ""


def _figure(name: str, good: Sequence[Mapping[str, float | None]]) -> Figure:
    """Return a figure over models: mean, sample standard deviation, 95 % interval."""
    unit, least, most = RANGES.get(name, ("", 0.0, 1.0))
    known = [(value, g) for g in good if (value := g.get(name)) is not None]
    n, values = len(known), torch.tensor([v for v, _ in known], dtype=torch.float64)
    if not n:
        return Figure(name, unit=unit)
    mean = float(values.mean())
    if unit == "count":
        share = rate(values > 0.5)
        return Figure(name, mean, None, share.low, share.high, n, unit)
    if n == 1:
        low, high = (known[0][1].get(f"{name}{end}") for end in ("_low", "_high"))
        return Figure(name, mean, None, low, high, n, unit)
    from scipy.special import stdtrit  # late: slow

    std = float(values.std())
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Figure(name, mean, std, max(least, mean - half), min(most, mean + half), n, unit)


def _auc(group: _Group, attack: Method, defense: Method) -> Entry | None:
    """Return how well a detector's score tells backdoored models from clean ones."""
    scores, lost = [], 0
    for bad in (False, True):
        mine = [k for k in group.cells if k[1] == defense and (k[0] != NONE) == bad]
        if bad and attack != ALL:
            mine = [(attack, defense)]
        seen = [seen for k in mine for seen in group.cells.get(k, {}).values()]
        known = [s.figures.get("score") for s in seen if s.status == "ok"]
        kept = [score for score in known if score is not None]
        lost += len(seen) - len(kept)
        scores.append(torch.tensor(kept, dtype=torch.float64))
    if min(map(len, scores)) < LEAST:
        return None
    # Each draw costs a product over all pairs of models: of very many, fewer draws say enough.
    draws = max(200, min(2000, 10**8 // (len(scores[0]) * len(scores[1]))))
    area = model_auc(scores[0], scores[1], Generator().manual_seed(0), draws=draws)
    assert area is not None  # there are models of both kinds
    figure = Figure("auc", area.value, None, area.low, area.high, area.trials)
    note = f"{lost} models without a score are left out" if lost else ""
    return Entry((figure,), {}, note)


# The papers' figures --------------------------------------------------------------------------


def references() -> list[dict[str, Any]]:
    """Return the papers' tables: what they show, on which data and net, and their rows."""
    text = files(__package__).joinpath("reference.toml").read_text("utf-8")
    known: list[dict[str, Any]] = tomllib.loads(text)["table"]
    return known


def _referred(sheet: Sheet, group: _Group) -> Sheet:
    """Return a table with the papers' rows below those of the same method."""
    attacks = _registered(a for a, _ in group.cells if a != NONE)
    defenses = {"no defense": ""} | _registered(d for _, d in group.cells if d != NONE)
    for table in references():
        if table["sheet"] != sheet.name or table["data"] != sheet.data:
            continue
        places = [_column(table, label, attacks.get(label, "")) for label in sheet.columns]
        rows = []
        for row in sheet.rows:
            rows.append(row)
            if row.source or (name := defenses.get(row.label)) is None:
                continue
            given = [_given(r, table, places) for r in table["row"] if r["defense"] == name]
            rows += [Row(row.label, g, table["source"]) for g in given if any(g)]
        if len(rows) > len(sheet.rows):
            notes = (*sheet.notes, f"{table['source']}: {table['net']}, {table['about']}")
            sheet = replace(sheet, rows=tuple(rows), notes=notes)
    return sheet


def _registered(methods: Iterable[Method]) -> dict[str, str]:
    """Return the registry's names of methods by label, where a label means the method as it is."""
    labels = _labels(methods)
    often = Counter(m.name for m in labels)
    return {lab: m.name for m, lab in labels.items() if lab == m.name or often[m.name] == 1}


def _column(table: Mapping[str, Any], label: str, name: str) -> int | None:
    """Return where a paper's table has an attack, by its name or the paper's own short one."""
    short = [column.casefold() for column in table["columns"]]
    if label.casefold() in short:
        return short.index(label.casefold())
    names = table["attacks"]
    found = [word for word in (name, label) if word in names]
    return names.index(found[0]) if found else None


def _given(
    row: Mapping[str, Any], table: Mapping[str, Any], places: Sequence[int | None]
) -> tuple[Entry | None, ...]:
    """Return a paper's figures in the columns of our table; None where it has none."""
    names = [k for k in row if k != "defense" and not k.endswith("_std")]
    out = []
    for at in places:
        figures = [] if at is None else [_printed(row, name, at, table["models"]) for name in names]
        known = any(f.value is not None for f in figures)
        out.append(Entry(tuple(figures)) if known else None)
    return tuple(out)


def _printed(row: Mapping[str, Any], name: str, at: int, models: int) -> Figure:
    """Return one figure of a paper."""
    unit = RANGES.get(name, ("", 0.0, 1.0))[0]
    value, stds = row[name][at], row.get(f"{name}_std")
    if not math.isfinite(value):
        return Figure(name, unit=unit)
    return Figure(name, value, stds[at] if stds else None, n=models, unit=unit)
