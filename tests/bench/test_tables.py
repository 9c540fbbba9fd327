"""Tables of a bench: means by hand, intervals of other code, and nothing that failed is lost."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.bench.records import bench, framed, method, record, spread

from gifthorse.bench.figures import Estimate
from gifthorse.bench.printing import as_json, comma_separated, markdown, text
from gifthorse.bench.tables import (
    LAYOUTS,
    ResultTable,
    TableEntry,
    TableRow,
    references,
)
from gifthorse.bench.tables import tables as tables_of
from gifthorse.core.metrics import mean_rate
from gifthorse.core.stats import wilson


def tables(records: Sequence[dict[str, Any]], *, reference: bool = False) -> list[ResultTable]:
    with framed(records) as con:
        return tables_of(con, reference=reference)


def sheet(records: Sequence[dict[str, Any]], name: str, *, reference: bool = False) -> ResultTable:
    (found,) = [s for s in tables(records, reference=reference) if s.name == name]
    return found


def entry(table: ResultTable, defense: str, attack: str, source: str = "") -> TableEntry | None:
    (row,) = [r for r in table.rows if (r.label, r.source) == (defense, source)]
    return row.entries[table.columns.index(attack)]


def near(*values: float | None) -> Any:
    """Numbers that may be off by rounding."""
    return tuple(pytest.approx(value) for value in values)


def figure(
    table: ResultTable, defense: str, attack: str, at: int = 0, source: str = ""
) -> Estimate:
    found = entry(table, defense, attack, source)
    assert found is not None
    return found.figures[at]


def repaired(values: Sequence[float], **rest: Any) -> list[dict[str, Any]]:
    return [
        record("badnet", "nad", seed, {"ard": v, "cad": v - 0.5, "tmc": 0.5}, **rest)
        for seed, v in enumerate(values)
    ]


def poisoned(
    attack: str, points: Sequence[tuple[float, float]], **more: str
) -> list[dict[str, Any]]:
    """Records of an attack at several shares of poison: success, and how much of 0.9 is lost."""
    return [
        record(
            method(attack, "attack", f"{attack}_{n}", {"mixing.rate": f"0.0{n}"} | more),
            figures={"asr": asr, "accuracy": 0.9 - cad},
        )
        for n, (asr, cad) in enumerate(points, 1)
    ]


# 1. Figures over seeds ------------------------------------------------------------------------


def test_a_mean_has_the_sample_deviation_and_the_t_interval() -> None:
    found = figure(sheet(repaired([0.4, 0.5, 0.6]), "ard"), "nad", "badnet")
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert (found.value, found.std, found.n) == near(0.5, 0.1, 3)
    assert (found.low, found.high) == near(0.5 - half, 0.5 + half)
    same = mean_rate(torch.tensor([0.4, 0.5, 0.6]).double())
    assert (found.low, found.high) == near(same.low, same.high)


def test_intervals_are_cut_to_what_a_figure_can_be() -> None:
    found = figure(sheet(repaired([0.0, 0.5, 1.0]), "cad"), "nad", "badnet")
    assert (found.low, found.high) == (-1.0, 1.0)  # -0.5 to 0.5, and an interval of 1.24 each way
    aivs = [record("badnet", "tabor", s, {"aiv": v, "mjs": v}) for s, v in enumerate([1.0, 9.0])]
    found = figure(sheet(aivs, "aiv"), "tabor", "badnet")
    assert found.low == 0.0
    assert found.high == pytest.approx(5 + 12.706204736432095 * math.sqrt(32) / math.sqrt(2))


def test_one_model_has_the_interval_of_its_record() -> None:
    one = record("badnet", "nad", 3, spread("ard", 0.8, 0.05))
    found = figure(sheet([one], "ard"), "nad", "badnet")
    assert (found.value, found.std, found.n) == (0.8, None, 1)
    assert (found.low, found.high) == near(0.75, 0.85)
    assert "[75.0, 85.0]" in text([sheet([one], "ard")])


def test_verdicts_are_counted_and_twins_are_false_alarms() -> None:
    said = [(None, 0.0), (None, 1.0), (None, 0.0), ("badnet", 1.0), ("badnet", 1.0)]
    records = [
        record(attack, "tabor", seed, {"suspected": value})
        for seed, (attack, value) in enumerate(said)
    ]
    table = sheet(records, "verdicts")
    clean, bad = (figure(table, "tabor", attack) for attack in ("clean", "badnet"))
    assert (clean.value, clean.n) == near(1 / 3, 3)
    assert (clean.low, clean.high) == wilson(1, 3)
    assert (bad.value, bad.n) == (1.0, 2)
    shown = text([table])
    assert "1/3" in shown
    assert "2/2" in shown


def test_area_over_models_is_that_of_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(3)
    clean, bad = torch.randn(7, generator=rng), torch.randn(9, generator=rng) + 0.7
    records = [record(None, "tabor", s, {"score": float(v)}) for s, v in enumerate(clean)]
    records += [record("badnet", "tabor", s, {"score": float(v)}) for s, v in enumerate(bad[:6])]
    records += [record("imc", "tabor", s, {"score": float(v)}) for s, v in enumerate(bad[6:])]
    table = sheet(records, "auc")
    for name, part in (("badnet", bad[:6]), ("imc", bad[6:]), ("all attacks", bad)):
        truth = [0] * 7 + [1] * len(part)
        found = figure(table, "tabor", name)
        assert found.value == pytest.approx(roc_auc_score(truth, torch.cat([clean, part])))
        assert found.n == len(truth)
        low, value, high = (v for v in (found.low, found.value, found.high) if v is not None)
        assert low <= value <= high


def test_area_over_models_needs_three_of_each() -> None:
    few = [record(a, "tabor", s, {"score": 1.0}) for a in (None, "imc") for s in range(2)]
    assert "auc" not in {s.name for s in tables(few)}


# 2. Nothing is lost ---------------------------------------------------------------------------


def test_failures_are_counted_and_not_averaged() -> None:
    records = repaired([0.8, 0.6, 0.1, 0.2])
    records[2] = record("badnet", "nad", 2, {"ard": 0.1}, "timeout", error="it took\n10 s")
    records[3] = record("badnet", "nad", 3, {"ard": 0.2}, "collapsed")
    found = entry(sheet(records, "ard"), "nad", "badnet")
    assert found is not None
    assert found.figures[0].value == pytest.approx(0.7)
    assert found.failed == {"timeout": 1, "collapsed": 1}
    assert found.note == "1 of 4 collapsed: it came to collapsed; 1 of 4 timeout: it took 10 s"
    shown = text([sheet(records, "ard")])
    assert "70.0 (0.50) [1]" in shown
    assert "[1] 1 of 4 collapsed" in shown


@pytest.mark.parametrize("status", ["error", "timeout", "unsupported", "collapsed"])
def test_a_cell_that_only_failed_is_a_dash_with_a_footnote(status: str) -> None:
    records = [record("badnet", "nad", s, {}, status) for s in range(2)]
    table = sheet(records, "ard")
    assert f"[1] 2 of 2 {status}" in text([table])
    (line,) = [line for line in text([table]).splitlines() if line.startswith("nad")]
    assert line.split() == ["nad", "-", "[1]"]
    for figure_ in csv.DictReader(io.StringIO(comma_separated([table]))):
        assert (figure_["value"], figure_["failed"]) == ("", f"{status}:2")


def test_every_record_is_in_a_table_or_older_than_one_that_is() -> None:
    records = bench()
    for n, status in enumerate(("error", "timeout", "unsupported", "collapsed")):
        records[7 * n + 3]["status"] = status
    seen: dict[tuple[str, str], int] = {}
    for one in tables(records):
        if one.name in ("models", "seconds"):
            for row in one.rows:
                for attack, cell in zip(one.columns, row.entries, strict=True):
                    if cell is not None:
                        n = max(f.n for f in cell.figures)
                        seen[row.label, attack] = n + sum(cell.failed.values())
    wanted: dict[tuple[str, str], int] = {}
    for one_ in records:
        a, d = (one_["cell"][k] for k in ("attack", "defense"))
        key = (d["label"] if d else "no defense", a["label"] if a else "clean")
        wanted[key] = wanted.get(key, 0) + 1
    assert seen == wanted


def test_what_is_undefined_or_not_recorded_is_said() -> None:
    records = repaired([0.8, 0.6])
    records[0]["figures"]["tmc"] = None
    records.append(record("imc", "nad", 0, {"ard": 0.5, "tmc": None}))
    table = sheet(records, "ard")
    half, none = entry(table, "nad", "badnet"), entry(table, "nad", "imc")
    assert half is not None
    assert none is not None
    assert half.note == "tmc undefined in 1 of 2"
    assert half.figures[1].n == 1
    assert none.note == "tmc undefined in 1 of 1; 1 of 2 seeds recorded"
    assert "50.0 (-) [2]" in text([table])


def test_of_two_records_of_a_cell_the_newer_counts() -> None:
    old = record(
        "badnet", "nad", 0, {"ard": 0.1}, started="2026-01-01T00:00:00+00:00", key="f" * 24
    )
    new = record(
        "badnet", "nad", 0, {"ard": 0.9}, started="2026-02-01T00:00:00+00:00", key="0" * 24
    )
    for order in ([old, new], [new, old]):
        table = sheet(order, "ard")
        assert figure(table, "nad", "badnet").value == 0.9
        assert "1 older records" in text([table])


# 3. What is apart -----------------------------------------------------------------------------


def test_settings_are_never_averaged_together() -> None:
    records = repaired([0.2], setting={"images": 1000}) + repaired([0.6], setting={"images": 5000})
    found = {s.setting: s for s in tables(records) if s.name == "ard"}
    assert set(found) == {"images=1000", "images=5000"}
    assert figure(found["images=5000"], "nad", "badnet").value == 0.6


def test_options_under_one_label_are_told_apart() -> None:
    records = [
        record(method("badnet", "attack", "bn", {"rate": r, "size": "3"}), "nad", 0, {"ard": a})
        for r, a in (("0.1", 0.1), ("0.2", 0.2))
    ]
    table = sheet(records, "ard")
    assert table.columns == ("bn (rate=0.1)", "bn (rate=0.2)")
    assert figure(table, "nad", "bn (rate=0.2)").value == 0.2


def test_the_clean_twin_is_a_column_where_it_means_something() -> None:
    names = {s.name: s.columns for s in tables(bench())}
    with_twin = {layout.name for layout in LAYOUTS if layout.twin}
    assert {name for name, columns in names.items() if "clean" in columns} == with_twin & set(names)
    assert {"models", "ard", "cad", "tpr", "filtering", "aiv", "triggers", "auc"} <= set(names)


# 4. The papers --------------------------------------------------------------------------------


def test_the_papers_figures_stand_below_the_same_method() -> None:
    records = [
        record(a, d, s, {"ard": 0.5, "tmc": 0.5, "aiv": 1.0, "asr": 0.9, "cad": 0.0})
        for a in (None, "badnet", "imc", "wanet")
        for d in (None, "fine_pruning", "neural_cleanse", "nad")
        for s in range(2)
    ]
    paper = "TrojanZoo, Table 8"
    table = sheet(records, "ard", reference=True)
    assert [(r.label, r.source) for r in table.rows] == [
        ("no defense", ""),
        ("no defense", paper),
        ("fine_pruning", ""),
        ("fine_pruning", paper),
        ("nad", ""),
    ]
    found = figure(table, "fine_pruning", "imc", source=paper)
    assert (found.value, found.std, found.n) == near(0.269, 0.046, 10)
    assert figure(table, "fine_pruning", "imc", 1, paper).value == 0.83
    assert entry(table, "fine_pruning", "wanet", paper) is None
    assert "resnet18" in text([table])
    cad = sheet(records, "cad", reference=True)
    assert figure(cad, "fine_pruning", "clean", source="TrojanZoo, Table 9").value == 0.001
    aiv = sheet(records, "aiv", reference=True)
    assert figure(aiv, "neural_cleanse", "imc", source="TrojanZoo, Table 11").value == 1.66


def test_the_papers_figures_are_not_lent_to_other_settings() -> None:
    variants = [method("badnet", "attack", f"bn_{n}", {"size": str(n)}) for n in (1, 2)]
    figures = {"ard": 0.5, "tmc": 0.5}
    records = [record(v, "fine_pruning", 0, figures) for v in variants]
    records.append(record("imc", "fine_pruning", 0, figures))
    table = sheet(records, "ard", reference=True)
    row = next(r for r in table.rows if r.source)
    known = dict(zip(table.columns, row.entries, strict=True))
    assert [name for name, cell in known.items() if cell] == ["imc"]
    other = [record("imc", "fine_pruning", 0, figures, data="gtsrb32")]
    assert all(not r.source for r in sheet(other, "ard", reference=True).rows)


def test_the_papers_tables_hang_together() -> None:
    tables_ = references()
    assert {t["sheet"] for t in tables_} <= {layout.name for layout in LAYOUTS}
    for table in tables_:
        columns = len(table["attacks"])
        assert len(table["columns"]) == columns
        for row in table["row"]:
            figures = {k: v for k, v in row.items() if k != "defense"}
            assert {len(v) for v in figures.values()} == {columns}
    by = {(t["sheet"], r["defense"]): r for t in tables_ for r in t["row"]}
    # Recall follows from precision and F1 (Table 23) and is what Table 10 prints.
    for name in ("strip", "neo"):
        stats, tpr = by["filtering", name], by["tpr", name]["tpr"]
        for f1, precision, recall in zip(stats["f1"], stats["precision"], tpr, strict=True):
            assert 2 * precision * recall / (precision + recall) == pytest.approx(f1, abs=0.015)
    # No repair takes away more success than there was, but for rounding.
    for (name, defense), row in by.items():
        if name == "ard" and defense:
            before = by["ard", ""]["asr"]
            assert all(a <= b + 5e-4 for a, b in zip(row["ard"], before, strict=True))


# 5. Writers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_text_keeps_to_its_width_and_loses_no_column(width: int) -> None:
    attacks = [None, *(f"attack_number_{n}" for n in range(9))]
    for table in tables(bench(attacks, seeds=2)):
        shown = text([table], width)
        assert max(map(len, shown.splitlines())) <= width
        assert all(shown.count(name) == 1 for name in table.columns if name != "clean")


def test_text_shows_deviation_or_interval() -> None:
    table = sheet(repaired([0.4, 0.5, 0.6]), "ard")
    assert "±10.0" in text([table])
    assert "[25.2, 74.8]" in text([table], spread="interval")
    assert "mean over 3 seeds" in text([table])


def test_csv_and_json_hold_every_figure() -> None:
    found = tables(bench(), reference=True)
    lines = list(csv.DictReader(io.StringIO(comma_separated(found))))
    read = json.loads(as_json(found))
    flat = [
        (s["name"], r["label"], r["source"], f["name"], f["value"], f["n"])
        for s in read
        for r in s["rows"]
        for e in r["entries"]
        if e
        for f in e["figures"]
    ]
    assert flat == [
        (
            line["table"],
            line["defense"],
            line["source"],
            line["figure"],
            float(line["value"]) if line["value"] else None,
            int(line["n"]),
        )
        for line in lines
    ]
    assert len(flat) > 50


def test_markdown_is_a_table_that_names_cannot_break() -> None:
    cell = TableEntry((Estimate("ard", 0.5, 0.1, 0.4, 0.6, 2, "%"),), {}, "a | note")
    row = TableRow("a|b <i>", (cell, None))
    made = ResultTable("ard", "Title", "d", "n", "", "{}", ("x", "y"), (row,), 2)
    lines = markdown([made]).splitlines()
    assert lines[2:5] == [
        "|  | x | y |",
        "|---|---:|---:|",
        "| a\\|b &lt;i> | 50.0 [1]<br>±10.0 |  |",
    ]
    assert "- [1] a \\| note" in lines


def test_leverage_is_the_area_under_accuracy_lost_at_every_share_of_poison() -> None:
    line, step = [(0.2, 0.0), (0.6, 0.01), (1.0, 0.02)], [(0.2, 0.0), (0.9, 0.0), (1.0, 0.02)]
    rows = [
        record(None, figures={"accuracy": 0.9}),
        *poisoned("badnet", [*line, (1.0, 0.2)]),
        *poisoned("imc", step, opacity="0.2"),
        *poisoned("imc", line, opacity="1"),
        *poisoned("abe", line[:1]),  # a single share is no curve
    ]
    table = sheet(rows, "leverage")
    assert table.columns == ("badnet", "imc (opacity=0.2)", "imc (opacity=1)")
    found = tuple(figure(table, "no defense", column).value for column in table.columns)
    assert found == near(0.5, 0.5 * 0.1 / 0.8, 0.5)
    lost = entry(table, "no defense", "badnet")
    assert lost is not None
    assert lost.note == "1 of 4 shares lose more than 3%"
    assert not [s for s in tables(rows[:2]) if s.name == "leverage"]
    assert "0.50" in text([table])
