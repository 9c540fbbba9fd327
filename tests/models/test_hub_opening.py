"""A folder from the hub, opened and inspected as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.models.hub import tiny

from gifthorse.core.errors import BadOption, UnreadableModel, UsageError
from gifthorse.core.types import Normalization
from gifthorse.models import inspect, load
from gifthorse.models.hub.opening import digest_of
from gifthorse.workflows.opening import Inputs, opened

pytest.importorskip("transformers", reason="needs gifthorse[hub]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("ViT", tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_a_model(folder: Path) -> None:
    got = load(folder)
    assert (got.classes, got.channels, got.labels) == (3, 3, ("kind 0", "kind 1", "kind 2"))
    assert got.origin.format == "transformers folder"
    assert got.origin.arch == "ViTForImageClassification"
    assert got.normalization == Normalization("custom", (0.5,) * 3, (0.5,) * 3)
    assert got.resize is not None
    assert (got.resize.size, got.resize.kernel) == ((32, 32), "bicubic")
    seen = inspect(folder)
    assert seen.sha256 == got.origin.sha256 == digest_of(folder)
    assert (seen.status, seen.arch) == (0, got.origin.arch)
    assert "images would be resized to 32x32" in " ".join(seen.notes)


def test_shards_are_one_net(folder: Path) -> None:
    whole = load(folder).net.state_dict()
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    where = {name: file for file, some in parts.items() for name in some}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(t, whole[name]) for name, t in load(folder).net.state_dict().items())
    assert "weights in 2 files" in inspect(folder).notes


def test_weights_of_a_pickle_are_checked_like_any(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load(folder).classes == 3
    torch.save({**state, "hook": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel) as caught:
        load(folder)
    assert caught.value.rule == "FS002"


def test_a_folder_names_its_own_net(folder: Path) -> None:
    with pytest.raises(BadOption, match="leave out --arch"):
        load(folder, "tiny")


def test_images_come_as_the_model_wants_them_and_are_numbered_by_its_names(
    folder: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("kind 2", "kind 0", "kind 1"):
        for i in range(5):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    prepared = opened(str(folder), Inputs(str(tmp_path / "images")))
    assert prepared.subject.shape == (3, 32, 32)
    assert prepared.preparation.class_names == ("kind 0", "kind 1", "kind 2")


def test_names_in_another_order_are_the_models_all_the_same(folder: Path, tmp_path: Path) -> None:
    path = folder / "config.json"
    names = {"0": "zebra", "1": "Ant", "2": "bee"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": names}))
    for level, name in enumerate(("ant", "bee", "zebra")):
        for i in range(4):
            image = tmp_path / "images" / name / f"{i}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (60 * level + i,) * 3).save(image)
    prepared = opened(str(folder), Inputs(str(tmp_path / "images")))
    x, y = prepared.samples[torch.arange(len(prepared.samples))]
    light = (x.mean((1, 2, 3)) * 255 / 60).round().long()
    assert torch.equal(y, torch.tensor([1, 2, 0])[light])  # ant, bee, zebra
    assert "classes numbered by the model's own names" in prepared.preparation.notes


def test_a_name_that_no_file_can_have_is_no_folder() -> None:
    with pytest.raises(UsageError, match="there is no file"):
        load("a" * 5000)
