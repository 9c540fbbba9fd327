"""Fine-pruning on nets whose dormant features are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.features import features, head
from gifthorse.remedies import FinePruning
from gifthorse.remedies.fine_pruning import activity
from gifthorse.training import Recipe, predict

CLEAN = blob_images(each=20)
TUNE = replace(QUICK, epochs=2, batch=20, lr=0.02)
NONE = replace(TUNE, epochs=0)


def last(subject: Subject) -> nn.Linear | nn.Conv2d:
    module = subject.net.get_submodule(head(subject.net))
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


def gone(subject: Subject) -> Tensor:
    """Which inputs of the last layer are read by none of its outputs."""
    weight = last(subject).weight
    return (weight.view(*weight.shape[:2], -1) == 0).all(0).all(1)


def four(maps: bool) -> tuple[Subject, InMemory]:
    """Four pixels of rising brightness; the brightest alone tells two classes apart."""
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0]]) + 0.01
    layer = nn.Conv2d(4, 2, 1) if maps else nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
        assert layer.bias is not None
        layer.bias.copy_(torch.tensor([-0.75, 0.75]))
    net = nn.Sequential(layer, nn.Flatten()) if maps else nn.Sequential(nn.Flatten(), layer)
    labels = torch.arange(2).repeat(50)
    bright = torch.where(labels == 0, 250, 130)
    rest = torch.tensor([25, 50, 75]).expand(100, 3)
    images = torch.cat([rest, bright[:, None]], 1).to(torch.uint8).view(100, 4, 1, 1)
    return Subject(net.eval(), (4, 1, 1), 2), InMemory(images, labels, 2)


@pytest.mark.parametrize("maps", [False, True])
def test_activity_is_the_mean_input_of_the_last_layer(maps: bool) -> None:
    subject, clean = four(maps)
    assert torch.allclose(activity(subject, clean), torch.tensor([25, 50, 75, 190]).double() / 255)


def test_activity_counts_sizes_and_averages_places() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    subject = Subject(net.eval(), (3, 12, 12), 2)
    maps = net[0](whole(CLEAN)[0]).detach()
    assert torch.allclose(activity(subject, CLEAN).float(), maps.abs().mean((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_the_least_active_go_and_their_number_is_rounded_down(maps: bool, ratio: float) -> None:
    subject, clean = four(maps)
    made = FinePruning(ratio=ratio, recipe=NONE)(subject, clean, Generator().manual_seed(0), Run())
    count = int(ratio * 4)
    assert gone(made).tolist() == [True] * count + [False] * (4 - count)
    left = last(made).weight[:, count:]
    assert torch.equal(left, last(subject).weight[:, count:])


@pytest.mark.parametrize("maps", [False, True])
def test_the_tolerance_keeps_the_last_level_within_it(maps: bool) -> None:
    """The three dim pixels can go; without the bright one half of the images come out wrong."""
    subject, clean = four(maps)
    remedy = FinePruning(policy="tolerance", recipe=NONE)
    for tolerance, count in ((0.0, 3), (0.04, 3), (0.6, 4)):
        made = replace(remedy, tolerance=tolerance)(
            subject, clean, Generator().manual_seed(0), Run()
        )
        assert int(gone(made).sum()) == count
    coarse = replace(remedy, step=0.5)(subject, clean, Generator().manual_seed(0), Run())
    assert int(gone(coarse).sum()) == 2


def test_nothing_pruned_and_nothing_tuned_is_the_same_net() -> None:
    subject, (x, _) = blobs(), whole(CLEAN)
    made = FinePruning(ratio=0.0, recipe=NONE)(subject, CLEAN, Generator().manual_seed(0), Run())
    assert torch.equal(predict(made, x), predict(subject, x))


@pytest.mark.parametrize("part", ["full", "classifier"])
def test_silenced_features_stay_silent_while_the_rest_is_tuned(part: str) -> None:
    recipes = [vary(r, {"part": part}) for r in (NONE, TUNE)]
    before, after = (
        FinePruning(ratio=0.9, recipe=recipe)(blobs(), CLEAN, Generator().manual_seed(0), Run())
        for recipe in recipes
    )
    assert torch.equal(gone(before), gone(after))
    assert int(gone(after).sum()) == 115  # of 128
    assert not torch.equal(last(before).weight, last(after).weight)
    assert list(after.net.state_dict()) == list(blobs().net.state_dict())
    x = whole(CLEAN)[0]
    inside = features(after, x).detach()
    assert (inside[:, gone(after)] != 0).any()  # it is the last layer that does not listen
    moved = inside + gone(after) * torch.randn(inside.shape)
    assert torch.allclose(last(after)(moved), last(after)(inside), atol=1e-5)
    assert torch.allclose(last(after)(inside), after(x), atol=1e-5)


def test_tuning_is_that_of_the_pruned_net() -> None:
    """Weights that do not count get no gradient: a huge one where nothing is read does no harm."""
    subject, clean = four(maps=False)
    wild = four(maps=False)[0]
    with torch.no_grad():
        last(wild).weight[:, 0] = 1e3
    recipe = Recipe(epochs=2, batch=20, lr=0.01, pad=0, flip=False, bf16=False)
    tame, other = (
        FinePruning(ratio=0.25, recipe=recipe)(s, clean, Generator().manual_seed(0), Run())
        for s in (subject, wild)
    )
    assert torch.equal(last(tame).weight, last(other).weight)


def test_a_last_layer_in_groups_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2), nn.Flatten())
    _, clean = four(maps=True)
    with pytest.raises(NotApplicable, match="groups"):
        FinePruning()(Subject(net.eval(), (4, 1, 1), 2), clean, Generator(), Run())
