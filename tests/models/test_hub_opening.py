"""A folder from the hub, opened and inspected as a user would."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.models.hub import tiny

from gifthorse.core.errors import BadOption, UnreadableModel, UsageError
from gifthorse.core.types import Normalization
from gifthorse.filtering import STRIP
from gifthorse.models import inspect, load
from gifthorse.models.hub.build import weights_of
from gifthorse.models.hub.folder import digest_now
from gifthorse.workflows.filter import take_in
from gifthorse.workflows.opening import Inputs, opened

pytest.importorskip("transformers", reason="needs gifthorse[hub]")


class _Command:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("false",)


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
    assert seen.sha256 == got.origin.sha256 == digest_now(folder)
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
    assert "without making them" in load(folder).origin.notes[0]
    torch.save({**state, "hook": _Command()}, folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel) as caught:
        load(folder)
    assert caught.value.rule == "FS001"


def test_what_a_careless_loader_would_run_beside_the_weights_is_said(folder: Path) -> None:
    (folder / "modeling.py").write_text("1")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Command(), protocol=2))
    got, seen = load(folder), inspect(folder)
    words = "not read, but others may run it: modeling.py, pytorch_model.bin"
    assert words in got.origin.notes
    assert words in seen.notes
    assert any("would run commands" in note for note in got.origin.notes)
    assert (seen.status, seen.findings[0].rule) == (1, "FS001")


def test_files_together_keep_to_the_memory(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a0.safetensors")
    names = [f"a{i}.safetensors" for i in range(9)]
    for name in names[1:]:
        (folder / name).symlink_to("a0.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip(names, names, strict=True))}))
    assert load(folder).classes == 3
    with pytest.raises(UnreadableModel, match="more than the limit") as caught:
        load(folder, memory=5 * (folder / "a0.safetensors").stat().st_size)
    assert caught.value.rule == "FS004"


def test_weights_that_cannot_be_examined_say_why(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    short = {name: t.to(torch.float8_e4m3fn) for name, t in state.items()}
    save_file(short, folder / "model.safetensors")
    with pytest.raises(UnreadableModel, match="only plain floating point"):
        load(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": state}, folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel, match="no state dict"):
        load(folder)


def test_the_cache_of_a_hub_is_links(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1f3c"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(blobs.iterdir())):
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
        path.rename(blobs / str(i))
    assert load(snapshot).classes == inspect(snapshot).status + 3


def test_changed_weights_go_back_into_a_folder(folder: Path) -> None:
    net = load(folder).net
    state = {name: 2 * tensor for name, tensor in weights_of(net).items()}
    save_file(state, folder / "model.safetensors")
    again = load(folder).net.state_dict()
    assert all(torch.equal(again[name], 2 * t) for name, t in net.state_dict().items())


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
    assert "half" in {t.normalization.name for t in prepared.preparation.tried}
    assert "custom" not in {t.normalization.name for t in prepared.preparation.tried}
    assert prepared.preparation.class_names == ("kind 0", "kind 1", "kind 2")


def test_suspects_come_to_size_like_clean_images(folder: Path, tmp_path: Path) -> None:
    own = {"size": {"shortest_edge": 40}, "crop_size": 32, "image_mean": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(own | {"image_std": [0.5] * 3}))
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(path)
    prepared = opened(str(folder), Inputs(str(tmp_path / "images")))
    assert prepared.preparation.class_names == ("kind 0", "kind 1", "kind 2")  # of no folders
    suspects = take_in(str(tmp_path / "images"), prepared, STRIP())
    assert torch.equal(suspects.samples.images, prepared.samples.images)


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
