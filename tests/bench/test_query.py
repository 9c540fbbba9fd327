"""Questions in SQL, against sums in Python over the same records."""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import duckdb
import pytest
from tests.bench.records import bench, fill, method, record

from gifthorse.bench.query import QueryResult, export, query, text
from gifthorse.bench.store import Store
from gifthorse.core.errors import UsageError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "bench")


def test_groups_are_those_that_python_makes(store: Store) -> None:
    groups = defaultdict(list)
    for one in fill(store):
        cell, value = one["cell"], one["figures"].get("accuracy")
        if value is not None:
            groups[(cell["defense"] or {}).get("label"), cell["net"]].append(value)
    found = query(
        store,
        "select defense_label, net, avg(accuracy), stddev_samp(accuracy), count(accuracy) "
        "from records group by all having count(accuracy) > 0",
    )
    assert {row[:2]: row[2:] for row in found.rows} == {
        key: (pytest.approx(mean(v)), pytest.approx(stdev(v)), len(v)) for key, v in groups.items()
    }


def test_columns_are_what_the_record_says(store: Store) -> None:
    attack = method("badnet", "attack", "badnet_1px", {"stamp.size": "1"})
    one = record(
        attack, "strip", 7, {"tpr": 0.25, "f1": None}, words={"label": "x"}, seconds=2.5, net="n"
    )
    fill(store, [one])
    found = query(store, "select * from records")
    row = dict(zip(found.columns, found.rows[0], strict=True))
    for name in ("command", "words", "times", "cell", "figures", "models", "versions", "machine"):
        said = row.pop(name)
        assert (said if name == "command" else json.loads(said)) == one[name]
    assert str(row.pop("started")) == "2026-11-21 15:00:00"
    assert row == {
        "key": one["key"],
        "data": "cifar10",
        "net": "n",
        "seed": 7,
        "attack": "badnet",
        "attack_label": "badnet_1px",
        "defense": "strip",
        "defense_family": "filter",
        "defense_label": "strip",
        "status": "ok",
        "error": None,
        "seconds": 2.5,
        "peak_memory": 100_000_000,
        "tpr": 0.25,
        "f1": None,
    }


def test_figures_are_the_union_and_never_hide_a_column(store: Store) -> None:
    odd = {"seed": 0.5, "figure_seed": 0.5, "Accuracy": 0.75, 'a "b"': 1.0, "accuracy": 0.25}
    fill(store, [record("badnet", None, 0, odd), record("badnet", None, 1, {"asr": 0.5})])
    found = query(
        store,
        'select seed, figure_seed, accuracy, "a ""b""", asr, figures->>\'accuracy\' as small '
        "from records order by seed",
    )
    # Column names have no case: the first by the alphabet has the name, both are in the JSON.
    assert found.rows == ((0, 0.5, 0.75, 1.0, None, "0.25"), (1, None, None, None, 0.5, None))


def test_only_the_records_of_a_plan(store: Store) -> None:
    kept = fill(store)
    keys = [one["key"] for one in kept[:5]]
    found = query(store, "select key from records", [*keys, "0" * 24])
    assert {key for (key,) in found.rows} == set(keys)


def test_an_empty_store_has_no_rows(store: Store) -> None:
    assert query(store, "select key, data, figures from records").rows == ()


def test_chunks_make_no_difference(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    sql = "select * from records order by key"
    whole = query(store, sql)
    monkeypatch.setattr("gifthorse.bench.relation.CHUNK", 7)
    assert query(store, sql) == whole


@pytest.mark.parametrize(
    "sql",
    [
        "select * from '{path}'",
        "select * from read_csv('{path}')",
        "select * from read_text('/etc/hostname')",
        "copy records to '{path}.out'",
        "attach '{path}.db'",
        "install httpfs",
        "set enable_external_access = true",
        "drop table records",
        "delete from records",
        "select 1; drop table records",
        "select * from kept",  # a variable of whoever calls
        "",
    ],
)
def test_nothing_but_records_is_reached(store: Store, tmp_path: Path, sql: str) -> None:
    kept = {"seed": [1]}
    fill(store, [record()])
    path = tmp_path / "secret.csv"
    path.write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"question|one select"):
        query(store, sql.format(path=path))
    assert sorted(tmp_path.rglob("*")) == before
    assert kept == {"seed": [1]}


def test_a_wrong_name_is_answered_with_near_ones(store: Store) -> None:
    fill(store, [record(figures={"accuracy": 0.5})])
    with pytest.raises(UsageError, match="accuracy"):
        query(store, "select acuracy from records")


@pytest.mark.parametrize("damage", ["", "{", '{"key": "x"} {', "[1]", "\udcff", '{"a": 1}'])
def test_a_damaged_record_is_named(store: Store, damage: str) -> None:
    fill(store, [record()])
    key = "ab" + "0" * 22
    store.write(f"records/ab/{key}.json", damage.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=key if damage != '{"a": 1}' else "have no key"):
        query(store, "select 1 from records")


def test_without_duckdb_the_line_that_installs_it_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"pip install 'gifthorse\[bench\]'"):
        query(store, "select 1")


def test_exports_hold_the_same_as_the_answer(store: Store, tmp_path: Path) -> None:
    count = len(fill(store))
    path = tmp_path / "it's.parquet"
    assert export(store, path) == count
    sql = "select key, seed, accuracy, asr, status from records order by key"
    with duckdb.connect() as con:
        again = con.execute(sql.replace("records", "read_parquet($1)"), [str(path)]).fetchall()
    assert tuple(again) == query(store, sql).rows

    flat = tmp_path / "some.CSV"
    assert export(store, flat, "select key, asr from records where asr > 0.9; ") > 0
    with flat.open(newline="") as file:
        rows = [(row["key"], float(row["asr"])) for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(query(store, "select key, asr from records where asr > 0.9").rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench", "it's.parquet", "some.CSV"]


def test_an_export_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    fill(store, [record()])
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        export(store, tmp_path / "x.xlsx")
    with pytest.raises(UsageError, match="question"):
        export(store, tmp_path / "x.csv", "select nothing from records")
    with pytest.raises(UsageError, match="cannot write"):
        export(store, tmp_path / "nowhere" / "x.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["bench"]


def test_an_answer_is_a_table_of_80_columns() -> None:
    rows = (("fine_pruning", 3, 0.123456789), ("strip\x1b[31m", 12, None))
    shown = text(QueryResult(("defense", "n", "asr"), ("VARCHAR", "BIGINT", "DOUBLE"), rows))
    lines = shown.splitlines()
    assert [line.split() for line in lines if "0.123457" in line] == [
        ["fine_pruning", "3", "0.123457"]
    ]
    assert "\x1b" not in shown
    assert lines[-1] == "2 rows"


def test_an_answer_that_is_too_wide_goes_row_by_row(store: Store) -> None:
    fill(store, bench(seeds=1))
    found = query(store, "select * from records order by key limit 2")
    shown = text(found)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("-- ") for line in lines) == 2
    for name in found.columns:
        assert sum(line.split()[:1] == [name] for line in lines) == 2
