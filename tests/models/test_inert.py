"""Weights out of files that bring code: the same numbers as the nets had, and nothing is run."""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import logging
import pickle
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import hostile
from tests.models.hub import tiny
from tests.models.pickled import (
    Make,
    learner,
    library,
    lightning,
    logits,
    net,
    own,
    program,
    saved,
    ultralytics,
)
from torch import Tensor, nn

from gifthorse.core.errors import BadOption, UnknownArch, UnreadableModel, UnsafeModel
from gifthorse.core.isolated import readers
from gifthorse.core.resizing import Resize
from gifthorse.models import architectures, inspect, load
from gifthorse.models.reading import inert
from gifthorse.models.reading.blocks import read_tensors
from gifthorse.models.reading.survey import Survey, survey


def seen(data: bytes) -> Survey:
    """What a file's bytes say, without a process of its own."""
    return survey(BytesIO(data), "model.pt")


def state(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file by their full names."""
    entries, tensors = read_tensors(BytesIO(data))
    named = [".".join(e.path) for e in entries if e.shape is not None]
    return dict(zip(named, tensors, strict=True))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether tensors have the same names, order, types and numbers."""
    return list(found) == list(expected) and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items()
    )


# 1. Names and numbers -------------------------------------------------------------------------


class Shared(nn.Module):
    """Layers that stand at two places, a buffer that is not saved, and what is None."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.register_parameter("none", None)
        self.inner = nn.ModuleList([nn.Conv2d(1, 2, 1, bias=False)])
        self.view = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.plain = torch.ones(9)  # neither parameter nor buffer
        self.hooked = functools.partial(torch.add, alpha=2)
        self.logger = logging.getLogger("gone")
        self.chance = random.Random(0)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        Shared,
        lambda: net().half(),
        lambda: nn.DataParallel(net()),
        lambda: nn.Sequential(nn.Linear(2, 2)).bfloat16(),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.Linear(2, 2).double().requires_grad_(False),
        lambda: nn.Sequential(nn.Embedding(3, 2), nn.PReLU(), nn.LayerNorm(2), nn.GRU(2, 2)),
    ],
)
def test_the_names_are_those_of_the_state_dict(make: Callable[[], nn.Module], legacy: bool) -> None:
    module = make()
    data = saved(module, legacy=legacy)
    told = seen(data)
    assert [f.severity for f in told.findings] == ["MEDIUM"]
    assert told.inert
    assert same(state(data), module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_protocol_is_followed(protocol: int) -> None:
    buffer = BytesIO()
    torch.save(Shared(), buffer, pickle_protocol=protocol)
    assert list(state(buffer.getvalue())) == list(Shared().state_dict())


def test_a_program_shows_its_layers() -> None:
    told = seen(hostile.program())
    assert [(f.rule, f.severity) for f in told.findings] == [("FS002", "MEDIUM"), ("FS007", "LOW")]
    assert [(layer.name, layer.kind) for layer in told.layers] == [
        ("", "nets.Net"),
        ("fc", "torch.nn.modules.linear.Linear"),
    ]
    assert told.calls["nets.Net"] == 1
    assert same(state(hostile.program()), {"fc.weight": torch.arange(6.0).view(2, 3)})
    assert seen(hostile.program(b"cos\nsystem\n0")).findings[0].rule == "FS001"


@pytest.mark.slow
def test_programs_keep_their_names() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for data in (program(module), program(module, traced=True)):
        told = seen(data)
        assert told.kind == "torchscript"
        assert "a TorchScript program of" in told.findings[0].message
        assert "torch.nn.modules.conv.Conv2d" in told.calls
        assert same(state(data), module.state_dict())


def test_rings_of_objects_end() -> None:
    with library() as make:
        data = saved(learner(make, net()))
    told = seen(data)
    assert "fastai.learner.Learner" in told.calls
    names = {".".join(e.path) for e in told.entries}
    assert {f"model.{name}" for name in net().state_dict()} <= names
    assert "opt_func" in names


def test_subclasses_of_tensors_and_odd_states_are_looked_through() -> None:
    with library() as make:
        image = make("fastai.torch_core.TensorImage", torch.Tensor)
        slotted = make("gone.Slots", __slots__=("weight",))
        bag, table = make("gone.Bag", list), make("gone.Table", dict)
        holder = slotted()
        holder.weight = torch.ones(1)
        parameter = nn.Parameter(torch.full((2,), 3.0))
        parameter.mark = "x"  # type: ignore[attr-defined]
        value = {
            "typed": torch.ones(2).as_subclass(image),
            "marked": parameter,
            "slots": holder,
            "bag": bag([torch.zeros(1)]),
            "table": table(a=torch.full((1,), 5.0)),
            "deep": collections.defaultdict(list, b=[torch.full((1,), 6.0)]),
            "space": argparse.Namespace(w=torch.full((1,), 7.0)),
        }
        data = saved(value)
    found = {name: t.tolist() for name, t in state(data).items()}
    assert found == {
        "typed": [1, 1],
        "marked": [3, 3],
        "slots.weight": [1],
        "bag.0": [0],
        "table.a": [5],
        "deep.b.0": [6],
        "space.w": [7],
    }


def test_objects_beside_weights_are_no_code() -> None:
    told = seen(saved({"state_dict": net().state_dict(), "args": argparse.Namespace(lr=1)}))
    assert [(f.rule, f.severity) for f in told.findings] == [("FS002", "LOW")]
    assert "without making them" in told.findings[0].message


def test_what_is_not_torchs_own_is_named_first() -> None:
    with library() as make:
        told = seen(saved(own(make, net())))
    assert next(iter(told.calls.items())) == ("gone.nets.Net", 1)
    assert told.calls["torch.nn.modules.conv.Conv2d"] == 5
    assert "A careless loader would have run gone.nets.Net (1), torch" in told.findings[0].message


def test_quantized_modules_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with library() as make:
        module = net()
        module.add_module("head", own(make, nn.ReLU(), "gone.nn.quantized.Linear"))
        path.write_bytes(saved(module))
    with pytest.raises(UnreadableModel, match=r"quantized gone\.nn\.quantized.*float model"):
        load(path, "tiny")


@pytest.mark.slow
def test_torchs_own_quantized_modules_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings(action="ignore"):
        module = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})  # type: ignore[no-untyped-call]
        path.write_bytes(saved(module))
    with pytest.raises(UnreadableModel, match=r"quantized torch\.ao\.nn\.quantized.*float model"):
        load(path)


# 2. What is not opened ------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(hostile.code_pickles(Path("marker"))))
def test_a_whole_model_that_runs_commands_stays_refused(name: str) -> None:
    call = hostile.code_pickles(Path("marker"))[name]
    inside = call.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04").removesuffix(b".") + b"0"
    if name == "broken tail":
        return  # nothing can follow it
    data = saved(nn.Linear(2, 2))
    archive = hostile.records(data)
    index = archive.pop("archive/data.pkl")
    told = seen(hostile.archived({"archive/data.pkl": index[:2] + inside + index[2:], **archive}))
    assert "FS001" in [f.rule for f in told.findings]
    assert not told.entries


@pytest.mark.parametrize(
    ("value", "attribute", "safe"),
    [
        ("cgone\nNet\n", "fit", True),
        ("cgone\nNet\n)\x81", "fit", True),
        ("cgone\nNet\n", "__globals__", False),
        ("cgone\nNet\n", "load", False),
        ("cos\npath\n", "join", False),
        ("cbuiltins\nobject\n", "mro", False),
        ("cfunctools\npartial\n)R", "func", False),
    ],
)
def test_attributes_are_judged_by_what_they_are_of(value: str, attribute: str, safe: bool) -> None:
    looked = b"cbuiltins\ngetattr\n(" + value.encode("latin1") + hostile.text(attribute) + b"tR"
    weights = hostile.tensor((2, 3), (3, 1), 6)
    index = b"\x80\x02}(" + hostile.text("a") + looked + hostile.text("w") + weights + b"u."
    told = seen(hostile.archived({"archive/data.pkl": index, "archive/data/0": bytes(24)}))
    assert (told.findings[0].rule, bool(told.entries)) == (("FS002" if safe else "FS001"), safe)


def test_a_lookup_that_is_handed_on_is_dangerous() -> None:
    getter = b"cbuiltins\ngetattr\n"
    held = b"}" + hostile.text("a") + getter + b"s"
    for index in (held, b"cgone\nNet\n(" + getter + b"tR", b"cgone\nNet\n)R" + getter + b"b"):
        told = seen(hostile.archived({"archive/data.pkl": b"\x80\x02" + index + b"."}))
        assert told.findings[0].rule == "FS001"


def test_bombs_of_objects_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones(1).expand(10**9)
    assert seen(saved([ones, argparse.Namespace()])).findings[0].rule == "FS004"
    deep: object = torch.ones(1)
    for _ in range(150):
        deep = argparse.Namespace(a=deep)
    assert seen(saved(deep)).findings[0].rule == "FS004"
    monkeypatch.setattr(inert, "OPEN_LEAVES", 2000)
    chain: nn.Module = nn.Linear(1, 1)
    for _ in range(12):  # each layer twice: 2 ** 12 names
        chain = nn.Sequential(chain, chain)
    assert seen(saved(chain)).findings[0].rule == "FS004"


def test_a_module_in_a_ring_ends() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module[0].add_module("up", module)
    assert list(state(saved(module))) == ["0.weight", "0.bias"]


def test_storages_must_fit() -> None:
    data = saved(nn.Linear(2, 2))
    records = hostile.records(data)
    short = hostile.archived({**records, "archive/data/0": bytes(12)})
    assert seen(short).findings[0].rule == "FS003"
    odd = records["archive/data.pkl"].replace(b"K\x02K\x02\x86", b"K\x02K\x09\x86", 1)
    assert seen(hostile.archived({**records, "archive/data.pkl": odd})).findings[0].rule == "FS003"
    big = {**records, "archive/byteorder": b"big"}
    with pytest.raises(UnreadableModel, match="big-endian"):
        read_tensors(BytesIO(hostile.archived(big)))


# 3. Opened ------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Make], object]] = {
    "whole": lambda make: own(make, net()),
    "DataParallel": lambda make: nn.DataParallel(own(make, net())),
    "torch.compile": lambda make: torch.compile(net()),
    "torch.compile, weights": lambda make: torch.compile(net()).state_dict(),  # type: ignore[attr-defined]
    "Lightning": lambda make: lightning(make, net()),
    "fastai, saved": lambda make: {"model": net().state_dict(), "opt": {"hypers": []}},
    "fastai, exported": lambda make: learner(make, net()),
    "ultralytics": lambda make: ultralytics(make, net()),
    "script": lambda make: program(net()),
    "trace": lambda make: program(net(), traced=True),
}


SLOW = ("torch.compile", "torch.compile, weights", "script", "trace")  # what makes them, that is


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KINDS]
)
def test_logits_are_those_of_the_net(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with warnings.catch_warnings(), library() as make:
        warnings.simplefilter("ignore")
        value = KINDS[kind](make)
        path.write_bytes(value if isinstance(value, bytes) else saved(value))
    opened = load(path)
    expected = logits(net().half().float() if kind == "ultralytics" else net())
    assert (logits(opened.net) - expected).abs().max() < 1e-4
    assert opened.origin.arch == "tiny"
    told = " ".join(opened.origin.notes)
    plain = kind in ("fastai, saved", "torch.compile, weights")
    assert plain or "read without running its code; the code itself was not judged" in told
    assert opened.labels == (tuple(f"thing {i}" for i in range(10)) * (kind == "ultralytics"))


TRAP = """
from torch import nn
open({marker!r}, "a").close()
class Net(nn.Sequential):
    def __setstate__(self, state):
        open({marker!r}, "a").close()
    def __new__(cls, *args):
        open({marker!r}, "a").close()
        return super().__new__(cls)
"""


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A whole model whose class can be imported, and what its code leaves when it is run."""
    marker, path = tmp_path / "ran", tmp_path / "model.pt"
    (tmp_path / "trap_nets.py").write_text(TRAP.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    trap: Any = importlib.import_module("trap_nets")
    path.write_bytes(saved(trap.Net(collections.OrderedDict(net().named_children()))))
    del sys.modules["trap_nets"]
    marker.unlink()
    yield path, marker
    assert not marker.exists()
    assert "trap_nets" not in sys.modules
    with path.open("rb") as stream:  # and a careless loader does run it
        torch.load(stream, weights_only=False)
    assert marker.exists()
    del sys.modules["trap_nets"]


def test_nothing_that_a_file_names_is_run(trapped: tuple[Path, Path]) -> None:
    data = trapped[0].read_bytes()
    assert seen(data).calls["trap_nets.Net"] == 1
    assert same(state(data), net().state_dict())


@pytest.mark.slow
def test_nothing_is_run_by_the_process_that_reads(trapped: tuple[Path, Path]) -> None:
    readers.stop()  # so that its successor would find the module
    found, opened = inspect(trapped[0]), load(trapped[0])
    readers.stop()
    assert (found.status, found.arch) == (1, "tiny")
    assert found.safety.startswith("brings code")
    assert torch.equal(logits(opened.net), logits(net()))


def test_an_unknown_net_is_told_with_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def match(shapes: object) -> None:
        raise UnknownArch("no known architecture")

    monkeypatch.setattr(architectures, "match", match)  # which takes seconds to find what is near
    with library() as make:
        (tmp_path / "model.pt").write_bytes(saved(own(make, nn.Sequential(nn.Linear(2, 2)))))
    with pytest.raises(UnknownArch, match=r"own class is gone\.nets\.Net"):
        load(tmp_path / "model.pt")


def test_a_foreign_pickle_is_no_file_of_torch() -> None:
    with library() as make:
        data = pickle.dumps(make("gone.Thing")(), protocol=2)
    told = seen(data)
    assert [(f.rule, f.severity) for f in told.findings] == [("FS002", "HIGH")]
    with pytest.raises(UnsafeModel):
        read_tensors(BytesIO(hostile.archived({"archive/data.pkl": b"\x80\x02cos\nsystem\n."})))


def test_a_whole_net_of_transformers_is_described_by_its_own_configuration(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs gifthorse[hub]")
    path = tmp_path / "model.pt"
    theirs: Any = tiny("ViT", tmp_path / "folder")
    theirs.config.odd = argparse.Namespace(lr=1)
    path.write_bytes(saved(theirs))
    told = seen(path.read_bytes()).layers[0].settings["config"]
    assert (told["hidden_size"], told["id2label"]["2"]) == (32, "kind 2")
    assert sum("config" in layer.settings for layer in seen(path.read_bytes()).layers) == 1
    got, listed = load(path), inspect(path)
    assert got.origin.arch == listed.arch == "ViTForImageClassification"
    assert got.labels == ("kind 0", "kind 1", "kind 2")
    assert got.resize == Resize((32, 32))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(got.net(x), theirs(pixel_values=x).logits, atol=1e-5)
    with pytest.raises(BadOption, match="save_pretrained"):
        got.writable()
    theirs.config.hidden_size = 10**9
    path.write_bytes(saved(theirs))
    assert inspect(path).how.startswith("not opened: its own config has")
    with pytest.raises(UnreadableModel, match="hidden_size"):
        load(path)
