"""Other classifiers on the features of a net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadImages
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded
from gifthorse.core.types import Batch, Labels, Samples, Shape, Subject
from gifthorse.data.samples import batches, near
from gifthorse.models.features import features
from gifthorse.training import Recipe, fit, frozen_eval, predict

Downstream: TypeAlias = Literal["fcn1", "fcn2", "bayes", "svm", "forest"]

DOWNSTREAM: tuple[Downstream, ...] = ("fcn1", "fcn2", "bayes", "svm", "forest")


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features as if they were images of one pixel and `d` channels, so that `fit` takes them.

    Attributes:
        features: `(N, d)`, in whatever range the net gives them.
        labels: `(N,)` int64.
        classes: How many classes the labels may name.
    """

    features: Tensor
    labels: Labels
    classes: int

    @property
    def shape(self) -> Shape:
        """Features, 1 and 1."""
        return self.features.shape[1], 1, 1

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor, /) -> Batch:
        return self.features[index][:, :, None, None], self.labels[index]


def table(subject: Subject, samples: Samples) -> FeatureTable:
    """Return the features of images, as they are, with their labels, on the CPU."""
    with frozen_eval(subject), torch.no_grad():
        every = batches(near(samples, subject), 512)
        rows = [(features(subject, x).cpu(), y.cpu()) for x, y in every]
    z, y = (torch.cat(column) for column in zip(*rows, strict=True))
    return FeatureTable(z, y, samples.classes)


def classifier(
    kind: Downstream,
    known: FeatureTable,
    recipe: Recipe,
    rng: Generator,
    run: Run,
    *,
    hidden: int = 128,
) -> Callable[[Tensor], Tensor]:
    """Train a classifier on features; it turns others, `(N, d)`, into an answer.

    Args:
        kind: `fcn1` and `fcn2` answer with logits `(N, K)`; `bayes`, `svm` and `forest`, which
            scikit-learn makes with its defaults, with classes `(N,)`.
        known: What to train on.
        recipe: How the first two are trained; features are neither shifted nor mirrored.
        rng: Source of all randomness.
        hidden: Width of the hidden layer of `fcn2`.
        run: Where an interrupted training is kept.

    Raises:
        BadImages: If all features are of one class.
    """
    if len(known.labels.unique()) < 2:
        raise BadImages("a classifier needs images of at least two classes to train on")
    if kind not in ("fcn1", "fcn2"):
        model = _from_sklearn(kind, rng)
        model.fit(known.features.double().numpy(), known.labels.numpy())
        return lambda z: torch.from_numpy(model.predict(z.double().numpy()))
    d, k = known.shape[0], known.classes
    with seeded(rng):
        if kind == "fcn1":
            layers: list[nn.Module] = [nn.Linear(d, k)]
        else:
            layers = [nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, k)]
    net = nn.Sequential(nn.Flatten(), *layers)
    plain = replace(recipe, pad=0, flip=False)
    learned = fit(Subject(net, known.shape, k), known, plain, rng, run)
    return lambda z: predict(learned, z[:, :, None, None])


def _from_sklearn(kind: Downstream, rng: Generator) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.svm import SVC

    seed = int(torch.randint(2**31 - 1, (1,), generator=rng))
    if kind == "bayes":
        return GaussianNB()
    return SVC(random_state=seed) if kind == "svm" else RandomForestClassifier(random_state=seed)
