"""Nets of hub folders against the library that wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.models.hub import TINY, tiny
from torch import nn

from gifthorse.core.errors import UnknownArch, UnreadableModel
from gifthorse.models import architectures
from gifthorse.models.hub.build import build_net
from gifthorse.models.hub.config import read_config

pytest.importorskip("transformers", reason="needs gifthorse[hub]")
FAST = ("ConvNext", "MobileNetV2", "ResNet", "Swin", "ViT")
EVERY = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in sorted(TINY)]


def changed(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", EVERY)
def test_logits_and_gradients_are_the_librarys(name: str, tmp_path: Path) -> None:
    theirs: Any = tiny(name, tmp_path)
    config = read_config(tmp_path / "config.json")
    net, notes = build_net(config, load_file(tmp_path / "model.safetensors"))
    assert (config.classes, config.labels[1], notes) == (3, "kind 1", ())
    x = torch.rand(2, 3, *(config.side or (32, 32)), requires_grad=True)
    ours, expected = net(x), theirs(pixel_values=x).logits
    assert torch.allclose(ours, expected, atol=1e-5)
    slope, wanted = (torch.autograd.grad(z[:, 0].sum(), x)[0] for z in (ours, expected))
    assert torch.allclose(slope, wanted, atol=1e-5)
    assert not any(p.requires_grad for p in net.parameters())


def test_settings_that_ask_for_more_than_the_weights_hold_are_refused(tmp_path: Path) -> None:
    tiny("ViT", tmp_path)
    changed(tmp_path, hidden_size=32_768, num_hidden_layers=200)
    with pytest.raises(UnreadableModel, match="asks for") as caught:
        build_net(read_config(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors"))
    assert caught.value.rule == "FS004"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ConvNext", {"depths": [400] * 300, "hidden_sizes": [8] * 300, "num_stages": 300}),
        ("Swinv2", {"window_size": 500, "image_size": 5000}),
    ],
)
def test_a_net_of_too_many_parts_is_stopped_as_it_is_made(
    name: str, fields: dict[str, object], tmp_path: Path
) -> None:
    tiny(name, tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(UnreadableModel) as caught:
        build_net(read_config(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors"))
    assert caught.value.rule == "FS004"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id2label": {str(k): f"c{k}" for k in range(5)}}, "weight is 3x32, expected 5x32"),
        ({"id2label": None, "num_labels": 4}, "with 4 classes"),
        ({"num_channels": 1}, "expected 32x1x8x8"),
        ({"image_size": 0}, "position_embeddings"),
    ],
)
def test_settings_of_another_net_than_the_weights_are_told_apart(
    fields: dict[str, object], words: str, tmp_path: Path
) -> None:
    tiny("ViT", tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(UnknownArch, match=words):
        build_net(read_config(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors"))


def test_settings_of_timm_are_the_nets_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timm_net(name: str, classes: int, channels: int, wide: int = 4) -> nn.Module:
        return nn.Linear(wide, classes)

    monkeypatch.setattr(architectures, "timm_net", timm_net)
    state = {"weight": torch.ones(3, 8), "bias": torch.zeros(3)}

    def built(**settings: object) -> tuple[nn.Module, tuple[str, ...]]:
        told = {"architecture": "net", "num_classes": 3, "model_args": settings}
        (tmp_path / "config.json").write_text(json.dumps(told))
        return build_net(read_config(tmp_path / "config.json"), state)

    net, notes = built(wide=8, checkpoint_path="/etc/passwd", pretrained=True)
    assert torch.equal(next(net.parameters()), state["weight"])
    assert notes == ("left out settings that are not the net's: checkpoint_path, pretrained",)
    with pytest.raises(UnreadableModel, match="makes no net"):
        built(odd=1)
    with pytest.raises(UnreadableModel, match="asks for"):
        built(wide=10**6)


def test_weights_of_another_net_are_named(tmp_path: Path) -> None:
    tiny("ViT", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    with pytest.raises(UnknownArch, match=r"classifier\.weight"):
        build_net(read_config(tmp_path / "config.json"), state)


def test_settings_that_nobody_knows_are_left_out_and_said(tmp_path: Path) -> None:
    tiny("ViT", tmp_path)
    changed(tmp_path, evil_setting="x")
    config = read_config(tmp_path / "config.json")
    _, notes = build_net(config, load_file(tmp_path / "model.safetensors"))
    assert notes == ("left out unknown settings: evil_setting",)


def test_a_type_with_a_number_of_classes_by_default_has_those_of_the_folder(tmp_path: Path) -> None:
    tiny("Pvt", tmp_path, classes=5)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["num_labels"]  # which older versions of the library did not write
    (tmp_path / "config.json").write_text(json.dumps(told))
    config = read_config(tmp_path / "config.json")
    net, _ = build_net(config, load_file(tmp_path / "model.safetensors"))
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 5)
