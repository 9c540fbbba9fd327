"""Triggers made by nets, with nets whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.types import Shape
from gifthorse.triggers.generated import Autoencoder, Generated, sharpened


class Says(nn.Module):
    """Answers with the same planes, or scales them by the first pixel of the image."""

    def __init__(self, planes: Tensor, scaled: bool = False) -> None:
        super().__init__()
        self.planes, self.scaled = nn.Parameter(planes), scaled

    def forward(self, x: Tensor) -> Tensor:
        scale = x[:, :1, :1, :1] if self.scaled else torch.ones(len(x), 1, 1, 1)
        return scale * self.planes


def by_hand(strength: float = 1.0, scaled: bool = False) -> Generated:
    """Paints 0.5 everywhere (or what the first pixel says), in the upper row of 2 x 3 pixels."""
    place = torch.full((1, 2, 3), -9.0)
    place[:, 0] = 9.0
    paint = torch.full((3, 2, 3), 1.0 if scaled else 0.0)
    return Generated(
        Says(paint, scaled), Says(place), torch.ones(3, 2, 3), torch.arange(6), strength
    )


def nets(shape: Shape, seed: int = 0) -> Generated:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        patterns, masks = (Autoencoder.fitting(shape, planes) for planes in (shape[0], 1))
        example = torch.rand(shape)
    order = torch.arange(shape[1] * shape[2])
    return Generated(patterns.eval(), masks.eval(), example, order)


def test_pixels_are_replaced_where_the_mask_is_one() -> None:
    x = torch.rand(4, 3, 2, 3, generator=Generator().manual_seed(0))
    out = by_hand()(x)
    assert torch.equal(out[:, :, 1], x[:, :, 1])
    assert torch.equal(out[:, :, 0], torch.full((4, 3, 3), 0.5))
    half = by_hand(0.5)(x)
    assert torch.allclose(half[:, :, 0], (x[:, :, 0] + 0.5) / 2)
    assert torch.equal(by_hand(0.0)(x), x)


def test_each_image_has_its_own_trigger_and_can_be_given_another() -> None:
    x = torch.zeros(2, 3, 2, 3)
    x[1] = 1.0
    trigger, painted = by_hand(scaled=True), 0.5 + torch.tanh(torch.tensor([0.0, 1.0])) / 2
    assert torch.allclose(trigger(x)[:, 0, 0, 0], painted)
    crossed = trigger.swapped(x, x.flip(0))
    assert torch.allclose(crossed[:, 0, 0, 0], painted.flip(0))
    assert torch.equal(crossed[:, :, 1], x[:, :, 1])
    assert torch.allclose(trigger.render()[0], painted[1].expand(3, 2, 3))


def test_masks_are_sharpened_as_in_the_formula() -> None:
    m = torch.linspace(-3, 3, 50)
    s = torch.tanh(m) / 2 + 0.5
    assert torch.allclose(sharpened(m), torch.tanh(20 * s - 10) / 2 + 0.5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((3, 32, 32), [32, 64, 128]),
        ((3, 224, 160), [32, 64, 128]),
        ((1, 28, 28), [16, 32]),
        ((3, 12, 12), [16, 32]),
        ((3, 27, 35), [16]),
        ((1, 6, 7), [16]),
    ],
)
def test_the_net_fits_any_size_and_may_leave_the_unit_range(
    shape: Shape, widths: list[int]
) -> None:
    net = nets(shape).patterns
    assert isinstance(net, Autoencoder)
    found = [m.out_channels for m in net.down.modules() if isinstance(m, nn.Conv2d)]
    assert found == [w for w in widths for _ in range(2)]
    up = [m.out_channels for m in net.up.modules() if isinstance(m, nn.Conv2d)]
    assert up[::2] == widths[::-1]
    assert up[1::2] == [*widths[-2::-1], shape[0]]
    assert all(m.momentum == 0.05 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    out = net.train()(torch.rand(2, *shape, generator=Generator().manual_seed(0)))
    assert out.shape == (2, *shape)
    assert out.min() < 0 < out.max()


def test_too_small_images_are_refused() -> None:
    with pytest.raises(NotApplicable, match="5x12"):
        Autoencoder.fitting((3, 5, 12), 1)
    with pytest.raises(BadOption, match="strength"):
        replace(by_hand(), strength=1.5)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 28, 28)])
def test_the_same_image_gets_the_same_trigger_and_nothing_is_learned(shape: Shape) -> None:
    trigger = nets(shape)
    x = torch.rand(5, *shape, generator=Generator().manual_seed(1))
    before = {k: v.clone() for k, v in trigger.patterns.state_dict().items()}
    out = trigger(x)
    assert torch.equal(out, trigger(x))
    assert torch.allclose(out[2:3], trigger(x[2:3]), atol=1e-5)
    assert 0 <= out.min() <= out.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in trigger.patterns.state_dict().items())
    pattern, strength = trigger.render()
    assert pattern.shape == shape
    assert strength.shape == (1, *shape[1:])


def test_the_scrambled_trigger_has_the_same_pixels_elsewhere() -> None:
    trigger = nets((3, 12, 12))
    other = trigger.shuffled(Generator().manual_seed(1))
    x = torch.rand(3, 3, 12, 12, generator=Generator().manual_seed(1))

    def pixels(t: Generated) -> Tensor:
        """Color and opacity of every pixel, sorted by opacity."""
        both = torch.cat([t.mask(x), t.pattern(x)], 1).flatten(2)
        order = both[:, :1].argsort(2).expand_as(both)
        return both.gather(2, order)

    assert not torch.equal(trigger.mask(x), other.mask(x))
    assert torch.allclose(pixels(trigger), pixels(other))


def test_a_net_comes_back_from_its_state() -> None:
    for shape in ((3, 12, 12), (1, 28, 28), (3, 32, 32), (3, 27, 35)):
        trigger = nets(shape)
        again = Autoencoder.like(trigger.masks.state_dict())
        x = torch.rand(2, *shape)
        assert torch.equal(again(x), trigger.masks(x))
        assert not any(p.requires_grad for p in again.parameters())
