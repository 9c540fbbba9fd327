from __future__ import annotations

import pickle
import time
from argparse import Namespace
from collections import Counter, OrderedDict
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from tests.models import hostile
from torch import nn

from gifthorse.core.errors import UnreadableModel, UnsafeModel
from gifthorse.models.architectures import within
from gifthorse.models.parts import choose
from gifthorse.models.reading import archives, child
from gifthorse.models.reading.opcodes import trace
from gifthorse.models.reading.pickles import contents, weigh
from gifthorse.models.reading.ratings import imports, rate, refuse_code
from gifthorse.models.reading.survey import survey

FLOAT = hostile.tensor((2, 3), (3, 1), 6)


def refused(data: bytes, *rules: str) -> str:
    with pytest.raises(UnreadableModel) as caught:
        contents(trace(BytesIO(data)))
    assert caught.value.rule in rules
    return str(caught.value)


@pytest.mark.parametrize("name", list(hostile.code_pickles(Path("marker"))))
def test_every_way_to_name_a_function_is_dangerous(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = hostile.code_pickles(marker)[name]
    found = imports(trace(BytesIO(data)), "data.pkl", data)
    with pytest.raises(UnsafeModel, match="would run code") as caught:
        refuse_code(found)
    assert caught.value.rule == "FS001"
    assert not marker.exists()


def test_the_hostile_pickles_do_work_when_opened_carelessly(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickles = hostile.code_pickles(marker)
    for name in ("os.system", "builtins.eval", "memo", "inst", "obj", "thrown away"):
        pickle.loads(pickles[name])
        assert marker.exists(), name
        marker.unlink()


def test_ratings() -> None:
    assert rate("torch._utils", "_rebuild_tensor_v2") == "harmless"
    assert rate("torch", "HalfStorage") == "harmless"
    assert rate("torch.nn.modules.conv", "Conv2d") == "class"
    assert rate("torch.hub", "anything") == "dangerous"
    assert rate("argparse", "Namespace") == "object"


@pytest.mark.parametrize(
    ("module", "name", "safety"),
    [
        ("pathlib", "PosixPath", "object"),
        ("builtins", "slice", "object"),
        ("builtins", "ValueError", "object"),
        ("functools", "partial", "object"),
        ("functools", "reduce", "dangerous"),
        ("numpy.random._pickle", "__randomstate_ctor", "object"),
        ("numpy.core.multiarray", "_reconstruct", "harmless"),
        ("numpy.core.multiarray", "fromfile", "dangerous"),
        ("uuid", "UUID", "object"),
        ("typing", "Any", "object"),
        ("typing", "get_type_hints", "dangerous"),
        ("logging", "getLogger", "object"),
        ("logging", "FileHandler", "dangerous"),
        ("torch.jit._pickle", "build_intlist", "object"),
        ("torch.jit._script", "RecursiveScriptModule.load", "dangerous"),
        ("torch._dynamo.eval_frame", "OptimizedModule", "class"),
        ("torch._dynamo.guards", "GuardBuilder.get", "dangerous"),
        ("uuid", "_get_command_stdout", "dangerous"),
        ("pathlib", "os.system", "dangerous"),
        ("torch", "jit.unsupported_tensor_ops.execWrapper", "dangerous"),
        ("torch.utils.data.dataset", "Subset", "class"),
        ("torchvision.models.resnet", "_resnet", "unknown"),
        ("my_nets", "Net", "unknown"),
        ("my_nets", "tools.os.popen", "dangerous"),
    ],
)
def test_names_are_rated_one_by_one(module: str, name: str, safety: str) -> None:
    assert rate(module, name) == safety


def test_plain_objects_are_called_so() -> None:
    data = pickle.dumps({"path": PurePosixPath("x"), "rows": slice(1, 3)}, protocol=2)
    with pytest.raises(UnsafeModel, match=r"PurePosixPath.*run nothing") as caught:
        refuse_code(imports(trace(BytesIO(data)), "data.pkl"))
    assert caught.value.rule == "FS002"


def test_classes_are_named_and_refused() -> None:
    data = pickle.dumps(nn.ReLU(), protocol=2)
    with pytest.raises(
        UnsafeModel, match=r"whole pickled model.*modules\.activation\.ReLU"
    ) as caught:
        refuse_code(imports(trace(BytesIO(data)), "data.pkl", data))
    assert caught.value.rule == "FS002"
    data = pickle.dumps({"hyper": Namespace(a=1)}, protocol=2)
    with pytest.raises(UnsafeModel, match=r"argparse\.Namespace"):
        refuse_code(imports(trace(BytesIO(data)), "data.pkl", data))


@pytest.mark.parametrize("zipped", [True, False])
def test_the_trace_lists_what_torch_reads(tmp_path: Path, zipped: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half()
    base = torch.arange(12.0)
    saved = {
        "state_dict": net.state_dict(),
        "views": [base[2:8].view(2, 3), base.view(3, 4).t(), nn.Parameter(torch.zeros(2))],
        "tensors": (torch.tensor(3), torch.zeros(0, 5), torch.ones(2, dtype=torch.complex64)),
        "accuracy": np.float64(0.9),
        "steps": OrderedDict(a=1, b=(True, None, "text", 2.5, 2**70)),
        "milestones": Counter({30: 1}),
        "odd": [{1, 2}, b"bytes", 1j, torch.Size([2]), torch.device("cpu"), torch.float16],
        7: {"deep": {"deeper": torch.ones(1, dtype=torch.int8)}},
    }
    path = tmp_path / "a.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with path.open("rb") as stream:
        seen = survey(stream, "a.pt")
        facts, _ = child.read_pickle(stream)
    assert seen.findings == ()
    assert [list(e.path) for e in seen.entries] == [keys for keys, _, _ in facts]
    plain = [(e.type, list(e.shape)) for e in seen.entries if e.shape and "complex" not in e.type]
    assert plain == [(kind, shape) for _, kind, shape in facts if shape]
    # Every tensor written out: 168 of the net, 6 + 12 + 2 floats, one int64, two complex, one int8.
    assert seen.full == 2 * (4 * 27 + 4 + 4 * 4) + 8 + 4 * (6 + 12 + 2) + 8 + 16 + 1


def test_quantized_and_sparse_tensors_are_named(tmp_path: Path) -> None:
    assert child.type_of(torch.zeros(2, device="meta")) == "meta"
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0]]), torch.tensor([1.0]), (2,), check_invariants=True
    )
    assert child.type_of(sparse) == "sparse"
    torch.save({"w": sparse, "m": torch.zeros(2, device="meta")}, tmp_path / "s.pt")
    with (tmp_path / "s.pt").open("rb") as stream:
        seen = survey(stream, "s.pt")
    assert [e.type for e in seen.entries] == ["sparse", "meta"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hostile.index(hostile.tensor((2, 3), (3, 1), 5)), "beyond the end"),
        (hostile.index(hostile.tensor((2, 3), (3, -1), 6)), "unusual offset"),
        (hostile.index(hostile.tensor((2, 3), (3, 1), 6, offset=-1)), "unusual offset"),
        (hostile.index(hostile.tensor((2, 3), (3,), 6)), "more sizes than strides"),
        (hostile.index(FLOAT + b"}b"), "sets the state"),
        (hostile.index(hostile.storage(4) + hostile.storage(5) + b"\x86"), "two sizes"),
        (hostile.index(hostile.storage(4, kind="Tensor")), "storage of an unknown kind"),
        (hostile.index(b"ctorch\nFloatStorage\n(" + hostile.number(2**40) + b"tR"), "it calls"),
        (hostile.index(b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextR"), "_codecs.encode in an"),
        (hostile.index(b"cnumpy\ndtype\n(X\x01\0\0\0OtR"), "values of the type 'O' (NumPy)"),
        (hostile.index(b"cnumpy\ndtype\n(X\x02\0\0\0f8tR}b"), "a NumPy type of its own"),
        (hostile.index(FLOAT.replace(b"\x89cc", b"\x89K\x01cc")), "made from 7 values"),
        (b"\x80\x02}h\x05.", "nothing was remembered"),
        (b"\x80\x02}X\x01\0\0\0as.", "missing on the stack"),
        (b"\x80\x02}(", "damaged"),
        (b"\x80\x02]q\x00h\x00a.", "holds itself"),
        (pickle.dumps({"a": 1}, protocol=4), "save it again"),
    ],
)
def test_malformed_pickles_are_refused_in_words(data: bytes, words: str) -> None:
    assert words in refused(data, "FS003", "FS009")


def test_bytes_may_be_keys() -> None:
    data = pickle.dumps({b"epoch": 2, "best": 1}, protocol=2)
    paths = [entry.path for entry in contents(trace(BytesIO(data))).entries]
    assert paths == [("<key>",), ("best",)]


def test_a_function_that_is_only_named_is_a_leaf() -> None:
    named = hostile.index(b"ctorch._utils\n_rebuild_tensor_v2\n")
    (entry,) = contents(trace(BytesIO(named))).entries
    assert (entry.type, entry.shape) == ("_rebuild_tensor_v2", None)


def test_bombs_are_refused_at_once() -> None:
    start = time.monotonic()
    refused(hostile.laughs(30), "FS004")
    refused(hostile.laughs(400, 1), "FS004")
    assert "opcodes" in refused(b"\x80\x02" + b"K\x010" * 500_001 + b".", "FS004")
    with pytest.raises(UnreadableModel, match="unfolds"):
        weigh(trace(BytesIO(hostile.doubled(60))).result)
    assert time.monotonic() - start < 10
    assert weigh(trace(BytesIO(hostile.laughs(2))).result) == 1 + 10 * (1 + 10 * 2)


def test_deep_values_are_neither_hashed_nor_compared() -> None:
    shared = b")" + b"2\x86" * 90
    for value in (
        b"cnumpy\ndtype\n" + shared + b"\x85R",
        b"cnumpy\ndtype\nX\x02\0\0\0f8\x85R" + shared + b"b",
        b"c_codecs\nencode\n" + shared + b"2\x86R",
        b"}" + shared + b"K\x01s",
    ):
        refused(hostile.index(value), "FS004", "FS003")
    chain = b"".join(
        (b"]" if k == 0 else b"h" + bytes([k - 1])) + b"\x85" * 90 + b"q" + bytes([k])
        for k in range(20)
    )
    assert "deeper" in refused(b"\x80\x02](" + chain + b"e.", "FS004")
    assert "digits" in refused(b"\x80\x02}I" + b"9" * 5000 + b"\nK\x01s.", "FS004")


def test_names_are_not_multiplied_in_memory() -> None:
    long = hostile.text("a" * 1000)
    seen = trace(BytesIO(b"\x80\x04" + long + b"q\x00h\x00\x93" + b"h\x00h\x00\x930" * 9 + b"."))
    assert seen.names == (("?", "?"),)


def test_hidden_pickles_are_found_however_they_begin() -> None:
    code = b"cos\nsystem\n(S'ls'\ntR."
    for front in (b"M\x01\x000", b"N0" * 3000, hostile.text("x" * 10_000) + b"0", b"}0"):
        assert [str(i) for i in archives.hidden(front + code, "data/0")[0]] == ["os.system"]


def test_a_stride_of_zero_counts_in_full() -> None:
    bomb = hostile.index(hostile.tensor((10**6, 10**6), (0, 0), 1))
    assert contents(trace(BytesIO(bomb))).largest == 4 * 10**12


def test_random_numbers_are_no_hidden_pickle() -> None:
    rng = np.random.default_rng(0)
    for start in b"\x80c(i":
        for _ in range(50):
            assert archives.hidden(bytes([start]) + rng.bytes(2000), "data/0")[0] == []
    assert archives.hidden(b"cos\nsystem\n(S'ls'\ntR.", "data/0")[0]


def test_wrappers_are_opened_and_said(tmp_path: Path) -> None:
    weights = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
    cases = {
        "plain": (weights, ()),
        "nested": ({"model": {"state_dict": weights}, "epoch": 3}, ("model", "state_dict")),
        "average": ({"state_dict_ema": weights, "state_dict": weights}, ("state_dict",)),
        "only": ({"whatever": weights, "note": "x"}, ("whatever",)),
        "beside": ({"net": weights, "rng": torch.zeros(5)}, ("net",)),
    }
    for name, (saved, wrappers) in cases.items():
        torch.save(saved, tmp_path / "w.pt")
        with (tmp_path / "w.pt").open("rb") as stream:
            chosen = choose(survey(stream, "w.pt").entries, within)
        assert chosen.wrappers == wrappers, name
        assert list(chosen.entries) == list(weights), name
        opened = [f"opened the wrapper {w!r}" for w in wrappers]
        assert [n for n in chosen.notes if n.startswith("opened")] == opened
    assert any("'note' (str)" in n for n in choose_notes({"x": weights, "note": "x"}, tmp_path))


def choose_notes(saved: object, folder: Path) -> tuple[str, ...]:
    torch.save(saved, folder / "n.pt")
    with (folder / "n.pt").open("rb") as stream:
        return choose(survey(stream, "n.pt").entries, within).notes


def test_several_groups_are_not_guessed_between(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel, match="several groups of tensors \\('left', 'right'\\)"):
        choose_notes({"left": {"a": torch.zeros(1)}, "right": {"a": torch.zeros(1)}}, tmp_path)
    with pytest.raises(UnreadableModel, match="no weights"):
        choose_notes({"epoch": 3}, tmp_path)
