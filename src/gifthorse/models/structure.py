"""What the stubs of a whole model show of its net, beside the shapes of its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gifthorse.core.errors import BadOption, UnknownMethod
from gifthorse.models import architectures as archs
from gifthorse.models.architectures import Guess, Shapes
from gifthorse.models.hub.config import TYPES, HubConfig, of_fields
from gifthorse.models.reading.entries import CheckpointEntry, shown
from gifthorse.models.reading.pickles import Layer
from gifthorse.models.reading.ratings import CODE

# Settings of a layer that its tensors do not show; where ours is a number, so must be the file's.
SETTINGS = (
    *("eps", "stride", "padding", "dilation", "num_heads", "kernel_size", "ceil_mode"),
    *("negative_slope", "transform_input"),
)
ALIASES = {"num_heads": "heads"}  # what nets of ours call it
COUNTS = ("stride", "dilation", "num_heads", "kernel_size")  # which are 1 or more
MOST = 100  # of a setting that is believed
FEW = 3  # layers that are named of each kind
TORCH = "torch.nn.modules."

Entries = Mapping[str, CheckpointEntry]


def own_net(layers: Sequence[Layer], entries: Entries) -> Layer:
    """Return the stub of the net that the chosen tensors of a file are; an empty one if none is."""
    by_name, front = {layer.name: layer for layer in layers}, _front(entries)
    nothing = Layer("", "", {})
    return nothing if front is None else by_name.get(front.rstrip("."), nothing)


def _front(entries: Entries) -> str | None:
    """Return what stands in a file before the names of a net's tensors; None if they were changed.

    Example:
        >>> _front({"fc.bias": CheckpointEntry(("ema", "model.fc.bias"), "float16", (2,))})
        'ema.model.'
    """
    for name, entry in entries.items():
        full = ".".join(entry.path)
        if full.endswith(name):
            return full.removesuffix(name)
    return None


# 1. Nets of libraries -------------------------------------------------------------------------


def of_library(stub: Layer, shapes: Shapes) -> Guess | None:
    """Find the net of timm or torchvision that these tensors are.

    Args:
        stub: Of the net; if its class is one of theirs, such as `torchvision.models.vgg.VGG`, the
            net that it says it is comes first, then those that are made beside its class. Without a
            class, all of torchvision's are tried.
        shapes: The tensors.

    Returns:
        None if no net of theirs fits, or the library is not installed.
    """
    keys = archs.names(shapes)
    told = stub.settings.get("num_classes")
    for arch in dict.fromkeys(_names(stub)) if stub.kind else _alike(keys):
        classes, channels = archs.widths(shapes, arch)
        classes = told if type(told) is int and 0 < told <= archs.MOST else classes
        try:
            own = _blank(arch, classes, channels)
        except (BadOption, UnknownMethod, RuntimeError, NotImplementedError):
            continue
        if archs.names(own) == keys and not archs.difference(own, shapes):
            return Guess(arch, classes, channels, shapes=own)
    return None


def of_transformers(stub: Layer) -> HubConfig | None:
    """Return the configuration that a net of transformers keeps, checked like one of a folder.

    Args:
        stub: Of the net.

    Returns:
        None if it is no such net, or keeps none.

    Raises:
        UnreadableModel: If the configuration is not believable.
    """
    library, _, rest = stub.kind.partition(".models.")
    told, types = stub.settings.get("config"), {t.replace("-", "_"): t for t in TYPES}
    kind = types.get(rest.partition(".")[0])
    if library != "transformers" or kind is None or not isinstance(told, Mapping):
        return None
    named = {"model_type": kind, "architectures": [rest.rpartition(".")[2]]}
    return of_fields(Path("its own config"), {**told, **named})


def _names(stub: Layer) -> Iterator[str]:
    """Yield the net that a stub says it is, and those of its library made in its class's module."""
    library, _, rest = stub.kind.partition(".models.")
    module = rest.rpartition(".")[0]
    if library not in ("timm", "torchvision") or not module:
        return
    try:
        models: Any = importlib.import_module(f"{library}.models")
    except ImportError:
        return
    if library == "timm":
        told = stub.settings.get("pretrained_cfg")  # what a net of timm keeps of its making
        claim = str(told.get("architecture")) if isinstance(told, Mapping) else ""
        yield from [f"timm:{claim}"] * claim.isidentifier()  # never a file of the user's own
        yield from (f"timm:{name}" for name in models.list_models(module=module))
        return
    for name in models.list_models(module=models):
        if models.get_model_builder(name).__module__ == f"torchvision.models.{module}":
            yield f"torchvision:{name}"


def _alike(keys: frozenset[str]) -> Iterator[str]:
    """Yield the nets of torchvision from modules in which one shares most names with these."""
    try:
        models: Any = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError):  # or one for another torch
        return
    for names in _modules(models).values():
        own = _tops(names[0])
        if own <= {key.partition(".")[0] for key in keys}:
            yield from names


def _modules(models: Any) -> dict[str, list[str]]:
    """Return the nets of torchvision by the modules that they are made in."""
    found: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__
        found.setdefault(module, []).append(f"torchvision:{name}")
    return found


@cache
def _tops(arch: str) -> frozenset[str]:
    """Return the first parts of the names of a net's tensors."""
    return frozenset(name.partition(".")[0] for name in _blank(arch, 10, 3))


class _WithoutWeights(TorchFunctionMode):
    """Makes tensors that would be filled later, as weights are, on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        return func(*args, **(given | {"device": "meta"} if func is torch.empty else given))


def _blank(arch: str, classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a library's net, made without its weights."""
    try:
        with torch.device("meta"):
            net = archs.build(arch, classes, channels)
    except (RuntimeError, NotImplementedError):  # RegNet works its widths out with tensors
        with _WithoutWeights():
            net = archs.build(arch, classes, channels)
    return archs.shapes_of(net.state_dict())


def hint(kind: str, names: Iterable[str] = ()) -> str:
    """Say what class a file names for its net, or what its tensors lack, for an error on these.

    Args:
        kind: Name of the class; empty if the file names none.
        names: Of its tensors.
    """
    library = kind.partition(".")[0]
    told = f". The file's own class is {shown(kind)}" if kind else ""
    if library == "transformers":
        return f"{told}: write it with save_pretrained and scan that folder, with its config.json"
    if library in ("timm", "torchvision"):
        told += f": after pip install 'gifthorse[models]', name its net with --arch {library}:NAME"
    if not kind and TYPES & {name.partition(".")[0] for name in names}:
        return (
            ". They are named as in transformers: scan the folder with the config.json beside them"
        )
    return told


def unlike(kind: str, arch: str) -> tuple[str, ...]:
    """Say that a net of ours stands in for one of a class whose code was not looked at.

    Example:
        >>> unlike("nets.Net", "tiny")[0]
        "what is scanned is tiny, built here: the file's own nets.Net may compute something else"
        >>> unlike("torchvision.models.resnet.ResNet", "resnet18")
        ()
    """
    if not kind or kind.startswith(CODE):
        return ()
    words = f"what is scanned is {arch}, built here: the file's own {shown(kind)} may compute "
    return (f"{words}something else",)


# 2. Settings of layers ------------------------------------------------------------------------


def adopt(net: nn.Module, layers: Sequence[Layer], entries: Entries) -> tuple[str, ...]:
    """Set the layers of a net as the stubs of a file show them; say that, and what else differs.

    Args:
        net: Built from an architecture; its layers are changed in place.
        layers: What the stubs show.
        entries: The net's tensors by the names that it has for them.

    Example:
        >>> norm = nn.BatchNorm2d(4)
        >>> entry = CheckpointEntry(("bn.weight",), "float32", (4,))
        >>> shown = Layer("bn", "torch.nn.modules.batchnorm.BatchNorm2d", {"eps": 0.001})
        >>> adopt(nn.Sequential(norm), [shown], {"0.weight": entry})
        ('set as in the file: eps of 1 layer (0: 0.001)',)
        >>> norm.eps
        0.001
    """
    changed: dict[str, list[str]] = {}
    strange: list[str] = []
    for name, module, layer in _pairs(net, layers, entries):
        if _differs(module, layer):
            ours = type(module).__name__
            strange.append(f"{shown(name, 60)} is a {layer.kind} there, a {ours} here")
            continue
        for key in SETTINGS:
            value = _changed(module, key, layer.settings.get(key))
            if value is not None:
                setattr(module, ALIASES[key] if not hasattr(module, key) else key, value)
                changed.setdefault(key, []).append(f"{shown(name, 60)}: {value}")
    told = [
        f"set as in the file: {key} of {len(names)} layer{'s' * (len(names) > 1)} "
        f"({', '.join(names[:FEW])}{', ...' * (len(names) > FEW)})"
        for key, names in changed.items()
    ]
    if strange:
        more = f", and {len(strange) - FEW} more" if len(strange) > FEW else ""
        told.append(
            f"the net built here is not quite the file's own: {', '.join(strange[:FEW])}{more}"
        )
    return tuple(told)


def labels(layers: Sequence[Layer], classes: int) -> tuple[str, ...]:
    """Return the names of the classes that a stub keeps, if they are as many as the classes."""
    return next((layer.names for layer in layers if len(layer.names) == classes > 0), ())


def _pairs(
    net: nn.Module, layers: Sequence[Layer], entries: Entries
) -> Iterator[tuple[str, nn.Module, Layer]]:
    """Yield the layers of a net, each with the stub that stands in its place."""
    by_name, front = {layer.name: layer for layer in layers}, _front(entries)
    places = {n.rpartition(".")[0]: ".".join(e.path).rpartition(".")[0] for n, e in entries.items()}
    for name, module in net.named_modules():
        place = places.get(name) or (None if front is None else f"{front}{name}")
        layer = by_name.get(place) if place is not None else None
        if layer is not None:
            yield name, module, layer


def _differs(module: nn.Module, layer: Layer) -> bool:
    """Whether a layer does something else than its stub: of layers that contain no others."""
    ours = type(module)
    leaf = ours.__module__.startswith(TORCH) and not any(True for _ in module.children())
    same = layer.kind.startswith(CODE) and layer.kind.rpartition(".")[2] == ours.__name__
    return leaf and not same


def _changed(module: nn.Module, key: str, value: object) -> Any:
    """Return the value of a setting if a layer has another one of the same kind; else None."""
    ours = getattr(module, key, getattr(module, ALIASES.get(key, key), None))
    if key == "kernel_size" and any(True for _ in module.parameters()):
        return None  # which the shape of its weights says
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, int) and isinstance(ours, tuple) and not isinstance(value, bool):
        value = (value,) * len(ours)
    if type(value) is not type(ours) or value == ours:
        return None
    least = 1 if key in COUNTS else 0
    return value if _believed(value, ours, least) else None


def _believed(value: object, ours: object, least: int) -> bool:
    """Whether a setting has as many numbers as ours, of the same types, none out of all bounds."""
    theirs = value if isinstance(value, tuple) else (value,)
    known = ours if isinstance(ours, tuple) else (ours,)
    return len(theirs) == len(known) and all(
        isinstance(v, int | float) and type(v) is type(own) and least <= v <= MOST
        for v, own in zip(theirs, known, strict=True)
    )
