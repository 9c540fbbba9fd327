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
from gifthorse.search.init import BestPatches, FromPatches, PatchInit, SquareInit
from gifthorse.search.parametrizations.masks import SEED, MaskPattern, Parametrization, SignedPixels

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


def test_a_square_lies_in_the_middle_of_a_clear_mask(rng: Generator) -> None:
    form = MaskPattern(clear=True)
    variables = tuple(torch.stack([v, v]) for v in form.start((1, 9, 9), rng))
    pool, target = torch.zeros(1, 1, 9, 9), torch.tensor([1, 0])
    begun = SquareInit(10)(_nobody, pool, target, form, variables, rng)
    mask, pattern = form.decode(begun)
    opaque = mask[0, 0] > 0.5
    assert opaque.nonzero().min(0).values.tolist() == [3, 3]
    assert int(opaque.sum()) == 9  # the largest square of at most ten pixels
    inside = form.decode(variables)[1].clamp(1 - SEED, SEED)
    assert torch.allclose(pattern[:, :, 3:6, 3:6], inside[:, :, 3:6, 3:6], atol=1e-4)


def test_patches_that_were_found_before_give_the_same_start(rng: Generator) -> None:
    form, pool, target = MaskPattern(), torch.rand(9, 3, SIDE, SIDE), torch.tensor([0, 2])
    variables = tuple(torch.stack([v, v]) for v in form.start((3, SIDE, SIDE), rng))
    net, probe = Sticker(), PatchInit()
    once = probe(net, pool, target, form, variables, Generator().manual_seed(5))
    found = probe.best_patches(net, pool, Generator().manual_seed(5))
    again = FromPatches(found)(_nobody, pool, target, form, variables, rng)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def _nobody(x: Tensor) -> Tensor:
    raise AssertionError("nothing needs to be asked")


class Sided(nn.Module):
    """A white patch at rows 4 to 5 votes for class 2 in dark images, and for class 0 in others."""

    def forward(self, x: Tensor) -> Tensor:
        vote = 10 * x[:, :, 4:6, 8:10].mean((1, 2, 3))
        dark = x[:, :, -1, -1].mean(1) < 0.5
        return torch.stack([vote * ~dark, 0 * vote, vote * dark], 1)


def test_a_pair_starts_from_the_patch_that_works_on_its_source(rng: Generator) -> None:
    """Of dark images white makes class 2, and black leaves the others as they are."""
    pool = torch.rand(12, 3, SIDE, SIDE, generator=rng) * 0.3
    pool[6:, :, -1, -1] = 1
    own = torch.tensor([[0, 1, 2, 3], [6, 7, 8, 9], [0, 1, 2, 3], [6, 7, 8, 9]])
    target, form = torch.tensor([2, 2, 0, 0]), SignedPixels("clip", 10)
    variables = tuple(torch.zeros(4, *v.shape) for v in form.start((3, SIDE, SIDE), rng))
    begun = form.decode(PatchInit()(Sided(), pool, target, form, variables, rng, own))
    stamped = form.stamp(begun, pool[own])
    windows = stamped[:, :, :, 4:6, 8:10].amin((1, 2, 3, 4))
    assert bool((windows[[0, 3]] > 0.9).all())
    assert bool((windows[[1, 2]] < 0.5).all())
