"""Filters against values worked out by hand, and against colors one at a time in plain Python."""

from __future__ import annotations

import math
from colorsys import hls_to_rgb, rgb_to_hls
from itertools import permutations

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.core.errors import ShapeMismatch, UnknownMethod
from gifthorse.triggers import filters
from gifthorse.triggers.filters import FILTERS, ColorFilter, chart, filter_trigger
from gifthorse.triggers.storage import KINDS, pack, unpack

SIDE = 9
RGB = tuple[float, float, float]
names = pytest.mark.parametrize("name", sorted(FILTERS))


def made(name: str, height: int = SIDE, width: int = SIDE) -> ColorFilter:
    return filter_trigger(name, height, width)  # type: ignore[arg-type]


def plain(*color: float) -> Tensor:
    return (
        torch.tensor(color, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE).clone()
    )


def center(name: str, *color: float) -> list[float]:
    out: list[float] = made(name)(plain(*color))[0, :, SIDE // 2, SIDE // 2].tolist()
    return out


# By hand ----------------------------------------------------------------------------------------


def test_kelvin_makes_a_quarter_gray_warm() -> None:
    """Gamma to 0.5, lightness to 0.6, then a fifth of (1, 0.6, 0)."""
    assert center("kelvin", 0.25, 0.25, 0.25) == pytest.approx([0.68, 0.60, 0.48], abs=1e-5)
    assert center("kelvin", 1, 1, 1) == pytest.approx([1.0, 0.92, 0.8], abs=1e-5)
    assert center("kelvin", 0, 0, 0) == pytest.approx([0.2, 0.12, 0.0], abs=1e-5)


def test_lomo_darkens_red_and_green_and_the_corners() -> None:
    out = made("lomo")(plain(0.75, 0.25, 0.6))[0]
    assert out[:, 4, 4].tolist() == pytest.approx([0.5, 0.0, 0.6])
    assert out[:, 4, 7].tolist() == pytest.approx([0.5 * (1 - 3 / 6.75), 0, 0.6 * (1 - 3 / 6.75)])
    corner = 1 - math.hypot(4, 4) / 6.75
    assert out[:, 0, 0].tolist() == pytest.approx([0.5 * corner, 0, 0.6 * corner])


def test_toaster_glows_in_the_middle_of_white() -> None:
    """All before leaves white as it is: (1, 0.6, 0.4) in the middle, and in between at (4, 8)."""
    out = made("toaster")(plain(1, 1, 1))[0]
    assert out[:, 4, 4].tolist() == pytest.approx([1, 0.6, 0.4], abs=1e-5)
    t = 4 / 6.75
    edge = [1 + t * (v / 255 - 1) for v in (0xCD, 0xC1, 0xC5)]
    glow = [c + t * (1 - c) for c in (1, 0.6, 0.4)]
    expected = [a * b for a, b in zip(edge, glow, strict=True)]
    assert out[:, 4, 8].tolist() == pytest.approx(expected, abs=1e-5)


def test_gotham_makes_black_blue() -> None:
    def steep(v: float) -> float:
        low, high = 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1.5))
        return (1 / (1 + math.exp(-3 * (v - 0.5))) - low) / (high - low)

    expected = [steep(steep((0.2 * v / 255) ** (1 / 0.9))) for v in (34, 43, 109)]
    assert center("gotham", 0, 0, 0) == pytest.approx(expected, abs=1e-6)
    assert expected[2] == pytest.approx(0.0359, abs=1e-4)
    # White: 0.8 + 0.2 c, close to white after two steps of contrast.
    red = 0.8 + 0.2 * 34 / 255
    assert center("gotham", 1, 1, 1)[0] == pytest.approx(steep(steep(red ** (1 / 0.9))), abs=1e-5)


# One color at a time ----------------------------------------------------------------------------


def modulated(color: RGB, lightness: float, saturation: float) -> RGB:
    h, light, s = rgb_to_hls(*color)
    return hls_to_rgb(h, min(1.0, light * lightness), min(1.0, s * saturation))


def toned(color: RGB, ink: RGB, share: float, dark: bool) -> RGB:
    gray = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    w = share * (1 - gray if dark else gray)
    r, g, b = ((1 - w) * u + w * c for u, c in zip(color, ink, strict=True))
    return r, g, b


def steeper(color: RGB) -> RGB:
    low, high = (math.tanh(1.5 * s) for s in (-0.5, 0.5))
    r, g, b = ((math.tanh(1.5 * (u - 0.5)) - low) / (high - low) for u in color)
    return r, g, b


@pytest.mark.parametrize(("lightness", "saturation"), [(1.2, 0.1), (1.5, 0.8), (1.0, 1.5)])
def test_modulate_is_that_of_hls(lightness: float, saturation: float, rng: Generator) -> None:
    x = torch.rand(1, 3, 10, 20, generator=rng)
    x[:, :, 0] = torch.rand(1, 1, 20, generator=rng)  # grays
    x[:, :, 1, :2] = torch.tensor([0.0, 1.0])
    out = filters.modulate(x, lightness, saturation)
    expected = [modulated(tuple(c), lightness, saturation) for c in x[0].flatten(1).T.tolist()]
    assert torch.allclose(out[0].flatten(1).T, torch.tensor(expected), atol=2e-5)


def test_nashville_is_its_steps_one_color_at_a_time(rng: Generator) -> None:
    x = torch.rand(1, 3, 5, 5, generator=rng)
    blue, cream = (34 / 255, 43 / 255, 109 / 255), (247 / 255, 218 / 255, 174 / 255)
    rows = []
    for color in x[0].flatten(1).T.tolist():
        both = toned(toned(tuple(color), blue, 0.5, True), cream, 0.5, False)
        rows.append(modulated(steeper(both), 1.0, 1.5))
    before = torch.tensor(rows)
    expected = before ** (math.log(0.5) / math.log(before.mean()))
    assert torch.allclose(made("nashville")(x)[0].flatten(1).T, expected, atol=1e-4)


def test_toaster_is_its_steps_one_color_at_a_time(rng: Generator) -> None:
    """One row, so that the distance from the middle is that along it."""
    x = torch.rand(1, 3, 1, 7, generator=rng)
    maroon = (51 / 255, 0.0, 0.0)
    for i, color in enumerate(x[0, :, 0].T.tolist()):
        r, g, b = modulated(toned(tuple(color), maroon, 0.5, True), 1.5, 0.8)
        lit = steeper(steeper((r ** (1 / 1.2), g ** (1 / 1.2), b ** (1 / 1.2))))
        t = abs(i - 3) / (0.75 * 7)
        edge = [1 - t + t * v / 255 for v in (0xCD, 0xC1, 0xC5)]
        glow = [(1 - t) * v / 255 + t for v in (0xFF, 0x99, 0x66)]
        expected = [u * e * w for u, e, w in zip(lit, edge, glow, strict=True)]
        assert made("toaster")(x)[0, :, 0, i].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_auto_gamma_makes_a_plain_gray_the_middle_one(level: float) -> None:
    assert torch.allclose(filters.auto_gamma(plain(level, level, level)), torch.tensor(0.5))


def test_contrast_keeps_both_ends_and_the_middle_and_rises() -> None:
    x = torch.linspace(0, 1, 11)
    out = filters.contrast(x)
    assert out[[0, 5, 10]].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)
    assert (out.diff() > 0).all()
    assert (out[1:5] < x[1:5]).all()


# All of them ------------------------------------------------------------------------------------


@names
def test_filtered_images_are_images_and_the_given_ones_stay(name: str, rng: Generator) -> None:
    x = torch.rand(6, 3, 8, 11, generator=rng)
    x[0], x[1] = 0.0, 1.0
    x[2] = (x[2] > 0.5).float()
    before = x.clone()
    out = made(name)(x)
    assert torch.equal(x, before)
    assert out.shape == x.shape
    assert not out.isnan().any()
    assert 0 <= out.min() <= out.max() <= 1
    assert ((out - x).abs().amax((1, 2, 3)) > 0.05).sum() >= 5


@names
def test_an_image_is_filtered_alike_alone_and_in_a_batch(name: str, rng: Generator) -> None:
    x = torch.rand(5, 3, 7, 8, generator=rng)
    each = torch.cat([made(name)(one[None]) for one in x])
    assert torch.allclose(made(name)(x), each, atol=1e-6)


def test_no_two_filters_are_alike(rng: Generator) -> None:
    x = torch.rand(4, 3, 7, 8, generator=rng)
    for a, b in permutations(FILTERS, 2):
        assert (made(a)(x) - made(b)(x)).abs().mean() > 0.03


@names
def test_a_scrambled_filter_takes_every_channel_for_another(name: str, rng: Generator) -> None:
    x = torch.rand(4, 3, 7, 8, generator=rng)
    seen = set()
    for seed in range(12):
        control = made(name).shuffled(Generator().manual_seed(seed))
        order = control.channels.tolist()
        assert all(i != c for i, c in enumerate(order))
        back = [order.index(i) for i in range(3)]
        assert torch.equal(control(x), FILTERS[name](x[:, order])[:, back].clamp(0, 1))
        assert (control(x) - made(name)(x)).abs().max() > 0.02
        seen.add(tuple(order))
    assert len(seen) == 2


@names
def test_on_gray_images_a_scrambled_filter_is_as_strong(name: str, rng: Generator) -> None:
    x = torch.rand(3, 1, 7, 8, generator=rng).expand(3, 3, 7, 8)
    change, control = (
        (t(x) - x).abs().flatten(2).sum(2).sort(1).values
        for t in (made(name), made(name).shuffled(rng))
    )
    assert torch.allclose(change, control, atol=1e-4)


@names
def test_the_picture_is_a_filtered_chart(name: str) -> None:
    pattern, strength = made(name, 6, 10).render()
    assert pattern.shape == (3, 6, 10)
    assert strength.shape == (1, 6, 10)
    assert torch.equal(strength[0], (pattern - chart(6, 10)).abs().amax(0))
    assert 0 <= strength.min() <= strength.max() <= 1


def test_the_chart_has_all_hues_from_black_to_white() -> None:
    drawn = chart(5, 6)
    assert torch.allclose(drawn[:, 0], torch.zeros(3, 6))
    assert torch.allclose(drawn[:, -1], torch.ones(3, 6))
    assert drawn[:, 2, 0].tolist() == pytest.approx([1, 0.25, 0.25])
    assert drawn[:, 2, 2].tolist() == pytest.approx([0.25, 1, 0.25], abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (3, 5, 5), (2, 4, 5, 5)])
def test_images_without_three_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match="N, 3, H, W"):
        made("gotham")(torch.zeros(shape))


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(UnknownMethod, match="gotham"):
        made("gothem")


def test_a_saved_filter_is_the_same(rng: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "Filter", ColorFilter)
    x = torch.rand(2, 3, 7, 8, generator=rng)
    trigger = made("lomo").shuffled(rng)
    assert torch.equal(unpack(*pack(trigger))(x), trigger(x))
