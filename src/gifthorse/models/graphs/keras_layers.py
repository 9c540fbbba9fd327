"""Layers of Keras as operators of ONNX: what each computes when a net is used, not trained.

Images have channels last in Keras and first here: values of four dimensions are `(N, C, H, W)`
throughout, and are turned only where the order of their numbers shows (`Flatten`, `Reshape`,
`Permute`, `Dense` on images).

Source: Keras 3, keras/src/layers; Keras 2 where it names or means a setting otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from gifthorse.models.graphs.keras_writing import Writer, odd, pair_of, plain

Config: TypeAlias = Mapping[str, Any]

# Writes a layer: its name and settings, its inputs, its weights by their roles; returns its output.
Layer: TypeAlias = Callable[[Writer, Config, list[str], Mapping[str, str]], str]

# Layers that do nothing but in training.
STILL = (
    *("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    *("ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation"),
    *("RandomContrast", "RandomBrightness", "RandomHeight", "RandomWidth", "RandomColorJitter"),
    *(
        "StochasticDepth",
        "RandomHue",
        "RandomSaturation",
        "RandomShear",
        "RandomErasing",
        "RandomGrayscale",
    ),
)

# 1. Activations -------------------------------------------------------------------------------

_NAMED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "elu": ("Elu", {}), "exponential": ("Exp", {}), "gelu": ("Gelu", {}), "mish": ("Mish", {}),
    "relu": ("Relu", {}), "selu": ("Selu", {}), "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}), "softsign": ("Softsign", {}), "tanh": ("Tanh", {}),
    "relu6": ("Clip", {"min": 0.0, "max": 6.0}), "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
}  # fmt: skip
_SOFT = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}
_GATED = {"silu": False, "swish": False, "hard_silu": True, "hard_swish": True}  # whether hard


def _hard_sigmoid(w: Writer, x: str) -> str:
    """Keras 2 has a slope of 0.2, Keras 3 of 1/6, as ONNX and torch have by default."""
    return w.add("HardSigmoid", [x], alpha=1 / 6 if w.version > 2 else 0.2, beta=0.5)


def activated(w: Writer, x: str, name: object, where: str) -> str:
    """Write an activation by its name, or by what Keras saves for one.

    Raises:
        UnreadableModel: If it is none of Keras' own.
    """
    name = name.get("config", name.get("class_name")) if isinstance(name, dict) else name
    if name in _NAMED:
        op, settings = _NAMED[str(name)]
        return w.add(op, [x], **settings)
    if name in _GATED:
        gate = _hard_sigmoid(w, x) if _GATED[str(name)] else w.add("Sigmoid", [x])
        return w.add("Mul", [x, gate])
    if name in _SOFT:
        return w.add(_SOFT[str(name)], [x], axis=w.axis(x, -1))
    if name in (None, "linear", "hard_sigmoid"):
        return _hard_sigmoid(w, x) if name == "hard_sigmoid" else x
    raise odd(where, f"has the activation {name!r:.60}, which is not known here")


def _activation(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    return activated(w, x[0], c.get("activation"), c["name"])


def _relu(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    slope = float(plain(c.get("negative_slope"), 0.0))
    if plain(c.get("threshold"), 0.0):
        raise odd(c["name"], "has a threshold")
    most = c.get("max_value")
    out = w.add("LeakyRelu", x, alpha=slope) if slope else w.add("Relu", x)
    return out if most is None else w.add("Clip", [out], max=float(plain(most, 0.0)))


def _leaky(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    return w.add("LeakyRelu", x, alpha=float(plain(c.get("negative_slope", c.get("alpha")), 0.3)))


def _softmax(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    axis = c.get("axis", -1)
    return w.add("Softmax", x, axis=w.axis(x[0], axis if type(axis) is int else -1))


def _prelu(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    slope = weights["alpha"]
    if len(w.shapes[slope]) == 3 and not w.first:
        slope = w.add("Transpose", [slope], 3, perm=(2, 0, 1))
    return w.add("PRelu", [x[0], slope])


# 2. Weights -----------------------------------------------------------------------------------


def _moved(c: Config) -> dict[str, Any]:
    """Return the settings of a window as ONNX has them."""
    same = c.get("padding", "valid")
    if same not in ("same", "valid"):
        raise odd(c["name"], f"has the padding {same!r:.40}")
    return {
        "strides": pair_of(c, "strides", 1),
        "dilations": pair_of(c, "dilation_rate", 1),
        "auto_pad": "SAME_UPPER" if same == "same" else "VALID",
    }


def _conv(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    kernel = w.add("Transpose", [weights["kernel"]], 4, perm=(3, 2, 0, 1))
    bias = [weights["bias"]] if "bias" in weights else []
    groups = int(plain(c.get("groups"), 1))
    out = w.add("Conv", [x[0], kernel, *bias], group=groups, **_moved(c))
    return activated(w, out, c.get("activation"), c["name"])


def _apart(w: Writer, c: Config, x: str, kernel: str, bias: list[str]) -> str:
    """Write a convolution of each channel by itself."""
    rows, columns, channels, _ = w.shapes[kernel]
    each = w.add("Transpose", [kernel], 4, perm=(2, 3, 0, 1))
    each = w.add("Reshape", [each], 4, shape=(-1, 1, rows, columns))
    return w.add("Conv", [x, each, *bias], group=channels, **_moved(c))


def _depthwise(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    bias = [weights["bias"]] if "bias" in weights else []
    out = _apart(w, c, x[0], weights["kernel"], bias)
    return activated(w, out, c.get("activation"), c["name"])


def _separable(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    out = _apart(w, c, x[0], weights["depthwise_kernel"], [])
    kernel = w.add("Transpose", [weights["pointwise_kernel"]], 4, perm=(3, 2, 0, 1))
    bias = [weights["bias"]] if "bias" in weights else []
    return activated(w, w.add("Conv", [out, kernel, *bias]), c.get("activation"), c["name"])


def _dense(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    out = w.add("MatMul", [w.turned(x[0]), weights["kernel"]])
    out = w.add("Add", [out, weights["bias"]]) if "bias" in weights else out
    return activated(w, w.back(out), c.get("activation"), c["name"])


def _axes(w: Writer, c: Config, x: str) -> list[int]:
    told = c.get("axis", -1)
    return [w.axis(x, axis) for axis in (told if isinstance(told, list | tuple) else [told])]


def _batch_norm(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    if _axes(w, c, x[0]) != [1]:
        raise odd(c["name"], "normalizes another axis than that of channels")
    count = w.shapes[weights["moving_mean"]][0]
    gain = weights.get("gamma") or w.constant([1.0] * count, count)
    shift = weights.get("beta") or w.constant([0.0] * count, count)
    given = [x[0], gain, shift, weights["moving_mean"], weights["moving_variance"]]
    return w.add("BatchNormalization", given, epsilon=float(plain(c.get("epsilon"), 1e-3)))


def _layer_norm(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    last = w.axis(x[0], -1)
    if _axes(w, c, x[0]) != [last] or "gamma" not in weights or c.get("rms_scaling"):
        raise odd(c["name"], "does not normalize the last axis with weights")
    given = [w.turned(x[0]), weights["gamma"], *([weights["beta"]] if "beta" in weights else [])]
    out = w.add("LayerNormalization", given, axis=-1, epsilon=float(plain(c.get("epsilon"), 1e-3)))
    return w.back(out)


def _layer_scale(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    return w.back(w.add("Mul", [w.turned(x[0]), weights["gamma"]]))


def _each_channel(w: Writer, value: object, x: str, name: str) -> str:
    """Write down a number, or one a channel."""
    values = value if isinstance(value, list | tuple) else [value]
    flat = [v for row in values for v in (row if isinstance(row, list | tuple) else [row])]
    numbers = [float(v) for v in flat if isinstance(v, int | float)]
    if not flat or len(numbers) < len(flat):
        raise odd(name, "has settings that are no numbers")
    spread = len(flat) > 1 and w.ranks[x] == 4 and not w.first
    return w.constant(numbers, *(len(flat), 1, 1) if spread else (len(flat),))


def _rescaling(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    scale = _each_channel(w, c.get("scale", 1.0), x[0], c["name"])
    offset = _each_channel(w, c.get("offset", 0.0), x[0], c["name"])
    return w.add("Add", [w.add("Mul", [x[0], scale]), offset])


def _normalization(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    if c.get("invert") or (_axes(w, c, x[0]) not in ([], [w.axis(x[0], -1)])):
        raise odd(c["name"], "does not normalize the last axis")
    if c.get("mean") is not None:
        mean, variance = (_each_channel(w, c.get(k), x[0], c["name"]) for k in ("mean", "variance"))
    else:
        shape = (-1, 1, 1) if w.ranks[x[0]] == 4 and not w.first else (-1,)
        mean, variance = (
            w.add("Reshape", [weights[k]], len(shape), shape=shape) for k in ("mean", "variance")
        )
    deviation = w.add("Clip", [w.add("Sqrt", [variance])], min=1e-7)
    return w.add("Div", [w.add("Sub", [x[0], mean]), deviation])


# 3. Shapes ------------------------------------------------------------------------------------


def _pool(op: str) -> Layer:
    def write(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
        size = pair_of(c, "pool_size", 2)
        moved = {**_moved({**c, "strides": c.get("strides") or size}), "kernel_shape": size}
        return w.add(op, x, **moved)

    return write


def _global(op: str) -> Layer:
    def write(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
        out = w.add(op, x)
        return out if c.get("keepdims") else w.add("Flatten", [out], 2, axis=1)

    return write


def _flatten(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    return w.add("Flatten", [w.turned(x[0])], 2, axis=1)


def _reshape(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    wanted = c.get("target_shape")
    if not isinstance(wanted, list | tuple) or not all(type(n) is int for n in wanted):
        raise odd(c["name"], "has no shape")
    shape = (0, *wanted)
    return w.back(w.add("Reshape", [w.turned(x[0])], len(shape), shape=shape))


def _permute(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    dims = tuple(int(n) for n in c.get("dims", ()))
    return w.back(w.add("Transpose", [w.turned(x[0])], perm=(0, *dims)))


def _sides(c: Config, name: str) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right."""
    told = c.get(name, 1)
    rows, columns = (told, told) if isinstance(told, int) else told
    (top, bottom), (left, right) = ((n, n) if isinstance(n, int) else n for n in (rows, columns))
    return int(top), int(bottom), int(left), int(right)


def _padding(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    top, bottom, left, right = _sides(c, "padding")
    return w.add("Pad", x, pads=(0, 0, top, left, 0, 0, bottom, right))


def _cropping(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    top, bottom, left, right = _sides(c, "cropping")
    ends = tuple(-n if n else 1 << 30 for n in (bottom, right))
    return w.add("Slice", x, starts=(top, left), ends=ends, axes=(2, 3))


# 4. Several inputs ----------------------------------------------------------------------------


def _several(op: str) -> Layer:
    return lambda w, c, x, weights: w.add(op, x, max(w.ranks[name] for name in x))


def _product(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    out = x[0]
    for name in x[1:]:
        out = w.add("Mul", [out, name], max(w.ranks[out], w.ranks[name]))
    return out


def _concatenate(w: Writer, c: Config, x: list[str], weights: Mapping[str, str]) -> str:
    axis = c.get("axis", -1)
    return w.add("Concat", x, axis=w.axis(x[0], axis if type(axis) is int else -1))


# Each layer, and the roles of its weights in the order in which they are saved.
LAYERS: Mapping[str, tuple[Layer, tuple[str, ...]]] = {
    **{name: (lambda w, c, x, weights: x[0], ()) for name in STILL},
    "Activation": (_activation, ()),
    "Add": (_several("Sum"), ()),
    "Average": (_several("Mean"), ()),
    "AveragePooling2D": (_pool("AveragePool"), ()),
    "BatchNormalization": (_batch_norm, ("gamma", "beta", "moving_mean", "moving_variance")),
    "Concatenate": (_concatenate, ()),
    "Conv2D": (_conv, ("kernel", "bias")),
    "Cropping2D": (_cropping, ()),
    "Dense": (_dense, ("kernel", "bias")),
    "DepthwiseConv2D": (_depthwise, ("kernel", "bias")),
    "Divide": (_several("Div"), ()),
    "ELU": (lambda w, c, x, _: w.add("Elu", x, alpha=float(plain(c.get("alpha"), 1.0))), ()),
    "Flatten": (_flatten, ()),
    "GlobalAveragePooling2D": (_global("GlobalAveragePool"), ()),
    "GlobalMaxPooling2D": (_global("GlobalMaxPool"), ()),
    "LayerScale": (_layer_scale, ("gamma",)),
    "LayerNormalization": (_layer_norm, ("gamma", "beta")),
    "LeakyReLU": (_leaky, ()),
    "MaxPooling2D": (_pool("MaxPool"), ()),
    "Maximum": (_several("Max"), ()),
    "Minimum": (_several("Min"), ()),
    "Multiply": (_product, ()),
    "Normalization": (_normalization, ("mean", "variance", "count")),
    "PReLU": (_prelu, ("alpha",)),
    "Permute": (_permute, ()),
    "ReLU": (_relu, ()),
    "Rescaling": (_rescaling, ()),
    "Reshape": (_reshape, ()),
    "SeparableConv2D": (_separable, ("depthwise_kernel", "pointwise_kernel", "bias")),
    "Softmax": (_softmax, ()),
    "Subtract": (_several("Sub"), ()),
    "TrueDivide": (_several("Div"), ()),
    "ZeroPadding2D": (_padding, ()),
}
