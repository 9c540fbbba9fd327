"""Which of very many classes are worth a search: those that clean images are nearest to."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.detection.latent_shift import margins
from gifthorse.detection.weight_signature import last_layer
from gifthorse.training import predict

SHARE = 0.95  # of the images of other classes that a shift would have to send to a class


def screened(
    subject: Subject, clean: Samples, nearest: int, others: int, rng: Generator, run: Run
) -> list[int]:
    """Return the nearest classes, and some of the others at random as their peers, in order.

    A class is near if the features of all images need only a short shift to it: at least the
    distance of the farthest rival's boundary, `max_j lacking[k, j] / |w_k - w_j|`, a bound on what
    `latent_shift` solves exactly. Without a linear last layer the logits themselves are taken.

    Args:
        subject: The net, with more classes than `nearest + others`.
        clean: Clean images.
        nearest: How many of the nearest classes.
        others: How many of the rest, so that those have something to stand out from.
        rng: Draws the others.
        run: Is charged half an image-step an image.
    """
    near = distances(subject, clean, run).argsort()
    drawn = near[nearest:][torch.randperm(len(near) - nearest, generator=rng)[:others]]
    return sorted([*near[:nearest].tolist(), *drawn.tolist()])


def distances(subject: Subject, clean: Samples, run: Run) -> Tensor:
    """Return how far clean images are from each class, `(K,)`; see `screened`."""
    x, y = whole(clean)
    logits = predict(subject, x)
    run.charge(len(x) / 2)
    lacking = margins(logits, y, SHARE)
    layer = last_layer(subject.net, subject.classes)
    if layer is not None:
        weight = layer.weight.detach().float().cpu().flatten(1)
        apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        lacking = lacking / apart.clamp_min(1e-12)
    return lacking.fill_diagonal_(-torch.inf).amax(1)
