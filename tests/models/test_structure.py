"""What stubs show of a net: its class, the settings of its layers, the names of its classes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.models.pickled import logits, net, saved
from torch import nn

from gifthorse.models import architectures, load
from gifthorse.models.architectures import shapes_of
from gifthorse.models.reading.entries import CheckpointEntry
from gifthorse.models.reading.pickles import Layer
from gifthorse.models.structure import adopt, hint, labels, of_library, own_net


def entry(*path: str) -> CheckpointEntry:
    return CheckpointEntry(path, "float32", (1,))


def test_settings_that_shapes_do_not_show_are_taken_over(tmp_path: Path) -> None:
    module = net()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.5
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    expected = logits(module)
    assert not torch.allclose(expected, logits(net()), atol=1e-3)
    (tmp_path / "model.pt").write_bytes(saved(module))
    opened = load(tmp_path / "model.pt")
    assert torch.allclose(logits(opened.net), expected, atol=1e-6)
    told = " ".join(opened.origin.notes)
    assert "set as in the file: eps of 5 layers" in told
    assert "stride of" in told


def test_layers_that_do_something_else_are_told(tmp_path: Path) -> None:
    module = net()
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.ReLU)]
    module.set_submodule(names[0], nn.GELU())
    (tmp_path / "model.pt").write_bytes(saved(module))
    told = " ".join(load(tmp_path / "model.pt").origin.notes)
    assert "not quite the file's own" in told
    assert f"{names[0]} is a torch.nn.modules.activation.GELU there, a ReLU here" in told


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("stride", (0.5, 0.5)),
        ("stride", (10**6, 1)),
        ("stride", (-1, 1)),
        ("stride", "2"),
        ("stride", [2, 2, 2]),
        ("padding", True),
        ("padding", "same"),
        ("kernel_size", (5, 5)),
    ],
)
def test_settings_that_are_none_are_left(setting: str, value: object) -> None:
    conv = nn.Conv2d(1, 1, 3)
    stub = Layer("conv", "torch.nn.modules.conv.Conv2d", {setting: value})
    assert adopt(nn.Sequential(conv), [stub], {"0.weight": entry("conv.weight")}) == ()
    assert (conv.stride, conv.padding, conv.kernel_size) == ((1, 1), (0, 0), (3, 3))


def test_heads_of_attention_are_taken_over() -> None:
    attention = nn.Linear(4, 4)
    attention.heads = 2  # type: ignore[assignment]
    kind = "torch.nn.modules.linear.Linear"
    stub = Layer("attn", kind, {"num_heads": 4})
    assert adopt(nn.Sequential(attention), [stub], {"0.weight": entry("attn.weight")})
    assert attention.heads == 4


def test_the_class_is_that_of_the_chosen_part() -> None:
    layers = [Layer("", "lit.Module", {}), Layer("ema.model", "gone.Net", {})]
    assert own_net(layers, {"fc.weight": entry("ema", "model.fc.weight")}).kind == "gone.Net"
    assert own_net(layers, {"fc.weight": entry("fc.weight")}).kind == "lit.Module"
    assert own_net(layers, {"fc.weight": entry("head.fc.bias")}).kind == ""


def test_names_of_classes_must_be_as_many() -> None:
    layers = [Layer("", "a", {}, ("cat", "dog")), Layer("b", "c", {}, ("x", "y", "z"))]
    assert labels(layers, 3) == ("x", "y", "z")
    assert labels(layers, 4) == ()


# Libraries ------------------------------------------------------------------------------------


class Small(nn.Module):
    """A net of a library."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)


class Libraries:
    """Stands in for `timm.models` and `torchvision.models`: two nets of one class each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for source in ("timm", "torchvision"):
            top, models = ModuleType(source), ModuleType(f"{source}.models")
            for module in (top, models):
                for name, value in self.members(source).items():
                    setattr(module, name, value)
                monkeypatch.setitem(sys.modules, module.__name__, module)
            top.models = models  # type: ignore[attr-defined]

    @staticmethod
    def members(source: str) -> dict[str, Any]:
        def maker(width: int) -> Any:
            def make(num_classes: int = 1000, **_: object) -> nn.Module:
                return Small(width, num_classes)

            make.__module__ = f"{source}.models.small"
            return make

        def odd(num_classes: int = 1000, **_: object) -> nn.Module:
            return Small(int(torch.arange(3).sum().item()), num_classes)

        odd.__module__ = f"{source}.models.small"
        makers = {"odd3": odd, "small3": maker(3), "small4": maker(4)}
        return {
            "list_models": lambda module=None: list(makers),
            "get_model_builder": makers.__getitem__,
            "get_model": lambda name, weights, num_classes: makers[name](num_classes),
            "create_model": lambda name, pretrained, num_classes, in_chans: makers[name](
                num_classes
            ),
        }


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_nets_of_libraries_are_found_by_their_class(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Libraries(monkeypatch)
    shapes = shapes_of(Small(4, 7).state_dict())
    stub = Layer("", f"{source}.models.small.Small", {})
    found = of_library(stub, shapes)
    assert found is not None
    assert (found.arch, found.classes) == (f"{source}:small4", 7)
    assert of_library(stub, {"fc.weight": (7, 5)}) is None
    assert of_library(Layer("", stub.kind, {"num_classes": 6}), shapes) is None
    assert of_library(Layer("", "gone.models.small.Small", {}), shapes) is None
    without = of_library(Layer("", "", {}), shapes)  # all that torchvision has is tried
    assert without is not None
    assert without.arch == "torchvision:small4"


def test_what_a_net_of_timm_says_it_is_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Libraries(monkeypatch)
    shapes = shapes_of(Small(4, 7).state_dict())
    tried: list[str] = []
    build = architectures.build

    def noted(arch: str, classes: int, channels: int) -> nn.Module:
        tried.append(arch)
        return build(arch, classes, channels)

    monkeypatch.setattr(architectures, "build", noted)
    for claim, first in (("small4", "small4"), ("mine.py:net", "odd3"), (3, "odd3")):
        tried.clear()
        told = {"pretrained_cfg": {"architecture": claim}}
        found = of_library(Layer("", "timm.models.other.Other", told), shapes)
        assert found is not None
        assert (found.arch, tried[0]) == ("timm:small4", f"timm:{first}")


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert of_library(Layer("", "torchvision.models.resnet.ResNet", {}), {}) is None
    assert "--arch torchvision:NAME" in hint("torchvision.models.resnet.ResNet")
    assert hint("") == ""
    assert "with its config.json" in hint("transformers.models.vit.modeling_vit.ViTModel")
    assert "the config.json beside them" in hint("", ["vit.layernorm.weight", "classifier.weight"])
    assert hint("", ["layer1.0.weight"]) == ""
