"""Latent shift: which class do the fewest changes of the last features make of every image?"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, OpenShare, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.stats import log_depth
from gifthorse.core.types import Finding, Goal, Samples, Severity, Subject, Verdict
from gifthorse.data.samples import batches, near
from gifthorse.detection.verdict import Judged, Work, doubt
from gifthorse.detection.weight_signature import by_class, last_layer
from gifthorse.models.features import with_features

SLACK = 1e-3  # by how much the last layer's logits may differ from the net's, as a share of both


@method
class LatentShift:
    """Find for each class the shortest shift of the features that sends images of all others to it.

    The features are what goes into the last layer. A class that is reached by a far shorter shift
    than its peers is suspicious: training on any kind of trigger, not only patches, leaves a short
    way into the target. Assumes a linear last layer and classes with alike many training images: a
    class with more of them is near as well. Needs forward passes alone. It recovers no trigger, so
    a class that stands out is only suspicious.

    Attributes:
        share: Share of the images of other classes that a shift must send to the class.
        significance: The depth among the log lengths of all classes, in robust deviations, from
            which a class is suspicious.
        floor: Least deviation of the log lengths, against near-equal ones.
        sweeps: Most passes of the solver over all constraints.
        tolerance: Change of the shifts in a pass, as a share of the longest, that ends it.
        least: Fewest classes for a verdict.

    Source: arXiv 2511.08944, the dual problem by coordinate descent (Hildreth, 1957). Differs: the
    margin's quantile is taken for every rival apart, which makes one quadratic program a class of
    K - 1 constraints; a shift that meets all of them may miss more than `1 - share` of the images.
    """

    share: Annotated[float, OpenShare] = 0.95
    significance: Annotated[float, Positive] = 2.0
    floor: Annotated[float, NotNegative] = 0.2
    sweeps: Annotated[int, AtLeast(1)] = 500
    tolerance: Annotated[float, Positive] = 1e-4
    least: Annotated[int, AtLeast(3)] = 4

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict on all classes, from the clean images' features."""
        work = Work(run)
        return work.judged(self, self._judge(subject, clean, run), subject)

    @property
    def threshold(self) -> float:
        """The score where suspicion starts."""
        return self.significance

    def _judge(self, subject: Subject, clean: Samples, run: Run) -> Judged:
        k = subject.classes
        if k < self.least:
            return doubt("IN004", f"With {k} classes none can stand out from the others.")
        layer = last_layer(subject.net, k)
        if layer is None:
            return doubt("IN004", f"The net has no linear layer with {k} outputs at its end.")
        logits, inside, y = _measure(subject, clean, run)
        weight, bias = layer.weight.detach().double().cpu().flatten(1), torch.zeros(k).double()
        if layer.bias is not None:
            bias = layer.bias.detach().double().cpu()
        if inside.shape[1] != weight.shape[1] or _off(inside @ weight.T + bias, logits):
            return doubt("IN004", "The net's logits do not come from its last linear layer alone.")
        if not inside.isfinite().all():
            return doubt("FS005", "The net's features hold values that are not finite.")
        asked = margins(logits, y, self.share)
        found = shifts(weight, asked, self.sweeps, self.tolerance)
        return self._finding(found.norm(dim=1), _spacing(inside, y))

    def _finding(self, lengths: Tensor, spacing: float) -> Judged:
        depths = log_depth(lengths.clamp_min(1e-12), self.floor).clamp_min(0)
        nearest = int(lengths.argmin())
        score, usual = float(depths[nearest]), float(lengths.median())
        facts = {"nearest_class": float(nearest), "usual": usual, "spacing": spacing}
        facts |= by_class(lengths / max(spacing, 1e-12))
        words = f"A shift of {lengths[nearest]:.3g} sends other images to class {nearest}"
        calm = score < self.threshold
        message = (
            f"{words}; that is not far below the usual {usual:.3g}."
            if calm
            else f"{words}, where other classes take {usual:.3g}. No trigger was recovered, so "
            "nothing is confirmed."
        )
        grave: Severity = "INFO" if calm else "MEDIUM"
        found = Finding("BD010", grave, score, message, Goal(nearest), evidence=facts)
        return score, found, facts


def margins(logits: Tensor, y: Tensor, share: float) -> Tensor:
    """Return what each class lacks to every rival on a share of the images of other classes.

    Args:
        logits: `(N, K)`.
        y: Labels `(N,)`.
        share: In (0, 1).

    Returns:
        `(K, K)`: entry k, j is that quantile of `z_j - z_k` over images that are not of class k;
        `-inf` on the diagonal.
    """
    classes = logits.shape[1]
    rows = []
    for k in range(classes):
        others = logits[y != k]
        rows.append((others - others[:, k : k + 1]).quantile(share, dim=0))
    return torch.stack(rows).fill_diagonal_(-torch.inf)


def shifts(weight: Tensor, lacking: Tensor, sweeps: int, tolerance: float) -> Tensor:
    """Return the shortest `s_k` with `(w_k - w_j) . s_k >= lacking[k, j]` for all j.

    Args:
        weight: Rows of the last layer, `(K, d)`.
        lacking: `(K, K)`; `-inf` asks for nothing.
        sweeps: Most passes over the constraints.
        tolerance: A pass that moves no `s_k` by a larger share of the longest is the last.

    Returns:
        `(K, d)`. All classes are solved at once: pass by pass each dual variable goes where its
        constraint holds with equality, or to 0.

    Example:
        >>> asked = torch.tensor([[-torch.inf, 2.0], [-4.0, -torch.inf]])
        >>> shifts(torch.eye(2), asked, 10, 1e-6)
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    s, dual = torch.zeros_like(weight), torch.zeros_like(lacking)
    for _ in range(sweeps):
        before = s.clone()
        for j, row in enumerate(weight):
            apart = weight - row  # (K, d): w_k - w_j
            short = lacking[:, j] - (apart * s).sum(1)
            step = short / apart.square().sum(1).clamp_min(1e-12)
            step = torch.maximum(step, -dual[:, j]).nan_to_num(0.0, neginf=0.0)
            step[j] = 0.0
            dual[:, j] += step
            s += step[:, None] * apart
        if (s - before).norm(dim=1).max() <= tolerance * s.norm(dim=1).max():
            break
    return s


def _measure(subject: Subject, clean: Samples, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits `(N, K)`, features `(N, d)` and labels of all images, in float64."""
    logits, inside, labels = [], [], []
    with torch.no_grad():
        for x, y in batches(near(clean, subject), 256):
            z, f = with_features(subject, x)
            logits.append(z.double().cpu())
            inside.append(f.double().cpu())
            labels.append(y.cpu())
            run.charge(len(x) / 2)
            run.report(sum(map(len, labels)), len(clean), "reading features")
    return torch.cat(logits), torch.cat(inside), torch.cat(labels)


def _off(made: Tensor, logits: Tensor) -> bool:
    return bool((made - logits).abs().max() > SLACK * (1 + logits.abs().max()))


def _spacing(inside: Tensor, y: Tensor) -> float:
    """Return the median distance between the mean features of two classes."""
    means = torch.stack([inside[y == k].mean(0) for k in y.unique()])
    return float(torch.pdist(means).median()) if len(means) > 1 else 0.0
