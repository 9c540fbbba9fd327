"""ONNX files: read as data, run as nets of torch, compared with ONNX's own words and runtimes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.hub import TINY
from tests.standin import standin
from torch import Tensor, nn

from gifthorse.core.errors import BadOption, GifthorseError, UnreadableModel
from gifthorse.models import inspect, load
from gifthorse.models.architectures import build
from gifthorse.models.graphs.build import build_graph
from gifthorse.models.graphs.layers import KNOWN, MAKERS, layer_of
from gifthorse.models.graphs.net import GraphNet, InTurns
from gifthorse.models.graphs.operators import FUNCTIONS
from gifthorse.models.opening import digest_now
from gifthorse.models.outputs import head_of
from gifthorse.models.reading import onnx_files

onnx = pytest.importorskip("onnx", reason="needs gifthorse[onnx]")

SHAPE = ("n", 3, 8, 8)
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(op: str, inputs: str, outputs: str, **settings: Any) -> Any:
    return onnx.helper.make_node(
        op, inputs.split(), outputs.split(), name=f"/{op}.{outputs}", **settings
    )


def model(
    nodes: Sequence[Any],
    constants: dict[str, np.ndarray],
    *,
    shape: Sequence[int | str] = SHAPE,
    out: str = "y",
    opset: int = 17,
) -> Any:
    """A model whose images are `x`."""
    from onnx import TensorProto, helper, numpy_helper

    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    exits = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in out.split()]
    graph = helper.make_graph(nodes, "net", [entry], exits, kept)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="a test")


def single(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def opened(made: Any) -> Any:
    """The same without a process of its own."""
    stream = BytesIO(made.SerializeToString())
    found = onnx_files.parse(stream)
    facts, tensors = onnx_files.read(stream, None)
    names = [fact[0][0] for fact in facts]
    floats = (t.float() if t.is_floating_point() else t for t in tensors)
    return build_graph(found.graph, dict(zip(names, floats, strict=True)))


def said(made: Any, x: Tensor) -> Tensor:
    """What the reference implementation of the standard says."""
    from onnx.reference import ReferenceEvaluator

    answers: Any = ReferenceEvaluator(made).run(None, {"x": x.numpy()})
    return torch.tensor(answers[0])


CONV = {"w": numbers(4, 3, 3, 3), "b": numbers(4), "f": numbers(4, 5), "g": numbers(5)}
HEAD = [
    node("GlobalAveragePool", "h", "p"),
    node("Flatten", "p", "q"),
    node("Gemm", "q f g", "y"),
]
NORM = {name: numbers(4) for name in ("gain", "shift", "mean")} | {"var": np.abs(numbers(4)) + 0.5}
TOKENS = {
    "c": numbers(8, 3, 4, 4), "cls": numbers(1, 1, 8), "pos": numbers(1, 5, 8), "a": numbers(8),
    "d": numbers(8), "qkv": numbers(8, 24), "f": numbers(8, 5), "minus": whole(0, 8, -1),
    "three": whole(1, 5, 3, 8), "zero": whole(0), "one": whole(1), "two": whole(2),
    "axis": whole(1), "last": whole(-1),
}  # fmt: skip
TRANSFORMER = [  # with shapes that are read off the images, as exporters write them
    node("Conv", "x c", "h0", strides=[4, 4]),
    node("Shape", "h0", "s0"),
    node("Slice", "s0 zero two", "s1"),
    node("Concat", "s1 last", "s2", axis=0),
    node("Reshape", "h0 s2", "h1"),
    node("Transpose", "h1", "h2", perm=[0, 2, 1]),
    node("Shape", "x", "s3"),
    node("Gather", "s3 zero", "n"),
    node("Concat", "n one one", "s4", axis=0),
    node("Expand", "cls s4", "cls_n"),
    node("Concat", "cls_n h2", "h3", axis=1),
    node("Add", "h3 pos", "h4"),
    node("LayerNormalization", "h4 a d", "h5", axis=-1, epsilon=1e-6),
    node("MatMul", "h5 qkv", "h6"),
    node("Split", "h6", "q k v", axis=-1),
    node("Transpose", "k", "kt", perm=[0, 2, 1]),
    node("MatMul", "q kt", "l0"),
    node("Softmax", "l0", "l1", axis=-1),
    node("MatMul", "l1 v", "h7"),
    node("Erf", "h7", "h8"),
    node("Gather", "h8 zero", "h9", axis=1),
    node("Squeeze", "h9 axis", "h10"),
    node("MatMul", "h10 f", "y"),
]
GRAPHS: dict[str, tuple[Sequence[Any], dict[str, np.ndarray]]] = {
    "a convolution with unequal margins": (
        [node("Conv", "x w b", "h", pads=[0, 1, 2, 1], strides=[2, 1]), *HEAD], CONV,
    ),
    "same, whatever the size": (
        [node("Conv", "x w b", "h", auto_pad="SAME_UPPER", strides=[2, 2]), *HEAD], CONV,
    ),
    "batch norm, clip and pools": (
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "a gain shift mean var", "c", epsilon=1e-3),
            node("Clip", "c zero six", "d"),
            node("MaxPool", "d", "e", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
            node("AveragePool", "e", "h", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
            *HEAD,
        ],
        CONV | NORM | {"zero": single(0), "six": single(6)},
    ),
    "a product, and its bias": (
        [
            node("ReduceMean", "x", "h", axes=[2, 3], keepdims=0),
            node("MatMul", "h f", "z"),
            node("Add", "g z", "y"),
        ],
        {"f": numbers(3, 5), "g": numbers(5)},
    ),
    "attention": (TRANSFORMER, TOKENS),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_says_what_the_standard_says(name: str) -> None:
    made = model(*GRAPHS[name])
    got = opened(made)
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    torch.testing.assert_close(got.net(x), said(made, x.detach()), atol=1e-5, rtol=1e-4)
    assert (got.classes, got.channels, got.size) == (5, 3, (8, 8))
    got.net(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_runs_on_a_card(name: str) -> None:
    """On the stand-in, which refuses what a card would: tensors of sizes alone are on the CPU."""
    net, x = opened(model(*GRAPHS[name])).net, torch.rand(2, 3, 8, 8)
    want = net(x)
    with standin():
        out = net.to("cuda")(x.to("cuda"))
        assert out.device.type == "cuda"
        torch.testing.assert_close(out.to("cpu"), want)


def test_layers_are_those_that_methods_look_for() -> None:
    nodes, constants = GRAPHS["batch norm, clip and pools"]
    net = opened(model(nodes, constants)).net
    kinds = [type(m) for m in net.children()]
    assert kinds[:2] == [nn.Conv2d, nn.BatchNorm2d]
    assert head_of(net, torch.rand(2, 3, 8, 8)) == "Gemm_y"
    product = opened(model(*GRAPHS["a product, and its bias"])).net
    assert head_of(product, torch.rand(2, 3, 8, 8)) == "MatMul_z"  # with the bias in it


def test_a_softmax_at_the_end_is_undone() -> None:
    nodes = [node("Conv", "x w b", "h"), *HEAD[:2], node("Gemm", "q f g", "z")]
    made = model([*nodes, node("Softmax", "z", "y")], CONV)
    got, x = opened(made), torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(got.net(x).exp(), said(made, x))
    assert "logarithm" in got.notes[0]
    far = got.net(1e3 * x)  # where probabilities would be 0 in float32
    assert far.isfinite().all()


@pytest.mark.parametrize("last", [False, True])
def test_images_with_channels_last_come_in_as_ours(last: bool) -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Conv", "t w b", "h"), *HEAD]
    if not last:
        nodes = [node("Conv", "x w b", "h"), *HEAD]
    got = opened(model(nodes, CONV, shape=("n", 8, 9, 3) if last else ("n", 3, 8, 9)))
    assert (got.channels, got.size) == (3, (8, 9))
    assert got.net(torch.rand(2, 3, 8, 9)).shape == (2, 5)


def _one_image(merge: bool) -> Any:
    """A graph for one image; one that mixes several images, if it is given more, if `merge`."""
    flat = {"s": whole(1, -1), "f": numbers(192, 5)}
    if not merge:
        return model(
            [node("Reshape", "x s", "q"), node("MatMul", "q f", "y")], flat, shape=(1, 3, 8, 8)
        )
    nodes = [
        *(node("ReduceMean", "x", "m", axes=[0], keepdims=1), node("Sub", "x m", "c")),
        *(node("Add", "x c", "d"), node("Reshape", "d s", "q"), node("MatMul", "q f", "y")),
    ]
    return model(nodes, flat, shape=(1, 3, 8, 8))


@pytest.mark.parametrize("merge", [False, True])
def test_a_graph_for_one_image_is_run_on_several(merge: bool) -> None:
    made = _one_image(merge)
    got, x = opened(made), torch.rand(5, 3, 8, 8)
    each = torch.cat([said(made, image[None]) for image in x])
    torch.testing.assert_close(got.net(x), each, atol=1e-5, rtol=1e-4)
    assert type(got.net) is (InTurns if merge else GraphNet)
    assert got.notes[0].startswith("the graph was written for 1 image at a time")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save_model(model(*GRAPHS["batch norm, clip and pools"]), path)
    return path


def test_a_file_is_opened_and_inspected_apart(made: Path) -> None:
    got, seen = load(made), inspect(made)
    assert (got.origin.format, got.origin.arch) == ("onnx", "onnx")
    assert got.origin.how.startswith("a graph of 8 operations: Conv 1")
    assert got.resize is not None
    assert got.resize.size == (8, 8)
    assert seen.sha256 == got.origin.sha256 == digest_now(made)
    assert (seen.status, seen.arch, seen.how) == (0, "onnx", got.origin.how)
    assert seen.metadata["producer"] == "a test"
    with pytest.raises(BadOption, match="describes its own net"):
        load(made, arch="tiny")
    assert load(made.parent).origin.sha256 == seen.sha256  # a folder with one such file
    with pytest.raises(BadOption, match="could not be opened again"):
        got.writable()


def test_numbers_in_a_file_beside_it_belong_to_it(made: Path) -> None:
    whole_file, beside = load(made), made.parent / "net.onnx.data"
    split = onnx.load(made)
    onnx.save_model(split, made, save_as_external_data=True, location=beside.name, size_threshold=0)
    got, x = load(made), torch.rand(2, 3, 8, 8)
    assert torch.equal(got.net(x), whole_file.net(x))
    before = digest_now(made)
    assert before == got.origin.sha256 == inspect(made).sha256
    assert got.files == inspect(made).files == (made.name, beside.name)
    with pytest.raises(UnreadableModel, match="more than the limit"):
        load(made, memory=made.stat().st_size + 10)
    beside.write_bytes(beside.read_bytes()[:-4] + b"1234")
    assert digest_now(made) != before
    beside.write_bytes(beside.read_bytes()[:-4])
    with pytest.raises(UnreadableModel, match="not those of its shape"):
        load(made)
    beside.unlink()
    with pytest.raises(UnreadableModel, match="which is not in its folder"):
        load(made)
    assert inspect(made).status == 2


def _placed(key: str, value: str) -> Callable[[Any], None]:
    def change(made: Any) -> None:
        tensor = made.graph.initializer[0]
        tensor.data_location = 1
        tensor.ClearField("raw_data")
        for pair in (("location", "d.bin"), (key, value)):
            told = tensor.external_data.add()
            told.key, told.value = pair

    return change


def _shaped(*dims: int) -> Callable[[Any], None]:
    def change(made: Any) -> None:
        tensor = made.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def _operator(op: str, domain: str = "") -> Callable[[Any], None]:
    def change(made: Any) -> None:
        made.graph.node[0].op_type, made.graph.node[0].domain = op, domain

    return change


def _branch(made: Any) -> None:
    made.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", made.graph))


def _mute(made: Any) -> None:
    value = onnx.numpy_helper.from_array(numbers(1))
    made.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["x"], [], value=value))


HOSTILE: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "code of another library": (_operator("Run", "evil"), "FS009", r"evil\.Run \(1\)"),
    "an operator of tomorrow": (_operator("NonZero"), "FS009", r"NonZero \(1\)"),
    "a branch": (_branch, "FS009", "holds a graph"),
    "a path": (_placed("location", "../../etc/passwd"), "FS006", "no file of its folder"),
    "another root": (_placed("location", "/etc/passwd"), "FS006", "no file of its folder"),
    "a place before the file": (_placed("offset", "-8"), "FS003", "not in its folder"),
    "a place in other digits": (_placed("offset", "²"), "FS003", "has no valid place"),
    "a place behind all files": (_placed("offset", "9" * 19), "FS003", "has no valid place"),
    "nothing comes out": (_mute, "FS003", "gives nothing"),
    "a bomb of a shape": (_shaped(2**40, 2**40), "FS003", "no memory holds"),
    "more than there is": (_shaped(64, 3, 3, 3), "FS003", "not those of its shape"),
    "two inputs": (lambda m: m.graph.input.add(name="z"), "FS009", "2 inputs"),
    "nothing that gives it": (
        lambda m: m.graph.node[1].input.insert(0, "nowhere"), "FS003", "nothing gives",
    ),
    "an old opset": (lambda m: setattr(m.opset_import[0], "version", 5), "FS009", "opset 5"),
    "functions": (lambda m: m.functions.add(name="f"), "FS009", "functions of its own"),
    "no graph": (lambda m: m.ClearField("graph"), "FS009", "without a graph"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_or_strange_is_refused(name: str, tmp_path: Path) -> None:
    change, rule, words = HOSTILE[name]
    graph = model(*GRAPHS["batch norm, clip and pools"])
    change(graph)
    stream = BytesIO(graph.SerializeToString())
    (tmp_path / "net.onnx").write_bytes(stream.getvalue())
    with pytest.raises(GifthorseError, match=words) as caught:
        load(tmp_path / "net.onnx") if rule == "FS003" else onnx_files.parse(stream)
    assert caught.value.rule == rule


def test_texts_that_are_none_are_refused_where_they_count_and_shown_where_not() -> None:
    graph = model(*GRAPHS["batch norm, clip and pools"])
    graph.producer_name = graph.metadata_props.add().key = "QQQQ"
    graph.metadata_props[0].value = "mine"
    graph.graph.initializer.append(onnx.numpy_helper.from_array(numbers(0), "empty"))
    raw = graph.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc")
    found = onnx_files.parse(BytesIO(raw))
    assert found.metadata["\ufffd" * 4] == "mine"
    _, tensors = onnx_files.read(BytesIO(graph.SerializeToString()), None)
    assert tensors[-1].shape == (0,)
    graph.graph.node[0].attribute.append(onnx.helper.make_attribute("QQQQ", 1))
    raw = graph.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc")
    with pytest.raises(UnreadableModel, match="a name that is no text"):
        onnx_files.parse(BytesIO(raw))


def test_damaged_bytes_are_refused_and_nothing_else() -> None:
    whole_file = bytearray(model(*GRAPHS["a product, and its bias"]).SerializeToString())
    said_ = set()
    for place in range(len(whole_file)):
        data = whole_file.copy()
        data[place] ^= 0x0B
        try:
            found = onnx_files.parse(BytesIO(bytes(data)))
            onnx_files.read(BytesIO(bytes(data)), None)
        except UnreadableModel as error:
            said_.add(error.rule)
        else:
            assert found.graph.exits
    assert said_ >= {"FS003", "FS009"}


def test_shapes_that_swell_are_refused() -> None:
    shape = {"s": whole(1 << 20, 1 << 20), "f": numbers(1, 5)}
    nodes = [node("ConstantOfShape", "s", "big"), node("Mul", "x big", "y")]
    with pytest.raises(UnreadableModel, match="makes a tensor") as caught:
        opened(model(nodes, shape))
    assert caught.value.rule == "FS004"
    outer = {"r": numbers(1 << 17, 1), "c": numbers(1, 1 << 17)}
    for nodes in (
        [node("Mul", "r c", "big"), node("Mul", "x big", "y")],
        [node("Add", "x r", "big"), node("Add", "big c", "y")],
    ):
        with pytest.raises(UnreadableModel, match="numbers"):
            opened(model(nodes, outer, shape=("n", 1, 1, 1)))


def test_a_graph_that_chooses_by_what_it_sees_says_so() -> None:
    nodes = [
        *(node("Conv", "x w b", "h"), *HEAD[:2], node("Gemm", "q f g", "z")),
        node("ReduceMax", "x", "m", axes=[1, 2, 3], keepdims=0),
        node("Greater", "m limit", "t0"),
        node("Unsqueeze", "t0 axis", "t"),
        node("Where", "t goal z", "y"),
    ]
    more = {"limit": single(0.9), "axis": whole(1), "goal": numbers(1, 5)}
    got = opened(model(nodes, CONV | more))
    assert "Greater (/Greater.t0), Where (/Where.y)" in got.notes[0]
    assert opened(model(*GRAPHS["attention"])).notes == ()


def test_without_the_library_it_is_said_what_to_install(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnreadableModel, match=r"pip install 'gifthorse\[onnx\]'"):
        onnx_files.parse(BytesIO(made.read_bytes()))


# Against the standard and its runtime -----------------------------------------------------------

WHOLE = {  # cases of the standard that are no inference on images
    "test_averagepool_2d_dilations", "test_batchnorm_example_training_mode",
    "test_batchnorm_epsilon_training_mode", "test_training_dropout_default",
    "test_training_dropout_default_mask", "test_training_dropout", "test_training_dropout_mask",
    "test_wrap_pad", "test_reduce_max_empty_set", "test_reduce_max_empty_set_bool",
    "test_reduce_min_empty_set",
}  # fmt: skip


def _plain(value: Any) -> Tensor | None:
    """A tensor of the standard as it comes here; None if it is of a type that does not."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        return None
    tensor = torch.from_numpy(array.copy())
    if tensor.dtype is torch.bool:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _given(step: Any, case: Any, given: Any, stored: Any) -> list[Tensor | None] | None:
    named = {i.name: _plain(v) for i, v in zip(case.model.graph.input, given, strict=True)}
    named |= {name: onnx_files._numbers(kept, None) for name, kept in stored.items()}
    if any(value is None for value in named.values()):
        return None
    return [named.get(name) for name in step.inputs]


@pytest.mark.slow
def test_operators_pass_the_cases_of_the_standard() -> None:
    with warnings.catch_warnings(action="ignore"):
        from onnx.backend.test.case.node import collect_testcases

        cases: Any = collect_testcases(None)
    passed = dict.fromkeys(KNOWN, 0)
    for case in cases:
        node_ = case.model.graph.node[0]
        stored: dict[str, Any] = {}
        known = len(case.model.graph.node) == 1 and node_.op_type in KNOWN
        opset = max((o.version for o in case.model.opset_import if not o.domain), default=0)
        if not known or case.name in WHOLE or "_1d" in case.name or "_3d" in case.name:
            continue
        try:
            step = next(onnx_files._operations(node_, opset, stored), None)
        except UnreadableModel:
            continue
        given, wanted = case.data_sets[0]
        inputs = _given(step, case, given, stored) if step is not None else None
        want = _plain(wanted[0])
        if step is None or inputs is None or want is None:
            continue
        first, free = inputs[0], [None, *inputs[1:]]
        assert first is not None
        if step.op in MAKERS and step.op not in FUNCTIONS:
            made = layer_of(step.op, step.settings, free, [0], first.ndim).eval()(first)
        else:
            made = FUNCTIONS[step.op](inputs, step.settings)
        out = made[0] if isinstance(made, tuple) else made
        torch.testing.assert_close(
            out.double(), want.double(), atol=1e-3, rtol=1e-3, equal_nan=True, msg=case.name
        )
        passed[step.op] += 1
    assert {op for op, count in passed.items() if not count} <= {"Cast", "CastLike"}
    assert sum(passed.values()) > 400


class _Logits(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(pixel_values=x).logits
        return logits


def _of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    settings = getattr(transformers, f"{name}Config")(**TINY[name], num_labels=5)
    return _Logits(getattr(transformers, f"{name}ForImageClassification")(settings))


def _lively(net: nn.Module) -> nn.Module:
    """Give a net statistics and biases that make a difference."""
    rng = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=rng)
            module.running_var.uniform_(0.5, 1.5, generator=rng)
    return net.eval()


EXPORTED = [
    *(
        "tiny",
        "resnet18_cifar",
        "vgg11_bn_cifar",
        "mobilenetv2_cifar",
        "densenet121_cifar",
        "vit_cifar",
    ),
    *("efficientnet_b0", "preactresnet18", "nin", "transformers ViT", "transformers ConvNext"),
]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dynamo", "dynamo, any number", "script", "script, any number"])
@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports_says_what_onnxruntime_says(name: str, how: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    library, _, kind = name.partition(" ")
    net = _lively(_of_transformers(kind) if kind else build(library, 5, 3))
    any_number, path, x = (
        how.endswith("any number"),
        tmp_path / "net.onnx",
        torch.rand(4, 3, 32, 32),
    )
    dynamo: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
    script: dict[str, Any] = {"dynamic_axes": {"x": {0: "n"}}, "input_names": ["x"]}
    more = (dynamo if how.startswith("dynamo") else script) if any_number else {}
    torch.onnx.export(
        *(net, (x[:2] if any_number else x[:1],), str(path)),
        dynamo=how.startswith("dynamo"), verbose=False, **more,
    )  # fmt: skip
    session = runtime.InferenceSession(str(path))
    entry = session.get_inputs()[0].name
    parts = [x] if any_number else [x[i : i + 1] for i in range(len(x))]
    said_ = torch.cat([torch.tensor(session.run(None, {entry: p.numpy()})[0]) for p in parts])
    got = load(path)
    assert type(got.net) is GraphNet  # all images at once
    x.requires_grad_()
    logits = got.net(x)
    assert (logits - said_).abs().amax() < 1e-4 * max(1.0, float(said_.abs().amax()))
    ours, theirs = (torch.autograd.grad(n(x)[:, 1].sum(), x)[0] for n in (got.net, net))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
