"""The net is found wherever it lies in a checkpoint, and what lies beside it is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gifthorse.core.errors import SeveralNets, UsageError
from gifthorse.core.types import Normalization
from gifthorse.models import build, inspect, load
from gifthorse.models.architectures import Named, within
from gifthorse.models.load import _normalization
from gifthorse.models.parts import Chosen, choose
from gifthorse.models.reading.entries import CheckpointEntry

Shapes = Mapping[str, tuple[int, ...]]


def shapes(arch: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(t.shape) for k, t in build(arch, 10).state_dict().items()}


TINY = shapes("tiny")
SHORT = shapes("resnet20")


def under(*keys: str, prefix: str = "", net: Shapes = TINY) -> list[CheckpointEntry]:
    return [CheckpointEntry((*keys, prefix + n), "float32", shape) for n, shape in net.items()]


def tensor(*path: str, shape: tuple[int, ...] = (10,)) -> CheckpointEntry:
    return CheckpointEntry(path, "float32", shape)


def chosen(*groups: list[CheckpointEntry], part: str | None = None) -> Chosen:
    return choose([entry for group in groups for entry in group], within, part)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ([tensor("n_averaged", shape=())], "'n_averaged'"),
        ([tensor("features.0.total_ops", shape=(1,))], "'*.total_ops'"),
        ([tensor("criterion.weight")], "'criterion'"),
        ([tensor("identity_grid", shape=(1, 32, 32, 2))], "'identity_grid'"),
        ([tensor("rot.weight", shape=(4, 64)), tensor("rot.bias", shape=(4,))], "'rot'"),
        ([tensor("optimizer", "state", "0", "exp_avg")], "'optimizer'"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_what_is_foreign_to_the_net_is_left_aside(
    beside: list[CheckpointEntry], words: str, prefix: str
) -> None:
    inside = [replace(e, path=(prefix + e.path[0], *e.path[1:])) for e in beside]
    found = chosen(under(prefix=prefix), inside)
    assert found.fit is not None
    assert found.fit.arch == "tiny"
    assert list(found.entries) == list(TINY)
    assert any(n.startswith("left aside") and words.strip("'*") in n for n in found.notes)


def test_a_longer_net_is_no_shorter_one() -> None:
    longer = {n.replace("layer3.2", "layer3.3"): s for n, s in SHORT.items() if "layer3.2" in n}
    found = chosen(under(net={**SHORT, **longer}))
    assert found.fit is None
    assert len(found.entries) == len(SHORT) + len(longer)


def test_loose_tensors_are_not_taken_for_the_net() -> None:
    found = chosen([tensor("grid"), tensor("noise")], under("netC", net=SHORT))
    assert found.fit is not None
    assert (found.fit.arch, found.wrappers) == ("resnet20", ("netC",))


def test_old_names_and_wrappers_between_are_undone() -> None:
    dense = shapes("densenet121")
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])")
    for rename in (
        lambda n: old.sub(r"\1.\2", n),
        lambda n: n.replace("features.", "features.module."),
    ):
        found = chosen(under("state_dict", net={rename(n): s for n, s in dense.items()}))
        assert found.fit is not None
        assert set(found.entries) == set(dense)
        assert any(n.startswith("renamed") for n in found.notes)


@pytest.mark.parametrize(("trunk", "head"), [("backbone.", "head."), ("features.", "classifier.")])
def test_boxes_around_a_trunk_and_its_head_are_opened(trunk: str, head: str) -> None:
    plain = shapes("resnet18")
    boxed = {(head if n.startswith("fc.") else trunk) + n: s for n, s in plain.items()}
    found = chosen(under("state_dict", net=boxed))
    assert found.fit is not None
    assert (found.fit.arch, set(found.entries)) == ("resnet18", set(plain))


def test_of_several_nets_one_is_asked_for() -> None:
    both = under("student", prefix="module."), under("teacher", net=SHORT)
    with pytest.raises(SeveralNets, match=r"'student' \(tiny\), 'teacher' \(resnet20\)"):
        chosen(*both)
    for part, size in (("student", len(TINY)), ("teacher", len(SHORT))):
        assert len(chosen(*both, part=part).entries) == size
    with pytest.raises(UsageError, match="no part 'tutor'"):
        chosen(*both, part="tutor")


def test_averages_are_taken_and_said() -> None:
    found = chosen(under("model"), under("model_ema"))
    assert found.wrappers == ("model_ema",)
    assert any("--part model" in note for note in found.notes)
    with pytest.raises(SeveralNets):
        chosen(under("model"), under("ema"), under("swa"))
    assert chosen(under(), under(prefix="ema.")).entries["features.0.weight"].path[0][:4] == "ema."


def test_a_net_that_is_there_twice_is_one() -> None:
    def placed(key: str) -> list[CheckpointEntry]:
        return [
            CheckpointEntry((key, n), "float32", shape, place=f"{i} 0")
            for i, (n, shape) in enumerate(TINY.items())
        ]

    assert chosen(placed("model"), placed("best")).wrappers == ("model",)
    assert chosen(under("model"), under("attacker", prefix="model.")).wrappers == ("model",)


def test_a_normalization_as_a_layer_is_the_claim() -> None:
    layers = [tensor("0.mean", shape=(3,)), tensor("0.std", shape=(1, 3, 1, 1))]
    found = chosen(layers, under(prefix="1."))
    assert found.normalization == tuple(layers)
    assert chosen([tensor("mean"), tensor("std")], under()).normalization is None
    said = _normalization([torch.tensor([127.5] * 3), torch.tensor([51.0] * 3)])
    assert said == Normalization("stored", (0.5,) * 3, (0.2,) * 3)
    assert _normalization([torch.tensor([0.5]), torch.tensor([0.0])]) is None


def test_a_named_net_is_found_among_others(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(),"
        " nn.Linear(4, num_classes))\n"
    )
    own: dict[str, Tensor] = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 6)
    ).state_dict()
    torch.save(
        {"netC": {f"module.{n}": t for n, t in own.items()}, "grid": torch.zeros(7, 3)},
        tmp_path / "a.pt",
    )
    opened = load(tmp_path / "a.pt", f"{tmp_path / 'own.py'}:net")
    assert (opened.classes, opened.channels) == (6, 1)
    assert Named("tiny")(SHORT) is None


def test_inspect_and_load_choose_alike(tmp_path: Path) -> None:
    net = build("tiny", 10)
    torch.save({"a": net.state_dict(), "b": build("tiny", 7).state_dict()}, tmp_path / "two.pt")
    assert "--part a" in inspect(tmp_path / "two.pt").advice
    for part, classes in (("a", 10), ("b", 7)):
        assert f"{classes} classes" in inspect(tmp_path / "two.pt", part).how
        assert load(tmp_path / "two.pt", part=part).classes == classes


@pytest.mark.parametrize(
    "name",
    [lambda i: f"layer{i}.weight", lambda i: "module." * 20 + f"n{i}", lambda i: f"a{i}.b{i}.c"],
)
def test_choosing_takes_time_in_proportion(name: Callable[[int], str]) -> None:
    calls = 0

    def fits(_: Shapes) -> None:
        nonlocal calls
        calls += 1

    choose([tensor(name(i)) for i in range(2000)], fits)
    assert calls <= 20
