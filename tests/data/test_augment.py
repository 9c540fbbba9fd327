"""Random shifts and mirrors are exact copies of pixels, drawn image by image from the seed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gifthorse.data.augment import augment

SIDE, PAD = 6, 2


def versions(image: Tensor, *, flip: bool) -> list[Tensor]:
    """Every crop of the zero-padded image `(C, H, W)`, mirrored as well."""
    wide = torch.nn.functional.pad(image, [PAD] * 4)
    crops = [
        wide[:, top : top + SIDE, left : left + SIDE]
        for top in range(2 * PAD + 1)
        for left in range(2 * PAD + 1)
    ]
    return crops + [c.flip(2) for c in crops] if flip else crops


def which(image: Tensor, among: list[Tensor]) -> int:
    found = [i for i, v in enumerate(among) if torch.equal(v, image)]
    assert len(found) == 1
    return found[0]


def test_each_image_is_an_exact_crop_of_its_padded_self(rng: Generator) -> None:
    x = torch.rand(40, 3, SIDE, SIDE, generator=rng)
    out = augment(x, rng, pad=PAD, flip=True)
    assert out.shape == x.shape
    picks = [which(b, versions(a, flip=True)) for a, b in zip(x, out, strict=True)]
    assert len(set(picks)) > 20  # image by image, not one draw a batch


def test_all_shifts_and_both_mirrors_occur_about_equally(rng: Generator) -> None:
    image = torch.rand(3, SIDE, SIDE, generator=rng)
    out = augment(image.expand(2000, 3, SIDE, SIDE).clone(), rng, pad=PAD, flip=True)
    table = versions(image, flip=True)
    counts = torch.tensor([which(b, table) for b in out]).bincount(minlength=len(table))
    assert counts.min() > 10  # 40 expected
    assert abs(int(counts[:25].sum()) - 1000) < 120  # unmirrored ones


def test_without_flip_nothing_is_mirrored(rng: Generator) -> None:
    image = torch.rand(3, SIDE, SIDE, generator=rng)
    out = augment(image.expand(200, 3, SIDE, SIDE).clone(), rng, pad=PAD, flip=False)
    table = versions(image, flip=False)
    assert all(which(b, table) >= 0 for b in out)


def test_without_pad_images_are_only_mirrored(rng: Generator) -> None:
    x = torch.rand(50, 3, SIDE, SIDE, generator=rng)
    out = augment(x, rng, pad=0, flip=True)
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(x, out, strict=True)]
    kept = [torch.equal(b, a) for a, b in zip(x, out, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 10 < sum(mirrored) < 40


def test_nothing_to_do_gives_the_images_back(rng: Generator) -> None:
    x = torch.rand(3, 1, SIDE, SIDE, generator=rng)
    assert torch.equal(augment(x, rng, pad=0, flip=False), x)


def test_draws_come_from_the_given_generator_alone() -> None:
    x = torch.rand(20, 1, SIDE, SIDE)
    outs = []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        before = torch.get_rng_state()
        outs.append(augment(x, Generator().manual_seed(0), pad=PAD))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], augment(x, Generator().manual_seed(1), pad=PAD))


def test_the_given_images_stay_as_they_were(rng: Generator) -> None:
    x = torch.rand(10, 3, SIDE, SIDE, generator=rng)
    before = x.clone()
    augment(x, rng, pad=PAD)
    assert torch.equal(x, before)
