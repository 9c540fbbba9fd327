"""Where a net looks: Grad-CAM and saliency, and how far a trigger moves them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from gifthorse.analysis.collecting import stages
from gifthorse.analysis.separation import HALF, compared
from gifthorse.core.errors import BadImages, ShapeMismatch, UsageError
from gifthorse.core.metrics import mean_rate
from gifthorse.core.types import Goal, Images, Labels, Rate, Subject
from gifthorse.models.features import features
from gifthorse.training import frozen_eval

MISSING = "Grad-CAM needs captum: run pip install 'gifthorse[explain]'"


@dataclass(frozen=True, eq=False)
class Maps:
    """What speaks for a class in images.

    Attributes:
        values: `(N, H, W)` float32 in [0, 1]; the strongest place of an image is 1 before the map
            is enlarged.
        zero: How many maps are zero everywhere: nothing in the last stage speaks for the class.
        layer: The layer that was asked.
    """

    values: Tensor
    zero: int
    layer: str


@dataclass(frozen=True)
class Shift:
    """How far a trigger moves the maps of images.

    Attributes:
        distance: Mean of `map_distance`, in [0, 1].
        zero: Maps that are zero everywhere, of `2 * distance.trials`.
    """

    distance: Rate
    zero: int


def available() -> bool:
    """Whether captum, which Grad-CAM is made with, is installed."""
    return find_spec("captum") is not None


def grad_cam(
    subject: Subject, x: Images, classes: Tensor | int, *, layer: str = "", size: int = 64
) -> Maps:
    """Return Grad-CAM maps: where the last convolutional stage speaks for a class.

    Args:
        subject: The classifier; it stays as it was.
        x: Images, `(N, C, H, W)` in [0, 1].
        classes: The class to explain: one for all images, or `(N,)` int64.
        layer: Name of the module whose maps are weighted; empty takes the last of the `stages`.
        size: Images in a batch.

    Raises:
        UsageError: If captum is not installed.
        BadOption: If the net has no such layer, or no maps.
        BadImages: If there are no images.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2: `ReLU(sum_k w_k A_k)`, w_k the mean
    of dz_c / dA_k over places. Differs: divided by its largest value, in double precision, and
    enlarged bilinearly, so that it stays in [0, 1]; TrojanZoo's code enlarges it bicubically and
    divides maps by zero that are zero everywhere.
    """
    if not available():
        raise UsageError(MISSING)
    from captum.attr import LayerGradCam  # late: slow, and an extra

    target = _classes(subject, x, classes)
    name = layer or stages(subject)[-1]
    found = LayerGradCam(subject.net, subject.net.get_submodule(name))
    parts = []
    with frozen_eval(subject), torch.enable_grad():
        for some, of in zip(x.split(size), target.split(size), strict=True):
            pixels = some.detach().to(subject.device, copy=True)
            maps = found.attribute(pixels, of, relu_attributions=True)
            parts.append(maps.detach().cpu())
    raw = torch.cat(parts)
    low, zero = _by_largest(raw)
    large = F.interpolate(low, x.shape[2:], mode="bilinear", align_corners=False)
    return Maps(large[:, 0].clamp(0, 1).to(x.dtype), zero, name)


def saliency(subject: Subject, x: Images, classes: Tensor | int, *, size: int = 64) -> Tensor:
    """Return how strongly each pixel moves the logit of a class, `(N, H, W)` in [0, 1].

    The largest magnitude of the gradient over channels, stretched to [0, 1] for every image.

    Args:
        subject: The classifier; it stays as it was.
        x: Images, `(N, C, H, W)` in [0, 1].
        classes: The class to explain: one for all images, or `(N,)` int64.
        size: Images in a batch.

    Raises:
        BadImages: If there are no images.

    Source: Simonyan et al., Deep Inside Convolutional Networks, 2014, sec. 3.
    """
    target, parts = _classes(subject, x, classes), []
    with frozen_eval(subject), torch.enable_grad():
        for some, of in zip(x.split(size), target.split(size), strict=True):
            pixels = some.detach().to(subject.device, copy=True).requires_grad_()
            logits = subject(pixels).gather(1, of[:, None]).sum()
            (slope,) = torch.autograd.grad(logits, pixels)
            parts.append(slope.abs().amax(1, keepdim=True).cpu())
    found = torch.cat(parts)
    return _by_largest(found - found.amin((2, 3), keepdim=True))[0][:, 0].to(x.dtype)


def _by_largest(maps: Tensor) -> tuple[Tensor, int]:
    """Return maps `(N, 1, h, w)` over their largest value, zero ones as they are; count those."""
    maps = maps.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    top = maps.amax((1, 2, 3), keepdim=True)
    return torch.where(top > 0, maps / torch.where(top > 0, top, 1.0), 0.0), int((top <= 0).sum())


def _classes(subject: Subject, x: Images, classes: Tensor | int) -> Tensor:
    if not len(x):
        raise BadImages("there must be at least one image to explain")
    target = torch.as_tensor(classes, device=subject.device).expand(len(x)).long()
    if int(target.min()) < 0 or int(target.max()) >= subject.classes:
        raise ShapeMismatch(
            f"classes to explain must lie in 0 to {subject.classes - 1}; got "
            f"{int(target.min())} to {int(target.max())}"
        )
    return target


def map_distance(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean absolute difference of two maps, `(N, H, W)` each, as `(N,)` in [0, 1].

    Source: TrojanZoo, Table 19, whose figures are percent.

    Example:
        >>> map_distance(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])).tolist()
        [0.25]
    """
    if before.shape != after.shape:
        raise ShapeMismatch(
            f"maps must have one shape; got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    return (after.double() - before.double()).abs().mean((1, 2))


def shift(subject: Subject, x: Images, stamped: Images, classes: Tensor | int) -> Shift:
    """Return how far stamping moves the Grad-CAM maps of a class; see `grad_cam`."""
    before, after = (grad_cam(subject, z, classes) for z in (x, stamped))
    distance = map_distance(before.values, after.values)
    return Shift(mean_rate(distance), before.zero + after.zero)


def attention_shift(
    subjects: Mapping[str, Subject], x: Images, stamped: Images, labels: Labels, goal: Goal
) -> dict[str, dict[str, Shift]]:
    """Return the four cells of TrojanZoo's Table 19: by subject, then `original` and `target`.

    A backdoor moves the evidence for its target in the backdoored net, and little else: an order
    to test, not numbers to compare, for the paper leaves layer, map and scale open.

    Args:
        subjects: By name, such as `benign` and `trojan`.
        x: Clean images that the goal is about.
        stamped: The same with the trigger.
        labels: Their true classes, which are the original ones, `(N,)`.
        goal: The target.

    Raises:
        UsageError: If captum is not installed.
        BadImages: If there are no images.

    Source: TrojanZoo sec. 6.4 (RQ9) and Table 19: 100 pairs, trigger of 3 x 3 pixels.
    """
    return {
        name: {
            "original": shift(subject, x, stamped, labels),
            "target": shift(subject, x, stamped, goal.target),
        }
        for name, subject in subjects.items()
    }


def explained(
    subject: Subject, before: Images, after: Images, goal: Goal, seconds: float = 2.0
) -> dict[str, Tensor | float]:
    """Return what a report shows of where a net looks, of as many pairs as there is time for.

    Args:
        subject: The classifier.
        before: Clean images.
        after: The same with the recovered trigger.
        goal: Whose target is explained.
        seconds: About how long it may take.

    Returns:
        `looks_before` and `looks_after`, `(n, H, W)` in [0, 1]; `attention_shift`, the mean
        `map_distance`; `neuron_separation` of half of the neurons, and what chance would give.
        Nothing if captum is missing or there is no time.

    Raises:
        BadOption: If the net has no maps.
    """
    if not available() or not len(before):
        return {}
    layer = stages(subject)[-1]
    grad_cam(subject, before[:1], goal.target, layer=layer)  # what is loaded once is no one's cost
    started = time.monotonic()
    grad_cam(subject, before[:1], goal.target, layer=layer)
    each = 2 * max(time.monotonic() - started, 1e-6)
    pairs = min(len(before), int(seconds / each))
    if not pairs:
        return {}
    one, other = (
        grad_cam(subject, z[:pairs], goal.target, layer=layer).values for z in (before, after)
    )
    with frozen_eval(subject), torch.no_grad():
        both = (features(subject, z[:pairs].to(subject.device)) for z in (before, after))
        means = [inside.cpu().double().mean(0) for inside in both]
    apart = compared(means[0], means[1], [HALF])[0]
    return {
        "looks_before": one,
        "looks_after": other,
        "attention_shift": float(map_distance(one, other).mean()),
        "neuron_separation": apart.value,
        "neuron_separation_chance": apart.chance,
    }
