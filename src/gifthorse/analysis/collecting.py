"""What the layers of a net give for images: found, gathered, reduced to one number a channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.types import Images, Labels, Samples, Subject
from gifthorse.data.samples import batches
from gifthorse.training import frozen_eval

Reduce: TypeAlias = Literal["mean", "max", "flatten", "none"]


@dataclass(frozen=True, eq=False)
class Collected:
    """What layers gave for samples, in the order of the samples.

    Attributes:
        layers: By name: `(N, C)`, `(N, d)` if flattened, `(N, C, H, W)` if not reduced.
        labels: `(N,)` int64.
        index: Which sample each row is of, `(N,)` int64.
    """

    layers: dict[str, Tensor]
    labels: Labels
    index: Tensor


def collect(
    subject: Subject,
    samples: Samples,
    layers: Sequence[str] = (),
    *,
    reduce: Reduce = "mean",
    size: int = 256,
) -> Collected:
    """Return what layers give for all samples, without augmentation, in evaluation mode.

    Args:
        subject: The classifier; it stays as it was.
        samples: Images.
        layers: Names of modules; empty takes the `stages`.
        reduce: What becomes of maps `(N, C, H, W)`: the `mean` or `max` over places, `flatten`, or
            `none`. What has no places stays as it is.
        size: Images in a batch.

    Raises:
        BadOption: If the net has no layer of such a name, or `reduce` is another word.
        BadImages: If there are no images.
    """
    if reduce not in get_args(Reduce):
        raise BadOption(f"reduce must be one of {', '.join(get_args(Reduce))}; got {reduce!r}")
    if not len(samples):
        raise BadImages("there must be at least one image to collect what layers give for it")
    names = tuple(layers) or stages(subject)
    parts, labels = [], []
    for x, y in batches(samples, size):
        parts.append(given(subject, x, names, reduce=reduce, size=size))
        labels.append(y.cpu())
    gathered = {name: torch.cat([part[name] for part in parts]) for name in names}
    return Collected(gathered, torch.cat(labels), torch.arange(len(samples)))


def given(
    subject: Subject,
    x: Images,
    layers: Sequence[str] = (),
    *,
    reduce: Reduce = "mean",
    size: int = 256,
) -> dict[str, Tensor]:
    """Return what layers give for images `(N, C, H, W)`, by name; see `collect`."""
    names = tuple(layers) or stages(subject)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with frozen_eval(subject), torch.no_grad(), tapped(subject.net, names) as seen:
        for some in x.split(size):
            subject(some.to(subject.device))
            for name in names:
                rows[name].append(reduced(seen[name], reduce).cpu())
    return {name: torch.cat(parts) for name, parts in rows.items()}


def reduced(maps: Tensor, how: Reduce) -> Tensor:
    """Return maps with their places reduced; tensors without places stay as they are.

    Example:
        >>> maps = torch.tensor([[[[1.0, 3.0]], [[0.0, 4.0]]]])
        >>> reduced(maps, "mean").tolist(), reduced(maps, "max").tolist()
        ([[2.0, 2.0]], [[3.0, 4.0]])
    """
    if how == "none" or maps.ndim != 4:
        return maps
    if how == "flatten":
        return maps.flatten(1)
    return maps.mean((2, 3)) if how == "mean" else maps.amax((2, 3))


def stages(subject: Subject) -> tuple[str, ...]:
    """Return the stages of a net: for each size of maps, the last module to give maps of it.

    Only sizes count that a convolution gives, and that have more than one place; modules that a
    forward asks more than once are left out. The net is asked for one black image.

    Raises:
        BadOption: If no convolution of the net gives maps.
    """
    asked: list[tuple[str, nn.Module, torch.Size]] = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _: object, out: object) -> None:
            places = out.shape[2:] if isinstance(out, Tensor) and out.ndim == 4 else torch.Size()
            asked.append((name, module, places))

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in subject.net.named_modules() if n]
    try:
        with frozen_eval(subject), torch.no_grad():
            subject(torch.zeros(1, *subject.shape, device=subject.device))
    finally:
        for handle in handles:
            handle.remove()
    calls = [name for name, _, _ in asked]
    sizes = {p for _, m, p in asked if isinstance(m, nn.Conv2d) and p.numel() > 1}
    first = next((i for i, (_, m, _) in enumerate(asked) if isinstance(m, nn.Conv2d)), len(asked))
    last = {p: n for n, _, p in asked[first:] if p in sizes and calls.count(n) == 1}
    if not last:
        raise BadOption("no convolution of the net gives maps, so it has no stages to look at")
    return tuple(name for name in calls if name in last.values())


@contextmanager
def tapped(
    net: nn.Module, names: Sequence[str], change: Callable[[str, Tensor], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Gather what modules give while the net runs, by name; change it on the way, if asked.

    Args:
        net: The net.
        names: Names of its modules.
        change: Maps the name of a module and what it gives to what the net goes on with.

    Raises:
        BadOption: If the net has no module of such a name.
    """
    known = dict(net.named_modules())
    wrong = [name for name in names if name not in known]
    if wrong:
        raise BadOption(
            f"the net has no layer {wrong[0]!r}; it has {', '.join(filter(None, known))}"
        )
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, _: object, out: Tensor) -> Tensor:
            seen[name] = out if change is None else change(name, out)
            return seen[name].clone()  # so that no later layer writes into what was gathered

        return hook

    handles = [known[name].register_forward_hook(keeper(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
