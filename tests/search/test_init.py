"""The probe finds a planted patch and treats every class alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.toys import BANDS, band_images, bands
from torch import Generator, Tensor, nn

from gifthorse.core.types import Goal
from gifthorse.search import CostController, Objective, Search, SearchConfig
from gifthorse.search.init import BestPatches, PatchInit
from gifthorse.search.parametrizations.masks import MaskPattern, Parametrization, SignedPixels

SIDE, CLASSES = 16, 3


class Sticker(nn.Module):
    """Logits are zero; class 2 gains with the white of rows 4 to 5, columns 8 to 9."""

    def forward(self, x: Tensor) -> Tensor:
        vote = x[:, :, 4:6, 8:10].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(vote), torch.zeros_like(vote), 10 * vote], 1)


def probed(rng: Generator) -> BestPatches:
    pool = torch.rand(12, 3, SIDE, SIDE, generator=rng) * 0.3
    return PatchInit().best_patches(Sticker(), pool, rng)


def test_the_planted_patch_is_found_for_its_class(rng: Generator) -> None:
    patches = probed(rng)
    window = patches.support[2, 0].nonzero()
    assert window.min(0).values.tolist() == [4, 8]  # side 16/8 = 2, step 1: an exact fit
    assert window.max(0).values.tolist() == [5, 9]
    assert bool((patches.pattern[2][:, 4:6, 8:10] == 1).all())


def test_no_other_place_raises_the_log_probability_more(rng: Generator) -> None:
    pool, net = torch.rand(8, 3, SIDE, SIDE, generator=rng) * 0.3, Sticker()
    patches = PatchInit().best_patches(net, pool, rng)
    pattern, support = patches.pattern[2], patches.support[2]
    rises = []
    for down, right in product(range(-4, SIDE - 5), range(-8, SIDE - 9)):
        moved, where = (v.roll((down, right), (1, 2)) for v in (pattern, support))
        rises.append(net(torch.where(where, moved, pool)).log_softmax(1)[:, 2].mean())
    chosen = net(torch.where(support, pattern, pool)).log_softmax(1)[:, 2].mean()
    assert float(chosen) == pytest.approx(max(map(float, rises)), abs=1e-5)


def test_every_class_gets_one_patch_of_the_same_size(rng: Generator) -> None:
    patches = probed(rng)
    assert patches.support.flatten(1).sum(1).tolist() == [4, 4, 4]
    assert bool((patches.pattern.masked_fill(patches.support, 0) == 0).all())


def test_seeded_forms_show_the_patch_and_keep_the_rest(rng: Generator) -> None:
    patches = probed(rng)
    for form in (MaskPattern(), SignedPixels("tanh"), SignedPixels("clip")):
        start = form.start((3, SIDE, SIDE), rng)
        before = tuple(v.expand(CLASSES, *v.shape).clone() for v in start)
        after = form.init_from(before, patches.pattern, patches.support)
        gray = torch.full((CLASSES, 1, 3, SIDE, SIDE), 0.5)
        shown = form.stamp(form.decode(after), gray)[2, 0]
        assert bool((shown[:, 4:6, 8:10] > 0.9).all())
        for old, new in zip(before, after, strict=True):
            outside = ~patches.support.expand_as(new)
            assert torch.equal(old[outside], new[outside])


@pytest.mark.parametrize("form", [MaskPattern(), SignedPixels("clip")])
def test_every_arm_starts_with_the_patch_of_its_target(
    form: Parametrization, rng: Generator
) -> None:
    pool = torch.rand(12, 3, SIDE, SIDE, generator=rng) * 0.3
    target = torch.tensor([2, 0, 2])
    before = tuple(v.expand(3, *v.shape).clone() for v in form.start((3, SIDE, SIDE), rng))
    got = PatchInit()(Sticker(), pool, target, form, before, Generator().manual_seed(1))
    patches = PatchInit().best_patches(Sticker(), pool, Generator().manual_seed(1))
    expected = form.init_from(before, patches.pattern[target], patches.support[target])
    assert all(map(torch.equal, got, expected))
    assert not torch.equal(got[1][0], got[1][1])


def test_a_search_starts_where_its_probe_says_and_counts_the_cost() -> None:
    probe, goals = PatchInit(), [Goal(k) for k in range(BANDS)]
    objective = Objective(MaskPattern(), CostController.start(BANDS), init=probe)
    clean = band_images()
    inversion = Search(
        bands(2), clean, goals, Generator().manual_seed(0), objective, SearchConfig()
    )
    assert (inversion.image_steps, len([*inversion.start()]), [*inversion.start()]) == (0, 1, [])
    # 8 images, plain and with each of 4 inks at each of 17 x 17 places; forward alone: a half
    assert inversion.image_steps == 8 * (1 + 4 * 17**2) / 2
    mask, pattern = inversion.decoded(torch.tensor([2]))
    assert mask[0, 0, 0, 0].item() == pytest.approx(0.95, abs=1e-3)  # the planted corner
    assert pattern[0, 0, 0, 0] > 0.9
    # A random start costs nothing, and both draw the same images afterwards.
    plain = replace(objective, init=None)
    random = Search(bands(2), clean, goals, Generator().manual_seed(0), plain, SearchConfig())
    assert random.image_steps == 0
    assert ((mask - random.decoded(torch.tensor([2]))[0]).abs() > 1e-6).sum() == 4  # 2 x 2 pixels
