"""The autoencoder of manifold projection: it learns clean images, and is deaf to all else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.remedies import Projection
from gifthorse.remedies.down_up import Reformed
from gifthorse.remedies.projection import DenoisingAutoencoder, missing
from gifthorse.training import Recipe, predict

CLEAN, UNSEEN = blob_images(each=20), blob_images(each=10, seed=1)
SHORT = Recipe(epochs=30, batch=20, lr=0.5, decay=0.0, pad=0, flip=False, bf16=False)
SMALL = Projection(width=8, recipe=SHORT)


def reform(made: Subject) -> nn.Module:
    assert isinstance(made.net, Reformed)
    return made.net.reform


@pytest.mark.parametrize(("pool", "most"), [(False, 0.01), (True, 0.015)])  # noise is not kept
def test_unseen_clean_images_come_out_nearly_as_they_were(pool: bool, most: float) -> None:
    net, (x, _) = blobs(), whole(UNSEEN)
    made = replace(SMALL, pool=pool)(net, CLEAN, Generator().manual_seed(0), Run())
    out = predict(Subject(reform(made), net.shape, 5), x)
    assert out.shape == x.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert (out - x).square().mean() < most
    assert (out - x).square().mean() < 0.5 * (x - x.mean((0, 2, 3), keepdim=True)).square().mean()
    assert torch.allclose(predict(made, x), predict(net, out), atol=1e-5)


def test_it_learns_from_images_alone() -> None:
    """Labels and the classifier's weights have no say in the autoencoder."""
    hasty = replace(SMALL, recipe=replace(SHORT, epochs=1))
    shuffled = InMemory(CLEAN.images, CLEAN.labels.flip(0), CLEAN.classes)
    one = reform(hasty(blobs(), CLEAN, Generator().manual_seed(0), Run())).state_dict()
    other = reform(hasty(blobs(seed=1), shuffled, Generator().manual_seed(0), Run())).state_dict()
    assert all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("pool", [False, True])
def test_shapes_come_back_and_noise_is_for_training_only(pool: bool) -> None:
    net, x = DenoisingAutoencoder(2, 4, 0.1, pool), torch.rand(3, 2, 7, 10)
    assert net.eval()(x).shape == x.shape
    assert torch.equal(net(x), net(x))
    net.train()
    seen: list[Tensor] = []
    net.encode.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(torch.full((8, 2, 20, 20), 0.5))
    net(torch.ones(8, 2, 20, 20))
    assert abs(float(seen[0].mean()) - 0.5) < 0.01
    assert abs(float(seen[0].std()) - 0.1) < 0.01
    assert seen[1].max() == 1


def test_the_loss_is_the_mean_squared_error() -> None:
    x, y = torch.full((2, 1, 2, 2), 0.25), torch.zeros(2, dtype=torch.int64)
    assert missing(Subject(nn.Identity(), (1, 2, 2), 2), (x, y)) == 0
    doubled = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(doubled.weight, 2.0)
    assert missing(Subject(doubled, (1, 2, 2), 2), (x, y)).item() == 0.0625


def test_an_autoencoder_is_trained_whole() -> None:
    with pytest.raises(BadOption, match="part"):
        Projection(recipe=Recipe(part="classifier"))
