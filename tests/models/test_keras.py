"""Keras files: read as data, run as nets of torch, compared by hand and with Keras itself."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.keras_nets import NETS, draw
from torch import Tensor, nn
from torch.nn import functional as F

from gifthorse.core.errors import UnreadableModel
from gifthorse.models import inspect, load
from gifthorse.models.reading import keras_files

h5py = pytest.importorskip("h5py", reason="needs gifthorse[keras]")

RNG = np.random.default_rng(0)
Layer = dict[str, Any]


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def layer(kind: str, name: str, reads: str = "", **config: Any) -> Layer:
    """A layer as Keras 2 wrote it; `reads` names the layers that it reads, of a functional one."""
    told: Layer = {"class_name": kind, "config": {"name": name, **config}}
    if reads:
        told |= {"name": name, "inbound_nodes": [[[n, 0, 0, {}] for n in reads.split()]]}
    return told


def sequential(*layers: Layer, **config: Any) -> Layer:
    return {"class_name": "Sequential", "config": {"name": "net", "layers": layers, **config}}


def functional(entry: str, out: str, *layers: Layer, name: str = "net") -> Layer:
    ends = {"input_layers": [[entry, 0, 0]], "output_layers": [[out, 0, 0]]}
    return {"class_name": "Functional", "config": {"name": name, "layers": layers, **ends}}


def legacy(path: Path, model: Layer, weights: Mapping[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        file.attrs["keras_version"] = "2.9.0"
        for name, value in weights.items():
            file[f"model_weights/{name}"] = value
    return path


def archive(path: Path, model: Layer, weights: Mapping[str, np.ndarray]) -> Path:
    kept = io.BytesIO()
    with h5py.File(kept, "w") as file:
        for name, value in weights.items():
            file[name] = value
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("metadata.json", json.dumps({"keras_version": "3.1.0"}))
        made.writestr("config.json", json.dumps(model))
        made.writestr("model.weights.h5", kept.getvalue())
    return path


KERNEL, BIAS = numbers(3, 3, 3, 4), numbers(4)
HEAD, SHIFT = numbers(4 * 3 * 4, 5), numbers(5)
NET = sequential(
    layer("InputLayer", "input_1", batch_input_shape=[None, 6, 5, 3]),
    layer("Conv2D", "conv", strides=[2, 2], padding="same", activation="relu", kernel_size=[3, 3]),
    layer("Dropout", "drop", rate=0.5),
    layer("Cropping2D", "crop", cropping=[[0, 0], [0, 0]]),
    layer("ZeroPadding2D", "pad", padding=[[0, 0], [0, 1]]),
    layer("Flatten", "flat"),
    layer("Dense", "dense", activation="softmax"),
)
LEGACY = {
    "conv/conv/kernel:0": KERNEL, "conv/conv/bias:0": BIAS, "dense/dense/kernel:0": HEAD,
    "dense/dense/bias:0": SHIFT, "gone/gone/kernel:0": numbers(3),
}  # fmt: skip
ARCHIVE = {
    "layers/conv2d/vars/0": KERNEL, "layers/conv2d/vars/1": BIAS, "layers/dense/vars/0": HEAD,
    "layers/dense/vars/1": SHIFT, "optimizer/vars/0": numbers(3),
}  # fmt: skip


def by_hand(x: Tensor) -> Tensor:
    """The same net, with images as TensorFlow pads and flattens them."""
    weight = torch.tensor(KERNEL).permute(3, 2, 0, 1)
    even = F.pad(x, (1, 1, 0, 1))  # 6 rows in steps of 2: one below; 5 columns: one on each side
    maps = F.conv2d(even, weight, torch.tensor(BIAS), stride=2).relu()
    words = F.pad(maps, (0, 1)).permute(0, 2, 3, 1).flatten(1)  # rows, columns, channels
    return (words @ torch.tensor(HEAD) + torch.tensor(SHIFT)).log_softmax(1)


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_a_file_says_what_is_computed_by_hand(tmp_path: Path, ending: str) -> None:
    write, weights = (legacy, LEGACY) if ending == "h5" else (archive, ARCHIVE)
    path = write(tmp_path / f"net.{ending}", NET, weights)
    got, seen = load(path), inspect(path)
    x = torch.rand(4, 3, 6, 5, requires_grad=True)
    torch.testing.assert_close(got.net(x), by_hand(x), atol=1e-5, rtol=1e-4)
    got.net(x)[:, 1].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert (got.classes, got.channels, got.origin.tensors) == (5, 3, 4)
    assert got.resize is not None
    assert got.resize.size == (6, 5)
    assert [type(m) for m in got.net.children() if list(m.parameters())] == [
        *(nn.Sequential, nn.Linear)  # margins and convolution; the head with its bias
    ]
    assert got.origin.format == seen.format == {"h5": "hdf5"}.get(ending, ending)
    assert (seen.status, seen.sha256, seen.tensors) == (0, got.origin.sha256, 4)


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_models_within_models_and_layers_with_several_inputs(tmp_path: Path, ending: str) -> None:
    inner = functional(
        "in2", "norm",
        layer("InputLayer", "in2", batch_input_shape=[None, 4, 4, 3]),
        layer("Conv2D", "conv", "in2", use_bias=False, kernel_size=[1, 1]),
        layer("BatchNormalization", "norm", "conv", axis=[3], epsilon=0.1, scale=False),
        name="inner",
    )  # fmt: skip
    inner |= {"name": "inner", "inbound_nodes": [[["in1", 0, 0, {}]]]}
    net = functional(
        "in1", "dense",
        layer("Dense", "dense", "mean"),  # in no order: a file needs none
        layer("InputLayer", "in1", batch_input_shape=[None, 4, 4, 3]),
        inner,
        layer("DepthwiseConv2D", "deep", "inner", padding="same", kernel_size=[3, 3]),
        layer("Concatenate", "both", "inner deep", axis=-1),
        layer("Add", "sum", "both both"),
        layer("GlobalAveragePooling2D", "mean", "sum"),
    )  # fmt: skip
    one, deep = numbers(1, 1, 3, 2), numbers(3, 3, 2, 1)
    bias, beta, mean, variance = numbers(2), numbers(2), numbers(2), numbers(2) ** 2 + 1
    dense, shift = numbers(4, 3), numbers(3)
    inside = {"conv/kernel:0": one, "norm/beta:0": beta, "norm/moving_mean:0": mean}
    inside |= {"norm/moving_variance:0": variance}
    weights = {f"inner/{name}": value for name, value in inside.items()}
    weights |= {"deep/deep/depthwise_kernel:0": deep, "deep/deep/bias:0": bias}
    weights |= {"dense/dense/kernel:0": dense, "dense/dense/bias:0": shift}
    front = "layers/functional/layers"
    stored = {
        f"{front}/conv2d/vars/0": one, f"{front}/batch_normalization/vars/0": beta,
        f"{front}/batch_normalization/vars/1": mean, "layers/depthwise_conv2d/vars/0": deep,
        f"{front}/batch_normalization/vars/2": variance, "layers/depthwise_conv2d/vars/1": bias,
        "layers/dense/vars/0": dense, "layers/dense/vars/1": shift,
    }  # fmt: skip
    legacy_file = ending == "h5"
    write = legacy if legacy_file else archive
    got = load(write(tmp_path / f"net.{ending}", net, weights if legacy_file else stored))
    x = torch.rand(4, 3, 4, 4)
    t = {k: torch.tensor(v) for k, v in (("1", one), ("d", deep), ("b", bias), ("w", dense))}
    a = F.conv2d(x, t["1"].permute(3, 2, 0, 1))
    a = F.batch_norm(
        a, torch.tensor(mean), torch.tensor(variance), None, torch.tensor(beta), eps=0.1
    )
    b = F.conv2d(a, t["d"].permute(2, 3, 0, 1), t["b"], padding=1, groups=2)
    want = 2 * torch.cat([a, b], 1).mean((2, 3)) @ t["w"] + torch.tensor(shift)
    torch.testing.assert_close(got.net(x), want, atol=1e-5, rtol=1e-4)


def _net_with(**changes: Any) -> Layer:
    odd: Layer = {"class_name": "Dense", "config": {"name": "odd"}, **changes}
    return sequential(*NET["config"]["layers"], odd)


STRANGE: dict[str, tuple[Layer, str, str]] = {
    "code": (_net_with(class_name="Lambda"), "FS002", "code of their own: Lambda odd"),
    "a layer of one's own": (_net_with(class_name="Mine"), "FS009", r"Mine \(1\)"),
    "one that goes by a known name": (_net_with(module="mine"), "FS009", r"mine\.Dense \(1\)"),
    "one that is registered": (
        _net_with(module="keras.layers", registered_name="mine>Dense"), "FS009", r"layers\.Dense",
    ),
    "a model of one's own": ({**NET, "class_name": "MyModel"}, "FS009", "holds a MyModel"),
    "an activation of one's own": (
        sequential(*NET["config"]["layers"], layer("Activation", "odd", activation="mine")),
        "FS009", "has the activation 'mine'",
    ),
    "no weights": (_net_with(), "FS003", "no kernel"),
    "no size": (sequential(layer("Flatten", "flat")), "FS009", "does not say what size"),
    "no layers": ({"class_name": "Sequential", "config": {"name": "net"}}, "FS009", "damaged"),
    "what reads itself": (
        functional("a", "b", layer("InputLayer", "a", batch_input_shape=[None, 4, 4, 3]),
                   layer("ReLU", "b", "b")), "FS009", "reads what nothing gives",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_strange_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model, rule, words = STRANGE[name]
    for kind, path in (
        ("hdf5", legacy(tmp_path / "net.h5", model, LEGACY)),
        ("keras", archive(tmp_path / "net.keras", model, ARCHIVE)),
    ):
        with path.open("rb") as stream, pytest.raises(UnreadableModel, match=words) as caught:
            keras_files.parse(stream, kind)
        assert caught.value.rule == rule


def _linked(file: Any) -> None:
    file["model_weights/conv/conv/other:0"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft(file: Any) -> None:
    file["model_weights/conv/conv/other:0"] = h5py.SoftLink("/model_weights")


def _external(file: Any) -> None:
    numbers_of = [("/etc/hostname", 0, 8)]
    file.create_dataset("model_weights/x/y/kernel:0", (2,), "f4", external=numbers_of)


def _bomb(file: Any) -> None:
    del file["model_weights/dense/dense/kernel:0"]
    zipped = {"chunks": True, "compression": "gzip", "shape": (1 << 14, 1 << 14)}
    file.create_dataset("model_weights/dense/dense/kernel:0", dtype="f8", **zipped)


def _circle(file: Any) -> None:
    file["model_weights/conv/again"] = file["model_weights"]


def _bare(file: Any) -> None:
    del file.attrs["model_config"]


HOSTILE: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "a link to another file": (_linked, "FS006", "points to another place"),
    "a link to another place": (_soft, "FS006", "points to another place"),
    "numbers of another file": (_external, "FS006", "points to another place"),
    "a bomb": (_bomb, "FS004", "a bomb"),
    "groups within themselves": (_circle, "FS004", "more arrays than any net"),
    "weights alone": (_bare, "FS009", "save the whole model"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused(name: str, tmp_path: Path) -> None:
    change, rule, words = HOSTILE[name]
    path = legacy(tmp_path / "net.h5", NET, LEGACY)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(UnreadableModel, match=words) as caught:
        load(path)
    assert caught.value.rule == rule


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "net.h5", NET, LEGACY)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnreadableModel, match="no whole HDF5 file") as caught:
        load(path)
    assert caught.value.rule == "FS009"


@pytest.mark.slow
def test_damaged_bytes_hurt_nothing_but_their_reader(tmp_path: Path) -> None:
    """HDF5's library may crash on such bytes: it does so in a process of its own."""
    path = legacy(tmp_path / "net.h5", NET, LEGACY)
    whole, rules = path.read_bytes(), set()
    for place in range(0, len(whole), 97):
        data = bytearray(whole)
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            assert load(path).classes
        except UnreadableModel as error:
            rules.add(error.rule)
    assert {"FS003"} <= rules <= {"FS003", "FS004", "FS006", "FS009"}


def test_numbers_that_cannot_be_examined_say_so(tmp_path: Path) -> None:
    path = legacy(tmp_path / "net.h5", NET, {**LEGACY, "conv/conv/bias:0": BIAS.astype("c8")})
    with pytest.raises(UnreadableModel, match="complex64: only plain floating point"):
        load(path)
    half = {name: value.astype(">f2") for name, value in LEGACY.items()}  # of another byte order
    x = torch.rand(4, 3, 6, 5)
    got = load(legacy(tmp_path / "half.h5", NET, half))
    torch.testing.assert_close(got.net(x), by_hand(x), atol=0.05, rtol=0.05)


def test_without_the_library_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = legacy(tmp_path / "net.h5", NET, LEGACY)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with path.open("rb") as stream, pytest.raises(UnreadableModel, match=r"gifthorse\[keras\]"):
        keras_files.parse(stream, "hdf5")


# Against Keras ----------------------------------------------------------------------------------


def _keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    return pytest.importorskip("keras")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")
def test_what_keras_saves_says_what_keras_says(name: str, ending: str, tmp_path: Path) -> None:
    keras = _keras()
    keras.utils.set_random_seed(0)
    net = NETS[name](keras)
    _, *size = net.input_shape
    raw = any("rescaling" in layer.name for layer in net.layers) and name != "scaled"
    theirs = torch.rand(6, *size) * (255 if raw else 1)
    draw(net, theirs)
    net.save(tmp_path / f"net.{ending}")
    got = load(tmp_path / f"net.{ending}")
    x = theirs.permute(0, 3, 1, 2) if len(size) == 3 else theirs[:, None]
    with torch.no_grad():
        want, said = net(theirs, training=False).cpu(), got.net(x)
    want = want.log() if "logarithm" in "".join(got.origin.notes) else want
    assert (said - want).abs().amax() < 1e-4 * max(1.0, float(want.abs().amax()))
    assert want.std(0).max() > 1e-3  # images make a difference
