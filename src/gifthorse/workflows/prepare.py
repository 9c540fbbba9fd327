"""From a net and clean images to a subject: normalization found or checked, and sanity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gifthorse.core.errors import BadImages, BadOption
from gifthorse.core.fields import NotNegative, Share, method
from gifthorse.core.metrics import accuracy
from gifthorse.core.types import Finding, Normalization, Origin, Preparation, Rate, Subject, Tried
from gifthorse.data.gallery import Gallery
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.normalize import NORMALIZATIONS, STORED, Classifier
from gifthorse.training import predict

BGR = "-bgr"  # ends the name of a normalization for nets that read blue first
LEAST_IMAGES = 10  # below this a split into search and confirmation says nothing


@method
class SanityThresholds:
    """What counts as a sane model on the clean images.

    Attributes:
        accuracy: Least clean accuracy.
        chance: Least multiple of chance that the accuracy's interval must clear.
        confidence: Least mean top probability where there are no labels.
        lead: Another normalization that does better by this much, and beyond the intervals,
            speaks against the chosen one.
    """

    accuracy: Annotated[float, Share] = 0.5
    chance: Annotated[float, NotNegative] = 3.0
    confidence: Annotated[float, Share] = 0.6
    lead: Annotated[float, Share] = 0.1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject ready to be examined, its images, and what was found on the way.

    Attributes:
        subject: The net behind the chosen normalization.
        samples: Clean images, all with labels (the model's own where none were given).
        preparation: The record for the report.
        checks: Findings; any of severity HIGH means that no verdict is possible.
    """

    subject: Subject
    samples: InMemory
    preparation: Preparation
    checks: tuple[Finding, ...]


def candidates(channels: int) -> tuple[Normalization, ...]:
    """Return the normalizations that `auto` tries on images with this many channels."""
    fitting = [n for n in NORMALIZATIONS.values() if len(n.mean) in (1, channels)]
    fitting = [n for n in fitting if not (n.name == "mnist" and channels == 3)]
    if channels != 3:
        return tuple(fitting)
    return tuple(fitting) + tuple(_reversed(n) for n in fitting)


def _reversed(n: Normalization) -> Normalization:
    """Return the same for nets that read blue first."""
    return replace(n, name=f"{n.name}{BGR}", bgr=True)


def parse(text: str) -> Normalization | None:
    """Read `--normalize`: a name, also with `-bgr`, `MEAN/STD` with commas, or `auto` (None).

    Raises:
        BadOption: If it is none of these.

    Example:
        >>> parse("0.5,0.5,0.5/0.25,0.25,0.25").std
        (0.25, 0.25, 0.25)
    """
    if text == "auto":
        return None
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    if text.endswith(BGR) and text.removesuffix(BGR) in NORMALIZATIONS:
        return _reversed(NORMALIZATIONS[text.removesuffix(BGR)])
    mean, slash, std = text.partition("/")
    try:
        means = tuple(float(v) for v in mean.split(","))
        stds = tuple(float(v) for v in std.split(","))
    except ValueError:
        slash = ""
        means = stds = ()
    if not slash or len(means) != len(stds) or min(stds, default=0) <= 0:
        known = ", ".join(["auto", *NORMALIZATIONS])
        raise BadOption(f"--normalize takes {known} or MEAN/STD such as 0.5/0.25; got {text!r}")
    return Normalization("custom", means, stds)


def prepare(
    net: nn.Module,
    classes: int,
    gallery: Gallery,
    *,
    origin: Origin = Origin(),
    chosen: Normalization | None = None,
    claimed: Normalization | None = None,
    thresholds: SanityThresholds = SanityThresholds(),
) -> Prepared:
    """Put a net behind its normalization and see whether it does its job on the clean images.

    Every candidate is measured, also when one was named, so that a wrong choice shows. With labels
    the best is the most accurate, ties broken by the likelihood of the labels; without, the one
    whose predictions are the most confident.

    Args:
        net: Maps normalized images to logits.
        classes: Number of logits.
        gallery: Clean images; label -1 where unknown.
        origin: Where the net came from.
        chosen: The normalization that the user named; None searches.
        claimed: What the file's metadata says; used unless another one does better.
        thresholds: What counts as sane.

    Raises:
        BadImages: If a label names a class that the net does not have.
    """
    samples = gallery.samples
    x, y = whole(samples)
    labeled = bool((y >= 0).all())
    _check_labels(y, classes)
    named = [n for n in (chosen, claimed) if n is not None]
    tried = [t for t, _ in _measure(net, x, y if labeled else None, named)]
    pick, why = _pick(tried, chosen, claimed, thresholds)
    model = Classifier(net, pick.normalization, samples.shape[0]).eval()
    subject = Subject(model, samples.shape, classes, origin)
    logits = predict(subject, x)
    if not labeled:
        samples = InMemory(samples.images, logits.argmax(1), classes)
    samples = replace(samples, classes=classes)
    preparation = Preparation(
        source=gallery.source,
        images=len(samples),
        per_class=tuple(samples.labels.bincount(minlength=classes).tolist()),
        labels_from=gallery.labels_from if labeled else "model",
        class_names=gallery.class_names,
        shape=samples.shape,
        normalization=pick.normalization,
        how=why,
        tried=tuple(tried),
        accuracy=pick.accuracy,
        notes=gallery.notes,
        sha256=gallery.sha256,
    )
    checks = _sanity(subject, x, logits, preparation, pick, tried[0], thresholds)
    return Prepared(subject, samples, preparation, tuple(checks))


def _check_labels(y: Tensor, classes: int) -> None:
    if int(y.max()) >= classes:
        raise BadImages(
            f"the images have a class {int(y.max())}, but the model only has classes 0 to "
            f"{classes - 1}: are these images of another data set?"
        )


def _pick(
    tried: Sequence[Tried],
    chosen: Normalization | None,
    claimed: Normalization | None,
    thresholds: SanityThresholds,
) -> tuple[Tried, str]:
    """Return the row to use and why: the user's word, the file's if it holds, or the best."""
    best = tried[0]
    if chosen is not None:
        return next(t for t in tried if t.normalization == chosen), "--normalize"
    if claimed is not None:
        row = next(t for t in tried if t.normalization == claimed)
        if not _beats(best, row, thresholds):
            where = "layer" if claimed.name == STORED else "metadata"
            return row, f"the file's own {where}, checked"
    return best, f"best of {len(tried)} tried"


def _beats(best: Tried, row: Tried, thresholds: SanityThresholds) -> bool:
    """Whether `best` is more accurate by the lead and beyond the intervals."""
    lead = best.accuracy.value - row.accuracy.value >= thresholds.lead
    return lead and best.accuracy.low > row.accuracy.high


def _measure(
    net: nn.Module, x: Tensor, y: Tensor | None, named: Sequence[Normalization]
) -> list[tuple[Tried, float]]:
    """Return the table of candidates, best first, each with its tie-breaker."""
    channels = x.shape[1]
    options = list(dict.fromkeys([*named, *candidates(channels)]))
    rows = []
    for n in options:
        shape = (channels, x.shape[2], x.shape[3])
        logits = predict(Subject(Classifier(net, n, channels).eval(), shape, 0), x)
        top = logits.softmax(1).amax(1).mean().item()
        if y is None:
            rows.append((Tried(n, Rate(0.0, 0.0, 1.0, 0), top), top))
        else:
            rows.append((Tried(n, accuracy(logits.argmax(1), y), top), -_surprise(logits, y)))
    return sorted(rows, key=lambda row: (row[0].accuracy.value, row[1]), reverse=True)


def _surprise(logits: Tensor, y: Tensor) -> float:
    value = F.cross_entropy(logits, y).item()
    return float("inf") if math.isnan(value) else value  # a net that overflows comes last


def _sanity(
    subject: Subject,
    x: Tensor,
    logits: Tensor,
    preparation: Preparation,
    pick: Tried,
    best: Tried,
    thresholds: SanityThresholds,
) -> list[Finding]:
    checks = []
    predicted = logits.argmax(1)
    if len(x) < LEAST_IMAGES:
        checks.append(
            _problem(
                "IN002",
                f"Only {len(x)} clean image{'s' * (len(x) != 1)}: at least {LEAST_IMAGES} from "
                "two or more classes are needed to search for a trigger and to confirm it. "
                "Two or more of every class work well.",
            )
        )
    elif int((torch.tensor(preparation.per_class) > 0).sum()) < 2:
        checks.append(_problem("IN002", "All clean images are of one class: add other classes."))
    if not bool(logits.isfinite().all()):
        checks.append(_problem("FS005", "The model's outputs are not finite numbers."))
    elif len(x) > 1 and len(predicted.unique()) == 1:
        checks.append(_problem("IN001", f"The model calls every image class {int(predicted[0])}."))
    checks += _poor(preparation, pick, best, thresholds)
    if not torch.equal(predict(subject, x), logits):
        checks.append(_problem("IN004", "Two passes over the same images give different outputs."))
    if bool(((logits >= 0) & (logits <= 1)).all()) and bool((logits.sum(1) - 1).abs().max() < 1e-3):
        message = "The outputs are probabilities, not logits: gradients may vanish."
        checks.append(Finding("IN004", "LOW", 0.0, message))
    return checks


def _poor(
    preparation: Preparation, pick: Tried, best: Tried, thresholds: SanityThresholds
) -> Sequence[Finding]:
    name = pick.normalization.name
    if preparation.labels_from == "model":
        if pick.confidence >= thresholds.confidence:
            return []
        return [
            _problem(
                "IN001",
                f"Without labels, the model's mean confidence is only {pick.confidence:.0%} with "
                f"normalize={name}: give labeled images, or check --arch and --normalize.",
            )
        ]
    rate = pick.accuracy
    classes = len(preparation.per_class)
    if _beats(best, pick, thresholds):
        return [
            _problem(
                "IN001",
                f"With normalize={name} the clean accuracy is {rate.value:.1%}, but "
                f"{best.accuracy.value:.1%} with normalize={best.normalization.name}: the "
                "normalization is wrong.",
            )
        ]
    if rate.value < thresholds.accuracy or rate.low < thresholds.chance / classes:
        return [
            _problem(
                "IN001",
                f"Clean accuracy is only {rate.value:.1%} [{rate.low:.0%}, {rate.high:.0%}] with "
                f"normalize={name}: wrong labels, architecture, input size or normalization.",
            )
        ]
    return []


def _problem(rule: str, message: str) -> Finding:
    return Finding(rule, "HIGH", 0.0, message)
