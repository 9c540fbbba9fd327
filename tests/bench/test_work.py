"""A bench from plan to records on the blobs: what is made, shared, resumed and said of failures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.toys import BLOB_CLASSES, QUICK, blob_images
from typer.testing import CliRunner

from gifthorse.bench import making, runner
from gifthorse.bench import worker as work
from gifthorse.bench.protocol import EvalConfig, Sizes
from gifthorse.bench.results import estimate_cost
from gifthorse.bench.runner import DIED, OVERRAN, Done, Serial
from gifthorse.bench.store import Store
from gifthorse.bench.tasks import Cell, Choice, Setting, judging, tasks
from gifthorse.bench.worker import Worker
from gifthorse.cli import commands as cli
from gifthorse.core.errors import BadImages, BadOption, UsageError
from gifthorse.models import load
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.workflows import make as stages
from gifthorse.workflows.make import DataSplits

RECIPE = tuple((f"recipe.{k}", v) for k, v in vars(QUICK).items())
SETTING = Setting(
    recipe=QUICK,
    sizes=Sizes(fit=0.2, calibration=0.2, least=30, most=0.4),
    evaluation=EvalConfig(pairs=20),
)
BADNET = Choice("attack", "badnet", "badnet", (*RECIPE, ("mixing.rate", 0.1)))
STRIP = Choice("filter", "strip", "strip", (("partners", 8),))
CLP = Choice("remedy", "clp", "clp")
WEIGHTS = Choice("detector", "weight_signature", "weights")


def blob_data() -> DataSplits:
    train, validation, test = (blob_images(each=n, seed=s) for s, n in ((0, 80), (1, 40), (2, 40)))
    names = tuple(f"blob {k}" for k in range(BLOB_CLASSES))
    return DataSplits("blobs", train, validation, test, names, NORMALIZATIONS["none"])


@pytest.fixture(autouse=True)
def blobs_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "whole_data", lambda name: blob_data())


def cells(*defenses: Choice | None, seed: int = 0) -> list[Cell]:
    return [
        Cell("blobs", "tiny", attack, defense, seed, SETTING)
        for attack in (None, BADNET)
        for defense in defenses
    ]


def run(root: Path, todo: list[Cell]) -> Store:
    store, worker = Store(root), Worker(str(root))
    runner.drive(runner.missing(todo, store), Serial(worker), worker.failed, lambda s: None)
    return store


def of(store: Store, attack: Choice | None, defense: Choice | None) -> dict[str, object]:
    found = store.record(judging(Cell("blobs", "tiny", attack, defense, 0, SETTING)).key)
    assert found is not None
    return found


def timeless(store: Store) -> list[str]:
    """Records without what differs from run to run."""
    return [json.dumps({k: v for k, v in r.items() if k != "times"}) for r in store.records()]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "whole_data", lambda name: blob_data())
        return run(tmp_path_factory.mktemp("store"), cells(None, STRIP, CLP, WEIGHTS))


def test_every_cell_has_its_record(done: Store) -> None:
    assert len(list(done.records())) == 8
    assert {r["status"] for r in done.records()} == {"ok"}
    assert len(done.models()) == 2
    plain = of(done, BADNET, None)["figures"]
    assert isinstance(plain, dict)
    assert plain["asr"] >= 0.9
    assert plain["accuracy_low"] < plain["accuracy"] <= plain["accuracy_high"]
    assert "cad" in plain
    twin = of(done, None, None)["figures"]
    assert isinstance(twin, dict)
    assert "asr" not in twin


def test_each_family_gives_its_own_figures(done: Store) -> None:
    strip, clp, weights = (of(done, BADNET, d)["figures"] for d in (STRIP, CLP, WEIGHTS))
    assert isinstance(strip, dict)
    assert {"tpr", "tpr_low", "fpr", "auroc"} <= set(strip)
    assert isinstance(clp, dict)
    assert {"ard", "cad", "der", "asr", "asr_before"} <= set(clp)
    assert isinstance(weights, dict)
    assert "score" in weights
    words = of(done, BADNET, WEIGHTS)["words"]
    assert isinstance(words, dict)
    assert words["label"] in ("SUSPICIOUS", "NO BACKDOOR FOUND")


def test_a_record_says_what_it_is_of(done: Store) -> None:
    r = of(done, BADNET, STRIP)
    cell, models = r["cell"], r["models"]
    assert isinstance(cell, dict)
    assert isinstance(models, dict)
    assert cell["attack"]["options"]["mixing.rate"] == "0.1"
    assert cell["defense"] == STRIP.spoken()
    assert r["command"] == f"gifthorse bench run PLAN --only {r['key']}"
    with done.open(models["implant"]) as folder:
        claims = load(folder / "model.safetensors").origin.metadata
    assert "BACKDOORED test model" in claims["description"]
    # Judging does not depend on the file, so cells of one model name the same weights.
    assert models["weights"] == of(done, BADNET, CLP)["models"]["weights"]  # type: ignore[index]
    assert models["weights"] != of(done, None, CLP)["models"]["weights"]  # type: ignore[index]


def test_what_is_there_is_not_done_again(done: Store) -> None:
    every = cells(None, STRIP, CLP, WEIGHTS)
    assert runner.missing(every, done) == []
    more = runner.missing(cells(None, replace(STRIP, options=(("partners", 9),))), done)
    assert [(t.kind, t.after) for t in more] == [("judge", ()), ("judge", ())]
    assert {t.kind for t in runner.missing(cells(None, seed=1), done)} == {
        "train",
        "implant",
        "judge",
    }


def test_another_run_gives_the_same_records(done: Store, tmp_path: Path) -> None:
    torch.manual_seed(7)
    again = run(tmp_path, cells(STRIP, CLP))
    run(tmp_path, cells(None, WEIGHTS))
    assert timeless(again) == timeless(done)


def test_a_defense_that_cannot_be_used_is_recorded(tmp_path: Path) -> None:
    greedy = Choice("filter", "strip", "greedy", (("partners", 10_000),))
    r = of(run(tmp_path, cells(greedy)), BADNET, greedy)
    assert r["status"] == "unsupported"
    assert "10000 clean images are needed" in str(r["error"])
    assert r["figures"] == {}


def test_an_error_of_a_method_that_is_none_of_its_limits_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise BadOption("radius must be positive; got -1")

    monkeypatch.setattr(work, "evaluate", broken)
    r = of(run(tmp_path, cells(STRIP)), None, STRIP)
    assert (r["status"], r["error"]) == ("error", "radius must be positive; got -1")


@pytest.mark.parametrize("kind", ["train", "judge"])
def test_data_that_are_not_there_stop_the_run_and_are_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Neither a cell nor a model has a record then, so that the next run does them."""
    if kind == "judge":
        run(tmp_path, cells(None))
    done = set(Store(tmp_path).recorded()), set(Store(tmp_path).models())
    monkeypatch.delenv("GIFTHORSE_DATA", raising=False)
    monkeypatch.setattr(making, "whole_data", lambda name: stages.divide("mnist"))
    with pytest.raises(BadImages, match="GIFTHORSE_DATA, which is not set"):
        run(tmp_path, cells(STRIP))
    store = Store(tmp_path)
    assert (store.recorded(), store.models()) == done
    assert runner.missing(cells(STRIP), store)


def test_a_model_that_nobody_made_stops_the_run(tmp_path: Path) -> None:
    task = tasks(cells(STRIP))[-1]
    with pytest.raises(UsageError, match=r"is not in .*: resume the bench"):
        Worker(str(tmp_path))(task)
    assert Store(tmp_path).recorded() == set()


def test_signs_are_drawn_once_for_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(making, "user_cache_path", lambda name: tmp_path)
    drawn: list[str] = []

    def divide(name: str) -> DataSplits:
        drawn.append(name)
        return replace(blob_data(), name=name, normalization=stages.usual(name))

    monkeypatch.setattr(stages, "divide", divide)
    for _ in range(2):
        making.whole_data.cache_clear()
        data = making.whole_data("trojai:7")
        for part in ("train", "validation", "test"):
            first, again = getattr(blob_data(), part), getattr(data, part)
            assert torch.equal(first.images, again.images)
            assert torch.equal(first.labels, again.labels)
            assert first.classes == again.classes
        assert (data.name, data.class_names) == ("trojai:7", blob_data().class_names)
        assert data.normalization == stages.usual("trojai:7")
    assert drawn == ["trojai:7"]
    (file,) = (tmp_path / "drawn").iterdir()
    file.write_bytes(b"torn")
    making.whole_data.cache_clear()
    making.whole_data("trojai:7")
    assert len(drawn) == 2
    making.whole_data.cache_clear()


def test_an_attack_that_cannot_be_used_leaves_its_cells_unsupported(tmp_path: Path) -> None:
    large = replace(BADNET, options=(*BADNET.options, ("stamp.size", 99)))
    store = run(tmp_path, [Cell("blobs", "tiny", large, d, 0, SETTING) for d in (None, STRIP)])
    every = list(store.records())
    assert {r["status"] for r in every} == {"unsupported"}
    assert len(every) == 2
    assert all("trigger size must be 1 to" in r["error"] for r in every)


def test_a_task_that_overran_leaves_word(tmp_path: Path) -> None:
    task = tasks(cells(STRIP))[-1]
    Worker(str(tmp_path)).failed(task, Done(task.key, OVERRAN, "timeout"))
    (r,) = Store(tmp_path).records()
    assert (r["status"], r["error"]) == ("timeout", OVERRAN)


def test_every_model_has_the_same_figures_with_and_without_a_defense(done: Store) -> None:
    bare, defended = of(done, BADNET, None)["figures"], of(done, BADNET, STRIP)["figures"]
    assert isinstance(bare, dict)
    assert isinstance(defended, dict)
    for name in ("accuracy", "ccc", "ccc_correct", "asr", "asr_all", "ra", "tmc"):
        for end in ("", "_low", "_high", "_n"):
            beside = f"{name}_before{end}"
            assert bare[name + end] == defended[beside], name + end


def test_a_defense_that_takes_too_long_is_recorded(tmp_path: Path) -> None:
    hurried = replace(SETTING, time_limit=1e-9)
    todo = [replace(c, setting=hurried) for c in cells(STRIP)]
    store = run(tmp_path, todo)
    assert {r["status"] for r in store.records()} == {"timeout"}


def test_a_bug_in_a_defense_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(work, "evaluate", broken)
    r = of(run(tmp_path, cells(STRIP)), None, STRIP)
    assert (r["status"], r["error"]) == ("error", "ZeroDivisionError: by zero")


def test_without_a_model_all_its_cells_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(stages, "implant", broken)
    store = run(tmp_path, cells(None, STRIP))
    for defense in (None, STRIP):
        assert of(store, None, defense)["status"] == "ok"
        r = of(store, BADNET, defense)
        assert r["status"] == "error"
        assert "there is no model to judge: ZeroDivisionError: by zero" in str(r["error"])


def test_a_dead_worker_leaves_word(tmp_path: Path) -> None:
    store, worker = Store(tmp_path), Worker(str(tmp_path))
    todo = tasks(cells(STRIP))
    for task in todo:
        worker.failed(task, Done(task.key, DIED))
    assert {r["error"] for r in store.records()} == {DIED}
    assert {(store.spec(key) or {})["error"] for key in store.models()} == {DIED}


def test_costs_are_judged_by_what_was_recorded(done: Store) -> None:
    todo = runner.missing(cells(None, STRIP, seed=1), done)
    ahead = estimate_cost(todo, done)
    assert (ahead.train, ahead.implant, ahead.judge, ahead.unknown) == (1, 1, 4, 0)
    seconds = [r["times"]["seconds"] for r in done.records()]
    assert 0 < ahead.seconds < 10 * sum(seconds) + 100
    empty = Store(done.root + "2")
    unknown = estimate_cost(runner.missing(cells(CLP), empty), empty)
    assert (unknown.tasks, unknown.unknown, unknown.seconds) == (4, 4, 0)


# The command line -----------------------------------------------------------------------------

PLAN = """
about = "Blobs."
[setting]
recipe = {epochs = 6, batch = 32, lr = 0.1, pad = 1, bf16 = false}
sizes = {fit = 0.2, calibration = 0.2, least = 30, most = 0.4}
evaluation = {pairs = 20}
[[grid]]
data = ["blobs"]
nets = ["tiny"]
defenses = ["weight_signature", {use = "strip", set = {partners = 8}}]
"""


def called(*args: str) -> str:
    result = CliRunner().invoke(cli.app, ["bench", *args])
    assert result.exit_code == 0, result.output
    assert all(len(row) <= 80 for row in result.stdout.splitlines()), result.stdout
    return result.output


def test_plan_run_status_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blobs.toml").write_text(PLAN)
    assert "1 to train, 0 to implant, 3 to judge" in called("plan", "blobs.toml")
    assert "1 to train" in called("run", "blobs.toml", "--dry-run")
    assert "no run was started" in called("status", "blobs.toml")
    assert not Path("runs").exists()
    assert "3 cells in runs/blobs: 3 ok" in called("run", "blobs.toml", "--executor", "serial")
    assert "the last run came to its end" in called("status", "blobs.toml")
    store = Store("runs/blobs")
    before, gone = timeless(store), sorted(store.recorded())[1]
    store.forget(gone)
    assert "2 ok, 1 missing" in called("status", "blobs.toml")
    assert "left in runs/blobs: 0 to train, 0 to implant, 1 to judge" in called(
        "plan", "blobs.toml"
    )
    called("resume", "blobs.toml", "--executor", "serial")
    assert timeless(store) == before


def test_one_cell_alone_and_what_failed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blobs.toml").write_text(PLAN)
    key = judging_key(Path("blobs.toml"))
    called("run", "blobs.toml", "--executor", "serial", "--only", key)
    store = Store("runs/blobs")
    assert store.recorded() == {key}
    kept = store.record(key)
    assert kept is not None
    store.keep({**kept, "status": "error", "error": "lost"})
    again = CliRunner().invoke(cli.app, ["bench", "run", "blobs.toml", "--executor", "serial"])
    assert again.exit_code == 3
    assert "2 ok, 1 error" in again.output
    assert (store.record(key) or {})["status"] == "error"  # a failure stays until it is asked for
    called("run", "blobs.toml", "--executor", "serial", "--retry")
    assert (store.record(key) or {})["status"] == "ok"


def test_a_run_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blobs.toml").write_text(PLAN)

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "drive", stopped)
        ran = CliRunner().invoke(cli.app, ["bench", "run", "blobs.toml", "--executor", "serial"])
    assert ran.exit_code == 130
    assert "gifthorse bench resume blobs.toml" in ran.output
    called("run", "blobs.toml", "--executor", "serial")


def judging_key(path: Path) -> str:
    from gifthorse.bench.plan import read

    return judging(read(path).cells[-1]).key


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["resume", "blobs.toml"], "nothing to resume in runs/blobs"),
        (["run", "blobs.toml", "--executor", "rey"], "no executor is called 'rey'"),
        (["run", "blobs.toml", "--only", "0" * 24], "no cell of this plan is called"),
        (["run", "blobs.toml", "--store", "nowhere://x"], "cannot be opened"),
    ],
)
def test_mistakes_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("blobs.toml").write_text(PLAN)
    result = CliRunner().invoke(cli.app, ["bench", *args])
    assert words in str(result.exception)
