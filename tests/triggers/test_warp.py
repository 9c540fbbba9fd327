"""Warps by hand: known shifts, known sizes, nothing at strength zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.triggers.warp import Warp, smooth_field


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def ramps(height: int, width: int) -> Tensor:
    """Two images of one channel that say where each pixel is: its column, its row; in [0, 1]."""
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    cols = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack([cols, rows])[:, None]


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-2, 1)])
def test_a_constant_field_shifts_and_repeats_the_edge(right: int, down: int) -> None:
    H, W = 7, 10
    x = torch.rand(2, 3, H, W, generator=rng())
    field = torch.tensor([right * 2 * W / (W - 1), down * 2 * H / (H - 1)])
    warp = Warp(field.view(2, 1, 1).repeat(1, H, W), strength=1.0)
    rows = (torch.arange(H) + down).clamp(0, H - 1)
    cols = (torch.arange(W) + right).clamp(0, W - 1)
    assert torch.allclose(warp(x), x[:, :, rows][:, :, :, cols], atol=1e-5)
    assert torch.allclose(warp.displacement[0], torch.full((H, W), float(right)), atol=1e-5)
    assert torch.allclose(warp.displacement[1], torch.full((H, W), float(down)), atol=1e-5)


def test_no_strength_changes_nothing() -> None:
    x = torch.rand(2, 3, 9, 12, generator=rng())
    out = Warp(smooth_field((3, 9, 12), 4, rng()), strength=0.0)(x)
    assert torch.equal(out, x)
    assert out is not x


@pytest.mark.parametrize(("height", "width"), [(31, 31), (10, 61)])
def test_pixels_move_half_the_strength_where_the_field_was_drawn(height: int, width: int) -> None:
    """Sides of 3 k + 1 pixels have pixels at the four places a side that were drawn."""
    warp = Warp(smooth_field((3, height, width), 4, rng()), 0.5)
    drawn = warp.displacement[:, :: (height - 1) // 3, :: (width - 1) // 3]
    half = torch.tensor([(width - 1) / width, (height - 1) / height]) * 0.25
    assert drawn.shape == (2, 4, 4)
    assert (drawn.abs().sum((1, 2)) / half).sum().item() == pytest.approx(32, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 24, 60)])
def test_pixels_move_about_half_the_strength(shape: tuple[int, int, int]) -> None:
    moved = torch.stack([Warp(smooth_field(shape, 4, rng(i)), 3.0).displacement for i in range(40)])
    assert moved.abs().mean().item() == pytest.approx(0.37 * 3, rel=0.05)
    distance = torch.linalg.vector_norm(moved, dim=1).mean().item()
    assert distance == pytest.approx(0.58 * 3, rel=0.05)


def test_the_image_moves_by_the_displacement() -> None:
    H, W = 32, 48
    warp = Warp(smooth_field((1, H, W), 4, rng()), 1.0, channels=1)
    inner = (slice(4, -4), slice(4, -4))  # nothing is clipped there
    moved = (warp(ramps(H, W)) - ramps(H, W))[:, 0] * torch.tensor([W - 1, H - 1]).view(2, 1, 1)
    assert torch.allclose(moved[:, *inner], warp.displacement[:, *inner], atol=1e-4)


def test_noise_moves_each_image_by_itself_and_at_most_half_a_pixel() -> None:
    H, W = 20, 30
    still = Warp(smooth_field((1, H, W), 4, rng()), 0.0)
    x = ramps(H, W)[:1].repeat(8, 1, 1, 1)
    out = still.jittered(x, rng(1))
    moved = ((out - x) * (W - 1))[..., 1:-1]
    assert moved.abs().max() <= (W - 1) / (2 * W) + 1e-4
    assert moved.abs().mean().item() == pytest.approx((W - 1) / (4 * W), rel=0.05)
    assert moved.mean().abs() < 0.02
    assert not torch.allclose(out[0], out[1], atol=1e-3)
    strong = replace(still, strength=4.0)
    far = (strong.jittered(x, rng(1)) - strong(x)) * (W - 1)
    assert far[..., 4:-4].abs().max() <= 0.5  # noise is added to the warp, it does not replace it


def test_white_stays_white_and_the_input_stays() -> None:
    x = torch.ones(4, 3, 17, 13)
    warp = Warp(smooth_field((3, 17, 13), 4, rng()), 6.0)
    for out in (warp(x), warp.jittered(x, rng())):
        assert out.max() <= 1
        assert torch.allclose(out, x, atol=1e-5)
    assert torch.equal(x, torch.ones(4, 3, 17, 13))


def test_the_scrambled_warp_is_another_of_the_same_strength() -> None:
    fields = [Warp(smooth_field((3, 16, 16), 4, rng(i)), 2.0) for i in range(20)]
    others = [w.shuffled(rng(100 + i)) for i, w in enumerate(fields)]
    assert all(
        o.strength == 2 and not torch.equal(o.field, w.field)
        for o, w in zip(others, fields, strict=True)
    )
    mean, again = (
        torch.stack([w.displacement for w in ws]).abs().mean() for ws in (fields, others)
    )
    assert torch.allclose(mean, again, rtol=0.1)
    assert torch.equal(fields[0].shuffled(rng(5)).field, fields[0].shuffled(rng(5)).field)


def test_the_picture_shows_how_far_pixels_move() -> None:
    field = torch.zeros(2, 5, 5)
    field[:, 2, 3] = torch.tensor([3.0, 4.0])
    pattern, strength = Warp(field, 0.25, channels=3).render()
    assert pattern.shape == (3, 5, 5)
    assert strength.shape == (1, 5, 5)
    assert strength[0, 2, 3].item() == pytest.approx(0.25 * 5 * 4 / (2 * 5))  # s |n| (H - 1) / 2H
    assert torch.equal(pattern[:, 2, 3], torch.ones(3))
    assert pattern.sum() == 3
    assert torch.equal(Warp(field, 0.0).render()[0], torch.zeros(3, 5, 5))


def test_a_field_needs_two_planes_and_two_cells() -> None:
    with pytest.raises(BadOption, match="cells"):
        smooth_field((3, 8, 8), 1, rng())
    with pytest.raises(BadOption, match="2, H, W"):
        Warp(torch.zeros(3, 8, 8))
