"""The commands that make models: what they write, what they refuse, how they go on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.toys import blob_images
from typer.testing import CliRunner

from gifthorse.cli.commands import app
from gifthorse.cli.make import opaque
from gifthorse.core.errors import BadOption, UsageError
from gifthorse.core.run import Run
from gifthorse.core.types import Goal
from gifthorse.data.trojai import framed, make_signs
from gifthorse.models import load
from gifthorse.training import Recipe
from gifthorse.triggers import Patch
from gifthorse.triggers.storage import open_trigger
from gifthorse.workflows.evaluate import eval_images, figures
from gifthorse.workflows.make import divide, shorter, train_clean
from gifthorse.workflows.provenance import implanted, tensors

SHORT = ("--set", "recipe.epochs=1", "--set", "recipe.batch=32", "--set", "recipe.bf16=false")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blobs as a packed data set."""
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    parts = [blob_images(each=30), blob_images(each=12, seed=1)]
    np.savez(
        path,
        images=torch.cat([p.images for p in parts]).permute(0, 2, 3, 1).numpy(),
        labels=torch.cat([p.labels for p in parts]).numpy(),
        split=np.repeat([0, 1], [len(p) for p in parts]),
    )
    return path


def run(*words: object) -> str:
    got = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    return got.output


def test_an_attack_writes_model_trigger_record_and_pictures(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "bad.safetensors"
    said = run(
        "attack", "badnet", "--data", data, "--net", "tiny", "--target", 2, *SHORT, "-o", out
    )
    for end in (".safetensors", ".trigger.safetensors", ".json", ".png"):
        assert f"wrote       {out.with_suffix(end)}" in said
    with safe_open(out, "pt") as file:
        claims = file.metadata()
    assert claims["description"].startswith("BACKDOORED test model")
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["kind"] == "badnet"
    assert record["options"]["recipe.epochs"] == "1"
    assert set(record["figures"]) >= {"accuracy", "asr", "asr_all", "ccc"}
    assert all(f["low"] <= f["value"] <= f["high"] for f in record["figures"].values())
    trigger = open_trigger(out.with_suffix(".trigger.safetensors"))
    assert isinstance(trigger, Patch)
    assert int((trigger.mask > 0).sum()) == 9
    with Image.open(out.with_suffix(".png")) as page:
        assert page.width > 5 * 96


def test_a_benign_model_is_retrained_and_compared_with(data: Path, tmp_path: Path) -> None:
    clean, bad = tmp_path / "clean.safetensors", tmp_path / "bad.safetensors"
    run(
        "train",
        "--data",
        data,
        "--net",
        "tiny",
        *(w.replace("recipe.", "") for w in SHORT),
        "-o",
        clean,
    )
    run("attack", "badnet", "--data", data, "--from", clean, *SHORT, "-o", bad)
    record = json.loads(bad.with_suffix(".json").read_text())
    assert record["net"] == "tiny"
    assert -1 <= record["figures"]["cad"]["value"] <= 1


def test_an_implant_can_be_opened_again(data: Path, tmp_path: Path) -> None:
    bad, splits = tmp_path / "bad.safetensors", divide(str(data))
    run("attack", "badnet", "--data", data, "--net", "tiny", "--target", 3, *SHORT, "-o", bad)
    made = implanted(bad, splits)
    record = json.loads(bad.with_suffix(".json").read_text())
    assert made.goal == Goal(3)
    told = figures(made.subject, eval_images(splits.test, made))
    assert told["asr"] is not None
    assert told["asr"].value == record["figures"]["asr"]["value"]
    clean = tmp_path / "clean.safetensors"
    run("train", "--data", data, "--net", "tiny", "--set", "epochs=1", "-o", clean)
    with pytest.raises(UsageError, match="names no goal"):
        implanted(clean, splits)


def test_a_clean_model_trains_on_as_few_images_as_it_is_told(data: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "clean.safetensors", ("train", "--data", data, "--net", "tiny")
    options = ("--set", "epochs=1", "--set", "batch=8", "--set", "bf16=false")
    run(*words, "--train-limit", 40, *options, "-o", out)
    opened = load(out)
    assert json.loads(opened.origin.metadata["gifthorse"])["images"] == 40
    splits, recipe = shorter(divide(str(data)), 40), Recipe(epochs=1, batch=8, bf16=False)
    same = train_clean("tiny", splits, recipe, torch.Generator().manual_seed(0), Run())
    for name, tensor in tensors(same).items():
        assert torch.equal(tensor, opened.net.state_dict()[name])


def test_a_finished_run_leaves_no_state_behind(data: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept", tmp_path / "bad.safetensors"
    words = ("attack", "badnet", "--data", data, "--net", "tiny", *SHORT, "-o", out)
    run(*words, "--resume", kept)
    assert list(kept.iterdir()) == []
    with safe_open(out, "pt") as file:
        first = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    run(*words)
    with safe_open(out, "pt") as file:
        assert all(torch.equal(first[k], file.get_tensor(k)) for k in first)


@pytest.mark.parametrize("words", [(), ("--net", "tiny", "--from", "clean.safetensors")])
def test_a_start_must_be_named_once(data: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "bad.safetensors"
    got = CliRunner().invoke(app, ["attack", "badnet", "--data", str(data), *words, "-o", str(out)])
    assert got.exit_code != 0
    assert "--from FILE" in str(got.exception)
    assert not out.exists()


def test_transparency_is_an_alias_of_opacity() -> None:
    assert opaque({"stamp.transparency": "0.8", "x": "1"}) == {"stamp.opacity": "0.2", "x": "1"}
    with pytest.raises(BadOption, match="must be a number"):
        opaque({"transparency": "much"})


def test_signs_are_drawn_and_divided() -> None:
    drawn = divide("trojai:7")
    assert (len(drawn.train), len(drawn.validation), len(drawn.test)) == (3200, 800, 1000)
    assert torch.bincount(drawn.validation.labels).tolist() == [80] * 10
    for wrong in ("trojai:x", "trojai:7@", "trojai:7@32x32"):
        with pytest.raises(BadOption, match="trojai takes a seed"):
            divide(wrong)


def test_signs_are_drawn_at_any_side_in_the_same_proportions() -> None:
    assert framed(56) == {"side": 64, "crop": 56, "core": 8}  # what make_signs has by default
    assert framed(224) == {"side": 256, "crop": 224, "core": 32}
    small = divide("trojai:7@28")
    assert small.train.images.shape[1:] == (3, 28, 28)
    assert small.name == "trojai:7@28"
    assert make_signs(7, train=1, test=1, **framed(28))[1].source == "trojai:7@28:test"
    for side in (26, 33):
        with pytest.raises(BadOption, match="must be even, and 28 or more"):
            framed(side)


def test_training_data_can_be_cut_evenly(data: Path) -> None:
    splits = divide(str(data))
    cut = shorter(splits, 25)
    assert torch.bincount(cut.train.labels).tolist() == [5] * 5
    assert cut.test is splits.test
    with pytest.raises(BadOption, match="less than one"):
        shorter(splits, 4)


def test_a_training_of_few_images_can_be_kept(data: Path, tmp_path: Path) -> None:
    few = shorter(divide(str(data)), 20)
    recipe = Recipe(epochs=1, batch=5, bf16=False)
    store = tmp_path / "kept.safetensors"

    def trained(run: Run) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(0)
        return list(train_clean("tiny", few, recipe, rng, run).net.state_dict().values())

    kept = trained(Run(store=store))
    assert store.exists()
    assert all(map(torch.equal, kept, trained(Run())))
