"""The action as a runner runs it: its steps by bash, inputs by environment, outputs by files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from scripts import gate
from scripts.action import FILES, WrongInput, before, changed, models
from scripts.runner import ACTION, EXPRESSION, ROOT, STEPS, Runner, git

GIFT = ROOT / "examples" / "gift"


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


# 1. The file ----------------------------------------------------------------------------------


def test_scripts_take_inputs_by_environment_alone() -> None:
    for one in STEPS:
        assert "${{" not in one.get("run", ""), "what stands there is run by a shell"
        assert one.get("shell", "bash") == "bash"
    text = (ROOT / "action.yml").read_text()
    assert {m[7:] for m in EXPRESSION.findall(text) if m.startswith("inputs.")} <= set(
        ACTION["inputs"]
    )
    steps = [s["id"] for s in STEPS if "id" in s]
    assert {m.split(".")[1] for m in re.findall(r"steps\.\w+", text)} <= set(steps)


def test_every_input_reaches_the_scan_or_another_step() -> None:
    text = yaml.safe_dump(STEPS)
    assert [name for name in ACTION["inputs"] if f"inputs.{name}" not in text] == []
    assert {f"steps.scan.outputs.{name}" for name in ("status", "models", *FILES)} >= {
        m for about in ACTION["outputs"].values() for m in EXPRESSION.findall(about["value"])
    }


# 2. Which models ------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits: `old.pt` and a text, then `new.pt`, a hub folder and no `old.pt`."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("old.pt", "kept.safetensors", "a.txt"):
        (tmp_path / name).write_text(name)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    (tmp_path / "vit").mkdir()
    for name in ("nëw \n.pt", "vit/model.safetensors", "vit/config.json", "b.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "old.pt").unlink()
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "two")
    return tmp_path


def test_models_are_those_that_an_event_changed(repository: Path, tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    first = git(repository, "rev-parse", "HEAD~1")
    new = ["nëw \n.pt", "vit/model.safetensors"]
    for told in ({"before": first}, {"pull_request": {"base": {"sha": first}}}):
        event.write_text(json.dumps(told))
        assert changed({"GITHUB_EVENT_PATH": str(event)}) == new
    everything = ["kept.safetensors", *new]
    for told in ({}, {"before": "0" * 40}, {"before": "12" * 20}, {"before": "--output=x"}):
        event.write_text(json.dumps(told))
        assert changed({"GITHUB_EVENT_PATH": str(event)}) == everything
    assert models({}) == ["kept.safetensors", "nëw \n.pt", "vit"]
    assert before({"before": "--output=x"}) == ""


def test_models_may_be_named(repository: Path) -> None:
    assert models({"GIFTHORSE_MODELS": "kept.safetensors\n vit \n"}) == ["kept.safetensors", "vit"]
    assert models({"GIFTHORSE_MODELS": "**/*.safetensors"}) == ["kept.safetensors", "vit"]
    with pytest.raises(WrongInput, match="no file matches"):
        models({"GIFTHORSE_MODELS": "*.onnx"})
    (repository / "kept.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WrongInput, match="lfs: true"):
        models({})


# 3. The scan ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_without_a_verdict_fails_the_step_and_is_told_everywhere(runner: Runner) -> None:
    shutil.copy(GIFT / "gift.safetensors", runner.workspace / "-gift;$(touch x).safetensors")
    ran = runner.run("scan", models="*.safetensors", images=str(GIFT / "clean.npz"),
                     arguments="--limit 1")  # fmt: skip
    assert ran.status == 3
    out = runner.workspace / "gifthorse-out"
    assert ran.outputs == {
        "status": "3", "models": "1",
        **{form: f"gifthorse-out/{name}" for form, name in FILES.items()},
    }  # fmt: skip
    assert ran.summary == (out / "summary.md").read_text()
    assert "**INCONCLUSIVE**" in ran.summary
    (run,) = json.loads((out / "gifthorse.sarif").read_text())["runs"]
    assert run["invocations"][0]["exitCode"] == 3
    # Between the token and its return, nothing that is printed is a command.
    token = re.findall(r"^::stop-commands::(\w{32})$", ran.said, re.MULTILINE)[0]
    inside, _, after = ran.said.partition(f"::stop-commands::{token}\n")[2].partition(
        f"::{token}::\n"
    )
    assert "INCONCLUSIVE" in inside
    assert after.startswith("::error file=-gift;$(touch x).safetensors,title=INCONC")
    assert not (runner.workspace / "x").exists()


def test_nothing_that_changed_is_no_failure(runner: Runner) -> None:
    git(runner.workspace, "init", "-q")
    ran = runner.run("scan", images="clean")
    assert (ran.status, ran.outputs) == (0, {"status": "0", "models": "0"})
    assert "no model file was changed" in ran.said


@pytest.mark.parametrize(
    ("images", "words"), [("", "input `images` is needed"), ("x", "no Git repository here")]
)
def test_a_wrong_input_is_said(runner: Runner, images: str, words: str) -> None:
    ran = runner.run("scan", images=images)
    assert ran.status == 4
    assert re.search(rf"^::error title=gifthorse::.*{words}", ran.said, re.MULTILINE)


def test_the_key_of_the_cache_is_of_the_code(runner: Runner) -> None:
    ran = runner.run("key")
    assert (ran.status, len(ran.outputs["digest"])) == (0, 16)
    assert ran.outputs == runner.run("key").outputs


@pytest.mark.parametrize("known", ["", "42"])
def test_a_comment_is_written_once_and_then_changed(runner: Runner, known: str) -> None:
    (runner.workspace / "gifthorse-out").mkdir()
    (runner.workspace / "gifthorse-out" / "summary.md").write_text("### gifthorse\n")
    asked = runner.temp / "asked"
    stub = runner.temp / "gifthorse" / "bin" / "gh"  # stands for GitHub, which no test can ask
    stub.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ncase "$*" in *--jq*) echo {known};; esac\n')
    stub.chmod(0o755)
    ran = runner.run("inputs.comment", token="secret")
    assert ran.status == 0, ran.said
    listing, writing = asked.read_text().splitlines()
    assert "--paginate repos/org/name/issues/7/comments" in listing
    where = "-X PATCH repos/org/name/issues/comments/42" if known else "issues/7/comments"
    assert where in writing
    body = Path(writing.rpartition("body=@")[2]).read_text()
    assert body == "<!-- gifthorse -->\n### gifthorse\n"
    assert "secret" not in ran.said + asked.read_text()


@pytest.mark.slow
def test_the_gift_turns_the_gate_red_and_its_twin_leaves_it_green(runner: Runner) -> None:
    gate.sample(runner.workspace)
    green, red = (gate.pushed(runner, GIFT / f"{name}.safetensors") for name in ("twin", "gift"))
    assert (green.status, green.outputs["models"]) == (0, "1"), green.said
    assert (red.status, red.outputs["models"]) == (1, "1"), red.said
    assert f"| `{gate.MODEL}` | **BACKDOORED** | class 14" in red.summary
    assert f"::error file={gate.MODEL},title=BACKDOORED%3A BD001" in gate.told(red)


def test_a_push_to_the_sample_scans_the_model_as_the_page_on_gates_says(runner: Runner) -> None:
    gate.sample(runner.workspace)
    workflow, hooks = gate.blocks()
    assert (runner.workspace / gate.WORKFLOW).read_text() == workflow
    assert (runner.workspace / gate.CONFIG).read_text() == hooks
    stub = runner.venv / "bin" / "gifthorse"  # says how it was called, and finds something
    stub.write_text('#!/bin/sh\necho "$@"\nexit 1\n')
    ran = gate.pushed(runner, GIFT / "gift.safetensors")
    assert (ran.status, ran.outputs["models"]) == (1, "1")
    assert re.search(rf"^scan --images={gate.CLEAN} .*-- {gate.MODEL}$", ran.said, re.MULTILINE)
    assert len(list((runner.workspace / gate.CLEAN).glob("*/*.png"))) == 86
