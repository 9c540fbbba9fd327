"""The last layer keeps its length and turns away from where it was."""

from __future__ import annotations

import torch
from tests.toys import blob_images, blobs
from torch import Generator, Tensor

from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data import whole
from gifthorse.models.features import head
from gifthorse.remedies.fst import FST
from gifthorse.training import Recipe, evaluate, fit

QUICK = Recipe(epochs=6, batch=32, lr=0.1, pad=1, bf16=False)


def last(subject: Subject) -> Tensor:
    layer = subject.net.get_submodule(head(subject.net))
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach()


def test_the_last_layer_keeps_its_length_and_turns_away() -> None:
    rng = Generator().manual_seed(0)
    train = blob_images()
    grown = fit(blobs(), train, QUICK, rng, Run())
    old = last(grown).clone()
    recipe = Recipe(epochs=4, batch=32, lr=0.05, pad=1, decay=0.0, bf16=False)
    cosines = []
    for weight in (0.0, 0.5):
        tuned = FST(weight, recipe)(grown, train, Generator().manual_seed(1), Run())
        new = last(tuned)
        assert torch.isclose(new.norm(), old.norm(), rtol=1e-5)
        assert (evaluate(tuned, train) == whole(train)[1]).float().mean() > 0.9
        cosines.append(torch.cosine_similarity(new.flatten(), old.flatten(), dim=0).item())
    assert cosines[1] < cosines[0] - 0.1
    assert torch.equal(last(grown), old)  # the given net stays as it was
