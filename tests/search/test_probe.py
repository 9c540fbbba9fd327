"""The probe finds a planted patch and treats every class alike."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from gifthorse.search.forms import MaskPattern, SignedPixels
from gifthorse.search.probe import Probe, Spots

SIDE, CLASSES = 16, 3


class Sticker(nn.Module):
    """Logits are zero; class 2 gains with the white of rows 4 to 5, columns 8 to 9."""

    def forward(self, x: Tensor) -> Tensor:
        vote = x[:, :, 4:6, 8:10].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(vote), torch.zeros_like(vote), 10 * vote], 1)


def probed(rng: Generator) -> Spots:
    pool = torch.rand(12, 3, SIDE, SIDE, generator=rng) * 0.3
    return Probe(bf16=False)(Sticker(), pool, rng)


def test_the_planted_patch_is_found_for_its_class(rng: Generator) -> None:
    spots = probed(rng)
    window = spots.support[2, 0].nonzero()
    assert window.min(0).values.tolist() == [4, 8]  # side 16/8 = 2, step 1: an exact fit
    assert window.max(0).values.tolist() == [5, 9]
    assert bool((spots.pattern[2][:, 4:6, 8:10] == 1).all())


def test_the_gain_is_the_mean_rise_of_the_log_probability(rng: Generator) -> None:
    pool = torch.rand(8, 3, SIDE, SIDE, generator=rng) * 0.3
    spots = Probe(bf16=False)(Sticker(), pool, rng)
    net = Sticker()
    stamped = pool.clone()
    stamped[:, :, 4:6, 8:10] = 1
    rise = net(stamped).log_softmax(1)[:, 2] - net(pool).log_softmax(1)[:, 2]
    assert torch.isclose(spots.gain[2], rise.mean(), atol=1e-5)


def test_every_class_gets_one_patch_of_the_same_size(rng: Generator) -> None:
    spots = probed(rng)
    assert spots.support.flatten(1).sum(1).tolist() == [4, 4, 4]
    assert bool((spots.pattern.masked_fill(spots.support, 0) == 0).all())


def test_seeded_forms_show_the_patch_and_keep_the_rest(rng: Generator) -> None:
    spots = probed(rng)
    for form in (MaskPattern(), SignedPixels("tanh"), SignedPixels("clip")):
        start = form.start((3, SIDE, SIDE), rng)
        before = tuple(v.expand(CLASSES, *v.shape).clone() for v in start)
        after = form.seed(before, spots.pattern, spots.support)
        gray = torch.full((CLASSES, 1, 3, SIDE, SIDE), 0.5)
        shown = form.stamp(form.decode(after), gray)[2, 0]
        assert bool((shown[:, 4:6, 8:10] > 0.9).all())
        for old, new in zip(before, after, strict=True):
            outside = ~spots.support.expand_as(new)
            assert torch.equal(old[outside], new[outside])
