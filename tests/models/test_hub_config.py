"""What a hub folder's own files claim, read as data: believed where plain, refused where not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gifthorse.core.errors import BadImages, UnreadableModel, UnsafeModel, UsageError
from gifthorse.core.resizing import Resize
from gifthorse.core.types import Normalization
from gifthorse.models.hub.config import HubConfig, read_config
from gifthorse.models.hub.folder import check_folder, is_folder, weight_files
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
        ({"id2label": {"a": "b"}}, "name numbers"),
        ({"model_type": ["vit"]}, "no known net for images"),
        ({"hidden_size": 10**400}, "hidden_size"),
        ({"id2label": None, "num_labels": 2.5}, "num_labels"),
        ({"id2label": None, "num_labels": 0}, "num_labels"),
        ({"num_channels": -3}, "num_channels"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers"),
        ({"depths": [1] * 50_000}, "depths"),
        ({"architecture": "resnet18", "num_classes": 3, "model_args": [1]}, "model_args"),
        ({"architecture": "resnet18", "num_classes": None}, "num_classes"),
        ({"architecture": "hf-hub:some/net", "num_classes": 3}, "hf-hub:some/net"),
        ({"architecture": "resnet18", "num_classes": 3, "input_size": [3, -1, 0]}, "input_size"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnreadableModel, match=words):
        config(tmp_path, **changes)


def test_numbers_with_gaps_count_classes_and_name_none(tmp_path: Path) -> None:
    got = config(tmp_path, id2label={"1": "a", "2": "b", "5": "c"})
    assert (got.classes, got.labels) == (3, ())
    assert got.notes == ("left aside class names that do not count from 0 on",)
    assert config(tmp_path, id2label=["a", "b"]).labels == ("a", "b")


def test_names_are_fit_to_print(tmp_path: Path) -> None:
    got = config(tmp_path, id2label={"0": "\x1b[31mred\n", "1": "a" * 5000})
    assert got.labels[0] == "?[31mred?"
    assert len(got.labels[1]) < 200


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
    assert resize == Resize((160, 160), shortest=200, kernel="bicubic", even=True)
    squashed = replace(got, fields={**got.fields, "crop_mode": "squash"})
    _, resize = read_preprocessing(tmp_path, squashed)
    assert resize == Resize((160, 160), resized=(200, 200), kernel="bicubic", even=True)


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
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "crop_size": 192},
            Resize((192, 192), shortest=256),  # PoolFormer
        ),
        (
            {"feature_extractor_type": "MobileViTFeatureExtractor", "size": 288, "crop_size": 256},
            Resize((256, 256), shortest=288),
        ),
        (
            {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}},
            Resize((224, 224), shortest=256),
        ),
        ({"resample": True}, Resize((224, 224), resized=(224, 224))),
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
        (
            {"do_normalize": False, "rescale_factor": 1.0},
            Normalization("custom", (0.0,), (1 / 255,)),
        ),
        ({"do_normalize": False, "rescale_factor": None}, None),
        ({"do_normalize": False, "rescale_factor": "x"}, None),
        ({"rescale_factor": 2 / 255}, Normalization("custom", (0.25,) * 3, (0.25,) * 3)),
        ({"image_std": [1e-300] * 3}, None),
        ({"image_mean": 0, "image_std": 1}, Normalization("custom", (0.0,), (1.0,))),
        ({"image_std": [0.5, 0.0, 0.5]}, None),
        ({"image_mean": ["a"]}, None),
        ({"do_flip_channel_order": True}, Normalization("none", bgr=True)),
        (
            {"do_flip_channel_order": True, "do_normalize": True},
            Normalization("custom", (0.5,) * 3, (0.5,) * 3, bgr=True),
        ),
    ],
)
def test_a_normalization_is_claimed_only_if_it_is_one(
    tmp_path: Path, own: dict[str, object], claim: Normalization | None
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | own))
    assert read_preprocessing(tmp_path, config(tmp_path))[0] == claim


def test_a_net_that_reads_blue_first_says_so_without_a_mean(tmp_path: Path) -> None:
    own = {"do_flip_channel_order": True, "size": 288}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    claim, _ = read_preprocessing(tmp_path, config(tmp_path))
    assert claim == Normalization("none", bgr=True)


@pytest.mark.parametrize(
    "own",
    [
        {"image_mean": [10**400] * 3},
        {"size": 10**9},
        {"size": 4096},
        {"do_resize": False, "crop_size": 10**6},
        {"size": {"shortest_edge": 32}, "crop_pct": "abc"},
        {"size": {"shortest_edge": 32}, "crop_pct": [1]},
        {"size": {"shortest_edge": 32}, "crop_pct": 1e-9},
        {"size": {"shortest_edge": 32}, "crop_pct": -1},
    ],
)
def test_preprocessing_that_cannot_be_is_refused(tmp_path: Path, own: dict[str, object]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | own))
    with pytest.raises(UnreadableModel):
        read_preprocessing(tmp_path, config(tmp_path))


def test_a_strip_that_would_grow_beyond_bounds_is_no_image() -> None:
    with pytest.raises(BadImages, match="before its crop"):
        Resize((224, 224), shortest=256)(Image.new("L", (2, 4000)))


def test_a_folder_that_is_not_one_says_what_it_lacks(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1f3c"
    snapshot.mkdir(parents=True)
    config(snapshot)
    with pytest.raises(UsageError, match=r"name a snapshot in it: .*1f3c"):
        check_folder(tmp_path / "models--a--b")
    with pytest.raises(UsageError, match="no weights that are read"):
        check_folder(snapshot)
    check_folder(tmp_path)


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
    odd = ("../a.safetensors", "/etc/passwd", "sub/a.safetensors", "a\0", "a" * 5000, "")
    for name in odd:
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(UnreadableModel, match="no file of the folder") as caught:
            weight_files(tmp_path)
        assert caught.value.rule == "FS006"
