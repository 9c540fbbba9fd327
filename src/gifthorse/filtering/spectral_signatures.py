"""Spectral signatures: which images lie far out along the direction that a class varies most?"""

from __future__ import annotations

import logging
import math
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import OpenShare, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.types import Labels, Samples, Subject
from gifthorse.filtering.scoring import Asked

log = logging.getLogger("gifthorse")


@method
class SpectralSignatures:
    """Project the features of a class on the direction in which they vary most.

    Stamped images move that direction towards themselves. Scores depend on the other suspects:
    many stamped ones among few clean are harder than some. Cost: one forward an image and one
    singular value decomposition a class. Nothing is random.

    Attributes:
        mode: `online` groups suspects by the net's answer and compares them with the clean images
            that got the same answer; `dataset` takes suspects for a training set, groups them by
            their labels and needs no clean image.
        fit_on: In `online` mode, whether the direction is that of the `union` of clean images and
            suspects, or of the `reference`, the clean ones, alone: then scores say how far out an
            image lies and no more.
        expected: In `dataset` mode, the expected share of poisoned images in a class.
        multiplier: How many times that share `removed` takes; never more than half a class.

    Source: Tran et al., Spectral Signatures in Backdoor Attacks, NeurIPS 2018, algorithm 1.
    Differs: `online` mode is ours (TrojanZoo sec. 4.3 names one and gives no procedure): features
    are centered on the clean images' mean, and the score is in variances of the clean images'
    projections.
    """

    mode: Literal["online", "dataset"] = "online"
    fit_on: Literal["union", "reference"] = "union"
    expected: Annotated[float, OpenShare] = 0.05
    multiplier: Annotated[float, Positive] = 1.5

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, higher is worse.

        Suspects of a class that fewer than two clean images come out as score 0 in `online` mode.

        Raises:
            BadImages: If there are no suspects, or in `online` mode no clean images.
            Incomplete: If the run is over before all images are scored.
        """
        asked = Asked(subject, run)
        own = asked.inside(suspects)
        scores = own.features.new_zeros(len(own.labels))
        if self.mode == "dataset":
            for c in own.labels.unique().tolist():
                mine = own.labels == c
                scores[mine] = signature(own.features[mine])
            return scores.float()
        known, missed = asked.inside(clean), 0
        for c in own.predicted.unique().tolist():
            mine, reference = own.predicted == c, known.features[known.predicted == c]
            if len(reference) < 2:
                missed += int(mine.sum())
                continue
            scores[mine] = self._beside(own.features[mine], reference)
        if missed:
            log.warning("%d suspects come out as classes with too few clean images", missed)
        return scores.float()

    def _beside(self, inside: Tensor, reference: Tensor) -> Tensor:
        """Return the scores `(n,)` of features `(n, d)` beside those of clean images `(m, d)`."""
        center = reference.mean(0)
        known, new = reference - center, inside - center
        v = leading(torch.cat([known, new]) if self.fit_on == "union" else known)
        squares, new_squares = (known @ v).square(), (new @ v).square()
        # A direction in which clean images do not vary at all must not divide by zero.
        floor = 1e-6 * torch.cat([squares, new_squares]).mean()
        return new_squares / torch.maximum(squares.mean(), floor).clamp(min=1e-30)

    def removed(self, scores: Tensor, labels: Labels) -> Tensor:
        """Return which images of a training set to leave out, `(N,)` bool, class by class.

        Exactly `ceil(multiplier * expected * n)` of the n images of each class, the highest scores
        first, and never more than half.

        Args:
            scores: What `dataset` mode returned, `(N,)`.
            labels: The labels of the training set, `(N,)`.
        """
        out, share = torch.zeros(len(scores), dtype=torch.bool), self.multiplier * self.expected
        for c in labels.unique().tolist():
            mine = (labels == c).nonzero().flatten().cpu()
            count = min(math.ceil(share * len(mine) - 1e-9), len(mine) // 2)
            worst = scores[mine].argsort(descending=True, stable=True)[:count]
            out[mine[worst]] = True
        return out


def leading(rows: Tensor) -> Tensor:
    """Return the first right singular vector `(d,)` of rows `(n, d)`; its sign is arbitrary."""
    vector: Tensor = torch.linalg.svd(rows, full_matrices=False).Vh[0]
    return vector


def signature(inside: Tensor) -> Tensor:
    """Return the spectral signature `((h - mean) . v)^2` of features `(n, d)`, as `(n,)`.

    Example:
        >>> signature(torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 4.0]])).round().tolist()
        [4.0, 0.0, 4.0]
    """
    centered = inside - inside.mean(0)
    return (centered @ leading(centered)).square()
