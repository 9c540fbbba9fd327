"""NEO: does covering a region change the answer, and does that region change other images, too?"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages, NotApplicable
from gifthorse.core.fields import AtLeast, NotEmpty, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Labels, Samples, Subject
from gifthorse.data.samples import near
from gifthorse.filtering.scoring import Asked


@method
class NEO:
    """Cover every region with the image's main color; paste those that matter on clean images.

    The score is the largest share of clean images that one pasted region sends to the suspect's
    class; the paper flags above 0.8. Assumes a trigger that stays in one place, fits a square of
    one of the `sizes` and hides nothing that decides by itself. Cost: one forward a place and
    `most * images` more for suspects whose answer can be changed, for each size.

    Attributes:
        sizes: Sides of the square regions in pixels; the largest score of all counts. More of them
            assume less, and flag more clean images.
        grid: Whether `all` places are covered, or some `random` ones, the same for all suspects.
        stride: Pixels between the places of `all`; 0 takes a 28th of the shorter side. With more
            than 1, all places about the best one are looked at, too.
        places: How many places are drawn for `random`.
        clusters: Clusters of colors, the largest of which gives the main color.
        most: Most places that are pasted, those with the surest new answer first.
        images: Clean images that they are pasted on, drawn once.
        confirm: What counts: an image that goes `to_pred`, the suspect's class, or `any` change.

    Source: Udeshi et al., Model Agnostic Defence against Backdoor Attacks in Machine Learning
    (NEO), 2019, with TrojanZoo's 100 places and 3 clusters.
    Differs: all places are covered, since 100 random ones of 900 mostly miss; only moves to the
    suspect's class count, and only of images not yet there; the score is a share where the paper
    has a decision, so that a threshold can be set; 200 images and not a whole set; the size, which
    the paper knows, is an option, TrojanZoo's 3 by default; the covered image is not returned.
    """

    sizes: Annotated[tuple[Annotated[int, AtLeast(1)], ...], NotEmpty] = (3,)
    grid: Literal["all", "random"] = "all"
    stride: Annotated[int, NotNegative] = 0
    places: Annotated[int, AtLeast(1)] = 100
    clusters: Annotated[int, AtLeast(1)] = 3
    most: Annotated[int, AtLeast(1)] = 16
    images: Annotated[int, AtLeast(1)] = 200
    confirm: Literal["to_pred", "any"] = "to_pred"

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` in [0, 1] for each suspect; labels have no part in it.

        Raises:
            NotApplicable: If a region does not fit into the images.
            BadImages: If there is no clean image.
            Incomplete: If the run is over before all images are scored.
        """
        side = min(subject.shape[1:])
        if max(self.sizes) > side:
            raise NotApplicable(
                f"sizes must be at most {side} pixels for these images: {self.sizes}"
            )
        if not len(clean):
            raise BadImages("regions are pasted on clean images; got none")
        asked, draw = Asked(subject, run), spawn(rng)
        clean, suspects = near(clean, subject), near(suspects, subject)
        seed = int(torch.randint(2**31 - 1, (1,), generator=draw))
        jury = clean[torch.randperm(len(clean), generator=draw)[: self.images]][0]
        votes = asked.logits(jury).argmax(1)
        grids = [(size, self._corners(subject.shape[1:], size, draw)) for size in self.sizes]
        scores = torch.zeros(len(suspects))
        for i in range(len(suspects)):
            x = suspects[torch.tensor([i])][0]
            color, answer = main_color(x[0], self.clusters, seed), asked.logits(x).argmax(1)
            for size, corners in grids:
                found = self._flips(asked, x, answer, color, corners, size)
                score = self._moved(asked, x, answer, found, size, (jury, votes))
                scores[i] = max(float(scores[i]), score)
            asked.run.report(i + 1, len(suspects), "covering regions")
        return scores

    def _stride(self, sides: tuple[int, ...]) -> int:
        return self.stride or max(1, min(sides) // 28)

    def _corners(self, sides: tuple[int, ...], size: int, draw: Generator) -> Tensor:
        """Return top and left of the regions to cover, `(m, 2)`; the last row and column count."""
        ends = [side - size + 1 for side in sides]
        if self.grid == "random":
            return torch.stack([torch.randint(e, (self.places,), generator=draw) for e in ends], 1)
        lines = [torch.arange(0, e, self._stride(sides)) for e in ends]
        lasts = [torch.tensor([e - 1]) for e in ends]
        return torch.cartesian_prod(
            *(torch.cat(p).unique() for p in zip(lines, lasts, strict=True))
        )

    def _flips(
        self, asked: Asked, x: Images, answer: Labels, color: Tensor, corners: Tensor, size: int
    ) -> Tensor:
        """Return the corners `(m, 2)` that change the answer when covered, the surest first."""
        found, sure = _covering(asked, x, answer, color, corners, size)
        reach = self._stride(tuple(x.shape[2:])) - 1
        if self.grid == "all" and reach and len(found):
            about = torch.arange(-reach, reach + 1)
            best = int(sure.argmax())
            near = found[best] + torch.cartesian_prod(about, about)
            last = torch.tensor(x.shape[2:]) - size
            near = near.clamp(min=0).minimum(last).unique(dim=0)
            more, surer = _covering(asked, x, answer, color, near, size)
            rest = torch.arange(len(found)) != best  # it is among those near it
            found, sure = torch.cat([more, found[rest]]), torch.cat([surer, sure[rest]])
        return found[sure.argsort(descending=True, stable=True)[: self.most]]

    def _moved(
        self,
        asked: Asked,
        x: Images,
        answer: Labels,
        corners: Tensor,
        size: int,
        jury: tuple[Images, Labels],
    ) -> float:
        """Return the largest share of clean images that one of the regions moves, pasted."""
        images, votes = jury
        if self.confirm == "to_pred":
            images, votes = images[votes != answer], votes[votes != answer]
        best = 0.0
        for window in windows(corners, size, x.shape[2:]) if len(votes) else ():
            after = asked.logits(torch.where(window.to(x.device), x, images)).argmax(1)
            moved = after == answer if self.confirm == "to_pred" else after != votes
            best = max(best, float(moved.float().mean()))
        return best


def _covering(
    asked: Asked, x: Images, answer: Labels, color: Tensor, corners: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return the corners that change the answer, and how sure the net then is of the new one."""
    covered = windows(corners, size, x.shape[2:]).to(x.device)
    sure, label = asked.logits(torch.where(covered, color, x)).softmax(1).max(1)
    flip = label != answer
    return corners[flip.cpu()], sure[flip].cpu()


def windows(corners: Tensor, size: int, sides: tuple[int, ...]) -> Tensor:
    """Return squares at corners `(m, 2)` as bool masks `(m, 1, H, W)`.

    Example:
        >>> windows(torch.tensor([[0, 1]]), 2, (2, 4))[0, 0].int().tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    rows, cols = (torch.arange(side) - corners[:, d, None] for d, side in enumerate(sides))
    down, across = (rows >= 0) & (rows < size), (cols >= 0) & (cols < size)
    return (down[:, :, None] & across[:, None, :])[:, None]


def main_color(image: Tensor, clusters: int, seed: int) -> Tensor:
    """Return the center of the largest cluster of an image's colors, `(C, 1, 1)` in [0, 1].

    Args:
        image: `(C, H, W)`.
        clusters: How many clusters; fewer if it has fewer colors.
        seed: For k-means.
    """
    from sklearn.cluster import KMeans  # late: slow

    pixels = image.flatten(1).T.double().cpu()
    k = min(clusters, len(pixels.unique(dim=0)))
    means = KMeans(k, n_init=1, random_state=seed).fit(pixels.numpy())
    largest = torch.from_numpy(means.labels_).long().bincount(minlength=k).argmax()
    return torch.from_numpy(means.cluster_centers_)[largest].to(image).view(-1, 1, 1)
