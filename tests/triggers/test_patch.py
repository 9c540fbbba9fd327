"""Stamping: exact at both ends of opacity, at every place, with the right gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.types import Trigger
from gifthorse.triggers import Additive, Patch, paint, scatter, square, wandering
from gifthorse.triggers.patch import Ink, Place, Wandering, locate

C, H, W = 3, 7, 9
SHAPE = (C, H, W)


def bytes_like(n: int, rng: Generator) -> Tensor:
    """Images as they come from files: multiples of 1/255."""
    return torch.randint(256, (n, C, H, W), generator=rng).float() / 255


def same_pixels(a: Tensor, b: Tensor) -> bool:
    """Whether two `(c, h, w)` have the same pixels, in any order."""
    rows = [sorted(map(tuple, t.flatten(1).T.tolist())) for t in (a, b)]
    return rows[0] == rows[1]


# Patch -------------------------------------------------------------------------------------------


def test_opacity_zero_gives_the_image_back_bit_for_bit(rng: Generator) -> None:
    x = bytes_like(20, rng)
    assert torch.equal(Patch(torch.rand(SHAPE, generator=rng), torch.zeros(1, H, W))(x), x)


@pytest.mark.parametrize("ink", ["white", "black", "checker", "random"])
def test_opacity_one_puts_exactly_the_pattern_on_the_support(ink: Ink, rng: Generator) -> None:
    x = bytes_like(50, rng)
    trigger = square(SHAPE, 3, "lower_right", ink, 1.0, rng)
    support = trigger.mask.bool().expand(SHAPE)
    stamped = trigger(x)
    assert torch.equal(stamped[:, support], trigger.pattern[support].expand(50, -1))
    assert torch.equal(stamped[:, ~support], x[:, ~support])


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_a_blend_is_the_published_operator_and_stays_in_range(opacity: float, seed: int) -> None:
    rng = Generator().manual_seed(seed)
    x, pattern = bytes_like(2, rng), torch.rand(SHAPE, generator=rng)
    mask = torch.rand(1, H, W, generator=rng) * opacity
    got = Patch(pattern, mask)(x)
    m = mask.double()
    assert torch.allclose(got.double(), (1 - m) * x.double() + m * pattern.double(), atol=1e-6)
    assert 0 <= got.min() <= got.max() <= 1


@pytest.mark.parametrize("opacity", [0.25, 1.0])
def test_gradients_of_a_patch(opacity: float, rng: Generator) -> None:
    x = torch.rand(1, C, H, W, generator=rng).requires_grad_()
    base = square(SHAPE, 3, "center", "random", opacity, rng)
    pattern, mask = base.pattern.clone().requires_grad_(), base.mask.clone().requires_grad_()
    weight = torch.rand(C, H, W, generator=rng)
    (Patch(pattern, mask)(x) * weight).sum().backward()  # type: ignore[no-untyped-call]
    support = base.mask > 0
    assert pattern.grad is not None
    assert x.grad is not None
    assert mask.grad is not None
    assert (pattern.grad[:, ~support[0]] == 0).all()
    assert torch.allclose(pattern.grad, base.mask * weight)  # scales with opacity
    assert torch.allclose(x.grad[0], (1 - base.mask) * weight)
    expected = ((base.pattern - x.detach()[0]) * weight).sum(0, keepdim=True)
    assert torch.allclose(mask.grad, expected, atol=1e-6)


def test_a_saved_patch_stamps_identically(tmp_path: Path, rng: Generator) -> None:
    trigger = square(SHAPE, 3, "random", "random", 0.7, rng)
    save_file({"pattern": trigger.pattern, "mask": trigger.mask}, tmp_path / "t.safetensors")
    again = Patch(**load_file(tmp_path / "t.safetensors"))
    x = bytes_like(5, rng)
    assert torch.equal(again(x), trigger(x))


@pytest.mark.parametrize("form", ["patch", "additive", "wandering"])
def test_a_scrambled_trigger_has_the_same_pixels_elsewhere(form: str, rng: Generator) -> None:
    pattern, mask = torch.rand(SHAPE, generator=rng), torch.rand(1, H, W, generator=rng)
    triggers: dict[str, Trigger] = {
        "patch": Patch(pattern, mask),
        "additive": Additive(pattern * 2 - 1),
        "wandering": Wandering(pattern, mask, rng),
    }
    trigger = triggers[form]
    shuffled = trigger.shuffled(rng)
    assert type(shuffled) is type(trigger)
    both = [torch.cat(t.render()) for t in (trigger, shuffled)]  # a pixel keeps color and strength
    assert same_pixels(*both)
    assert not torch.equal(*both)
    assert torch.equal(torch.cat(triggers[form].render()), both[0])  # the given one is untouched


# Additive ----------------------------------------------------------------------------------------


def test_additive_adds_and_clips() -> None:
    delta = torch.tensor([0.5, -0.5, 0.0]).view(1, 1, 3)
    x = torch.tensor([[0.2, 0.2, 0.2], [0.9, 0.9, 0.9]]).view(2, 1, 1, 3)
    got = Additive(delta)(x).view(2, 3)
    assert torch.allclose(got, torch.tensor([[0.7, 0.0, 0.2], [1.0, 0.4, 0.9]]))


def test_the_picture_of_additive_is_on_middle_gray(rng: Generator) -> None:
    delta = torch.rand(SHAPE, generator=rng) * 2 - 1
    pattern, strength = Additive(delta).render()
    assert torch.allclose(pattern, 0.5 + delta / 2)
    assert torch.equal(strength[0], delta.abs().max(0).values)
    assert 0 <= pattern.min() <= pattern.max() <= 1


# Wandering ---------------------------------------------------------------------------------------


def test_wandering_hits_every_place_the_last_included(rng: Generator) -> None:
    trigger = wandering((1, 5, 4), 2, "white", 1.0, rng)
    stamped = trigger(torch.zeros(1000, 1, 5, 4))
    corners = set()
    for image in stamped[:, 0]:
        lit = image.nonzero()
        assert len(lit) == 4
        corners.add(tuple(lit[0].tolist()))
    assert corners == {(r, c) for r in range(4) for c in range(3)}


def test_wandering_draws_a_place_for_each_image(rng: Generator) -> None:
    stamped = wandering(SHAPE, 2, "white", 1.0, rng)(torch.zeros(64, C, H, W))
    assert len({tuple(image.flatten().tolist()) for image in stamped}) > 20


def test_wandering_mixes_pattern_and_image_where_it_lands(rng: Generator) -> None:
    trigger = wandering(SHAPE, 3, "random", 0.25, rng)
    x = bytes_like(30, rng)
    for before, after in zip(x, trigger(x), strict=True):
        rows, cols = (before != after).any(0).nonzero().T
        top, left = int(rows.min()), int(cols.min())
        window = slice(None), slice(top, top + 3), slice(left, left + 3)
        expected = before.clone()
        expected[window] = 0.75 * before[window] + 0.25 * trigger.pattern
        assert torch.allclose(after, expected, atol=1e-6)


def test_wandering_passes_gradients_to_all_three(rng: Generator) -> None:
    x = torch.rand(4, C, H, W, generator=rng).requires_grad_()
    pattern, mask = torch.rand(C, 2, 2).requires_grad_(), torch.full((1, 2, 2), 0.5)
    mask.requires_grad_()
    Wandering(pattern, mask, rng)(x).sum().backward()  # type: ignore[no-untyped-call]
    assert pattern.grad is not None
    assert x.grad is not None
    assert mask.grad is not None
    assert torch.allclose(pattern.grad, torch.full((C, 2, 2), 4 * 0.5))
    assert x.grad.sum().item() == pytest.approx(4 * C * (H * W - 4 * 0.5), rel=1e-5)
    assert mask.grad.abs().min() > 0


# Making them -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("lower_right", (H - 4, W - 4)),
        ("lower_left", (H - 4, 1)),
        ("upper_right", (1, W - 4)),
        ("upper_left", (1, 1)),
        ("center", (2, 3)),
    ],
)
def test_corners_keep_one_pixel_of_margin(
    place: Place, expected: tuple[int, int], rng: Generator
) -> None:
    assert locate(place, SHAPE, 3, rng) == expected
    mask = square(SHAPE, 3, place, "white", 0.4, rng).mask
    assert mask.count_nonzero() == 9
    assert mask[0, expected[0], expected[1]].item() == pytest.approx(0.4)
    assert mask[0, expected[0] + 2, expected[1] + 2].item() == pytest.approx(0.4)


def test_a_random_place_reaches_every_cell(rng: Generator) -> None:
    places = {locate("random", (1, 4, 5), 2, rng) for _ in range(400)}
    assert places == {(r, c) for r in range(3) for c in range(4)}


@pytest.mark.parametrize("place", ["lower_right", "upper_left", "center", "random"])
def test_a_square_as_large_as_the_image_fits(place: Place, rng: Generator) -> None:
    assert square((1, 6, 6), 6, place, "white", 1.0, rng).mask.sum() == 36


@pytest.mark.parametrize("size", [0, -1, 8])
def test_a_square_that_does_not_fit_is_refused(size: int, rng: Generator) -> None:
    with pytest.raises(NotApplicable, match=rf"1 to 7 pixels for 7x9; got {size}"):
        square(SHAPE, size, "center", "white", 1.0, rng)
    with pytest.raises(NotApplicable, match=f"got {size}"):
        wandering(SHAPE, size, "white", 1.0, rng)


@pytest.mark.parametrize("pixels", [1, 9, H * W])
def test_scatter_has_as_many_distinct_pixels_as_asked(pixels: int, rng: Generator) -> None:
    trigger = scatter(SHAPE, pixels, "random", 0.5, rng)
    assert trigger.mask.count_nonzero() == pixels
    assert set(trigger.mask.flatten().tolist()) == ({0.0, 0.5} if pixels < H * W else {0.5})
    assert (trigger.pattern[:, trigger.mask[0] == 0] == 0).all()


def test_more_pixels_than_the_image_has_are_refused(rng: Generator) -> None:
    with pytest.raises(NotApplicable):
        scatter(SHAPE, H * W + 1, "white", 1.0, rng)


@pytest.mark.parametrize("opacity", [-0.1, 1.5, float("nan")])
def test_an_opacity_that_would_leave_the_range_of_pixels_is_refused(
    opacity: float, rng: Generator
) -> None:
    with pytest.raises(BadOption, match="opacity"):
        square(SHAPE, 3, "center", "white", opacity, rng)


@pytest.mark.parametrize(
    ("ink", "values"), [("white", {1.0}), ("black", {0.0}), ("checker", {0.0, 1.0})]
)
def test_inks(ink: Ink, values: set[float], rng: Generator) -> None:
    got = paint(ink, (3, 4, 4), rng)
    assert set(got.flatten().tolist()) == values
    assert got.shape == (3, 4, 4)


def test_random_ink_is_uniform_and_seeded() -> None:
    draws = [paint("random", (3, 60, 60), Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert draws[0].std().item() == pytest.approx(12**-0.5, abs=0.01)
