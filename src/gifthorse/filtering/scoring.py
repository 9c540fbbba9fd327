"""What filters share: a net that counts what it is asked, and how well scores tell images apart."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gifthorse.core.errors import BadImages, BadOption, Incomplete
from gifthorse.core.run import Run
from gifthorse.core.stats import auroc, rate
from gifthorse.core.types import Filter, Goal, Images, Labels, Logits, Rate, Samples, Subject
from gifthorse.data.samples import batches, near
from gifthorse.models.features import with_features

CHUNK = 512  # images in one run through the net


# 1. Asking the net ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Inside:
    """What a net makes of images, in their order, on the processor.

    Attributes:
        labels: The labels that came with the images, `(N,)`.
        predicted: The net's classes, `(N,)`.
        features: What goes into the last layer, `(N, d)` float64.
    """

    labels: Labels
    predicted: Labels
    features: Tensor


class Asked:
    """A private copy of a classifier, in evaluation mode, that counts the images it is shown.

    Args:
        subject: The classifier; it stays as it was.
        run: What the images are charged to; None for one that never ends.
    """

    def __init__(self, subject: Subject, run: Run) -> None:
        self.run = run
        net = deepcopy(subject.net).eval().requires_grad_(False)
        self.subject = replace(subject, net=net)

    def logits(self, x: Images) -> Logits:
        """Return logits `(N, K)`, without gradients.

        Raises:
            Incomplete: If the run is over before all images were shown.
        """
        parts = []
        for part in x.split(CHUNK):
            self._charge(len(part))
            with torch.no_grad():
                parts.append(self.subject(part).float())
        return torch.cat(parts)

    def inside(self, samples: Samples) -> Inside:
        """Return labels, predictions and features of all samples.

        Raises:
            BadImages: If there are none.
            Incomplete: If the run is over before all images were shown.
        """
        if not len(samples):
            raise BadImages("there is no image: a filter needs clean images and suspects")
        labels, predicted, inner = [], [], []
        for x, y in batches(near(samples, self.subject), CHUNK):
            self._charge(len(x))
            with torch.no_grad():
                logits, found = with_features(self.subject, x)
            labels.append(y.cpu())
            predicted.append(logits.argmax(1).cpu())
            inner.append(found.double().cpu())
            self.run.report(sum(map(len, labels)), len(samples), "taking features")
        return Inside(torch.cat(labels), torch.cat(predicted), torch.cat(inner))

    def _charge(self, images: int) -> None:
        # A filter that stops early has no score for some images, and half a list helps nobody.
        if self.run.stop_reason:
            raise Incomplete(
                f"not all images were scored: {self.run.stop_reason}; give it more, or fewer images"
            )
        self.run.charge(images / 2)


def takes_labels(method: Filter) -> bool:
    """Whether a filter takes suspects for a training set, and so needs their labels."""
    return getattr(method, "mode", "") == "dataset"


# 2. Judging scores ----------------------------------------------------------------------------


class Caught(NamedTuple):
    """How well scores tell stamped from clean images; positives are the stamped ones.

    Attributes:
        threshold: The score above which an image is flagged, from calibration images alone.
        tpr: Stamped images flagged (recall).
        fpr: Clean test images flagged: what the threshold really costs.
        precision: Stamped ones among those flagged; None if none is.
        accuracy: Images judged rightly.
        f1: Harmonic mean of precision and recall; None without precision. Depends on how many
            images of either kind there are.
        auroc: Area under the ROC curve.
        auprc: Average precision.
        tpr_roc: Recall where the test ROC curve crosses the wanted false positive rate; optimistic.
        tpr_zoo: Recall with the threshold set on the clean test images themselves, as TrojanZoo.
    """

    threshold: float
    tpr: Rate
    fpr: Rate
    precision: Rate | None
    accuracy: Rate
    f1: float | None
    auroc: float
    auprc: float
    tpr_roc: float
    tpr_zoo: float


def threshold(calibration: Tensor, fpr: float = 0.05) -> float:
    """Return the score above which to flag: the `ceil((1 - fpr) n)`-th smallest of clean scores.

    Args:
        calibration: Scores of clean images that nothing else was fitted to, `(n,)`.
        fpr: Share of clean images that may be flagged, in [0, 1).

    Raises:
        BadOption: If the share is out of range.
        BadImages: If there are no scores.

    Example:
        >>> threshold(torch.arange(100.0))
        94.0
    """
    _check(fpr)
    if not len(calibration):
        raise BadImages("a threshold needs scores of clean images; got none")
    place = max(1, math.ceil((1 - fpr) * len(calibration) - 1e-9))
    return float(calibration.sort().values[place - 1])


def judge(clean: Tensor, stamped: Tensor, calibration: Tensor, fpr: float = 0.05) -> Caught:
    """Return how well scores tell apart clean and stamped test images.

    Args:
        clean: Scores of clean test images, `(n,)`; higher is worse.
        stamped: Scores of stamped test images, `(m,)`.
        calibration: Scores of other clean images, which alone set the threshold, `(k,)`.
        fpr: Share of clean images that may be flagged.

    Raises:
        BadOption: If the share is out of range.
        BadImages: If scores of a kind are missing.

    Source: TrojanZoo sec. 4.3 and Tables 10, 23. Differs: the threshold comes from images that are
    not scored, intervals are Wilson's, and what cannot be said is None, not 0.
    """
    from sklearn.metrics import average_precision_score, roc_curve  # late: slow

    if not len(clean) or not len(stamped):
        raise BadImages(f"scores of both kinds are needed; got {len(clean)} and {len(stamped)}")
    limit, truth = threshold(calibration, fpr), torch.arange(len(clean) + len(stamped))
    scores, truth = torch.cat([clean, stamped]).double(), truth >= len(clean)
    flagged = scores > limit
    recall = rate(flagged[truth])
    precise = rate(truth[flagged]) if bool(flagged.any()) else None
    xs, ys, _ = (torch.from_numpy(a) for a in roc_curve(truth, scores))
    i = int((xs <= fpr).sum())  # the curve crosses between its points i - 1 and i
    slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
    zoo = clean.sort(descending=True).values[int(fpr * len(clean))]
    return Caught(
        threshold=limit,
        tpr=recall,
        fpr=rate(flagged[~truth]),
        precision=precise,
        accuracy=rate(flagged == truth),
        f1=None if precise is None else _harmonic(precise.value, recall.value),
        auroc=auroc(clean, stamped),
        auprc=float(average_precision_score(truth, scores)),
        tpr_roc=float(ys[i - 1] + slope * (fpr - xs[i - 1])),
        tpr_zoo=rate(stamped > zoo).value,
    )


def pairs(clean: Labels, stamped: Labels, labels: Labels, goal: Goal) -> Tensor:
    """Return which images make good pairs: right when clean, hijacked when stamped, `(N,)` bool.

    Args:
        clean: Predicted classes of the clean images, `(N,)`.
        stamped: Those of the same images with the trigger, `(N,)`.
        labels: True labels, `(N,)`.
        goal: Target and source.

    Source: TrojanZoo's `InputFiltering.get_test_data`. Differs: leaves out the target class.
    """
    return goal.applies_to(labels) & (clean == labels) & (stamped == goal.target)


def refused(predicted: Labels, flagged: Tensor) -> Labels:
    """Return predictions `(N,)` with -1 for flagged images, which no class then counts as its own.

    So `metrics.accuracy` and `metrics.asr` see the net and its filter as one system.

    Example:
        >>> refused(torch.tensor([0, 1]), torch.tensor([False, True])).tolist()
        [0, -1]
    """
    return torch.where(flagged, -1, predicted)


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _check(fpr: float) -> None:
    if not 0 <= fpr < 1:
        raise BadOption(f"fpr, the share of clean images to flag, must lie in [0, 1); got {fpr}")
