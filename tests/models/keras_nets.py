"""Nets of Keras with many of its layers, and what makes them differ between images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _nested(keras: Any) -> Any:
    k = keras.layers
    inner = keras.Sequential(
        [
            *(keras.Input((20, 18, 3)), k.Conv2D(4, 3, name="c", use_bias=False)),
            *(k.BatchNormalization(name="b", scale=False), k.ReLU(6.0)),
        ],
        name="inner",
    )
    x = entry = keras.Input((20, 18, 3))
    x = inner(k.RandomFlip()(x))
    y = k.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2)(x)
    x = k.Concatenate()([k.AveragePooling2D(2, padding="same")(x), y])
    gate = k.Dense(12, activation="hard_sigmoid")(k.GlobalAveragePooling2D(keepdims=True)(x))
    x = k.PReLU()(k.LayerNormalization()(k.Multiply()([x, gate])))
    x = k.Flatten()(k.Permute((2, 1, 3))(x))
    x = k.Flatten()(k.Reshape((2, 4))(k.Dense(8, activation="swish")(x)))
    return keras.Model(entry, k.Dense(4)(x))


def _digits(keras: Any) -> Any:
    k = keras.layers
    return keras.Sequential(
        [
            *(keras.Input((28, 28)), k.Reshape((28, 28, 1))),
            k.Conv2D(6, 5, padding="same", strides=2, activation="tanh"),
            *(k.ZeroPadding2D(((1, 0), (2, 1))), k.MaxPooling2D(3, 2, padding="same")),
            *(k.Cropping2D(1), k.Conv2D(8, 3, dilation_rate=2), k.LeakyReLU(), k.Flatten()),
            k.Dense(10, activation="softmax"),
        ]
    )


def _scaled(keras: Any) -> Any:
    k = keras.layers
    return keras.Sequential(
        [
            *(keras.Input((8, 8, 3)), k.Rescaling([2.0, 3.0, 4.0], offset=[1.0, 0, 0])),
            k.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 0.6, 1.0]),
            *(k.SeparableConv2D(5, 3, activation="gelu"), k.GlobalMaxPooling2D()),
            *(k.Dense(16, activation="elu"), k.BatchNormalization(), k.Dense(2)),
        ]
    )


def _application(name: str, side: int, **more: Any) -> Callable[[Any], Any]:
    def make(keras: Any) -> Any:
        make_net = getattr(keras.applications, name)
        return make_net(input_shape=(side, side, 3), weights=None, classes=7, **more)

    return make


NETS: dict[str, Callable[[Any], Any]] = {
    "nested": _nested,
    "digits": _digits,
    "scaled": _scaled,
    "MobileNet": _application("MobileNet", 64, alpha=0.25),
    "MobileNetV2": _application("MobileNetV2", 64, alpha=0.35),
    "MobileNetV3": _application("MobileNetV3Small", 64),
    "EfficientNet": _application("EfficientNetB0", 64),
    "ResNet": _application("ResNet50", 64),
    "DenseNet": _application("DenseNet121", 64),
    "Xception": _application("Xception", 96),
    "ConvNeXt": _application("ConvNeXtTiny", 64),
}


def draw(net: Any, images: Tensor) -> None:
    """Give biases and gains values that make a difference, and norms the statistics of images."""
    rng = np.random.default_rng(0)
    for variable in net.variables:
        role, shape = variable.path.rpartition("/")[2], tuple(variable.shape)
        if role in ("beta", "bias", "alpha"):
            variable.assign(rng.normal(0, 0.2, shape).astype("float32"))
        elif role == "gamma":
            variable.assign(rng.normal(1, 0.2, shape).astype("float32"))
    norms = [n for n in net._flatten_layers() if type(n).__name__ == "BatchNormalization"]
    for norm in norms:
        norm.momentum = 0.0
    with torch.no_grad():
        net(images, training=True)
    for norm in norms:
        norm.momentum = 0.99
