"""A calibration of one's own: table of truth, fit, file, and what a scan makes of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.cli.test_border import run
from tests.contract.test_detectors import tile_images, tiles
from tests.report.examples import nothing_found
from torch import Generator

from gifthorse.core.errors import UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Origin, Report
from gifthorse.detection import DETECTORS
from gifthorse.detection.calibration import Calibration, fit
from gifthorse.detection.calibrations import Calibrations, dumped, opened, shipped
from gifthorse.detection.fusion import Evidence
from gifthorse.workflows import calibrate
from gifthorse.workflows.calibrate import (
    ModelScores,
    calibrated,
    judge,
    known_models,
    quality,
    written,
)
from gifthorse.workflows.detect import detect
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.scan import Request

GIFT = Path(__file__).parents[2] / "examples/gift"
CLEAN, BAD = (0.2, 1.5, 0.9, 2.6, 1.1, 0.4), (2.1, 7.0, 5.5, 8.1, 4.4)


def table(folder: Path, text: str) -> Path:
    for name in "abcdefghijk":
        (folder / name).touch()
    (folder / "truth.csv").write_text(text)
    return folder


def rows(clean: str = "abcde", bad: str = "fghij") -> str:
    lines = [f"{name},clean," for name in clean] + [f"{name},3,other.npz" for name in bad]
    return "\n".join(["model,target,images", *lines])


def test_the_table_says_what_is_clean_and_which_images_belong_to_it(tmp_path: Path) -> None:
    models = known_models(table(tmp_path, rows()))
    assert [m.path.name for m in models] == list("abcdefghij")
    assert [m.backdoored for m in models] == [False] * 5 + [True] * 5
    assert [m.images for m in models] == [None] * 5 + ["other.npz"] * 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 clean and 0 backdoored"),
        (rows("abcd"), "4 clean and 5 backdoored models: give 5 or more of each"),
        ("model,target\na,clean\nz,3\n", "line 3 .* names z, which is not in"),
        ("model,target\na,\n", "line 2 .* lacks a model or its target"),
        ("file,label\na,clean\n", "line 2 .* lacks a model or its target"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        known_models(table(tmp_path, text))


def test_a_folder_without_a_table_is_told_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs a table truth.csv with the columns model and tar"):
        known_models(tmp_path)


def found(clean: tuple[float, ...] = CLEAN, bad: tuple[float, ...] = BAD) -> list[ModelScores]:
    rows = [("clean", s) for s in clean] + [("3", s) for s in bad]
    return [ModelScores(f"m{i}", "0", t, {"blend": Evidence(s)}) for i, (t, s) in enumerate(rows)]


def test_what_is_written_is_the_fit_of_the_scores_and_can_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(written("mine", found(), Request(command="gifthorse calibrate")))
    (bag,) = opened(path).detectors.values()
    assert bag == fit("mine", sorted(CLEAN), sorted(BAD))
    made = json.loads(path.read_text())["made"]
    assert [m["target"] for m in made["models"]] == ["clean"] * 6 + ["3"] * 5


def test_a_detector_that_scored_too_few_has_no_calibration() -> None:
    few = [
        *found(),
        *(ModelScores("more", "0", "clean", {"warp": Evidence(1.0)}) for _ in range(9)),
    ]
    assert set(calibrated("mine", few)) == {"blend"}
    with pytest.raises(UsageError, match=r"no detector .* 5 clean and 5 backdoored .*: no image"):
        written("mine", [ModelScores("m", "0", "clean", {}, "no images")] * 9, Request())


def test_the_shipped_file_can_be_written_again(tmp_path: Path) -> None:
    bags = shipped().detectors
    (tmp_path / "again.json").write_text(dumped(next(iter(bags.values())).name, bags, {}))
    assert opened(tmp_path / "again.json").detectors == bags


OF_NOW = '{"name": "x", "scale": "log1p", "detectors": {"a": %s}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{" * 5000,
        '{"name": "x"}',
        '{"name": "x", "detectors": {"a": {"clean": [1], "backdoored": [1], "lines": [[1, 1]]}}}',
        OF_NOW % '{"clean": [], "backdoored": [1], "lines": [[1, 1]]}',
        OF_NOW % '{"clean": [NaN], "backdoored": [1], "lines": [[1, 1]]}',
        OF_NOW % '{"clean": [1], "backdoored": [1], "lines": [[0, 2e9]]}',
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(UsageError, match=r"odd.json is no calibration"):
        opened(tmp_path / "odd.json")
    (tmp_path / "right.json").write_text(
        OF_NOW % '{"clean": [1], "backdoored": [1], "lines": [[1, 1]]}'
    )
    assert list(opened(tmp_path / "right.json").detectors) == ["a"]


def test_the_quality_is_what_its_definitions_say() -> None:
    bag = fit("mine", CLEAN, BAD)
    told = quality(bag)
    truth = np.repeat([0, 1], [len(CLEAN), len(BAD)])
    assert told.auc.value == pytest.approx(roc_auc_score(truth, CLEAN + BAD))
    assert told.auc.low <= told.auc.value <= told.auc.high
    chances = [
        fit("mine", CLEAN[:i] + CLEAN[i + 1 :], BAD, resamples=0).confidence(s).value
        for i, s in enumerate(CLEAN)
    ]
    others = [
        fit("mine", CLEAN, BAD[:i] + BAD[i + 1 :], resamples=0).confidence(s).value
        for i, s in enumerate(BAD)
    ]
    entropy = -(np.log1p(-np.asarray(chances)).mean() + np.log(others).mean()) / 2
    assert told.entropy == pytest.approx(entropy)
    assert told.alarms == sum(c >= 0.5 for c in chances)
    assert told.found == sum(c >= 0.5 for c in others)


def test_of_many_models_those_of_a_fold_are_left_out_together() -> None:
    rng = np.random.default_rng(0)
    clean, bad = rng.normal(0, 1, 400).tolist(), rng.normal(2, 1, 400).tolist()
    told = quality(Calibration("many", tuple(clean), tuple(bad), ((1.0, -1.0),)), resamples=5)
    order = np.greater.outer(bad, clean)
    assert told.auc.value == pytest.approx(order.mean(), abs=1e-12)
    odds = 2 * np.asarray([clean, bad]) - 2  # the true ones, of two normals
    assert told.entropy == pytest.approx(np.log1p(np.exp(odds * [[1], [-1]])).mean(), abs=0.01)


def test_scores_that_say_nothing_have_the_entropy_of_a_coin() -> None:
    told = quality(fit("none", (1.0,) * 40, (1.0,) * 40))
    assert told.auc.value == 0.5
    assert told.entropy == pytest.approx(np.log(2), abs=0.01)


def test_a_given_calibration_takes_the_place_of_the_shipped_one() -> None:
    preparation = nothing_found().preparation
    assert preparation is not None
    prepared = Prepared(tiles(None), tile_images(8, 1), preparation, ())
    rng, only = Generator().manual_seed(0), {"latent_shift": DETECTORS["latent_shift"]}
    plain = detect(prepared, only, rng, Run())
    assert plain.confidence is None
    bag = fit("mine", CLEAN, BAD)
    own = detect(prepared, only, rng, Run(), calibrations=Calibrations({"latent_shift": bag}))
    (verdict,) = own.verdicts
    assert own.label in ("NO BACKDOOR FOUND", "SUSPICIOUS")
    assert own.confidence == bag.confidence(verdict.score)


def test_scores_are_kept_and_a_model_is_not_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def scanned(path: str, inputs: Inputs, *rest: object) -> Report:
        asked.append((path, inputs.images))
        return Report("INCONCLUSIVE", "why", Origin(path=path), None, (), (), (), (), None)

    monkeypatch.setattr(calibrate, "scan", scanned)
    model = known_models(table(tmp_path, rows()))[-1]
    inputs, kept = Inputs("clean.npz", None, "auto", None, 9, "cpu"), tmp_path / "kept.json"
    first, second = (judge(model, inputs, Request(), kept, None) for _ in range(2))
    assert first == second == ModelScores("j", "", "3", {}, "why")
    assert asked == [(str(tmp_path / "j"), "other.npz")]
    assert judge(replace(model, target="clean"), inputs, Request(), kept, None).target == "clean"
    assert len(asked) == 1  # the table was corrected; what is said of the model stays
    judge(model, inputs, Request(("mm_bd",)), kept, None)
    model.path.write_text("another model")
    judge(model, inputs, Request(("mm_bd",)), kept, None)
    assert len(asked) == 3
    kept.write_text("{}")
    with pytest.raises(UsageError, match="holds no scores that were kept"):
        judge(model, inputs, Request(), kept, None)


def test_the_command_says_what_comes_with_the_package() -> None:
    status, out, _ = run("evidence")
    assert status == 0
    for name, bag in shipped().detectors.items():
        told = quality(bag)
        line = next(line for line in out.splitlines() if line.startswith(name))
        assert line.split()[1:3] == [str(len(bag.clean)), str(len(bag.backdoored))]
        assert f"{told.auc.value:.3f}" in line
        assert f"{told.entropy:.3f}" in line


def test_a_finding_without_a_trigger_does_not_ask_to_look_at_one() -> None:
    model, images = str(GIFT / "gift.safetensors"), str(GIFT / "clean.npz")
    _, told, _ = run("scan", model, "--images", images, "--detector", "latent_shift", "-f", "json")
    verdict = json.loads(told)["verdict"]
    assert verdict["label"] == "SUSPICIOUS"
    assert not any("Look at the trigger" in step for step in verdict["next_steps"])


@pytest.mark.slow
def test_the_command_calibrates_on_copies_of_the_shipped_models(tmp_path: Path) -> None:
    lines = ["model,target"]
    for i in range(5):
        for name, target in (("twin", "clean"), ("gift", "14")):
            shutil.copy(GIFT / f"{name}.safetensors", tmp_path / f"{name}{i}.safetensors")
            lines.append(f"{name}{i}.safetensors,{target}")
    (tmp_path / "truth.csv").write_text("\n".join(lines))
    out, images = tmp_path / "out" / "mine.json", str(GIFT / "clean.npz")
    out.parent.mkdir()
    command = ("calibrate", str(tmp_path), "--images", images, "-o", str(out))
    status, _, _ = run(*command, "--detector", "latent_shift")
    assert status == 0
    (bag,) = opened(out).detectors.values()
    assert len(bag.clean) == len(bag.backdoored) == 5
    status, told, _ = run("evidence", str(out))
    assert status == 0
    assert "latent_shift" in told
    model = str(tmp_path / "gift0.safetensors")
    scanned = ("scan", model, "--images", images, "--detector", "latent_shift", "--format", "json")
    _, told, _ = run(*scanned, "--calibration", str(out))
    report = json.loads(told)
    assert report["verdict"]["confidence"]["calibration"] == bag.name


@pytest.mark.parametrize("name", ["truth.csv", "a", "other.npz", "clean.npz"])
def test_no_calibration_replaces_what_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(table(tmp_path, rows()))
    for images in ("other.npz", "clean.npz"):
        (tmp_path / images).write_bytes(b"images")
    before = (tmp_path / name).read_bytes()
    status, _, words = run("calibrate", ".", "--images", "clean.npz", "-o", name)
    assert status == 4
    assert "would replace a file" in words
    assert (tmp_path / name).read_bytes() == before
