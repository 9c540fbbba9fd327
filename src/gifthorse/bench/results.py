"""All records of a bench as one relation: read by DuckDB, without trust, grouped over seeds."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from gifthorse.bench.figures import Estimate, Metric, metric, over_seeds
from gifthorse.bench.plan import BenchPlan, read
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Task, judging
from gifthorse.core.errors import UsageError
from gifthorse.report import words

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LABEL, TEXT = 80, 2000  # most characters that are shown of a label, and of any other text

# The newest record of each cell: `position` is where it stood, `crossing` what it shares with the
# other seeds. Then the figures of each, their companions beside them.
_ARRANGED = """
create temp table if not exists newest as
select *, min(position) over crossed as crossing, count(*) over same - 1 as older
from (
    select rowid as position, key, seed, seconds, started, coalesce(data, '') as data,
        coalesce(net, '') as net, coalesce(cell->'$.setting', '{}') as setting,
        coalesce(cell->'$.attack', 'null') as attacker,
        coalesce(cell->'$.defense', 'null') as defender, coalesce(status, 'error') as state,
        coalesce(error, '') as reason, coalesce(words->>'$.label', '') as label
    from records)
window crossed as (partition by data, net, setting, attacker, defender),
    same as (partition by data, net, setting, attacker, defender, seed),
    newer as (same order by started desc nulls last, position desc)
qualify row_number() over newer = 1;

create temp table if not exists measured as
with said as (
    select position, figure.key as name, number(figure.value) as value
    from (select rowid as position,
        unnest(map_entries(json_transform(figures, '"MAP(VARCHAR, JSON)"'))) as figure
        from records)
), beside as (
    select f.position, f.name, f.value, low.value as low, high.value as high, n.value as trials
    from said f
    left join said low on low.position = f.position and low.name = f.name || '_low'
    left join said high on high.position = f.position and high.name = f.name || '_high'
    left join said n on n.position = f.position and n.name = f.name || '_n'
    anti join said whose on whose.position = f.position
        and whose.name = regexp_replace(f.name, '_(low|high|n)$', '') and whose.name <> f.name
    where f.name <> 'seconds'
    union all select position, 'seconds', seconds, null, null, null from newest
)
select beside.*, crossing, seed, state from beside join newest using (position)
"""
_MEANS = """
select crossing, name, avg(value), stddev_samp(value), any_value(low), any_value(high),
    count(value), sum(trials), count_if(value > 0.5),
    list(value order by seed) filter (name = 'score' and value is not null)
from measured where state = 'ok' group by all
"""
_CROSSINGS = """
select crossing, data, net, setting, attacker, defender, sum(older),
    list({'k': key, 's': seed, 't': state, 'e': reason, 'l': label, 'n': seconds} order by seed)
from newest group by all order by crossing
"""
_CELLS = """
with lists as (
    select position, list({'name': name, 'value': value, 'low': low, 'high': high, 'n': trials})
        as figures from measured where name <> 'seconds' group by position)
select n.key, n.seed, state, reason, label, n.seconds, n.data, n.net, setting, attacker, defender,
    lists.figures, words, times, command, models, versions, machine
from newest n join records on records.rowid = position left join lists using (position)
order by position
"""


# 1. What is read ------------------------------------------------------------------------------


class MethodId(NamedTuple):
    """An attack or a defense as records name it."""

    label: str
    name: str
    family: str
    options: tuple[tuple[str, str], ...] = ()


CLEAN = MethodId("clean", "", "attack")
BARE = MethodId("no defense", "", "none")


class Setup(NamedTuple):
    """What the cells of one table or heat map have in common."""

    data: str
    net: str
    setting: tuple[tuple[str, str], ...]


class SeedRun(NamedTuple):
    """One seed of a cell: what came of it."""

    key: str
    seed: int
    status: str
    error: str
    label: str
    seconds: float | None

    @property
    def ok(self) -> bool:
        """Whether its figures count."""
        return self.status == "ok"


@dataclass(frozen=True, eq=False)
class SeedGroup:
    """A defense against an attack in one setup, over its seeds.

    Attributes:
        setup: Data, net and setting.
        attack: The attack, or `CLEAN`.
        defense: The defense, or `BARE`.
        runs: One a seed, by seed.
        older: How many records of the same cells are left out, since there are newer ones.
        figures: Means over the seeds that are ok, by name; those that all lack are not there.
        scores: The detector's score of each of them.
    """

    setup: Setup
    attack: MethodId
    defense: MethodId
    runs: tuple[SeedRun, ...]
    older: int
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    scores: tuple[float, ...] = ()

    @property
    def good(self) -> tuple[SeedRun, ...]:
        """The seeds whose figures count."""
        return tuple(run for run in self.runs if run.ok)


@dataclass(frozen=True, eq=False)
class CellResult:
    """A record, read without trust: every text is printable and of bounded length."""

    run: SeedRun
    setup: Setup
    attack: MethodId
    defense: MethodId
    figures: Mapping[str, Estimate]
    words: Mapping[str, str]
    times: Mapping[str, float | str]
    command: str
    about: Mapping[str, Mapping[str, str]]


# 2. Cells and means over seeds ----------------------------------------------------------------


def metrics(con: DuckDBPyConnection) -> dict[str, Metric]:
    """Return what each figure is that any record of a frame has, by name."""
    con.execute(_ARRANGED)
    rows = con.execute(
        "select name, coalesce(min(value), 0), coalesce(max(value), 1), "
        "coalesce(bool_and(trials is not null and abs(value) <= 1), false) "
        "from measured group by name"
    ).fetchall()
    return {text(n, LABEL): metric(text(n, LABEL), a, b, shares=s) for n, a, b, s in rows}


def groups(con: DuckDBPyConnection) -> list[SeedGroup]:
    """Return all cells of a frame, their seeds together, in the order of their first records."""
    kinds = metrics(con)
    figures: dict[int, dict[str, Estimate]] = defaultdict(dict)
    scores: dict[int, tuple[float, ...]] = {}
    for crossing, said, value, std, low, high, n, trials, hits, each in con.execute(
        _MEANS
    ).fetchall():
        name = text(said, LABEL)
        known = Estimate(name, value, std, low, high, n, trials=trials)
        figures[crossing][name] = over_seeds(kinds[name], known, hits)
        if each:
            scores[crossing] = tuple(each)
    return [
        SeedGroup(
            Setup(text(data, LABEL), text(net, LABEL), _options(setting)),
            _method(attack, CLEAN),
            _method(defense, BARE),
            tuple(_run(*run.values()) for run in runs),
            int(older),
            figures[crossing],
            scores.get(crossing, ()),
        )
        for crossing, data, net, setting, attack, defense, older, runs in con.execute(
            _CROSSINGS
        ).fetchall()
    ]


def cells(con: DuckDBPyConnection) -> list[CellResult]:
    """Return the newest record of each cell of a frame, in their order."""
    con.execute(_ARRANGED)
    out = []
    for row in con.execute(_CELLS).fetchall():
        data, net, setting, attack, defense, figures, said, times, command, *about = row[6:]
        values = [
            Estimate(text(f["name"], LABEL), f["value"], None, f["low"], f["high"], 1, "", f["n"])
            for f in figures or ()
        ]
        found = CellResult(
            _run(*row[:6]),
            Setup(text(data, LABEL), text(net, LABEL), _options(setting)),
            _method(attack, CLEAN),
            _method(defense, BARE),
            {value.name: value for value in values},
            flat(_json(said)),
            {k: text(v) if (n := number(v)) is None else n for k, v in _json(times).items()},
            text(command or ""),
            dict(zip(("models", "versions", "machine"), map(flat, map(_json, about)), strict=True)),
        )
        out.append(found)
    return out


def _run(key: str, seed: int, status: str, error: str, label: str, seconds: Any) -> SeedRun:
    known = number(seconds)
    return SeedRun(key, seed, text(status, LABEL), text(error), text(label), known)


def number(value: object) -> float | None:
    """Return a finite number as it is, None for anything else."""
    if not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None  # false of NaN, too


def text(value: object, limit: int = TEXT) -> str:
    """Return anything as printable text on one line."""
    plain = str(value)
    short = len(plain) <= limit and plain.isprintable()
    return plain if short else words.printable(plain, limit)


def flat(table: object, front: str = "") -> dict[str, str]:
    """Return a table as dotted names and text, without what is empty."""
    out: dict[str, str] = {}
    for key, value in table.items() if isinstance(table, Mapping) else ():
        if isinstance(value, Mapping):
            out |= flat(value, f"{front}{text(key, LABEL)}.")
        elif value is not None:
            out[front + text(key, LABEL)] = text(value)
    return out


def _json(said: str | None) -> Mapping[str, Any]:
    known = json.loads(said) if said else {}
    return known if isinstance(known, Mapping) else {}


@lru_cache(4096)
def _options(said: str) -> tuple[tuple[str, str], ...]:
    return tuple(flat(_json(said)).items())


@lru_cache(4096)
def _method(said: str, default: MethodId) -> MethodId:
    known = _json(said)
    if not known:
        return default
    family, name = (text(known.get(part), LABEL) for part in ("family", "name"))
    label = text(known.get("label") or name, LABEL)
    return MethodId(label, name, family, tuple(flat(known.get("options")).items()))


# 3. Names -------------------------------------------------------------------------------------


def titles(found: Iterable[SeedGroup]) -> dict[MethodId, str]:
    """Return a name for each method: its label, and what sets it apart from others of that label.

    Example:
        >>> setup = Setup("cifar10", "resnet20", ())
        >>> bad = [MethodId("bad", "badnet", "attack", (("size", s),)) for s in "12"]
        >>> named = titles(SeedGroup(setup, attack, BARE, (), 0) for attack in bad)
        >>> list(named.values())
        ['clean', 'bad (size=1)', 'bad (size=2)', 'no defense']
    """
    pairs = [(CLEAN, BARE), *((group.attack, group.defense) for group in found)]
    out = {}
    for methods in map(dict.fromkeys, zip(*pairs, strict=True)):
        by_label: dict[str, list[MethodId]] = defaultdict(list)
        for method in methods:
            by_label[method.label].append(method)
        for method in methods:
            same = by_label[method.label]
            tables = [(("family", m.family), ("method", m.name), *m.options) for m in same]
            apart = distinct(tables)[same.index(method)] if len(same) > 1 else ""
            plain = method in (CLEAN, BARE) or not apart
            out[method] = method.label if plain else text(f"{method.label} ({apart})", 2 * LABEL)
    return out


def distinct(tables: Sequence[Iterable[tuple[str, str]]]) -> list[str]:
    """Return in words what each table has that not all of them have."""
    known = [dict(table) for table in tables]
    names = dict.fromkeys(name for table in known for name in table)
    apart = [name for name in names if len({table.get(name) for table in known}) > 1]
    return [", ".join(f"{n}={t[n]}" for n in apart if t.get(n)) for t in known]


def settings(setups: Iterable[Setup]) -> dict[Setup, str]:
    """Return for each setup in words what its setting has that others of its data and net lack."""
    known, out = list(dict.fromkeys(setups)), {}
    for setup in known:
        same = [other for other in known if other[:2] == setup[:2]]
        out[setup] = distinct([other.setting for other in same])[same.index(setup)]
    return out


# 4. Plans -------------------------------------------------------------------------------------


def opened(file: Path, store: str | None) -> tuple[BenchPlan, Store]:
    """Return a plan and its store, `runs/NAME` unless another is named.

    Raises:
        UsageError: If either cannot be opened.
    """
    made = read(file)
    if store is None and not re.fullmatch(r"[^/\\:\x00-\x1f.][^/\\:\x00-\x1f]{0,100}", made.name):
        raise UsageError(
            f"{file} is called {made.name!a}, which is no name for a folder in runs/: give its "
            "name letters and digits, or name a --store"
        )
    return made, Store(store or f"runs/{made.name}")


def recorded(source: str, store: str | None) -> tuple[Store, list[str] | None]:
    """Return the store of a plan and the keys of its cells; of a folder or URL all there is.

    Raises:
        UsageError: If it cannot be opened.
    """
    if source.endswith(".toml"):
        made, place = opened(Path(source), store)
        return place, [judging(cell).key for cell in made.cells]
    return Store(source), None


@dataclass(frozen=True)
class CostEstimate:
    """The work that is left of a plan.

    Attributes:
        train: Benign nets to train.
        implant: Backdoored nets to make.
        judge: Cells to judge.
        seconds: Processor time of one worker for what is known, from records of the same kind.
        unknown: Tasks of which there is no record to go by.
    """

    train: int
    implant: int
    judge: int
    seconds: float
    unknown: int

    @property
    def tasks(self) -> int:
        """All tasks."""
        return self.train + self.implant + self.judge


def estimate_cost(todo: Sequence[Task], store: Store) -> CostEstimate:
    """Return what some tasks will cost, judged by what is recorded in a store; without DuckDB.

    A task costs what those of the same method, net and data took on average; failing that, those
    of the same method.
    """
    times: dict[tuple[str, ...], list[float]] = defaultdict(list)
    done = [("defense", record) for record in store.records() if record["status"] == "ok"]
    specs = (store.spec(key) or {} for key in store.models())
    for what, made in (*done, *(("attack", spec) for spec in specs if spec.get("times"))):
        cell = made["cell"]
        names = (what, (cell[what] or {}).get("name", "none"), cell["net"], cell["data"])
        for some in (names, names[:2]):
            times[some].append(made["times"]["seconds"])
    seconds, unknown, count = 0.0, 0, Counter(task.kind for task in todo)
    for task in todo:
        what = "defense" if task.kind == "judge" else "attack"
        choice = task.cell.defense if task.kind == "judge" else task.cell.attack
        names = (what, choice.name if choice else "none", task.cell.net, task.cell.data)
        known = times.get(names) or times.get(names[:2])
        seconds += fmean(known) if known else 0.0
        unknown += not known
    return CostEstimate(count["train"], count["implant"], count["judge"], seconds, unknown)
