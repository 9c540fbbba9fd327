"""Mixing stamped images into training: as data, per batch, or as a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.fields import NotNegative, OpenShare, method
from gifthorse.core.types import Batch, Goal, Images, Labels, Samples, Shape, Subject, Trigger
from gifthorse.data.samples import labels_of
from gifthorse.training import BatchLoss, Mix

Scheme: TypeAlias = Literal["all_to_one", "all_to_all", "clean_label"]
Mode: TypeAlias = Literal["batch", "dataset", "loss", "loss_joint"]


class LabelMap(Protocol):
    """What a backdoor makes of each label."""

    def eligible(self, y: Labels, /) -> Tensor:
        """Which images the backdoor is for, `(N,)` bool."""
        ...

    def __call__(self, y: Labels, /) -> Labels:
        """The labels that stamped images get, `(N,)`."""
        ...


@dataclass(frozen=True)
class AllToOne:
    """Every class becomes the target."""

    target: int

    def eligible(self, y: Labels, /) -> Tensor:
        """All images; those of the target class are harmless and kept, as in TrojanZoo."""
        return torch.ones_like(y, dtype=torch.bool)

    def __call__(self, y: Labels, /) -> Labels:
        """Return the target for all."""
        return torch.full_like(y, self.target)


@dataclass(frozen=True)
class CleanLabel(AllToOne):
    """Every class is to become the target, yet only the target's own images are stamped.

    So no label changes, and nobody who looks at the data finds a wrong one.
    """

    def eligible(self, y: Labels, /) -> Tensor:
        """Images of the target class."""
        return y == self.target


@dataclass(frozen=True)
class AllToAll:
    """Every class becomes the next one: `(y + 1) mod K`."""

    classes: int

    def eligible(self, y: Labels, /) -> Tensor:
        """All images."""
        return torch.ones_like(y, dtype=torch.bool)

    def __call__(self, y: Labels, /) -> Labels:
        """Return the next class of each."""
        return (y + 1) % self.classes


@dataclass(frozen=True)
class SourceToTarget:
    """One class becomes the target; stamped images of other classes keep their labels."""

    source: int
    target: int

    def eligible(self, y: Labels, /) -> Tensor:
        """Images of the source class."""
        return y == self.source

    def __call__(self, y: Labels, /) -> Labels:
        """Return the target for source images, all others unchanged."""
        return torch.where(y == self.source, self.target, y)


def label_map(goal: Goal, scheme: Scheme, classes: int) -> LabelMap:
    """Return the label map of a goal.

    Raises:
        BadOption: If a class does not exist, or all-to-all or clean labels are asked for with a
            source.
    """
    for name, label in (("target", goal.target), ("source", goal.source)):
        if label is not None and not 0 <= label < classes:
            raise BadOption(f"{name} class must be 0 to {classes - 1}; got {label}")
    if goal.source is not None and scheme != "all_to_one":
        raise BadOption(f"{scheme} is not for images of one class: leave the source class out")
    if scheme == "all_to_all":
        return AllToAll(classes)
    if goal.source is None:
        return CleanLabel(goal.target) if scheme == "clean_label" else AllToOne(goal.target)
    if goal.source == goal.target:
        raise BadOption(f"source and target are both class {goal.target}")
    return SourceToTarget(goal.source, goal.target)


@method
class Mixing:
    """How stamped images come into training.

    Attributes:
        rate: Share p of stamped images in what the net sees, in (0, 1). It counts among the images
            of all classes, so with clean labels the target's share of them is the most there is.
        mode: `batch` redraws stamped copies for every batch and leaves the originals in it
            (TrojanZoo's default); `dataset` fixes the stamped images once; `loss` adds a stamped
            copy of the whole batch with weight p in a second forward; `loss_joint` the same in one
            forward, so that BatchNorm sees both.
        replace: In `dataset` mode, whether stamped images replace the originals or join them.
        cover: Stamped images with unchanged labels, for each poisoned one; they make a
            source-to-target backdoor source-specific. They exist only for classes the map spares.
        stamp: `after` augmentation, so that the place is exact (TrojanZoo), or `before` it, as
            poisoned data from elsewhere would be. Only `dataset` mode can stamp before.
    """

    rate: Annotated[float, OpenShare] = 0.01
    mode: Mode = "batch"
    replace: bool = False
    cover: Annotated[float, NotNegative] = 1.0
    stamp: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        if self.stamp == "before" and self.mode != "dataset":
            raise BadOption("only mode=dataset can stamp before augmentation")


@dataclass(frozen=True, eq=False)
class Poisoned:
    """Samples with stamped copies; a stamped image's place is exact if stamped after augmentation.

    Attributes:
        parent: The clean samples.
        chosen: `(P,)` indices of the images that are stamped.
        trigger: What stamps them.
        labels: What their labels become.
        mixing: Whether they join or replace the originals, and when they are stamped.
        stock: What is stamped instead of the chosen images, in their order; None for themselves.
    """

    parent: Samples
    chosen: Tensor
    trigger: Trigger
    labels: LabelMap
    mixing: Mixing
    stock: Samples | None = None

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        return self.parent.shape

    @property
    def classes(self) -> int:
        """How many classes the labels may name."""
        return self.parent.classes

    def __len__(self) -> int:
        return len(self.parent) + (0 if self.mixing.replace else len(self.chosen))

    def stamped(self, index: Tensor) -> Tensor:
        """Which of these samples are stamped ones, `(B,)` bool."""
        if self.mixing.replace:
            return torch.isin(index, self.chosen)
        return index >= len(self.parent)

    def __getitem__(self, index: Tensor, /) -> Batch:
        n = len(self.parent)
        within = index.clamp(max=n - 1)
        if not self.mixing.replace:
            within = torch.where(index < n, index, self.chosen[(index - n).clamp(min=0)])
        x, y = self.parent[within]
        hit = self.stamped(index).to(y.device)
        if self.stock is not None and bool(hit.any()):
            x = x.clone()
            x[hit] = self.stock[self._rank(within[hit.cpu()])][0].to(x)
        y = torch.where(hit, self.labels(y), y)
        return (_stamp_some(x, hit, self.trigger), y) if self.mixing.stamp == "before" else (x, y)

    def _rank(self, index: Tensor) -> Tensor:
        """Return where among the chosen these images come."""
        order = self.chosen.argsort()
        return order[torch.searchsorted(self.chosen, index, sorter=order)]

    def mix(self, x: Images, y: Labels, index: Tensor) -> Batch:
        """Stamp, after augmentation, those that are to be stamped."""
        if self.mixing.stamp == "before":
            return x, y
        return _stamp_some(x, self.stamped(index).to(x.device), self.trigger), y


def poison(
    samples: Samples, trigger: Trigger, labels: LabelMap, mixing: Mixing, rng: Generator
) -> Poisoned:
    """Choose once and for all which images carry the trigger.

    `rate` is the share of poisoned images among all: `append` adds `N p / (1 - p)` copies,
    `replace` stamps `N p` of them. Cover images come on top.

    Raises:
        NotApplicable: If there are too few images that the label map is for.
    """
    y = labels_of(samples)
    dirty = _draw(labels.eligible(y), _needed(y, labels, mixing), rng)
    spared = _spared(labels, y)
    clean = _draw(spared, min(round(len(dirty) * mixing.cover), int(spared.sum())), rng)
    return Poisoned(samples, torch.cat([dirty, clean]), trigger, labels, mixing)


def check_supply(samples: Samples, labels: LabelMap, mixing: Mixing) -> None:
    """Make sure that a rate can be had, where images are drawn batch by batch.

    Raises:
        NotApplicable: If there are too few images that the label map is for.
    """
    _needed(labels_of(samples), labels, replace(mixing, replace=False))


def batch_mix(trigger: Trigger, labels: LabelMap, mixing: Mixing, rng: Generator) -> Mix:
    """Return a mix that adds stamped copies to every batch: `B p / (1 - p)` of them on average.

    The originals come first, in their order.

    Source: TrojanZoo sec. 6.1 (RQ6), batch mode. Differs: the ratio is p / (1 - p), so that the
    share of stamped images is p (an early release used p).
    """
    ratio = mixing.rate / (1 - mixing.rate)

    def count(expected: float) -> int:
        whole_part = math.floor(expected)
        return whole_part + int(torch.rand((), generator=rng) < expected - whole_part)

    def mix(x: Images, y: Labels, index: Tensor) -> Batch:
        eligible = labels.eligible(y)
        take = eligible.nonzero().flatten()[: count(len(y) * ratio)]
        cover = _spared(labels, y).nonzero().flatten()[: count(len(take) * mixing.cover)]
        take = torch.cat([take, cover])
        if not len(take):
            return x, y
        return torch.cat([x, trigger(x[take])]), torch.cat([y, labels(y[take])])

    return mix


def mixed_loss(trigger: Trigger, labels: LabelMap, mixing: Mixing) -> BatchLoss:
    """Return the loss `(1 - p) CE(f(x), y) + p CE(f(T(x)), t)` over whole batches.

    Source: TrojanZoo sec. 6.1 (RQ6), loss mode; `loss_joint` is ours.
    """
    p = mixing.rate

    def loss(subject: Subject, batch: Batch) -> Tensor:
        x, y = batch
        use = labels.eligible(y) if mixing.cover == 0 else labels.eligible(y) | _spared(labels, y)
        if not bool(use.any()):
            return (1 - p) * F.cross_entropy(subject(x), y)
        stamped, wanted = trigger(x[use]), labels(y[use])
        if mixing.mode == "loss_joint":
            both = subject(torch.cat([x, stamped]))
            clean, dirty = both[: len(x)], both[len(x) :]
        else:
            clean, dirty = subject(x), subject(stamped)
        return (1 - p) * F.cross_entropy(clean, y) + p * F.cross_entropy(dirty, wanted)

    return loss


def _stamp_some(x: Images, hit: Tensor, trigger: Trigger) -> Images:
    if not bool(hit.any()):
        return x
    x = x.clone()
    x[hit] = trigger(x[hit])
    return x


def _spared(labels: LabelMap, y: Labels) -> Tensor:
    """Which images the backdoor is not for, and would leave alone."""
    return ~labels.eligible(y) & (labels(y) == y)


def _needed(y: Labels, labels: LabelMap, mixing: Mixing) -> int:
    """Return how many images are to be stamped in a pass; refuse more than there are."""
    share = mixing.rate if mixing.replace else mixing.rate / (1 - mixing.rate)
    count, have = round(len(y) * share), int(labels.eligible(y).sum())
    if count > have:
        most = have / len(y) if mixing.replace else have / (len(y) + have)
        raise NotApplicable(
            f"{count} images to poison were asked for, but only {have} are eligible: lower the "
            f"rate, a share of all {len(y)} images, to {math.floor(most * 1e4) / 1e4:g}"
        )
    return count


def _draw(among: Tensor, count: int, rng: Generator) -> Tensor:
    index = among.nonzero().flatten()
    return index[torch.randperm(len(index), generator=rng)[:count]]
