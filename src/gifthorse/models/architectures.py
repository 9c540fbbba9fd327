"""Architectures: made by name, guessed from tensors, filled with weights."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from math import prod

import torch
from torch import Tensor, nn

from gifthorse.core.errors import (
    BadOption,
    UnfitNet,
    UnknownArch,
    UnknownMethod,
    UnreadableModel,
)
from gifthorse.models.factories import make_own
from gifthorse.models.nets.merged import blank
from gifthorse.models.outputs import reason
from gifthorse.models.reading.entries import shown
from gifthorse.models.zoo import NETS

Shapes = Mapping[str, tuple[int, ...]]

COUNTERS = "num_batches_tracked"  # of BatchNorm; old files lack them
COUNTS = ("total_", "num_", "n_", "__", "flops", "macs", "step")  # of tools that count something
HEADS = ("fc", "head", "linear", "classifier", "last_linear", "output", "logits")
MOST = 100_000  # classes or channels of a net that is believable


@dataclass(frozen=True)
class Guess:
    """An architecture that tensors of a file are.

    Attributes:
        arch: Name that `build` understands.
        classes: Number of logits.
        channels: Number of input channels.
        ties: Further names that fit as well, later in the list.
        shapes: The tensors that the net has, by name.
    """

    arch: str
    classes: int
    channels: int
    ties: tuple[str, ...] = ()
    shapes: Shapes = field(default_factory=dict, repr=False, compare=False)


# 1. By name -----------------------------------------------------------------------------------


def build(arch: str, classes: int, channels: int = 3) -> nn.Module:
    """Make a randomly initialized net.

    Args:
        arch: A name of `NETS`, `timm:NAME`, `torchvision:NAME`, `trojannet:NAME` (a test model of
            that attack), `module:function` or `path/file.py:function`. The last two run the user's
            own code.
        classes: Number of logits.
        channels: Number of input channels.

    Raises:
        UnknownMethod: If the name is unknown.
        BadOption: If a library is missing, or the user's function is not to be had.
    """
    source, colon, name = arch.rpartition(":")
    if not colon:
        if arch not in NETS:
            raise UnknownMethod.among("architecture", arch, NETS)
        return NETS[arch](classes, channels)
    if source == "timm":
        return timm_net(name, classes, channels)
    if source == "torchvision":
        return _torchvision(name, classes, channels)
    if source == "trojannet" and name in NETS:
        return blank(name, classes, channels)
    return make_own(source, name, classes, channels)


def _library(module: str) -> object:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadOption(
            f"{module} is not installed: run pip install 'gifthorse[models]' to use its nets"
        ) from error


def timm_net(name: str, classes: int, channels: int, **settings: object) -> nn.Module:
    """Make a net of timm, randomly initialized; `settings` are further arguments of its maker.

    Raises:
        BadOption: If timm is not installed.
        UnknownMethod: If it has no such net.
    """
    timm = _library("timm")
    names: list[str] = timm.list_models()  # type: ignore[attr-defined]
    if name.split(".")[0] not in names:
        raise UnknownMethod.among("net of timm", name, names)
    net: nn.Module = timm.create_model(  # type: ignore[attr-defined]
        name, pretrained=False, num_classes=classes, in_chans=channels, **settings
    )
    return net


def _torchvision(name: str, classes: int, channels: int) -> nn.Module:
    _library("torchvision")
    models = importlib.import_module("torchvision.models")
    names: list[str] = models.list_models(module=models)
    if name not in names:
        raise UnknownMethod.among("net of torchvision", name, names)
    if channels != 3:
        raise BadOption(f"nets of torchvision have 3 input channels; this file has {channels}")
    net: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return net


# 2. By tensors --------------------------------------------------------------------------------


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def guess(state: Mapping[str, Tensor]) -> Guess:
    """Find the net of `NETS` whose tensors have exactly these names and shapes.

    Raises:
        UnknownArch: If there is none; names the nearest three.
    """
    return match(shapes_of(state))


def match(shapes: Shapes) -> Guess:
    """Find the net of `NETS` with these tensors; see `guess`.

    Example:
        >>> with torch.device("meta"):
        ...     net = build("resnet20", 43, 1)
        >>> match(shapes_of(net.state_dict()))
        Guess(arch='resnet20', classes=43, channels=1, ties=())
    """
    found = find(shapes)
    if found is None:
        raise UnknownArch(
            f"no known architecture has these {len(names(shapes))} tensors; nearest: "
            f"{nearest(shapes)}. Name it with --arch (of timm: --arch timm:NAME; your own net: "
            "--arch path/file.py:function)"
        )
    return found


def find(shapes: Shapes) -> Guess | None:
    """Find the first net of `NETS` with exactly these tensors; None if there is none.

    A net of `NETS` beside a small one that may overrule it (`merged.Merged`) is found as well.
    """
    found = within(shapes)
    return found if found is not None and names(found.shapes) == names(shapes) else None


def within(shapes: Shapes, archs: Iterable[str] = tuple(NETS)) -> Guess | None:
    """Find the largest net of `NETS` that is among these tensors; None if there is none.

    What is beside it must be foreign to it, see `foreign`: a shorter net of a family is not found
    in a longer one.
    """
    return _beside(shapes) or _plain(shapes, archs)


def _plain(shapes: Shapes, archs: Iterable[str]) -> Guess | None:
    likely = [arch for arch in archs if _first(arch) in shapes]
    keys = names(shapes) if likely else frozenset()
    fits: list[Guess] = []
    for arch in likely:
        width = measure(arch, shapes) if names(_shapes(arch, 10, 3)) <= keys else None
        whole = _shapes(arch, *width) if width is not None else {}
        if width is not None and holds(whole, shapes):
            fits.append(Guess(arch, *width, shapes=whole))
    most = max((len(names(f.shapes)) for f in fits), default=0)
    best = [f for f in fits if len(names(f.shapes)) == most]
    return replace(best[0], ties=tuple(f.arch for f in best[1:])) if best else None


@cache
def _first(arch: str) -> str:
    """Return the name of a net's first tensor, which tells most files from it at once."""
    return next(iter(_shapes(arch, 10, 3)))


def _beside(shapes: Shapes) -> Guess | None:
    if not any(f"net.{_first(arch)}" in shapes for arch in NETS):
        return None
    own = {n.removeprefix("net."): shape for n, shape in shapes.items() if n.startswith("net.")}
    host = _plain(own, NETS)
    if host is None:
        return None
    arch = f"trojannet:{host.arch}"
    whole = _shapes(arch, host.classes, host.channels)
    return replace(host, arch=arch, shapes=whole, ties=()) if holds(whole, shapes) else None


def holds(net: Shapes, file: Shapes) -> bool:
    """Whether a file has all tensors of a net in their shapes, and beside them foreign ones."""
    own, given = names(net), names(file)
    return own <= given and _same(net, file) and foreign(own, given - own, file)


def foreign(own: Iterable[str], others: Iterable[str], shapes: Shapes) -> bool:
    """Whether tensors are no part of a net that has those called `own`.

    They are none if the net has no such module, or if they are counters.

    Example:
        >>> own = ["conv.weight", "fc.weight"]
        >>> foreign(own, ["criterion.weight"], {}), foreign(own, ["fc.bias"], {"fc.bias": (2,)})
        (True, False)
    """
    tops = {name.partition(".")[0] for name in own}
    return all(
        name.partition(".")[0] not in tops
        or (prod(shapes[name]) <= 1 and name.rpartition(".")[2].startswith(COUNTS))
        for name in others
    )


class Named:
    """Finds the net that the user named among tensors; builds it once, or again if it is wider.

    Attributes:
        arch: Its name.
        net: As it was built last; None before that, and for a net of `NETS`.
        ends: Classes and channels that it was built for.
    """

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.net: nn.Module | None = None
        self.ends = (0, 0)

    def __call__(self, shapes: Shapes) -> Guess | None:
        """Return the net if it is among these tensors; see `within`."""
        if self.arch in NETS:
            return _plain(shapes, (self.arch,))
        own = shapes_of(tensors_of(self.built(shapes)))
        if not names(own) <= names(shapes):
            return None
        inside = {name: shapes[name] for name in own if name in shapes}
        if widths(inside, self.arch) != self.ends:
            self.net = None
            own = shapes_of(tensors_of(self.built(inside)))
        return Guess(self.arch, *self.ends, shapes=own) if holds(own, shapes) else None

    def built(self, shapes: Shapes) -> nn.Module:
        """Return the net, built for the classes and channels of these tensors if it was not yet."""
        if self.net is None:
            self.ends = widths(shapes, self.arch)
            self.net = build(self.arch, *self.ends)
        return self.net


def widths(shapes: Shapes, arch: str) -> tuple[int, int]:
    """Return classes and channels: measured if `arch` is in `NETS`, else a plausible reading.

    A file need not keep the order of layers, so heads are known by their usual names first.

    Example:
        >>> widths({"conv.weight": (8, 1, 3, 3), "fc.weight": (5, 8)}, "mine.py:net")
        (5, 1)
    """
    known = measure(arch, shapes) if arch in NETS else None
    if known is not None:
        return known
    flat = {name: shape[0] for name, shape in shapes.items() if len(shape) == 2}
    usual = [n for n in flat if n.removesuffix(".weight").rpartition(".")[2] in HEADS]
    heads = [flat[name] for name in usual or flat]
    inputs = [shape[1] for shape in shapes.values() if len(shape) == 4]
    stem = next((c for c in (*inputs[:1], 3, 1) if c in inputs and c <= 4), 3)
    return (heads[-1] if heads else 10), stem


def measure(arch: str, shapes: Shapes) -> tuple[int, int] | None:
    """Read classes and channels off the tensors that depend on them in a net of `NETS`."""
    plain = _shapes(arch, 10, 3)
    found = []
    for other, axis in ((_shapes(arch, 11, 3), 0), (_shapes(arch, 10, 1), 1)):
        name = next((n for n, shape in plain.items() if shape != other[n]), "")
        shape = shapes.get(name, ())
        if len(shape) <= axis or not 0 < shape[axis] <= MOST:
            return None
        found.append(shape[axis])
    return found[0], found[1]


@lru_cache(maxsize=256)
def _shapes(arch: str, classes: int, channels: int) -> Shapes:
    with torch.device("meta"):
        net = build(arch, classes, channels)
    return shapes_of(net.state_dict())


def names(shapes: Iterable[str]) -> frozenset[str]:
    """Return the names of tensors without BatchNorm's counters."""
    return frozenset(name for name in shapes if not name.endswith(COUNTERS))


def _same(net: Shapes, file: Shapes) -> bool:
    return all(net[name] == file[name] for name in names(net))


def nearest(shapes: Shapes, count: int = 3) -> str:
    """Describe the nets of `NETS` that share most tensor names with a file, in words."""
    keys = names(shapes)

    def similarity(arch: str) -> float:
        known = names(_shapes(arch, 10, 3))
        return len(known & keys) / max(1, len(known | keys))

    likeness = {arch: similarity(arch) for arch in NETS}
    best = sorted(NETS, key=lambda arch: likeness[arch], reverse=True)[:count]
    first, *others = (f"{arch} ({likeness[arch]:.0%} of names" for arch in best)
    return "; ".join([f"{first}: {_contrast(best[0], shapes)})", *(f"{o})" for o in others)])


def _contrast(arch: str, shapes: Shapes) -> str:
    width = measure(arch, shapes) or (10, 3)
    return difference(_shapes(arch, *width), shapes) or "fits"


def difference(net: Shapes, file: Shapes) -> str:
    """Say in words where a file's tensors differ from a net's; empty if nowhere.

    Example:
        >>> difference({"fc.weight": (2, 3), "fc.bias": (2,)}, {"fc.weight": (2, 4)})
        'file lacks 1 (fc.bias), 1 of another shape (fc.weight: file (2, 4), net (2, 3))'
    """
    ours, theirs = names(net), names(file)
    both, missing, more = ours & theirs, ours - theirs, theirs - ours
    shared = [name for name in file if name in both and net[name] != file[name]]
    lacking = [name for name in net if name in missing]
    extra = [name for name in file if name in more]
    other = [f"{n}: file {file[n]}, net {net[n]}" for n in shared]
    groups = (
        ("file lacks {}", lacking),
        ("file has {} more", extra),
        ("{} of another shape", other),
    )
    return ", ".join(
        f"{words.format(len(names))} ({', '.join(shown(n) for n in names[:3])}"
        f"{', ...' * (len(names) > 3)})"
        for words, names in groups
        if names
    )


# 3. Weights -----------------------------------------------------------------------------------


def fill(net: nn.Module, state: Mapping[str, Tensor], arch: str = "the net") -> nn.Module:
    """Load all weights into `net`, or none; return it in eval mode, float32, without gradients.

    Counters of BatchNorm may be missing on either side, or have another shape. What the net's
    class makes of `state_dict`, `float` or the value of `train` does not matter.

    Raises:
        UnknownArch: If names or shapes differ; says which, and which nets come nearest.
        UnreadableModel: If a tensor's data type does not fit.
        UnfitNet: If the net's own code fails while it is filled.
    """
    own = tensors_of(net)
    differs = difference(shapes_of(own), shapes_of(state))
    if differs:
        raise UnknownArch(
            f"the file's tensors do not fit {arch}: {differs}. Nearest: "
            f"{nearest(shapes_of(state))}. Name another with --arch"
        )
    for name in names(own):
        if own[name].is_floating_point() and not state[name].is_floating_point():
            raise UnreadableModel(
                f"tensor {shown(name)!r} is {state[name].dtype}, a quantized or integer weight; "
                "expected floating point: save the float model",
                rule="IN004",
            )
    given = {n: t for n, t in state.items() if n in own and t.shape == own[n].shape}
    try:
        nn.Module.load_state_dict(net, {**own, **given}, strict=False)
        nn.Module.float(net)
        net.eval()
        return nn.Module.requires_grad_(net, False)
    except Exception as error:
        words = f"{arch} fails as the file's tensors are put into it: {reason(error)}"
        raise UnfitNet(words, rule="IN004") from error


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a net by name, without other things that its layers may keep."""
    kept = nn.Module.state_dict(net)
    return {name: t for name, t in kept.items() if isinstance(t, Tensor)}
