"""Mahalanobis distance: how far do the features of an image lie from those of its class?"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.filtering.scoring import Asked


@method
class Mahalanobis:
    """Measure the distance of an image's features from the clean images of the class that it gets.

    Each class has its mean, all share one covariance. A stamped image gets the target's class with
    features that few of its clean images have. Assumes as many clean images as features, or a
    ridge that stands in for them. Cost: one forward an image.

    Attributes:
        ridge: What is added to every variance, as a share of their mean.

    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks, NeurIPS 2018, eqs. 1 and 2. Differs: the distance is to the class that the
    net predicts, not to the nearest; the last layer's input alone; no change of the image first.
    """

    ridge: Annotated[float, NotNegative] = 1e-2

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, higher is worse; its label has no part in it.

        Raises:
            NotApplicable: If no clean image is of the class that it is labeled with.
            Incomplete: If the run is over before all images are scored.
        """
        asked = Asked(subject, run)
        known, own = asked.inside(clean), asked.inside(suspects)
        right = known.predicted == known.labels
        if not right.any():
            raise NotApplicable(
                "the net gives no clean image its own class: nothing to compare with"
            )
        inside, labels = known.features[right], known.labels[right]
        everywhere = inside.mean(0)
        means = everywhere.repeat(subject.classes, 1)
        for c in labels.unique().tolist():
            means[c] = inside[labels == c].mean(0)
        spread = inside - means[labels]
        covariance = spread.T @ spread / len(spread)
        typical = covariance.diagonal().mean().clamp_min(1e-12)
        covariance += (self.ridge * typical + 1e-12) * torch.eye(len(covariance)).to(covariance)
        away = own.features - means[own.predicted]
        solved = torch.linalg.solve(covariance, away.T).T
        scores: Tensor = (away * solved).sum(1).clamp_min(0).sqrt().float()
        return scores
