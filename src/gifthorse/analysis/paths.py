"""Which channels carry a trigger from the image to the target's logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.analysis.collecting import stages, tapped
from gifthorse.analysis.wiring import LOGITS, gains
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch
from gifthorse.core.metrics import asr
from gifthorse.core.types import Goal, Images, Labels, Rate, Subject
from gifthorse.training import frozen_eval, predict


@dataclass(frozen=True)
class PathNode:
    """A channel on the path.

    Attributes:
        stage: Name of the module that gives it.
        channel: Its number.
        score: Mean of |gradient times change|: how much of the target's logit it carries.
        change: Its trigger activation change, see `tac`.
    """

    stage: str
    channel: int
    score: float
    change: float


@dataclass(frozen=True)
class PathEdge:
    """What leads from one channel to one of the next stage, or to the target's logit.

    Attributes:
        start: Number of a node.
        end: Number of a node; -1 is the logit.
        weight: Norm of the kernel times the change of the first channel; to be compared between
            edges of the same two stages only.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class ActivationPath:
    """The channels that carry a trigger, from the first stage to the last, as a graph."""

    target: int
    nodes: tuple[PathNode, ...]
    edges: tuple[PathEdge, ...]

    def kept(self) -> dict[str, list[int]]:
        """Return the channels of each stage."""
        out: dict[str, list[int]] = {}
        for node in self.nodes:
            out.setdefault(node.stage, []).append(node.channel)
        return out


@dataclass(frozen=True)
class Silenced:
    """What is left of an attack without some channels.

    Attributes:
        asr: Attack success of the whole net.
        path: Without the channels of the path.
        random: Without as many in each stage at random, all draws together.
    """

    asr: Rate
    path: Rate
    random: Rate


def tac(
    subject: Subject, x: Images, stamped: Images, layers: Sequence[str] = (), *, size: int = 64
) -> dict[str, Tensor]:
    """Return the trigger activation change of each channel, `(C,)` float64 by layer.

    The mean over images of the change's absolute value, summed over places; 0 for a channel that
    the trigger does not reach.

    Args:
        subject: The classifier; it stays as it was.
        x: Clean images `(N, C, H, W)`.
        stamped: The same with the trigger.
        layers: Names of modules; empty takes the `stages`.
        size: Images in a batch.

    Source: Zheng et al., Data-free Backdoor Removal (CLP), ECCV 2022, as BackdoorBench sums
    it: over places.
    """
    names = tuple(layers) or stages(subject)
    _check(x, stamped)
    sums: dict[str, Tensor] = {}
    with frozen_eval(subject), torch.no_grad(), tapped(subject.net, names) as seen:
        for one, other in zip(x.split(size), stamped.split(size), strict=True):
            subject(torch.cat([one, other]).to(subject.device))
            for name in names:
                before, after = seen[name].cpu().double().chunk(2)
                change = (after - before).abs().flatten(2).sum((0, 2))
                sums[name] = sums.get(name, 0) + change
    return {name: sums[name] / len(x) for name in names}


def activation_path(
    subject: Subject,
    x: Images,
    stamped: Images,
    target: int,
    *,
    q: int = 5,
    layers: Sequence[str] = (),
    size: int = 64,
) -> ActivationPath:
    """Return the channels through which a trigger raises the logit of its target.

    At each stage the q channels of largest mean |dz_t / dA_k . dA_k| over pairs of images, where
    dA_k is what stamping changes and the gradient is the mean of both ends. Edges join kept
    channels of stages that follow each other where convolutions lead from one to the other; their
    weight is the Frobenius norm of the kernel (of several convolutions, the product of their
    matrices of norms) times the channel's change. Shortcuts have no edges.

    Args:
        subject: The classifier; it stays as it was.
        x: Clean images `(N, C, H, W)` of other classes than the target.
        stamped: The same with the trigger.
        target: The class whose logit is explained.
        q: Channels a stage.
        layers: Names of modules, in the order of the net; empty takes the `stages`.
        size: Images in a batch.

    Raises:
        BadOption: If q is less than 1, or the net has no such layer.
        BadImages: If there are no images.

    Source: TrojanZoo sec. 1 names the tool. Differs: it defines none, so the definition is ours.
    """
    if q < 1:
        raise BadOption(f"q must be at least 1 channel a stage; got {q}")
    names = tuple(layers) or stages(subject)
    scores = _carried(subject, x, stamped, target, names, size)
    changes = tac(subject, x, stamped, names, size=size)
    nodes = [
        PathNode(name, k, float(scores[name][k]), float(changes[name][k]))
        for name in names
        for k in scores[name].topk(min(q, len(scores[name]))).indices.tolist()
    ]
    return ActivationPath(
        target, tuple(nodes), tuple(_edges(nodes, names, gains(subject, names), target))
    )


def _carried(
    subject: Subject, x: Images, stamped: Images, target: int, names: Sequence[str], size: int
) -> dict[str, Tensor]:
    """Return the mean of |gradient times change| of each channel, `(C,)` by layer."""
    _check(x, stamped)
    sums: dict[str, Tensor] = {}
    with frozen_eval(subject), torch.enable_grad(), tapped(subject.net, names) as seen:
        for one, other in zip(x.split(size), stamped.split(size), strict=True):
            both = torch.cat([one, other]).detach().to(subject.device).requires_grad_()
            logits = subject(both)[:, target].sum()
            maps = [seen[name] for name in names]
            slopes = torch.autograd.grad(logits, maps, allow_unused=True)
            for name, given, slope in zip(names, maps, slopes, strict=True):
                before, after = given.detach().cpu().double().chunk(2)
                at = torch.zeros_like(given) if slope is None else slope
                mean = at.cpu().double().view(2, len(before), *before.shape[1:]).mean(0)
                carried = (mean * (after - before)).flatten(2).sum(2).abs().sum(0)
                sums[name] = sums.get(name, 0) + carried
    return {name: sums[name] / len(x) for name in names}


def _check(x: Images, stamped: Images) -> None:
    if not len(x):
        raise BadImages("there must be at least one pair of images to follow a trigger with")
    if x.shape != stamped.shape:
        raise ShapeMismatch(
            f"clean and stamped images must match; got {tuple(x.shape)} and {tuple(stamped.shape)}"
        )


def _edges(
    nodes: Sequence[PathNode], names: Sequence[str], norms: Mapping[str, Tensor], target: int
) -> list[PathEdge]:
    """Return the edges of positive weight between kept channels, and to the logit."""
    out = []
    for here, there in zip(names, [*names[1:], LOGITS], strict=True):
        starts = [(i, n) for i, n in enumerate(nodes) if n.stage == here]
        ends = [(i, n.channel) for i, n in enumerate(nodes) if n.stage == there]
        for i, node in starts if there in norms else ():
            for j, k in ends or [(-1, target)]:
                weight = float(norms[there][k, node.channel]) * node.change
                out += [PathEdge(i, j, weight)] if weight > 0 else []
    return out


def silenced(
    subject: Subject,
    path: ActivationPath,
    stamped: Images,
    labels: Labels,
    goal: Goal,
    rng: Generator,
    *,
    draws: int = 20,
) -> Silenced:
    """Return attack success without the path's channels, and without as many at random.

    Args:
        subject: The classifier; it stays as it was.
        path: What `activation_path` found.
        stamped: Images with the trigger.
        labels: Their true classes, `(N,)`.
        goal: Target and source.
        rng: Source of the random channels.
        draws: How many random sets there are.
    """
    kept = path.kept()
    widths = {name: len(t) for name, t in tac(subject, stamped[:1], stamped[:1], [*kept]).items()}
    hits = [_without(subject, stamped, kept).argmax(1)]
    for _ in range(draws):
        drawn = {
            name: torch.randperm(widths[name], generator=rng)[: len(some)].tolist()
            for name, some in kept.items()
        }
        hits.append(_without(subject, stamped, drawn).argmax(1))
    with frozen_eval(subject):
        whole = asr(predict(subject, stamped).argmax(1), labels, goal)
    return Silenced(
        whole, asr(hits[0], labels, goal), asr(torch.cat(hits[1:]), labels.repeat(draws), goal)
    )


def _without(subject: Subject, x: Images, channels: Mapping[str, Sequence[int]]) -> Tensor:
    """Return logits `(N, K)` of a net whose layers give zero for some channels."""

    def silence(name: str, out: Tensor) -> Tensor:
        left = out.clone()
        left[:, list(channels[name])] = 0
        return left

    with frozen_eval(subject), tapped(subject.net, list(channels), silence):
        return predict(subject, x)
