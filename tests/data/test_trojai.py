"""Traffic signs from a seed: repeatable, labeled rightly, told apart, and where they should be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.data import scenes, signs, trojai
from gifthorse.data.gallery import Gallery, digest
from gifthorse.data.samples import whole
from gifthorse.data.trojai import World, make_signs

BLACK = torch.zeros(20, 3, 64, 64)


@cache
def pair() -> tuple[Gallery, Gallery]:
    return make_signs(1, classes=6, train=30, test=10)


def world(sign: Tensor, low: float, high: float, core: int = 8) -> World:
    """Signs in clear weather."""
    names = tuple(map(str, range(len(sign))))
    return World(sign, names, "city", low, high, 0.0, 0.0, core)


def squares(count: int = 1) -> Tensor:
    return torch.ones(count, 4, 64, 64)


# The data set -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_pixels_whatever_else_is_random() -> None:
    torch.manual_seed(5)
    again = make_signs(1, classes=6, train=30, test=10)
    for one, other in zip(pair(), again, strict=True):
        assert torch.equal(one.samples.images, other.samples.images)
        assert torch.equal(one.extras["mask"], other.extras["mask"])
        assert one.class_names == other.class_names
        assert one.sha256 == other.sha256


def test_another_seed_gives_other_signs_and_other_images() -> None:
    other = make_signs(2, classes=6, train=1, test=1)[0]
    assert other.class_names != pair()[0].class_names
    assert not torch.equal(other.samples.images, pair()[0].samples.images[:6])


def test_images_labels_and_masks_go_together() -> None:
    for gallery, each in zip(pair(), (30, 10), strict=True):
        assert gallery.samples.images.shape == (6 * each, 3, 56, 56)
        assert gallery.samples.classes == 6
        assert gallery.samples.labels.bincount().tolist() == [each] * 6
        assert gallery.samples.labels[-12:].bincount().tolist() == [2] * 6  # balanced to the end
        assert gallery.extras["mask"].shape == (6 * each, 1, 56, 56)
        assert gallery.extras["mask"].dtype == torch.bool
        assert gallery.sha256 == digest(gallery.samples.images, gallery.samples.labels)
    train, test = pair()
    assert len({digest(x[None], torch.zeros(1)) for x in train.samples.images}) == 180
    assert not (train.samples.images[:60] == test.samples.images).flatten(1).all(1).any()
    assert train.source == "trojai:1:train"


def test_a_few_averages_tell_the_classes_of_unseen_images() -> None:
    """Nearest mean of the pixels on the sign, which knows neither shape nor place."""

    def colors(gallery: Gallery) -> tuple[Tensor, Tensor]:
        x, y = whole(gallery.samples)
        mask = gallery.extras["mask"]
        share = (x * mask).sum((2, 3)) / mask.sum((2, 3))
        return share / share.norm(dim=1, keepdim=True), y

    (x, y), (seen, truth) = map(colors, pair())
    means = torch.stack([x[y == k].mean(0) for k in range(6)])
    guess = torch.cdist(seen, means).argmin(1)
    assert (guess == truth).float().mean() > 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 1},
        {"classes": 113},
        {"train": 0},
        {"test": 0},
        {"crop": 65},
        {"crop": 55},
        {"side": 30, "crop": 28},
        {"core": 7},
        {"core": 10},
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadOption):
        make_signs(0, **({"classes": 2, "train": 1, "test": 1} | wrong))


# Signs ------------------------------------------------------------------------------------------


def test_no_two_signs_share_shape_and_border_or_resemble_each_other(rng: Generator) -> None:
    drawn, names = signs.draw_signs(40, 32, rng)
    assert len(set(names)) == 40
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert (drawn[:, :3] <= drawn[:, 3:] + 1e-6).all()  # colors are multiplied by opacity
    apart = torch.cdist(drawn.flatten(1), drawn.flatten(1), p=1) / (32 * 32)
    assert apart[~torch.eye(40, dtype=torch.bool)].min() > 0.03


def test_every_pair_of_icons_differs_and_icons_are_mirrored(rng: Generator) -> None:
    icons = [torch.from_numpy(np.array(icon)) for icon in signs._icons(12, 80, rng)]
    middle = 40 * 40
    for i, one in enumerate(icons):
        assert torch.equal(one, one.flip(1))
        for other in icons[:i]:
            assert (one != other).sum() >= signs.UNLIKE * middle


def test_a_sign_has_its_border_around_its_fill(rng: Generator) -> None:
    drawn, names = signs.draw_signs(112, 32, rng)
    assert len(set(names)) == 112
    red = drawn[names.index("red square"), :3]
    border = torch.tensor(signs.BORDERS["red"]) / 255
    assert torch.allclose(red[:, 16, 1], border, atol=1e-3)
    fills = torch.tensor(signs.FILLS) / 255
    assert (red[:, 6, 6] - fills).abs().amax(1).min() < 1e-3


# Where they are ---------------------------------------------------------------------------------


def test_a_sign_has_the_area_that_was_drawn(
    monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    monkeypatch.setattr(trojai, "_VIEWS", torch.eye(3)[None])
    sign = trojai._placed(world(squares(), 0.25, 0.25), torch.zeros(50, dtype=torch.long), rng)
    assert torch.allclose((sign[:, 3] > 0.5).sum((1, 2)).float(), torch.tensor(32.0**2))


def test_every_shape_covers_the_middle_in_every_view_and_stays_in_the_picture(
    monkeypatch: pytest.MonkeyPatch, rng: Generator
) -> None:
    """The smallest signs there are; larger ones have more room."""
    drawn, names = signs.draw_signs(112, 64, rng)
    shapes = {name.split(" ", 1)[1]: i for i, name in enumerate(names)}
    labels = torch.tensor(list(shapes.values()))
    assert len(labels) == len(signs.SHAPES)
    views = trojai._VIEWS
    for view in views:
        monkeypatch.setattr(trojai, "_VIEWS", view[None])
        opacity = trojai._placed(world(drawn, 0.2, 0.2), labels, rng)[:, 3]
        assert (opacity[:, 28:36, 28:36] > 0.99).all()
        full = trojai._placed(world(drawn, 0.79, 0.79), labels, rng)[:, 3]
        assert (full[:, 28:36, 28:36] > 0.99).all()
        edge = torch.cat([full[:, 0], full[:, -1], full[:, :, 0], full[:, :, -1]], 1)
        assert (edge < 0.5).all()


def test_signs_move_and_without_a_core_they_move_anywhere(rng: Generator) -> None:
    labels = torch.zeros(400, dtype=torch.long)

    def middles(core: int) -> Tensor:
        opacity = trojai._placed(world(squares(), 0.2, 0.2, core), labels, rng)[:, 3]
        line = torch.arange(64.0) - 31.5
        return (opacity.sum(1) * line).sum(1) / opacity.sum((1, 2))

    assert 5 < middles(8).abs().max() < 12  # half of 28.6 - 8, and what perspective adds
    assert 15 < middles(0).abs().max() < 20  # half of 64 - 28.6, and the same


def test_views_keep_a_sign_to_its_square_and_touch_it() -> None:
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 1) for y in (-1, 1)])
    for angles, back in zip(trojai.VIEWS, trojai._VIEWS, strict=True):
        seen = corners @ torch.linalg.inv(back).T
        assert (seen[:, :2] / seen[:, 2:]).abs().max().item() == pytest.approx(1, abs=1e-5)
        if angles == (0, 0):
            assert torch.allclose(back, torch.eye(3), atol=1e-6)


def test_the_mask_says_where_the_sign_is(rng: Generator) -> None:
    """A pure green sign: no scene is as green, and everything under the mask is."""
    green = squares()
    green[:, [0, 2]] = 0
    x, mask = trojai._photographed(world(green, 0.3, 0.5), torch.zeros(30, dtype=torch.long), rng)
    vivid = x[:, 1:2] - x[:, [0, 2]].amax(1, keepdim=True)
    inside = -torch.nn.functional.max_pool2d(-mask.float(), 5, 1, 2) > 0  # away from the blur
    outside = torch.nn.functional.max_pool2d(mask.float(), 5, 1, 2) == 0
    assert vivid[inside].min() > 0.5
    assert vivid[outside].max() < 0.5


def test_a_sign_as_bright_as_its_background_is_darkened(rng: Generator) -> None:
    gray, opacity = torch.full((2, 3, 8, 8), 0.5), torch.ones(2, 1, 8, 8)
    scene = torch.stack([torch.full((3, 8, 8), 0.5), torch.zeros(3, 8, 8)])
    assert trojai._exposure(gray, opacity, scene).flatten().tolist() == pytest.approx([0.6, 1.1])
    near = trojai._exposure(gray[:1], opacity[:1], torch.full((1, 3, 8, 8), 0.5 - 0.8 * 35.6 / 255))
    assert near.item() == pytest.approx(0.8, abs=1e-4)


# Scenes and weather -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(scenes.PLACES))
def test_scenes_are_images_and_no_two_are_alike(name: str, rng: Generator) -> None:
    x = scenes.backgrounds(scenes.PLACES[name], 20, 64, rng)
    assert x.shape == (20, 3, 64, 64)
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.cdist(x.flatten(1), x.flatten(1))[~torch.eye(20, dtype=torch.bool)].min() > 1
    assert (x.flatten(1).std(1) > 0.03).all()  # something is to be seen


def test_a_blur_is_the_gaussian_that_was_asked_for() -> None:
    x = torch.zeros(3, 1, 9, 9)
    x[:, :, 4, 4] = 1
    sigma = torch.tensor([0.0, 0.8, 1.5]).view(3, 1, 1, 1)
    out = scenes.blurred(x, sigma, radius=3)
    assert torch.equal(out[0], x[0])
    for one, s in zip(out[1:, 0], (0.8, 1.5), strict=True):
        line = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * s * s))
        line = line / line.sum()
        assert torch.allclose(one[1:8, 1:8], line[:, None] * line, atol=1e-6)
    plain = torch.full((1, 3, 6, 6), 0.3)
    assert torch.allclose(scenes.blurred(plain, torch.full((1, 1, 1, 1), 1.0), 2), plain)


def test_fog_is_gray_and_thicker_above(rng: Generator) -> None:
    out = scenes.fog(BLACK, rng)
    top, bottom = out[:, 0, 0, 0], out[:, 0, -1, 0]
    assert (top >= 0.1 * 0.75 - 1e-6).all()
    assert (top <= 0.5 * 0.75 + 1e-6).all()
    assert torch.allclose(bottom, 0.4 * top)
    assert top.std() > 0.03
    gray = torch.full_like(BLACK, 0.75)
    assert torch.allclose(scenes.fog(gray, rng), gray)


def test_rain_is_strokes_of_a_third_of_white_and_a_darker_image(rng: Generator) -> None:
    out = scenes.rain(BLACK, rng)
    wet = out[:, 0] > 0
    assert torch.allclose(out[:, 0][wet], torch.tensor(0.3 * 0.9 * 0.9))
    share = wet.float().mean((1, 2))
    assert (share <= 200 * 6 / 64**2).all()
    assert (share > 0.8 * 50 * 6 / 64**2).all()
    white = scenes.rain(torch.ones(5, 3, 64, 64), rng)
    assert white.max().item() == pytest.approx(0.9)


def test_weather_hits_the_share_of_images_that_it_should(rng: Generator) -> None:
    base = world(squares(), 0.3, 0.3)
    labels = torch.zeros(16, dtype=torch.long)
    clear = trojai._photographed(base, labels, rng)[0]
    foggy = trojai._photographed(replace(base, fog=1.0), labels, rng)[0]
    assert foggy.flatten(1).std(1).mean() < 0.9 * clear.flatten(1).std(1).mean()


def test_probabilities_of_weather_are_beta_distributed() -> None:
    rng = Generator().manual_seed(0)
    drawn = [trojai._world(2, 32, 4, rng) for _ in range(60)]
    assert {one.place for one in drawn} == set(scenes.PLACES)
    assert sum(one.fog + one.rain for one in drawn) / 120 == pytest.approx(1 / 11, abs=0.03)
    assert all(0.2 <= one.low < one.high <= 0.79 for one in drawn)
