from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gifthorse.core.errors import BadOption, UnfitNet, UnknownArch, UnknownMethod, UnreadableModel
from gifthorse.models import NETS
from gifthorse.models import architectures as archs
from gifthorse.models.architectures import (
    build,
    difference,
    fill,
    guess,
    match,
    measure,
    widths,
)
from gifthorse.models.outputs import ends


def shapes(arch: str, classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return archs.shapes_of(NETS[arch](classes, channels).state_dict())


@pytest.mark.parametrize("arch", list(NETS))
def test_every_net_is_found_by_its_tensors(arch: str) -> None:
    found = match(shapes(arch, 43, 1))
    assert (found.classes, found.channels) == (43, 1)
    assert arch in (found.arch, *found.ties)
    assert list(NETS).index(found.arch) <= list(NETS).index(arch)


def test_order_and_counters_of_tensors_do_not_matter() -> None:
    state = build("resnet20", 7).state_dict()
    bare = {k: state[k] for k in sorted(state, reverse=True) if "num_batches" not in k}
    assert len(bare) < len(state)
    found = guess(bare)
    assert (found.arch, found.classes, found.channels) == ("resnet20", 7, 3)
    net = fill(build("resnet20", 7), bare)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in bare.items())


def test_an_unknown_net_is_told_the_nearest_three() -> None:
    other = {**shapes("resnet20", 10, 3), "extra.weight": (1,)}
    del other["conv1.weight"]
    with pytest.raises(UnknownArch, match=r"nearest: resnet20 \(98% of names: ") as caught:
        match(other)
    text = str(caught.value)
    assert "file lacks 1 (conv1.weight), file has 1 more (extra.weight)" in text
    assert text.count("% of names") == 3
    assert "--arch" in text


def test_same_names_with_other_shapes_do_not_match() -> None:
    other = {**shapes("resnet20", 10, 3), "layer1.0.conv1.weight": (16, 16, 5, 5)}
    with pytest.raises(UnknownArch, match=r"layer1.0.conv1.weight: file \(16, 16, 5, 5\), net"):
        match(other)
    assert measure("resnet20", {"conv1.weight": (16, 3, 3, 3)}) is None


def test_filling_names_every_kind_of_difference_and_changes_nothing() -> None:
    net = build("tiny", 10)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first, second, *_ = [n for n in before if n.endswith("weight")]
    state = {**before, "odd.weight": torch.zeros(1), second: torch.zeros(7, 7)}
    del state[first]
    with pytest.raises(UnknownArch) as caught:
        fill(net, state, "tiny")
    text = str(caught.value)
    assert f"lacks 1 ({first})" in text
    assert "1 more (odd.weight)" in text
    assert f"{second}: file (7, 7)" in text
    assert "Nearest: tiny" in text
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_filled_nets_are_frozen_in_eval_mode() -> None:
    net = fill(build("tiny", 10).train(), build("tiny", 10).state_dict())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("odd", [torch.zeros(7), torch.ones(1), torch.tensor(float("nan"))])
def test_counters_of_any_shape_fill_a_net(odd: torch.Tensor) -> None:
    state = build("tiny", 10).state_dict()
    net = fill(build("tiny", 10), {n: odd if "num_batches" in n else t for n, t in state.items()})
    assert torch.equal(net.state_dict()["features.0.weight"], state["features.0.weight"])


class Odd(nn.Sequential):
    """A net whose class has ways of its own to be loaded, listed and set to training."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # and returns nothing

    def state_dict(self) -> Any:  # type: ignore[override]
        return {"net": None}

    def load_state_dict(self, path: str) -> Any:  # type: ignore[override]
        raise OSError(path)

    def float(self) -> Any:
        raise RuntimeError

    def get_extra_state(self) -> Any:
        return {"epoch": 3}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError


def test_nets_are_filled_whatever_their_class_makes_of_it() -> None:
    net = Odd(nn.Flatten(), nn.Linear(12, 3))
    assert fill(net, {"1.weight": torch.ones(3, 12), "1.bias": torch.zeros(3)}) is net
    assert nn.Module.state_dict(net)["1.weight"].sum() == 36
    assert not net.training


def test_integer_weights_are_refused_by_name() -> None:
    state = build("tiny", 10).state_dict()
    name = next(n for n in state if n.endswith("weight"))
    state[name] = state[name].to(torch.int8)
    with pytest.raises(UnreadableModel, match="int8, a quantized") as caught:
        fill(build("tiny", 10), state)
    assert name in str(caught.value)


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(UnknownMethod, match="did you mean resnet20"):
        build("resnet_20", 10)
    with pytest.raises(BadOption, match="no_such_module_here"):
        build("no_such_module_here:net", 10)
    with pytest.raises(BadOption, match="no Python function"):
        build("collections:OrderedDict", 10)
    with pytest.raises(BadOption, match="no function 'nothing'"):
        build("torch.nn:nothing", 10)
    with pytest.raises(BadOption, match=r"expected a torch\.nn\.Module"):
        build("argparse:Namespace", 10)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_missing_libraries_are_named_with_their_extra(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(BadOption, match=r"pip install 'gifthorse\[models\]'"):
        build(f"{library}:resnet18", 10)


def test_own_functions_get_what_they_take(tmp_path: Path) -> None:
    code = (
        "from torch import nn\n"
        "def taking(num_classes, in_channels=3):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.AdaptiveAvgPool2d(1),"
        " nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def flat():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))\n"
        "class Numbers(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1).argmax(1)\n"
    )
    file = tmp_path / "nets.py"
    file.write_text(code)
    assert ends(build(f"{file}:taking", 6, 1)) == (6, 1)
    assert ends(build(f"{file}:flat", 6)) == (5, 3)
    with pytest.raises(BadOption, match=r"missing\.py"):
        build(f"{tmp_path / 'missing.py'}:net", 6)
    with pytest.raises(UnfitNet, match="class numbers in place of logits"):
        ends(build(f"{file}:Numbers", 6))


def test_widths_of_own_nets_are_read_from_usual_names() -> None:
    found = {"a.head.weight": (12, 8), "z.attn.weight": (24, 8), "stem.weight": (8, 4, 3, 3)}
    assert widths(found, "own.py:net") == (12, 4)
    assert widths(shapes("nin", 9, 1), "nin") == (9, 1)
    assert difference(found, found) == ""
