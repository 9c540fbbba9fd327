"""Files that describe their own nets: Keras' and ONNX', from the programs that write them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.instances.hub_folders import FIFTEEN, net_of
from scripts.instances.instance import (
    CLASSES,
    Instance,
    Kind,
    Pictures,
    lively,
    logits_of,
    pictures,
    pixels,
    plain,
)
from tests.models.hub import TINY
from tests.models.keras_nets import NETS, draw
from torch import Tensor, nn

from gifthorse.models import build

RAW = ("MobileNetV3", "EfficientNet", "ConvNeXt")  # take 0 to 255 and bring it to size themselves


def keras_says(net: Any, raw: bool) -> Callable[[Pictures], Tensor]:
    """Return what a net of Keras says of pictures, which it takes from 0 to 1 or to 255."""

    def says(images: Pictures) -> Tensor:
        x = pixels(images).permute(0, 2, 3, 1)
        x = x[..., 0] if len(net.input_shape) == 3 else x
        with torch.no_grad():
            out: Tensor = net(x * 255 if raw else x, training=False).cpu()
        return out

    return says


def of_keras(name: str, ending: str, path: Path) -> Instance:
    """A whole model that Keras saves."""
    import keras

    keras.utils.set_random_seed(0)
    net = NETS[name](keras)
    _, height, width, *rest = net.input_shape
    gray, raw = not rest, name in RAW
    images = pictures((height, width), gray=gray)
    x = pixels(images).permute(0, 2, 3, 1)
    draw(net, (x[..., 0] if gray else x) * (255 if raw else 1))
    path.mkdir()
    net.save(path / f"net.{ending}")
    normal = "0-255" if raw else "none"
    return Instance(path / f"net.{ending}", keras_says(net, raw), (height, width), gray, normal)


def of_lambda(path: Path) -> Instance:
    """A model with a layer of code."""
    import keras

    layers = keras.layers
    net = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Lambda(lambda x: 2 * x), layers.Flatten(), layers.Dense(5)]
    )
    path.mkdir()
    net.save(path / "net.keras")
    return Instance(path / "net.keras", keras_says(net, False), (8, 8))


def keras_weights(path: Path) -> Instance:
    """Weights without the layers that they are of."""
    import keras

    net = NETS["MobileNetV2"](keras)
    path.mkdir()
    net.save_weights(path / "net.weights.h5")
    return Instance(path / "net.weights.h5", keras_says(net, False), (64, 64))


# ONNX -----------------------------------------------------------------------------------------


def said_by_runtime(file: Path, images: Pictures, *, last: bool = False) -> Tensor:
    """Return what onnxruntime says of pictures from 0 to 1, one by one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))
    entry = session.get_inputs()[0].name
    x = pixels(images).numpy()
    x = x.transpose(0, 2, 3, 1) if last else x
    rows = [session.run(None, {entry: x[i : i + 1]})[0] for i in range(len(x))]
    return torch.from_numpy(np.concatenate(rows))


def exported(net: nn.Module, side: int, path: Path, *, new: bool, apart: bool = False) -> Instance:
    """A graph that torch exports, by its new exporter or by tracing."""
    path.mkdir()
    file, x = path / "net.onnx", torch.rand(1, 3, side, side)
    more: dict[str, Any] = {"external_data": apart} if new else {}
    torch.onnx.export(net, (x,), str(file), dynamo=new, verbose=False, **more)
    return Instance(file, partial(said_by_runtime, file), (side, side), normalize="none")


def of_built_in(arch: str, path: Path, *, new: bool, apart: bool = False) -> Instance:
    """A net that is built in here, exported by torch."""
    net = build(arch, CLASSES).eval()
    return exported(lively(net, plain(net), (32, 32)), 32, path, new=new, apart=apart)


class _Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.net(pixel_values=x))


def of_transformers(name: str, path: Path) -> Instance:
    """A tiny net of transformers, exported by torch."""
    net = _Logits(net_of(name)).eval()
    side = 28 if name == "Dinov2" else TINY[name].get("image_size", 64)
    side = 32 if name == "Siglip" else side
    return exported(lively(net, plain(net), (side, side)), side, path, new=True)


def of_torchvision(name: str, path: Path) -> Instance:
    """A net of torchvision, exported by torch."""
    from torchvision.models import get_model

    net = get_model(name, weights=None, num_classes=CLASSES).eval()
    return exported(lively(net, plain(net), (64, 64)), 64, path, new=True)


def of_timm(name: str, path: Path) -> Instance:
    """A net of timm, exported by torch."""
    import timm

    net = timm.create_model(name, num_classes=CLASSES).eval()
    side = net.pretrained_cfg["input_size"][-1]
    return exported(lively(net, plain(net), (side, side)), side, path, new=True)


def of_keras_graph(name: str, path: Path) -> Instance:
    """A net of Keras that Keras itself exports as ONNX, with channels last."""
    import keras

    net = NETS[name](keras)
    _, height, width, _ = net.input_shape
    draw(net, pixels(pictures((height, width))).permute(0, 2, 3, 1))
    path.mkdir()
    file = path / "net.onnx"
    net.export(str(file), format="onnx", verbose=False)
    says = partial(said_by_runtime, file, last=True)
    return Instance(file, says, (height, width), normalize="none")


def of_ultralytics(path: Path) -> Instance:
    """A classifier of ultralytics that it exports itself: it ends in a softmax."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import ClassificationModel

    path.mkdir()
    made = YOLO("yolo11n-cls.yaml", task="classify")
    net = ClassificationModel("yolo11n-cls.yaml", nc=CLASSES, verbose=False).eval()

    def logits(images: Pictures) -> Tensor:
        with torch.no_grad():
            out: Tensor = net(pixels(images))[1]
        return out

    made.model = lively(net, logits, (64, 64))
    made.ckpt_path = made.model.pt_path = str(path / "net.pt")
    file = Path(made.export(format="onnx", imgsz=64, simplify=False, verbose=False))
    return Instance(file, partial(said_by_runtime, file), (64, 64), normalize="none")


KERAS = (
    *(
        Kind(f"Keras {name}, .{ending}", partial(of_keras, name, ending), ("keras",))
        for name in NETS
        for ending in ("keras", "h5")
    ),
    Kind("Keras with a Lambda layer", of_lambda, ("keras",), refused="code of their own"),
    Kind("Keras weights alone, .weights.h5", keras_weights, ("keras",), refused="whole model"),
)
BUILT_IN = ("resnet20_fc", "vgg11_bn_cifar", "mobilenetv2_cifar", "densenet121_cifar", "vit_cifar")
RUN = ("onnxruntime",)
ONNX = (
    *(
        Kind(f"ONNX of {arch}, torch's {way} exporter", partial(of_built_in, arch, new=new), RUN)
        for arch in BUILT_IN
        for way, new in (("new", True), ("old", False))
    ),
    Kind(
        "ONNX of resnet20_fc, numbers in a file beside it",
        partial(of_built_in, "resnet20_fc", new=True, apart=True),
        RUN,
    ),
    *(
        Kind(f"ONNX of transformers {n}", partial(of_transformers, n), (*RUN, "transformers"))
        for n in FIFTEEN
    ),
    *(
        Kind(f"ONNX of torchvision {n}", partial(of_torchvision, n), (*RUN, "torchvision"))
        for n in ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "swin_t")
    ),
    *(
        Kind(f"ONNX of timm {n}", partial(of_timm, n), (*RUN, "timm"))
        for n in ("test_vit", "test_efficientnet", "test_convnext2", "mobilevit_xxs", "regnetx_002")
    ),
    *(
        Kind(f"ONNX of Keras {n}, its own exporter", partial(of_keras_graph, n), (*RUN, "keras"))
        for n in ("MobileNetV2", "ResNet")
    ),
    Kind("ONNX of ultralytics yolo11n-cls, its own exporter", of_ultralytics,
         (*RUN, "ultralytics")),
)  # fmt: skip
