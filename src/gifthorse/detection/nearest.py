"""Which of very many classes or pairs are worth a search: those clean images are nearest to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Samples, Subject
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
    lacking = margins(logits, y, SHARE) / _apart(subject)
    return lacking.fill_diagonal_(-torch.inf).amax(1)


def nearest_pairs(
    subject: Subject, clean: Samples, pairs: Sequence[Goal], count: int, run: Run
) -> list[Goal]:
    """Return the nearest of some class pairs, in the order in which they were given.

    A pair is near if the features of the source's images need a shorter shift over the boundary to
    the target than is usual of the source and of the target; see `pair_distances`.

    Args:
        subject: The net.
        clean: Clean images.
        pairs: Goals with a source, which has images.
        count: How many to return.
        run: Is charged half an image-step an image.
    """
    far = pair_distances(subject, clean, run)
    of = torch.tensor([[goal.source or 0, goal.target] for goal in pairs]).T
    return [pairs[i] for i in sorted(far[of[0], of[1]].argsort(stable=True)[:count].tolist())]


def pair_distances(subject: Subject, clean: Samples, run: Run) -> Tensor:
    """Return how far images of each class are from each other class, `(K, K)` by source, target.

    The distance of the boundary between both, `lacking / |w_t - w_s|`, is the shift that the last
    layer asks for where no third class is in the way. It is divided by the medians of its row and
    its column, as some classes are easy to leave, and some easy to reach. Infinite on the diagonal
    and for classes without images.
    """
    x, y = whole(clean)
    logits = predict(subject, x)
    run.charge(len(x) / 2)
    far = torch.full((subject.classes, subject.classes), torch.nan)
    for source in y.unique().tolist():
        own = logits[y == source].float()
        far[source] = (own[:, source : source + 1] - own).quantile(SHARE, dim=0)
    far = (far / _apart(subject)).clamp_min(1e-12).fill_diagonal_(torch.nan)
    usual = far.nanmedian(0, keepdim=True).values * far.nanmedian(1, keepdim=True).values
    return (far / usual).nan_to_num(torch.inf)


def _apart(subject: Subject) -> Tensor:
    """Return the distances `(K, K)` of the last layer's rows; 1 where the net has no such layer."""
    layer = last_layer(subject.net, subject.classes)
    if layer is None:
        return torch.ones(subject.classes, subject.classes)
    weight = layer.weight.detach().float().cpu().flatten(1)
    apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.clamp_min(1e-12)
