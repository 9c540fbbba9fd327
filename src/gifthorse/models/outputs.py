"""What a net that nobody knows returns, and where in it the logits are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gifthorse.core.errors import UnfitNet
from gifthorse.core.types import Images, Logits
from gifthorse.models.reading.entries import shown

Key: TypeAlias = int | str

NAME = "logits"  # what libraries call them
DEEPEST = 4  # levels of tuples and dictionaries that are looked into
MOST = 64  # tensors of an output that are looked at
LEAST = 1e-30  # probabilities below this count as this, so that their logarithm stays finite
SINGLE = "the net has one output z, taken for two classes with the logits 0 and z"
LIKELY = "the net has one output between 0 and 1, taken for the probability of the second class"
SIDES = (32, 224, 28, 64, 96, 299, 128, 256, *range(1, 64))  # of images, the usual ones first
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
EXACT, ROUGH = 1e-3, 1e-2  # of the spread of logits: float32 anywhere, TF32 convolutions of a card


@dataclass(frozen=True)
class Output:
    """Where the logits are in what a net returns, and what makes logits of them.

    Attributes:
        classes: Columns.
        path: Positions and keys, from the outside in; empty for a net that returns a tensor.
        flat: Whether they come in another shape than `(N, K)`, such as `(N, K, 1, 1)`.
        cast: Whether they come in 16 bits and are turned into float32.
        log: Whether they are probabilities, of which the logarithm is taken.
        single: Whether there is one number z an image: two classes with the logits 0 and z.
        words: What was taken, for the report; empty if the net returns logits and nothing else.
    """

    classes: int = 0
    path: tuple[Key, ...] = ()
    flat: bool = False
    cast: bool = False
    log: bool = False
    single: bool = False
    words: str = ""

    def __call__(self, returned: Any) -> Logits:
        """Return the logits `(N, K)` that are in what the net returned."""
        for key in self.path:
            returned = _part(returned, key)
        columns = 1 if self.single else self.classes
        logits: Tensor = returned.reshape(-1, columns) if self.flat else returned
        logits = logits.float() if self.cast else logits
        if self.single:
            logits = torch.cat([1 - logits if self.log else torch.zeros_like(logits), logits], 1)
        return logits.clamp(min=LEAST).log() if self.log else logits


def locate(net: nn.Module, x: Tensor, classes: int = 0) -> Output:
    """Run a net on a few images, and on one, and find the logits in what it returns.

    Args:
        net: In eval mode; maps inputs `(N, C, H, W)` to whatever.
        x: What goes into it, `(N, C, H, W)`, N >= 1.
        classes: How many classes it ought to have; 0 if nobody knows. It decides only between
            several tensors that might be logits.

    Returns:
        A tensor called `logits`; else the first with this many columns; else the only one with a
        row an image.

    Raises:
        UnfitNet: If there is no such tensor, or it cannot be told which of several it is.
        Exception: Whatever the net raises.
    """
    some = x[[0, -1, 0]]  # three, so that no class or channel count is taken for a batch by chance
    with torch.no_grad():
        many, one = net(some), net(x[:1])
    found = list(_tensors(many))
    path, logits = _choose(found, len(some), classes)
    columns = logits.numel() // len(some)
    alone = Output(columns, path)(one)
    if alone.numel() != columns:
        raise UnfitNet(
            f"of one image the net makes {tuple(alone.shape)}, of {len(some)} "
            f"{tuple(logits.shape)}: expected one row of logits an image",
            rule="IN004",
        )
    flat = logits.ndim != 2 or alone.ndim != 2
    cast = logits.dtype in (torch.float16, torch.bfloat16)
    words = _words(path, found, logits, flat)
    output = Output(columns, path, flat=flat, cast=cast, words=words)
    return (
        _of_one(output, output(many)) if columns == 1 else _of_probabilities(output, output(many))
    )


def _of_one(output: Output, numbers: Tensor) -> Output:
    """Return the same for a net of two classes that ends in one number, perhaps in a sigmoid."""
    likely = bool(((numbers >= 0) & (numbers <= 1)).all())
    taken = LIKELY if likely else SINGLE
    words = "; ".join(filter(None, (output.words, taken)))
    return replace(output, classes=2, single=True, log=likely, words=words)


def _of_probabilities(output: Output, logits: Logits) -> Output:
    """Return the same for a net that ends in a softmax: its logarithms are logits."""
    if not sums_to_one(logits):
        return output
    taken = "the outputs are probabilities: their logarithms are taken for logits"
    return replace(output, log=True, words="; ".join(filter(None, (output.words, taken))))


def sums_to_one(outputs: Tensor) -> bool:
    """Whether outputs `(N, K)` are probabilities of which one class is right.

    Example:
        >>> sums_to_one(torch.tensor([[0.2, 0.8]])), sums_to_one(torch.tensor([[0.7, 0.8]]))
        (True, False)
    """
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    return inside and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())


# What is in it --------------------------------------------------------------------------------


def _part(returned: Any, key: Key) -> Any:
    if isinstance(key, str) and not isinstance(returned, Mapping):
        return getattr(returned, key)
    return returned[key]


def _parts(returned: Any) -> Iterator[tuple[Key, Any]]:
    """Yield what a tuple, a list, a dictionary or a record holds."""
    if isinstance(returned, Mapping):
        yield from ((key, v) for key, v in returned.items() if isinstance(key, int | str))
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        yield from ((name, getattr(returned, name)) for name in returned._fields)
    elif isinstance(returned, list | tuple):
        yield from enumerate(returned)
    elif is_dataclass(returned) and not isinstance(returned, type):
        yield from ((f.name, getattr(returned, f.name)) for f in fields(returned))
    elif hasattr(returned, "__dict__"):
        yield from vars(returned).items()


def _tensors(returned: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Tensor]]:
    """Yield the tensors of an output, each with the way to it."""
    if isinstance(returned, Tensor):
        yield path, returned
    elif len(path) < DEEPEST and not isinstance(returned, nn.Module):
        for _, (key, value) in zip(range(MOST), _parts(returned), strict=False):
            yield from _tensors(value, (*path, key))


def _choose(
    found: Sequence[tuple[tuple[Key, ...], Tensor]], rows: int, classes: int
) -> tuple[tuple[Key, ...], Tensor]:
    """Return the tensor of logits and the way to it."""
    fit = [(path, t) for path, t in found if _is_row_of_numbers(t, rows)]
    fit = [(path, t) for path, t in fit if t.numel() > rows] or fit  # one column: no classes
    known = [(path, t) for path, t in fit if t.numel() == rows * classes]
    called = [(path, t) for path, t in fit if path and path[-1] == NAME]
    best = called[:1] or known[:1] or (fit if len(fit) == 1 else [])
    if best:
        return best[0]
    if fit:
        raise UnfitNet(
            f"the net returns {_listed(fit)}, and it cannot be told which of them are the logits: "
            "return them alone, or first and with one column a class",
            rule="IN004",
        )
    whole = [t for _, t in found if t.dtype in WHOLE and t.ndim and len(t) == rows]
    what = "class numbers in place of logits" if whole else "no logits"
    raise UnfitNet(
        f"the net returns {what}: for {rows} images {_listed(found)}; expected a floating point "
        "tensor with a row an image and a column a class",
        rule="IN004",
    )


def _is_row_of_numbers(t: Tensor, rows: int) -> bool:
    """Whether a tensor is `(N, K)`, perhaps with dimensions of one; `(N,)` is one output."""
    shape = t.shape
    return t.is_floating_point() and len(shape) > 0 and shape[0] == rows and t.numel() in (
        rows * shape[1] if len(shape) > 1 else rows, rows * shape[-1]
    )  # fmt: skip


def _listed(found: Sequence[tuple[tuple[Key, ...], Tensor]]) -> str:
    each = [f"{_named(path)}{tuple(t.shape)} {str(t.dtype)[6:]}" for path, t in found[:4]]
    more = f" and {len(found) - 4} more" * (len(found) > 4)
    return f"{', '.join(each)}{more}" if each else "no tensor"


def _named(path: tuple[Key, ...]) -> str:
    return f"{'.'.join(shown(str(key)) for key in path)}: " if path else ""


def _words(
    path: tuple[Key, ...],
    found: Sequence[tuple[tuple[Key, ...], Tensor]],
    logits: Tensor,
    flat: bool,
) -> str:
    if path:
        return (
            f"the net returns {len(found)} tensor{'s' * (len(found) != 1)} ({_listed(found)}); "
            f"{_named(path)[:-2]} is taken for the logits"
        )
    return f"logits of shape {tuple(logits.shape)} are read as one row an image" if flat else ""


# Trying ---------------------------------------------------------------------------------------


def ends(net: nn.Module, classes: int = 0) -> tuple[int, int]:
    """Return how many classes a net gives and channels it takes, by running it on noise.

    The order in which layers are declared says nothing: only what forward does counts.

    Args:
        net: In eval mode.
        classes: As for `locate`.

    Returns:
        Classes, 0 if it ran on no usual size of images; channels, 3 if nothing says otherwise.

    Raises:
        UnfitNet: If it runs, but never returns logits.

    Example:
        >>> ends(nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        (8, 1)
    """
    unfit: UnfitNet | None = None
    net = copied(net)  # one that changes as it is used must not have seen noise
    first = _entrance(net)
    entry = first.in_channels if isinstance(first, nn.Conv2d) else 0
    for c in dict.fromkeys(filter(None, (entry, 3, 1))):
        for side in dict.fromkeys((*_flat_sides(first, c), *SIDES)):
            try:
                return locate(net, _noise(c, side), classes).classes, c
            except UnfitNet as error:
                unfit = unfit or error
            except Exception:  # noqa: S112 - a stranger's code raises anything: next size
                continue
    if unfit is not None:
        raise unfit
    return 0, entry or 3


def side_that_runs(net: nn.Module, channels: int) -> int:
    """Return the side of square images that a net runs on, of those that are usual; 0 if none."""
    sides = dict.fromkeys((*_flat_sides(_entrance(net), channels), *SIDES))
    return next((side for side in sides if not failure(net, _noise(channels, side))), 0)


def _noise(channels: int, side: int) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def _entrance(net: nn.Module) -> nn.Module | None:
    """Return the linear or convolutional layer that runs first, None if none does."""
    seen: list[nn.Module] = []
    hooks = [
        m.register_forward_pre_hook(lambda layer, _: seen.append(layer))
        for m in net.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    try:
        for c in (3, 1):
            if not seen:
                failure(net, torch.zeros(2, c, SIDES[0], SIDES[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0] if seen else None


def failure(net: nn.Module, x: Tensor) -> str:
    """Run a net; return why it could not be run, or nothing."""
    try:
        with torch.no_grad():
            net(x)
    except Exception as error:
        return reason(error)
    return ""


def _flat_sides(first: nn.Module | None, channels: int) -> tuple[int, ...]:
    """Return the side of images whose pixels a linear layer takes in, all in one row."""
    if not isinstance(first, nn.Linear) or first.in_features % channels:
        return ()
    side = math.isqrt(first.in_features // channels)
    return (side,) if side and side * side * channels == first.in_features else ()


def copied(net: nn.Module) -> nn.Module:
    """Return a private copy of a net.

    Raises:
        UnfitNet: If it cannot be copied.
    """
    try:
        return deepcopy(net)
    except Exception as error:
        words = f"the net cannot be copied, so nothing can be searched on it: {reason(error)}"
        raise UnfitNet(words, rule="IN004") from error


def reason(error: Exception) -> str:
    """Return what went wrong inside a net, in one printable line."""
    words = " ".join(str(error).split())
    return shown(f"{type(error).__name__}: {words}" if words else type(error).__name__)


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether two answers of a net `(N, K)` are the same up to rounding.

    Rounding in float32 moves a logit by some 1e-5 of what logits spread, whatever the order of
    sums; convolutions of a card keep 10 bits (TF32), some 1e-3. A hundred times that is allowed,
    and ten times; another way through a net moves logits by about all of their spread.
    """
    if one.shape != other.shape:
        return False
    most = (EXACT if one.device.type == "cpu" else ROUGH) * (one - one.mean()).abs().amax()
    return bool(((one - other).abs() <= most + 1e-6).all())


def head_of(net: nn.Module, x: Images) -> str:
    """Return the name of the layer that makes the logits; empty if that is no layer's output.

    Args:
        net: Returns logits `(N, K)`.
        x: A few images.
    """
    said: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda layer, given, out, name=name: said.update({name: out}))
        for name, m in net.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            logits: Tensor = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    rows = [(name, out.flatten(1)) for name, out in said.items() if isinstance(out, Tensor)]
    same = [name for name, out in rows if out.shape == logits.shape and torch.equal(out, logits)]
    wide = [name for name, out in rows if out.shape == logits.shape]
    return next(iter([*same[-1:], *wide[-1:]]), "")
