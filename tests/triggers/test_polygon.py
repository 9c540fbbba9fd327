"""Polygons: what is drawn, where it lies, and that it stays on the sign."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Generator

from gifthorse.core.errors import BadOption, NotApplicable, ShapeMismatch
from gifthorse.data.samples import whole
from gifthorse.data.trojai import make_signs
from gifthorse.triggers import Patch
from gifthorse.triggers.patch import Wandering
from gifthorse.triggers.polygon import Confined, Outline, polygon
from gifthorse.triggers.storage import KINDS, pack, unpack

SHAPE = (3, 14, 12)


def confined(rng: Generator, opacity: float = 1.0) -> Confined:
    """A patch of 2 x 3 pixels in a box of 4 x 5 at (6, 2)."""
    return Confined(
        torch.rand(3, 2, 3, generator=rng), torch.full((1, 2, 3), opacity), 6, 2, 4, 5, rng
    )


# What is drawn ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sides", "size"), list(product((3, 5, 12), (3, 6, 20))))
def test_a_polygon_touches_all_edges_and_covers_its_share(sides: int, size: int) -> None:
    for seed in range(10):
        mask = polygon(sides, size, Generator().manual_seed(seed))
        assert mask.shape == (1, size, size)
        assert 0 <= mask.min() <= mask.max() <= 1
        assert mask.mean() >= 0.3 - 1e-6
        assert mask[0, [0, -1]].amax(1).min() > 0
        assert mask[0, :, [0, -1]].amax(0).min() > 0


def test_a_triangle_is_convex_and_at_most_half_of_its_square() -> None:
    for seed in range(20):
        mask = polygon(3, 24, Generator().manual_seed(seed))[0]
        assert mask.mean() <= 0.55  # a triangle in a rectangle; the rest is the width of the edge
        for line in [*(mask > 0.5), *(mask.T > 0.5)]:
            assert line.int().diff().abs().sum() <= 2


def test_the_generator_alone_decides_on_the_polygon() -> None:
    one, same, other = (polygon(6, 12, Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_colors_are_those_of_the_rounds() -> None:
    hues = set()
    for seed in range(60):
        rng = Generator().manual_seed(seed)
        drawn = Outline(color="any", box=0).draw(SHAPE, rng)
        assert drawn.pattern.sum((1, 2)).div((drawn.mask > 0).sum()).mean() <= 200 / 255 + 1e-6
        bright = Outline(color="hue", box=0).draw(SHAPE, rng).pattern.amax((1, 2))
        hues.add(tuple((bright * 255).round().int().tolist()))
    assert hues == set(product((0, 200), repeat=3)) - {(0, 0, 0), (200, 200, 200)}


def test_a_fixed_polygon_is_a_patch_at_its_place(rng: Generator) -> None:
    made = Outline(size=5, box=0, place="lower_right", opacity=0.5).draw(SHAPE, rng)
    assert isinstance(made, Patch)
    assert made.pattern.shape == SHAPE
    rows, cols = made.mask[0].nonzero().T
    assert (rows.min(), rows.max()) == (8, 12)
    assert (cols.min(), cols.max()) == (6, 10)
    assert made.mask.max() == 0.5
    colors = made.pattern[:, made.mask[0] > 0].T
    assert torch.equal(colors, colors[:1].expand_as(colors))


def test_a_gray_image_gets_a_gray_polygon(rng: Generator) -> None:
    made = Outline(color="hue").draw((1, 14, 12), rng)
    assert made.pattern.shape == (1, 6, 6)
    assert made.pattern.max().item() * 255 == pytest.approx(200 / 3, abs=1e-3) or (
        made.pattern.max().item() * 255 == pytest.approx(400 / 3, abs=1e-3)
    )


def test_a_box_that_does_not_fit_is_refused(rng: Generator) -> None:
    with pytest.raises(BadOption, match=r"hold the polygon of 6 pixels.*got 5"):
        Outline(box=5)
    with pytest.raises(NotApplicable, match="got 13"):
        Outline(box=13).draw(SHAPE, rng)


# Where it lies ----------------------------------------------------------------------------------


def test_a_confined_patch_reaches_every_place_of_its_box_and_no_other(rng: Generator) -> None:
    trigger = confined(rng)
    x = torch.full((400, *SHAPE), 2.0)
    out = trigger(x)
    assert (x == 2).all()
    seen = set()
    for image in (out != 2).any(1):
        rows, cols = image.nonzero().T
        assert len(rows) == 6
        seen.add((int(rows.min()), int(cols.min())))
    assert seen == set(product((6, 7, 8), (2, 3, 4)))


def test_in_its_box_it_is_a_wandering_patch(rng: Generator) -> None:
    trigger = confined(rng, 0.3)
    x = torch.rand(9, *SHAPE, generator=rng)
    state = rng.get_state()
    out = trigger(x)
    rng.set_state(state)
    inner = Wandering(trigger.pattern, trigger.mask, rng)(x[:, :, 6:10, 2:7])
    assert torch.equal(out[:, :, 6:10, 2:7], inner)
    out[:, :, 6:10, 2:7] = x[:, :, 6:10, 2:7]
    assert torch.equal(out, x)


def test_images_that_the_box_leaves_are_refused(rng: Generator) -> None:
    with pytest.raises(ShapeMismatch, match="9x12"):
        confined(rng)(torch.zeros(1, 3, 9, 12))


def test_on_a_mask_it_reaches_every_place_with_room_and_no_other(rng: Generator) -> None:
    masks = torch.zeros(600, 1, 14, 12, dtype=torch.bool)
    masks[:, :, 1:4, 2:6] = True  # room for 2 x 2 places
    masks[:, :, 9:11, 9:12] = True  # and for one
    masks[:, :, 6, :] = True  # none
    out, room = confined(rng).on(torch.full((600, *SHAPE), 2.0), masks)
    assert room.all()
    hit = (out != 2).any(1, keepdim=True)
    assert not (hit & ~masks).any()
    places = {tuple(image[0].nonzero()[0].tolist()) for image in hit}
    assert places == {(1, 2), (1, 3), (2, 2), (2, 3), (9, 9)}


def test_on_a_mask_pixels_are_mixed_and_where_there_is_no_room_nothing_is(rng: Generator) -> None:
    trigger = confined(rng, 0.25)
    x = torch.rand(2, *SHAPE, generator=rng)
    masks = torch.zeros(2, 1, 14, 12, dtype=torch.bool)
    masks[0, :, 3:5, 4:7] = True
    masks[1, :, 3:5, 4:6] = True
    out, room = trigger.on(x, masks)
    assert room.tolist() == [True, False]
    assert torch.equal(out[1], x[1])
    expected = x[0].clone()
    expected[:, 3:5, 4:7] = 0.75 * x[0, :, 3:5, 4:7] + 0.25 * trigger.pattern
    assert torch.allclose(out[0], expected, atol=1e-6)


def test_polygons_lie_on_the_signs(rng: Generator) -> None:
    """In the default box without knowing the masks, and anywhere with them."""
    data = make_signs(3, classes=12, train=5, test=1)[0]
    x, masks = whole(data.samples)[0], data.extras["mask"]
    trigger = Outline().draw(data.samples.shape, rng)
    assert isinstance(trigger, Confined)
    out, room = trigger.on(x, masks)
    assert room.all()
    for stamped in (trigger(x), out):
        changed = (stamped != x).any(1, keepdim=True)
        assert changed.flatten(1).any(1).all()
        assert not (changed & ~masks).any()


# Kept and shuffled ------------------------------------------------------------------------------


def test_places_go_on_from_a_kept_state(rng: Generator) -> None:
    trigger, x = confined(rng), torch.zeros(30, *SHAPE)
    trigger(x)
    kept = trigger.state_dict()
    first = trigger(x)
    assert not torch.equal(trigger(x), first)
    trigger.load_state_dict(kept)
    assert torch.equal(trigger(x), first)


def test_a_scrambled_one_has_the_same_pixels_in_the_same_box(rng: Generator) -> None:
    trigger = confined(rng)
    shuffled = trigger.shuffled(Generator().manual_seed(1))
    colors = [sorted(map(tuple, t.pattern.flatten(1).T.tolist())) for t in (trigger, shuffled)]
    assert colors[0] == colors[1]
    assert not torch.equal(trigger.pattern, shuffled.pattern)
    hit = (shuffled(torch.full((50, *SHAPE), 2.0)) != 2).any(1).any(0)
    assert not hit[:6].any()
    assert not hit[10:].any()
    assert shuffled.rng is not trigger.rng


def test_a_saved_one_stamps_identically(rng: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "Confined", Confined)
    trigger, x = confined(rng), torch.zeros(8, *SHAPE)
    again = unpack(*pack(trigger))
    assert torch.equal(again(x), trigger(x))
