"""Whether a net does its job on clean images, and whether it can be searched at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from gifthorse.core.fields import NotNegative, Share, method
from gifthorse.core.metrics import accuracy
from gifthorse.core.pacing import breathe
from gifthorse.core.types import (
    Finding,
    Images,
    Labels,
    Logits,
    Normalization,
    Preparation,
    Rate,
    Subject,
    Tried,
)
from gifthorse.models.outputs import agree, reason
from gifthorse.training import frozen_eval, predict

LEAST_IMAGES = 10  # below this a split into search and confirmation says nothing
ALONE = 8  # images that are also asked for one by one, and whose gradients are looked at
CORNER = 2  # side of what is made black and white, as a search will make it
NUDGE = 1 / 255  # how far an image is moved to see whether gradients tell the truth
FOLLOWED = 0.05  # least share of the promised rise of the outputs
FLAT = 1e-12  # a gradient that is nowhere larger is none
CONFIDENT = 0.9  # least mean top probability where a guess is beyond doubt
TELLING = 0.9  # least share of log K that the images then tell about the predictions
MANY = 10  # fewest classes for that: few are hit evenly by chance
APART = 0.05  # of log K, by which rivals that predict otherwise must lie below
SAME = 0.9  # share of equal predictions that makes two normalizations one
SURE = 2.2  # beyond this a logit is a probability of 0.9 or 0.1, if it is one of a sigmoid
CROWD = 0.05  # share of images that are wrongly taken for one class from which it is said


@method
class SanityThresholds:
    """What counts as a sane model on the clean images.

    Attributes:
        accuracy: Least clean accuracy.
        chance: Least multiple of chance that the accuracy's interval must clear; of few classes,
            half the way from chance to 1 is enough.
        confidence: Least mean top probability where there are no labels.
        lead: Another normalization that does better by this much, and beyond the intervals,
            speaks against the chosen one.
    """

    accuracy: Annotated[float, Share] = 0.5
    chance: Annotated[float, NotNegative] = 3.0
    confidence: Annotated[float, Share] = 0.6
    lead: Annotated[float, Share] = 0.1


# 1. Normalizations ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Row:
    """A normalization that was tried, the logits under it, and by what it is ranked.

    Attributes:
        tried: The row of the report.
        logits: Of all images, `(N, K)`.
        merit: With labels the negative cross entropy, which breaks ties of accuracy; without, what
            an image tells about its prediction, in nats.
    """

    tried: Tried
    logits: Logits
    merit: float


def measured(normalization: Normalization, logits: Logits, y: Labels | None) -> Row:
    """Return how a net does under a normalization."""
    top = logits.softmax(1).amax(1).mean().item()
    if y is None:
        unknown = Rate(math.nan, math.nan, math.nan, 0)
        return Row(Tried(normalization, unknown, top), logits, _told(logits))
    surprise = F.cross_entropy(logits, y).item()
    merit = -math.inf if math.isnan(surprise) else -surprise  # one that overflows comes last
    return Row(Tried(normalization, accuracy(logits.argmax(1), y), top), logits, merit)


def _told(logits: Logits) -> float:
    """Return the mutual information of image and prediction in nats: log K if all is well.

    Confidence alone is no merit: a net that overflows is sure of one class for all images, which
    tells nothing. This is the entropy of the mean prediction less the mean entropy of predictions.
    """
    if not bool(logits.isfinite().all()):
        return -math.inf
    each = logits.double().softmax(1)
    return float(_entropy(each.mean(0)) - _entropy(each).mean())


def _entropy(p: Tensor) -> Tensor:
    each: Tensor = torch.special.entr(p)
    return each.sum(-1)


def beats(best: Tried, row: Tried, thresholds: SanityThresholds) -> bool:
    """Whether `best` is more accurate by the lead and beyond the intervals."""
    lead = best.accuracy.value - row.accuracy.value >= thresholds.lead
    return lead and best.accuracy.low > row.accuracy.high


def unlabeled(
    rows: Sequence[Row], pick: Tried, named: bool, thresholds: SanityThresholds
) -> list[Finding]:
    """Return what speaks against a normalization that no label could check.

    A guess is beyond doubt if it makes predictions that are confident and spread over all classes,
    and whatever makes others does clearly worse. That never holds for few classes.

    Args:
        rows: What was tried, best first.
        pick: What was chosen.
        named: Whether the user or the file named it.
        thresholds: What counts as sane.
    """
    row = next(r for r in rows if r.tried == pick)
    classes, name = row.logits.shape[1], pick.normalization.name
    most, best = math.log(classes), rows[0]
    if not pick.confidence >= thresholds.confidence:
        return [
            _problem(
                "IN001",
                f"Without labels, the model's mean confidence is only {pick.confidence:.0%} with "
                f"normalize={name}: give labeled images, or check --arch and --normalize.",
            )
        ]
    if named and best.merit - row.merit < thresholds.lead * most:
        return []
    if named:
        return [
            _problem(
                "IN001",
                f"With normalize={name} predictions are less sure and less diverse than with "
                f"normalize={best.tried.normalization.name}: give labeled images, or another "
                "--normalize.",
            )
        ]
    said = row.logits.argmax(1)
    others = [r for r in rows if (r.logits.argmax(1) == said).float().mean() < SAME]
    sure = classes >= MANY and pick.confidence >= CONFIDENT and row.merit >= TELLING * most
    if sure and all(r.merit <= row.merit - APART * most for r in others):
        return []
    return [
        _problem(
            "IN001",
            f"Without labels nothing tells which normalization is right ({name} is the best guess "
            f"of {len(rows)}): give labeled images, or name it with --normalize.",
        )
    ]


# 2. Accuracy ----------------------------------------------------------------------------------


def sized(preparation: Preparation) -> list[Finding]:
    """Return what speaks against so many images."""
    n = preparation.images
    if n < LEAST_IMAGES:
        return [
            _problem(
                "IN002",
                f"Only {n} clean image{'s' * (n != 1)}: at least {LEAST_IMAGES} from "
                "two or more classes are needed to search for a trigger and to confirm it. "
                "Two or more of every class work well.",
            )
        ]
    if sum(count > 0 for count in preparation.per_class) < 2:
        return [_problem("IN002", "All clean images are of one class: add other classes.")]
    return []


def accurate(
    preparation: Preparation,
    pick: Tried,
    logits: Logits,
    y: Labels,
    thresholds: SanityThresholds,
    hint: str = "",
) -> list[Finding]:
    """Return what the labels say against the model, its normalization or the images.

    Args:
        preparation: The record, with what was tried, best first.
        pick: The normalization that is used.
        logits: What the model says of the images.
        y: Their labels.
        thresholds: What counts as sane.
        hint: What else is known of the reason, if there is something.
    """
    best = preparation.tried[0]
    rate, name = pick.accuracy, pick.normalization.name
    if beats(best, pick, thresholds):
        return [
            _problem(
                "IN001",
                f"With normalize={name} the clean accuracy is {rate.value:.1%}, but "
                f"{best.accuracy.value:.1%} with normalize={best.normalization.name}: the "
                "normalization is wrong.",
            )
        ]
    crowd = _crowd(logits.argmax(1), y)
    if not trusted(rate, len(preparation.per_class), thresholds):
        more = "".join(f" {words}" for words in (crowd, hint) if words)
        return [
            _problem(
                "IN001",
                f"Clean accuracy is only {rate.value:.1%} [{rate.low:.0%}, {rate.high:.0%}] with "
                f"normalize={name}: wrong labels, architecture, input size or normalization.{more}",
            )
        ]
    return [Finding("DS002", "MEDIUM", 0.0, crowd)] if crowd else []


def trusted(rate: Rate, classes: int, thresholds: SanityThresholds) -> bool:
    """Whether a clean accuracy is that of a sane model of so many classes."""
    least = min(thresholds.chance / classes, (1 + 1 / classes) / 2)
    return rate.value >= thresholds.accuracy and rate.low >= least


def _crowd(said: Labels, y: Labels) -> str:
    """Say so if images of several classes are taken for one class that is none of theirs."""
    wrong = said != y
    counts = said[wrong].bincount(minlength=1)
    k, count = int(counts.argmax()), int(counts.max())
    kinds = len(y[wrong & (said == k)].unique())
    if count < max(3, CROWD * len(y)) or 2 * count <= int(wrong.sum()) or kinds < 3:
        return ""
    return (
        f"{count} of {len(y)} images, of {kinds} other classes, are taken for class {k}: they may "
        "carry its trigger, or their labels are wrong."
    )


# 3. Behavior ----------------------------------------------------------------------------------


def behavior(subject: Subject, x: Images, logits: Logits) -> list[Finding]:
    """Return what makes a net one that cannot be searched.

    Args:
        subject: The net.
        x: Clean images, `(N, C, H, W)`.
        logits: What it says to all of them at once.
    """
    said = logits.argmax(1)
    if not bool(logits.isfinite().all()):
        return [_problem("FS005", "The model's outputs are not finite numbers.")]
    if len(x) > 1 and bool((logits == logits[0]).all()):
        return [_problem("IN004", "The model's outputs are the same for every image.")]
    checks = []
    if len(x) > 1 and len(said.unique()) == 1:
        checks.append(_problem("IN001", f"The model calls every image class {int(said[0])}."))
    return [*checks, *_steady(subject, x, logits), *_head(logits), *gradients(subject, x)]


def _steady(subject: Subject, x: Images, logits: Logits) -> list[Finding]:
    """Return a finding if answers change from pass to pass, or with the company of an image."""
    before = {name: t.clone() for name, t in _numbers(subject)}
    again = predict(subject, x)
    same = torch.equal if subject.device.type == "cpu" else agree
    if not same(again, logits):
        return [
            _problem(
                "IN004",
                "Two passes over the same images give different outputs: the net draws at random "
                "or changes as it is used (dropout that is always on, noise, a counter).",
            )
        ]
    few = x[:ALONE]
    try:
        alone = torch.cat([predict(subject, one) for one in few.split(1)])
    except Exception as error:
        return [_problem("IN004", f"The net fails on a single image: {reason(error)}.")]
    if not agree(logits[: len(few)], alone):
        words = (
            "An image's outputs depend on the other images of its batch (BatchNorm without running "
            "statistics, or a forward in training mode), so that no trigger can be measured."
        )
        return [_problem("IN004", words)]
    after = dict(_numbers(subject))
    if all(name in after and torch.equal(t, after[name]) for name, t in before.items()):
        return []
    return [_problem("IN004", "The net changes its own weights or statistics as it is used.")]


def _numbers(subject: Subject) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a net by name, whatever it calls its state."""
    return chain(subject.net.named_parameters(), subject.net.named_buffers())


def _head(logits: Logits) -> list[Finding]:
    """Return a finding if the outputs are probabilities of labels that do not exclude each other.

    Of a net with one label an image logits are free up to a constant; zero means nothing. Where a
    sigmoid follows, they are far from zero on either side, and several may lie above.
    """
    if bool(((logits >= 0) & (logits <= 1)).all()):
        return [
            _problem(
                "IN004",
                "The outputs lie between 0 and 1 and do not sum to 1: a net with a sigmoid, as for "
                "several labels an image. Only nets with one class an image can be scanned.",
            )
        ]
    live = logits[:, logits.argmax(1).unique()]  # an output that never wins is of no label
    above = (live > 0).sum(1)
    several = (above > 1) & (above < live.shape[1])
    if several.float().mean() < 0.5 or (live.abs() > SURE).float().mean() < 1 - CROWD:
        return []
    return [
        _problem(
            "IN004",
            f"Several outputs are far above zero at once ({int(above.median())} of "
            f"{live.shape[1]} on the usual image) and all others far below, as in a net for "
            "several labels an image. Only nets with one class an image can be scanned.",
        )
    ]


def gradients(subject: Subject, x: Images) -> list[Finding]:
    """Return a finding if gradients cannot lead a search: cut off, zero, no numbers, or untrue.

    The images are looked at as they are and with a black and a white corner, as a search makes
    them.
    """
    few = x[:ALONE].to(subject.device)
    marked = few.clone()
    marked[:, :, :CORNER, :CORNER], marked[:, :, -CORNER:, -CORNER:] = 0, 1
    both = torch.cat([few, marked])
    try:
        words = _blind(_slope(subject, both)) or _masked(subject, few.clamp(NUDGE, 1 - NUDGE))
    except Exception as error:
        words = f"The net fails on images with a black and a white corner ({reason(error)})"
    return [_problem("IN006", f"{words}: no search can be led by gradients.")] if words else []


def _slope(subject: Subject, x: Images) -> Tensor | None:
    """Return the gradient of how far the first class leads the second, None if it is cut off."""
    breathe()
    with frozen_eval(subject), torch.enable_grad():
        x = x.clone().requires_grad_()
        outputs = subject(x)
        leading = outputs.gather(1, outputs.argsort(1, descending=True)[:, :2])
        ahead = (leading[:, 0] - leading[:, 1]).sum()
        if not ahead.requires_grad:
            return None
        slope: Tensor | None = torch.autograd.grad(ahead, x, allow_unused=True)[0]
        return slope


def _blind(slope: Tensor | None) -> str:
    """Say why a gradient `(N, C, H, W)` leads nowhere; empty if it leads somewhere."""
    if slope is None:
        return "No gradient reaches the images, since the net cuts it off"
    rows = slope.flatten(1)
    bad = int((~rows.isfinite()).any(1).sum())
    if bad:
        return (
            f"Gradients are not finite numbers on {bad} of {len(rows)} images that were tried, "
            "half of them with a black and a white corner (a power or a logarithm of a pixel does "
            "that)"
        )
    flat = int((rows.abs().amax(1) <= FLAT).sum())
    if 2 * flat > len(rows):
        return (
            f"No gradient reaches {flat} of {len(rows)} images that were tried (rounding, a sign "
            "or an argmax in the net does that)"
        )
    return ""


def _masked(subject: Subject, x: Images) -> str:
    """Say so if the outputs do not rise where gradients point; empty if they do."""
    slope = _slope(subject, x)
    if slope is None:
        return ""
    step = NUDGE * slope.sign()
    with torch.no_grad():
        first = subject(x).argsort(1, descending=True)[:, :2]
        up, down = (subject(x + d).gather(1, first) for d in (step, -step))
        rise = (up[:, 0] - up[:, 1]) - (down[:, 0] - down[:, 1])
    share = rise / (2 * NUDGE * slope.abs().flatten(1).sum(1)).clamp(min=FLAT)
    middle = float(share.median())
    return "" if middle >= FOLLOWED else f"Outputs change by {middle:.0%} of what gradients promise"


def _problem(rule: str, message: str) -> Finding:
    return Finding(rule, "HIGH", 0.0, message)
