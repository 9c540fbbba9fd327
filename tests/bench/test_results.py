"""Records grouped over seeds: the sums of other code, and nothing that records say is trusted."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from tests.bench.records import bench, fill, framed, method, record, spread

from gifthorse.bench.figures import KNOWN, metric
from gifthorse.bench.leaderboard import write_leaderboard
from gifthorse.bench.relation import frame
from gifthorse.bench.results import CLEAN, cells, estimate_cost, groups, metrics, settings, titles
from gifthorse.bench.store import Store
from gifthorse.core.errors import UsageError


def test_every_mean_is_that_of_python() -> None:
    records = bench(seeds=4)
    with framed(records) as con:
        found = groups(con)
    assert sum(len(group.runs) for group in found) == len(records)
    for group in found:
        keys = {run.key for run in group.runs}
        same = [one["figures"] for one in records if one["key"] in keys]
        names = {n for f in same for n in f if not n.endswith(("_low", "_high", "_n"))}
        assert set(group.figures) == names | {"seconds"}
        for name in names:
            known, values = group.figures[name], [f[name] for f in same if f[name] is not None]
            assert known.n == len(values)
            assert known.value == (pytest.approx(mean(values)) if values else None)
            if known.std is not None:
                assert known.std == pytest.approx(stdev(values))


def test_records_of_another_schema_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    fill(store, [record(seed=0), record(seed=1, schema=1)])
    with frame(store) as con:
        assert con.execute("select seed from records").fetchall() == [(0,)]
    assert "keeps 1 records that another version of gifthorse wrote" in caplog.text


def test_trials_are_summed_and_companions_are_no_figures() -> None:
    odd = {"deep_low": 0.5, **spread("asr", 0.5)}  # there is no figure `deep`
    with framed([record(seed=s, figures=odd) for s in range(3)]) as con:
        (group,) = groups(con)
    assert set(group.figures) == {"asr", "deep_low", "seconds"}
    assert group.figures["asr"].trials == 1200


def test_only_the_newest_record_of_a_cell_counts() -> None:
    days = ("2026-01-02", "2026-01-03", "2026-01-01", "no day")
    records = [
        record(figures={"asr": n / 10}, started=f"{day}T00:00:00+00:00", key=f"{n:024x}")
        for n, day in enumerate(days)
    ]
    with framed(records) as con:
        ((group,), (cell,)) = groups(con), cells(con)
    assert (group.older, [run.key for run in group.runs]) == (3, [f"{1:024x}"])
    assert group.figures["asr"].value == cell.figures["asr"].value == 0.1


def test_rows_come_in_the_order_of_the_keys(tmp_path: Path) -> None:
    kept = fill(Store(tmp_path))
    keys = [one["key"] for one in reversed(kept)]
    with frame(Store(tmp_path), ["0" * 24, *keys]) as con:
        assert [cell.run.key for cell in cells(con)] == keys


def test_a_figure_nobody_knows_is_a_share_if_it_was_counted() -> None:
    given = {**spread("held", 0.5), **spread("swing", -0.2), "raw": 0.5, **spread("wide", 3.0)}
    with framed([record(figures=given)]) as con:
        found = metrics(con)
    known = {name: (m.kind.percent, m.kind.low, m.kind.high) for name, m in found.items()}
    assert known["held"] == (True, 0.0, 1.0)
    assert known["swing"] == (True, -1.0, 1.0)
    assert known["raw"] == known["wide"] == (False, -math.inf, math.inf)
    assert (found["swing"].least, found["wide"].most) == (-0.2, 3.0)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_figure_has_a_kind_a_title_and_a_scale(name: str) -> None:
    known = metric(name, 0.0, 0.5)
    assert known.title
    assert known.better in {"", "low", "high"}
    assert known.kind.low <= known.least < known.most <= known.kind.high


def test_methods_and_settings_are_told_apart_by_what_differs() -> None:
    one, two = (method("badnet", "attack", "bad", {"size": s, "rate": "0.1"}) for s in "13")
    records = [record(a, None, setting={"images": n}) for a, n in ((one, 10), (two, 10), (two, 20))]
    with framed([*records, record(None, "strip")]) as con:
        found = groups(con)
    names = titles(found)
    assert [names[group.attack] for group in found] == [
        "bad (size=1)", "bad (size=3)", "bad (size=3)", "clean",
    ]  # fmt: skip
    assert found[3].attack == CLEAN
    assert list(settings(group.setup for group in found).values()) == [
        "images=10", "images=20", "images=1000",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [None, "x", [1]])
def test_a_record_without_a_cell_is_refused(seed: object) -> None:
    one = record()
    one["cell"]["seed"] = seed
    with pytest.raises(UsageError, match="name no cell"), framed([one]):
        pass


def test_records_that_are_odd_are_shown_all_the_same(tmp_path: Path) -> None:
    odd = record("badnet", None, 0, {"asr": 1e299, "cad": -1e299}, seconds=-1.0)
    odd["cell"] |= {"attack": "a name", "setting": [1]}
    odd |= {"words": "none", "times": None, "machine": 3}
    fine = record("badnet", "clp", 0, {"asr": 1e299, "cad": -1e299})
    with framed([odd, fine]) as con:
        assert len(write_leaderboard(con, tmp_path, "A bench")) == 5
        assert cells(con)[0].attack == CLEAN


def test_costs_are_estimated_without_duckdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    fill(Store(tmp_path))
    assert estimate_cost([], Store(tmp_path)).tasks == 0
    with (
        pytest.raises(UsageError, match=r"pip install 'gifthorse\[bench\]'"),
        frame(Store(tmp_path)),
    ):
        pass
