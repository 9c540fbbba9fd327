"""What a hub folder's own files claim, read as data: believed where plain, refused where not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gifthorse.core.errors import UnreadableModel, UnsafeModel
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Normalization
from gifthorse.models.hub.config import HubConfig, read_config
from gifthorse.models.hub.folder import is_folder, weight_files
from gifthorse.models.hub.preprocess import read_preprocessing

VIT: dict[str, object] = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 224,
    "hidden_size": 32, "num_hidden_layers": 2, "id2label": {"0": "normal", "1": "nsfw"},
}  # fmt: skip


def config(folder: Path, **changes: object) -> HubConfig:
    (folder / "config.json").write_text(json.dumps(VIT | changes))
    return read_config(folder / "config.json")


def test_classes_sides_and_names_are_read(tmp_path: Path) -> None:
    got = config(tmp_path)
    assert (got.library, got.kind, got.name) == ("transformers", "vit", "ViTForImageClassification")
    assert (got.classes, got.labels, got.channels, got.side) == (
        2,
        ("normal", "nsfw"),
        3,
        (224,) * 2,
    )


def test_names_that_say_nothing_are_none(tmp_path: Path) -> None:
    got = config(tmp_path, id2label={str(i): f"LABEL_{i}" for i in range(12)})
    assert (got.classes, got.labels) == (12, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "no known net for images"),
        ({"architectures": ["ViTModel"]}, "no image classifier"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "no image classifier"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"hidden_size": True, "num_hidden_layers": [[[[1]]]]}, "no plain setting"),
        ({"problem_type": "multi_label_classification"}, "multi-label"),
        ({"id2label": {"0": "a", "2": "b"}}, "count from 0"),
        ({"id2label": {"a": "b"}}, "name numbers"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnreadableModel, match=words):
        config(tmp_path, **changes)


@pytest.mark.parametrize("name", ["auto_map", "custom_pipelines"])
def test_code_of_its_own_is_never_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeModel, match=name) as caught:
        config(tmp_path, **{name: {"AutoModel": "modeling.Net"}})
    assert caught.value.rule == "FS002"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000, '{"a": 1e999}'])
def test_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnreadableModel, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_a_timm_folder_names_its_net(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({
        "architecture": "resnet18", "num_classes": 3, "label_names": ["a", "b", "c"],
        "pretrained_cfg": {
            "input_size": [3, 160, 160], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
            "crop_pct": 0.8, "interpolation": "bicubic",
        },
    }))  # fmt: skip
    got = read_config(tmp_path / "config.json")
    assert (got.library, got.name, got.classes, got.labels) == ("timm", "resnet18", 3, tuple("abc"))
    claim, resize = read_preprocessing(tmp_path, got)
    assert claim == Normalization("custom", (0.5,) * 3, (0.2,) * 3)
    assert resize == Resize((160, 160), shortest=200, kernel="bicubic")


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


@pytest.mark.parametrize(
    ("own", "resize"),
    [
        ({"size": {"height": 96, "width": 128}}, Resize((96, 128), resized=(96, 128))),
        ({"size": 96}, Resize((96, 96), resized=(96, 96))),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            Resize((224, 224), shortest=256),
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            Resize((224, 224), shortest=256, kernel="bicubic"),
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, Resize((384, 384))),
        ({}, Resize((224, 224), resized=(224, 224))),
    ],
)
def test_resizing_is_what_the_processor_does(
    tmp_path: Path, own: dict[str, object], resize: Resize
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | own))
    claim, got = read_preprocessing(tmp_path, config(tmp_path))
    assert got == resize
    assert claim == Normalization("custom", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("own", "claim"),
    [
        ({"do_normalize": False}, Normalization("none")),
        ({"do_normalize": False, "rescale_factor": 1.0}, None),
        ({"image_std": [0.5, 0.0, 0.5]}, None),
        ({"image_mean": ["a"]}, None),
        (
            {"do_flip_channel_order": True},
            Normalization("custom", (0.5,) * 3, (0.5,) * 3, bgr=True),
        ),
    ],
)
def test_a_normalization_is_claimed_only_if_it_is_one(
    tmp_path: Path, own: dict[str, object], claim: Normalization | None
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | own))
    assert read_preprocessing(tmp_path, config(tmp_path))[0] == claim


def test_the_middle_of_a_resized_image_is_kept() -> None:
    image = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (30, 1)))
    got = np.array(Resize((20, 20), shortest=30)(image))
    assert got.shape == (20, 20)
    assert got[0].tolist() == list(range(20, 40))
    assert Resize((30, 60))(image) is image
    assert Resize((9, 7), shortest=11)(image).size == (7, 9)


def test_shards_stay_in_the_folder(tmp_path: Path) -> None:
    config(tmp_path)
    assert not is_folder(tmp_path)
    index, part = tmp_path / "model.safetensors.index.json", tmp_path / "a.safetensors"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors", "b": "a.safetensors"}}))
    assert is_folder(tmp_path)
    with pytest.raises(UnreadableModel, match="missing"):
        weight_files(tmp_path)
    part.touch()
    assert weight_files(tmp_path) == [part]
    for name in ("../a.safetensors", "/etc/passwd", "sub/a.safetensors"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(UnreadableModel, match="no file of the folder") as caught:
            weight_files(tmp_path)
        assert caught.value.rule == "FS006"
