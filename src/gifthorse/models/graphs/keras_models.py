"""Keras models, sequential and functional, from what Keras saves of them to a graph.

Source: Keras 3, keras/src/models/functional.py and sequential.py, keras/src/saving/saving_lib.py
(where weights lie in a `.keras` archive), keras/src/legacy/saving/legacy_h5_format.py (in `.h5`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from gifthorse.core.errors import UnreadableModel, UnsafeModel
from gifthorse.models.graphs.graph import Graph
from gifthorse.models.graphs.keras_layers import LAYERS
from gifthorse.models.graphs.keras_writing import Writer, odd
from gifthorse.models.reading.entries import shown

Table: TypeAlias = Mapping[str, Any]

MODELS = ("Functional", "Model", "Sequential")
NAMED = 6  # layers that are named in words
DEEPEST = 20  # models within models
_COUNTED = re.compile(r"(_\d+)?(:\d+)?$")  # what Keras puts behind the name of a weight
_ROLES = {"depthwise_kernel": "kernel"}  # what a depthwise convolution's is called in Keras 2


@dataclass(frozen=True)
class Stored:
    """What a file of Keras says.

    Attributes:
        model: The configuration of the model.
        shapes: Of its tensors, by name.
        version: Of Keras.
        legacy: Whether weights lie under the names of layers (`.h5`), not in a `.keras` archive.
    """

    model: Table
    shapes: Mapping[str, tuple[int, ...]]
    version: int
    legacy: bool


def graph_of(stored: Stored) -> Graph:
    """Write down the graph of a model.

    Raises:
        UnsafeModel: If layers of it are code.
        UnreadableModel: If it has layers that are not known here, or is damaged.
    """
    try:
        check_layers(stored.model)
        first = _formats(stored.model)
        writer = Writer(stored.shapes, stored.version, first)
        shape = _input_shape(stored.model)
        writer.ranks["images"] = len(shape)
        place = _Place("", "", stored)
        exits = _model(writer, stored.model, ["images"], place)
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        words = shown(f"{type(error).__name__}: {error}", 100)
        raise UnreadableModel(
            f"the Keras configuration is damaged, or of a form that is not known here ({words})",
            rule="FS009",
        ) from error
    if len(shape) == 4 and not first:
        shape = (shape[0], shape[3], shape[1], shape[2])
    return Graph(tuple(writer.operations), "images", shape, tuple(exits))


# 1. What is inside ----------------------------------------------------------------------------


def check_layers(model: Table) -> None:
    """Refuse a model with layers that are code, or that are not known here, and list them.

    Raises:
        UnsafeModel: `FS002`, if a layer is code.
        UnreadableModel: `FS009`, if one is not known.
    """
    found = list(_layers(model))
    code = [layer for layer in found if kind(layer) == "Lambda"]
    if code:
        names = ", ".join(f"Lambda {shown(str(c['config'].get('name')), 40)}" for c in code[:NAMED])
        raise UnsafeModel(
            f"the Keras file holds layers that are code of their own: {names}; nothing of it was "
            "run. Ask its author for a model without them",
            rule="FS002",
        )
    strange = Counter(k for k in map(kind, found) if k not in LAYERS and k != "InputLayer")
    if strange:
        told = ", ".join(f"{shown(k, 60)} ({n})" for k, n in strange.most_common(NAMED))
        raise UnreadableModel(
            f"the Keras file has layers that are not known here: {told}; custom layers are never "
            "run. Export the model as ONNX, or save it without them",
            rule="FS009",
        )


def kind(layer: Table) -> str:
    """Return the class of a layer; of one that is not Keras' own, with its module.

    Example:
        >>> kind({"class_name": "Dense", "module": "mine", "registered_name": "mine>Dense"})
        'mine.Dense'
    """
    name, module = str(layer["class_name"]), layer.get("module")
    registered = layer.get("registered_name")
    own = module is None or str(module).partition(".")[0] == "keras"
    known = registered in (None, name, f"keras>{name}") or str(registered).startswith("keras")
    return name if own and known else f"{module or registered}.{name}"


def _layers(model: Table, depth: int = 0) -> Iterator[Table]:
    """Yield the layers of a model and of the models in it."""
    if kind(model) not in MODELS or depth > DEEPEST:
        raise UnreadableModel(
            f"the Keras file holds a {shown(kind(model), 60)}: only sequential and functional "
            "models are known here, since others are code of their own",
            rule="FS009",
        )
    for layer in model["config"]["layers"]:
        if kind(layer) in MODELS:
            yield from _layers(layer, depth + 1)
        else:
            yield layer


def _formats(model: Table) -> bool:
    """Return whether images have channels first."""
    told = {layer["config"].get("data_format") for layer in _layers(model)} - {None}
    if told - {"channels_first", "channels_last"} or len(told) > 1:
        raise odd(model["config"].get("name"), "mixes channels first and channels last")
    return told == {"channels_first"}


def _input_shape(model: Table) -> tuple[int, ...]:
    """Return the shape of the images, 0 where it is open."""
    config = model["config"]
    first = config["layers"][0]
    while kind(first) in MODELS:
        first = first["config"]["layers"][0]
    names = [place[0] for place in _places(config.get("input_layers", []))]
    if len(names) > 1:
        raise odd(config.get("name"), f"has {len(names)} inputs: expected images alone")
    own = next((layer for layer in config["layers"] if _name(layer) in names), first)["config"]
    built = [model.get("build_config", {}).get("input_shape"), config.get("build_input_shape")]
    told = [own.get("batch_shape"), own.get("batch_input_shape"), *built]
    shape = next((s for s in told if s), None)
    if shape is None:
        raise odd(config.get("name"), "does not say what size its images have")
    return tuple(int(n) if n else 0 for n in shape)


def _name(layer: Table) -> str:
    return str(layer.get("name") or layer["config"]["name"])


# 2. Weights -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where the weights of a model lie: a path in an archive, or a group of an older file."""

    path: str
    group: str
    stored: Stored

    def inside(self, layers: Sequence[Table]) -> dict[str, _Place]:
        """Return the places of a model's layers, by name."""
        counts: Counter[str] = Counter()
        places = {}
        for layer in layers:
            plain = snake(str(layer["class_name"]))
            number = counts[plain]
            counts[plain] += 1
            own = f"{plain}_{number}" if number else plain
            path, group = f"{self.path}layers/{own}/", self.group or _name(layer)
            places[_name(layer)] = replace(self, path=path, group=group)
        return places

    def weights(self, layer: Table, roles: Sequence[str]) -> dict[str, str]:
        """Return the names of a layer's tensors by their roles."""
        if self.stored.legacy:
            return self._by_name(_name(layer), roles)
        c = layer["config"]
        absent = {
            "bias": c.get("use_bias") is False,
            "gamma": c.get("scale") is False,
            "beta": c.get("center") is False,
        }
        kept = [role for role in roles if not absent.get(role)]
        found = {role: f"{self.path}vars/{i}" for i, role in enumerate(kept)}
        return {role: name for role, name in found.items() if name in self.stored.shapes}

    def _by_name(self, layer: str, roles: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in self.stored.shapes:
            group, _, rest = name.partition("/")
            *_, owner, role = ("", *rest.split("/"))
            if group != self.group or owner != layer:
                continue
            role = _COUNTED.sub("", role)
            role = role if role in roles else _ROLES.get(role, role)
            role = roles[0] if len(roles) == 1 else role  # such as LayerScale's, which has no name
            if role in found:
                raise odd(layer, f"has two tensors called {role}")
            if role in roles:
                found[role] = name
        return found


def snake(name: str) -> str:
    """Return a class's name as Keras writes it into an archive.

    Example:
        >>> snake("Conv2D"), snake("BatchNormalization"), snake("PReLU")
        ('conv2d', 'batch_normalization', 'p_re_lu')
    """
    apart = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", apart).lower()


# 3. Layers in their order ---------------------------------------------------------------------


def _model(w: Writer, model: Table, inputs: Sequence[str], place: _Place) -> list[str]:
    """Write a model that is given values; return its outputs."""
    config = model["config"]
    places = place.inside(config["layers"])
    if kind(model) == "Sequential":
        values = list(inputs)
        for layer in config["layers"]:
            values = _called(w, layer, values, places[_name(layer)])
        return values
    made: dict[tuple[str, int], list[str]] = {}
    starts = [p[0] for p in _places(config["input_layers"])]
    made.update({(name, 0): [value] for name, value in zip(starts, inputs, strict=True)})
    waiting = [
        (layer, number, call)
        for layer in config["layers"]
        for number, call in enumerate(layer.get("inbound_nodes") or [])
        if _name(layer) not in starts
    ]
    while waiting:
        rest = []
        for layer, number, call in waiting:
            given = _given(w, call, made)
            if given is None:
                rest.append((layer, number, call))
            else:
                made[_name(layer), number] = _called(w, layer, given, places[_name(layer)])
        if len(rest) == len(waiting):
            raise odd(_name(rest[0][0]), "reads what nothing gives")
        waiting = rest
    return [made[name, node][tensor] for name, node, tensor in _places(config["output_layers"])]


def _called(w: Writer, layer: Table, inputs: list[str], place: _Place) -> list[str]:
    """Write one call of a layer, or of a model in its place."""
    if kind(layer) == "InputLayer":
        return inputs
    if kind(layer) in MODELS:
        return _model(w, layer, inputs, place)
    write, roles = LAYERS[kind(layer)]
    weights = place.weights(layer, roles)
    lost = [r for r in roles[:1] if roles and r not in weights and not _optional(layer, r)]
    if lost:
        raise UnreadableModel(
            f"the Keras layer {shown(_name(layer), 60)!r} has no {lost[0]} in the file",
            rule="FS003",
        )
    w.layer = _name(layer)
    return [write(w, {**layer["config"], "name": _name(layer)}, inputs, weights)]


def _optional(layer: Table, role: str) -> bool:
    """Whether a layer may be without a weight."""
    settings = layer["config"]
    return settings.get("scale") is False or settings.get("mean") is not None


def _places(told: Any) -> list[tuple[str, int, int]]:
    """Return layer, call and output of references, of which one may stand by itself."""
    told = [told] if told and isinstance(told[0], str) else told
    return [(str(name), int(node), int(tensor)) for name, node, tensor, *_ in told]


def _given(w: Writer, call: Any, made: Mapping[tuple[str, int], list[str]]) -> list[str] | None:
    """Return the values that a call reads; None if one is not made yet."""
    values = []
    for reference in _references(call):
        if isinstance(reference, int | float):
            values.append(w.constant([reference], 1))
            continue
        name, node, tensor = reference
        if (name, node) not in made:
            return None
        values.append(made[name, node][tensor])
    return values


def _references(call: Any) -> Iterator[tuple[str, int, int] | float]:
    """Yield what a call reads: places of Keras 3 or 2, and plain numbers."""
    if not isinstance(call, dict):
        yield from _places(call)
        return
    stack = list(reversed(call["args"]))
    while stack:
        part = stack.pop()
        if isinstance(part, list | tuple):
            stack.extend(reversed(part))
        elif isinstance(part, dict):
            name, node, tensor = part["config"]["keras_history"]
            yield str(name), int(node), int(tensor)
        elif isinstance(part, int | float) and not isinstance(part, bool):
            yield float(part)
