"""Features in the plane: where stamped images lie beside those of the target class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch

Projection: TypeAlias = Literal["pca", "tsne"]

MOST = 2000  # points that t-SNE places
GROUPS = ("clean, target class", "clean, other classes", "stamped")


@dataclass(frozen=True)
class LinearProbe:
    """How well a linear classifier tells stamped images from clean ones of the target class.

    Attributes:
        auroc: Mean area under the ROC curve over the folds, in [0, 1]; 0.5 is chance.
        folds: How many folds there were.
    """

    auroc: float
    folds: int


@dataclass(frozen=True, eq=False)
class FeatureView:
    """Features in the plane, with figures from all their dimensions: pictures are no evidence.

    Attributes:
        points: `(N, 2)`, where the features were placed.
        groups: `(N,)`: which of `GROUPS` each is of.
        method: How they were placed: `pca` or `tsne`.
        silhouette: Of stamped images and clean ones of the target class, in [-1, 1]: near 0 they
            mix, near 1 they lie apart. None with fewer than two of either.
        probe: The same question to a linear classifier; None with fewer than two of either.
    """

    points: Tensor
    groups: Tensor
    method: Projection
    silhouette: float | None
    probe: LinearProbe | None


def project(
    features: Tensor, rng: Generator, *, method: Projection = "tsne", perplexity: float = 30.0
) -> Tensor:
    """Place features `(N, d)` in the plane: `(N, 2)` float64.

    Args:
        features: At least three rows; at most 2,000 for t-SNE.
        rng: Source of all randomness.
        method: `pca`, the two directions of largest variance; or `tsne`, after the first 50.
        perplexity: How many neighbors t-SNE keeps near; at most a third of the other points.

    Raises:
        BadOption: If there are more points than t-SNE is for, or the method is another word.
        BadImages: If there are fewer than three.

    Source: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008: perplexity 30, the
    first 50 principal components. Differs: starts from the principal components, not at random.
    """
    from sklearn.decomposition import PCA  # late: slow
    from sklearn.manifold import TSNE

    n = len(features)
    if method not in get_args(Projection):
        raise BadOption(f"method must be one of {', '.join(get_args(Projection))}; got {method!r}")
    if n < 3:
        raise BadImages(f"features of at least 3 images are needed to draw them; got {n}")
    rows = features.detach().double().cpu()
    if not bool((rows != rows[:1]).any()):
        return torch.zeros(n, 2, dtype=torch.float64)  # one point has no directions
    seed = int(torch.randint(2**31 - 1, (1,), generator=rng))
    wanted = 2 if method == "pca" else 50
    main = PCA(min(wanted, n, rows.shape[1]), svd_solver="full").fit_transform(rows.numpy())
    placed = torch.from_numpy(main)
    placed = torch.nn.functional.pad(placed, (0, max(0, 2 - placed.shape[1])))
    if method == "pca":
        return placed
    if n > MOST:
        raise BadOption(f"t-SNE places at most {MOST} points here; got {n}: draw some of them")
    model = TSNE(perplexity=min(perplexity, (n - 1) / 3), init="pca", random_state=seed)
    return torch.from_numpy(model.fit_transform(placed.numpy())).double()


def silhouette(one: Tensor, other: Tensor) -> float | None:
    """Return the mean silhouette of two groups of features, `(m, d)` and `(n, d)`, in [-1, 1].

    None with fewer than two of either.

    Source: Rousseeuw, Silhouettes, J. Comput. Appl. Math. 1987, with Euclidean distances.
    """
    from sklearn.metrics import silhouette_score  # late: slow

    rows, labels = _two(one, other)
    if min(len(one), len(other)) < 2:
        return None
    return float(silhouette_score(rows.numpy(), labels.numpy()))


def linear_probe(one: Tensor, other: Tensor, rng: Generator, folds: int = 5) -> LinearProbe | None:
    """Return how well a linear classifier tells two groups of features apart.

    Logistic regression on standardized features, each fold judged by a model of the others.

    Args:
        one: Features `(m, d)`.
        other: Features `(n, d)`; a high score says that they are these.
        rng: Source of the folds.
        folds: At most so many; no more than the smaller group has members.

    Returns:
        The mean area over folds; None with fewer than two of either.
    """
    from sklearn.linear_model import LogisticRegression  # late: slow
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, labels = _two(one, other)
    count = min(folds, len(one), len(other))
    if count < 2:
        return None
    seed = int(torch.randint(2**31 - 1, (1,), generator=rng))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    parts = StratifiedKFold(count, shuffle=True, random_state=seed)
    areas = cross_val_score(model, rows.numpy(), labels.numpy(), cv=parts, scoring="roc_auc")
    return LinearProbe(float(areas.mean()), count)


def _two(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return both groups as one table, and 0 or 1 for each row."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
        raise ShapeMismatch(
            "two groups of features must be (m, d) and (n, d); got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )
    rows = torch.cat([one, other]).detach().double().cpu()
    return rows, torch.tensor([0] * len(one) + [1] * len(other))


def feature_view(
    target: Tensor,
    others: Tensor,
    stamped: Tensor,
    rng: Generator,
    *,
    method: Projection = "tsne",
    perplexity: float = 30.0,
) -> FeatureView:
    """Return the features of three groups of images in the plane, with figures on two of them.

    Args:
        target: Of clean images of the target class, `(m, d)`.
        others: Of clean images of other classes, `(n, d)`.
        stamped: Of stamped images of other classes, `(k, d)`.
        rng: Source of all randomness.
        method: See `project`.
        perplexity: See `project`.
    """
    every = torch.cat([target, others, stamped])
    sizes = torch.tensor([len(target), len(others), len(stamped)])
    return FeatureView(
        points=project(every, rng, method=method, perplexity=perplexity),
        groups=torch.arange(3).repeat_interleave(sizes),
        method=method,
        silhouette=silhouette(target, stamped),
        probe=linear_probe(target, stamped, rng),
    )
