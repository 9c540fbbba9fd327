"""Activation clustering: do the features of a class fall into two heaps?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import Incomplete
from gifthorse.core.fields import AtLeast, AtMost, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Samples, Subject
from gifthorse.filtering.scoring import Asked, Inside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger("gifthorse")
SAMPLE = 2000  # points that a silhouette is taken of: its cost is quadratic


@method
class ActivationClustering:
    """Split the features of each class in two and suspect the cluster with few clean images.

    The score is 0 where nothing is suspicious, else 0 to 2: above 1 lies nearer to the suspicious
    cluster. Scores depend on the other suspects. Cost: one forward an image and one small 2-means
    a class.

    Attributes:
        mode: `online` groups suspects by the net's answer, adds the clean images that got the same
            answer, and suspects the cluster with the smaller share of these; `dataset` takes
            suspects for a training set, groups them by their labels, needs no clean image and
            suspects the smaller cluster.
        dims: Dimensions that features are reduced to.
        reducer: `pca`, or `ica`: principal components scaled to variance 1, which independent
            components are a rotation of, and no rotation changes clusters or distances.
        rule: When the cluster is suspicious: `size` always; `relative_size` if its share is less
            than `share`; `silhouette` if also the clusters are further apart than `silhouette`;
            `distance` if its center is nearer to another class's center than to its own class's.
        share: Largest share of a suspicious cluster.
        silhouette: Least silhouette of two clusters that are not one.

    Source: Chen et al., Detecting Backdoor Attacks on Deep Neural Networks by Activation
    Clustering, SafeAI 2019; thresholds 0.35 and 0.10 of TrojanZoo's code.
    Differs: PCA where the paper has ICA, whose scaling gives noise the same weight as heaps;
    classes with fewer than `2 * dims` points are not judged and score 0; distances between classes
    are those of whole features, the only basis that classes share; `online` mode is ours (TrojanZoo
    sec. 4.3 names one and gives no procedure).
    """

    mode: Literal["online", "dataset"] = "online"
    dims: Annotated[int, AtLeast(1)] = 10
    reducer: Literal["pca", "ica"] = "pca"
    rule: Literal["size", "relative_size", "silhouette", "distance"] = "silhouette"
    share: Annotated[float, PositiveShare] = 0.35
    silhouette: Annotated[float, AtLeast(-1), AtMost(1)] = 0.10

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        """Return a score `(N,)` for each suspect, in [0, 2], higher is worse.

        Raises:
            BadImages: If there are no suspects, or in `online` mode no clean images.
            Incomplete: If the run is over before all images are scored, or no class has enough of
                them to cluster: then nothing was judged.
        """
        asked, online = Asked(subject, run), self.mode == "online"
        seed = int(torch.randint(2**31 - 1, (1,), generator=spawn(rng)))
        own = asked.inside(suspects)
        known = asked.inside(clean) if online else own
        group, known_group = self._group(own), self._group(known)
        centers = {
            c: known.features[known_group == c].mean(0) for c in known_group.unique().tolist()
        }
        scores, missed = torch.zeros(len(group)), 0
        for c in group.unique().tolist():
            mine = group == c
            points, n = own.features[mine], int(mine.sum())
            if online:
                points = torch.cat([points, known.features[known_group == c]])
            if c not in centers or len(points) < max(3, 2 * self.dims):
                missed += n
                continue
            anchors = torch.arange(len(points)) >= (n if online else 0)
            scores[mine] = self._scores(points, anchors, _own_last(centers, c), seed)[:n]
        if missed == len(group):
            raise Incomplete(
                f"nothing was judged: clusters take {max(3, 2 * self.dims)} images of a class, and "
                "no class has so many; give more images, set fewer dims, or take another method "
                "such as strip"
            )
        if missed:
            log.warning("%d suspects belong to classes with too few images to cluster", missed)
        return scores

    def _group(self, inside: Inside) -> Tensor:
        return inside.predicted if self.mode == "online" else inside.labels

    def _scores(self, points: Tensor, anchors: Tensor, centers: Tensor, seed: int) -> Tensor:
        """Return the scores `(n,)` of all points of a class.

        Args:
            points: Features, `(n, d)`.
            anchors: Which points a cluster is measured by, `(n,)` bool.
            centers: Mean features of classes `(K, d)`, those of this class last.
            seed: For 2-means.
        """
        from sklearn.cluster import KMeans  # late: slow

        spread = (points.amax(0) - points.amin(0)).amax()
        if spread <= 1e-9 * points.abs().amax():
            return torch.zeros(len(points))  # all equal: there is nothing to split
        reduced = self._reduced(points.numpy())
        order = reduced[:, 0].argsort()  # so that the order of the suspects does not matter
        means = KMeans(2, n_init=10, random_state=seed).fit(reduced[order])
        joined = torch.empty(len(points), dtype=torch.long)
        joined[torch.from_numpy(order)] = torch.from_numpy(means.labels_).long()
        shares = torch.bincount(joined[anchors], minlength=2) / int(anchors.sum())
        s = int(shares.argmin())
        inside = points[joined == s].mean(0)
        if not self._suspicious(float(shares[s]), reduced[order], means.labels_, inside, centers):
            return torch.zeros(len(points))
        far = torch.from_numpy(means.transform(reduced))  # (n, 2)
        return ((far[:, 1 - s] - far[:, s]) / far.sum(1) + 1).float()

    def _suspicious(
        self,
        share: float,
        reduced: NDArray[np.float64],
        labels: NDArray[np.int32],
        inside: Tensor,
        centers: Tensor,
    ) -> bool:
        """Return whether the rule finds something wrong with a cluster centered at `inside`."""
        from sklearn.metrics import silhouette_score  # late: slow

        if self.rule == "size":
            return True
        if self.rule == "distance":
            far = (centers - inside).norm(dim=1)
            return bool((far[:-1] < far[-1]).any())
        if share >= self.share or self.rule == "relative_size":
            return share < self.share
        spaced = torch.linspace(0, len(reduced) - 1, min(SAMPLE, len(reduced))).long()  # no dice
        both = torch.tensor([int((labels == j).argmax()) for j in (0, 1)])  # however small
        some = torch.cat([spaced, both]).unique().numpy()
        return bool(silhouette_score(reduced[some], labels[some]) > self.silhouette)

    def _reduced(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points `(n, d)` in fewer dimensions, `(n, at most dims)`."""
        from sklearn.decomposition import PCA  # late: slow

        pca = PCA(min(self.dims, *points.shape), svd_solver="full")
        reduced: NDArray[np.float64] = pca.fit_transform(points)
        if self.reducer == "pca":
            return reduced
        # What does not vary cannot be whitened; dead neurons make such dimensions.
        variances = pca.explained_variance_
        varied = variances > 1e-9 * variances[0]
        whitened: NDArray[np.float64] = reduced[:, varied] / variances[varied] ** 0.5
        return whitened


def _own_last(centers: dict[int, Tensor], own: int) -> Tensor:
    return torch.stack([v for c, v in centers.items() if c != own] + [centers[own]])
