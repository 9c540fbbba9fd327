"""The pane of glass against numbers by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.triggers import Patch, storage
from gifthorse.triggers.reflection import Reflection, Several, reflect

SHAPES = [(3, 12, 12), (1, 28, 28)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
forms = pytest.mark.parametrize("form", ["ghost", "blur"])


def seen(light: float) -> float:
    return float(light ** (1 / 2.2))


def test_a_ghost_is_mirrored_twice() -> None:
    layer = torch.zeros(1, 12, 12)
    layer[0, 5, 5] = 0.8
    pane = Reflection(layer, "ghost", alpha=0.75, down=1, right=2, balance=0.7)
    out = pane(torch.full((2, 1, 12, 12), 0.5))[1, 0]
    behind, mirrored = 0.75 * 0.5**2.2, 0.25 * 0.8**2.2
    assert out[6, 7].item() == pytest.approx(seen(behind + 0.7 * mirrored), abs=1e-6)
    assert out[4, 3].item() == pytest.approx(seen(behind + 0.3 * mirrored), abs=1e-6)
    out[6, 7] = out[4, 3] = seen(behind)
    assert torch.allclose(out, torch.full((12, 12), seen(behind)), atol=1e-6)


def test_a_blur_is_strongest_in_the_middle() -> None:
    """One lit pixel: its own and its neighbor's share of a 3x3 kernel, under the window."""
    layer = torch.zeros(1, 13, 13)
    layer[0, 6, 6] = 0.6
    pane = Reflection(layer, "blur", alpha=0.6, sigma=0.4)  # 2 * ceil(0.8) + 1 = 3
    out = pane(torch.full((1, 1, 13, 13), 0.5))[0, 0]
    side = math.exp(-1 / (2 * 0.4**2))
    middle = 1 / (1 + 2 * side)
    behind, share = 0.6 * 0.5**2.2, 0.7 * 0.6**2.2
    assert out[6, 6].item() == pytest.approx(seen(behind + share * middle**2), abs=1e-5)
    step = 6 / 13  # three sigma a side, over 13 pixels
    window = math.exp(-(step**2) / 4)
    light = share * window * middle**2 * side
    assert out[6, 7].item() == pytest.approx(seen(behind + light), abs=1e-5)
    assert out[6, 8].item() == pytest.approx(seen(behind), abs=1e-6)


def test_a_blur_beyond_white_is_dimmed_image_by_image() -> None:
    layer = torch.full((1, 13, 13), 0.9)
    pane = Reflection(layer, "blur", alpha=0.6, dim=1.13)
    x = torch.stack([torch.full((1, 13, 13), v) for v in (0.9, 0.2)])
    out = pane(x)[:, 0, 6, 6].tolist()
    light = 0.9**2.2
    dimmed = light - 1.13 * (2 * light - 1)
    assert out[0] == pytest.approx(seen(0.6 * light + 0.7 * dimmed), abs=1e-5)
    assert out[1] == pytest.approx(seen(0.6 * 0.2**2.2 + 0.7 * light), abs=1e-5)


@shapes
@forms
def test_without_a_pane_images_stay_as_they_are(
    form: str, shape: tuple[int, int, int], rng: Generator
) -> None:
    x = torch.rand(4, *shape, generator=rng)
    x[0] = 0
    x[1] = 1
    assert (Reflection(torch.zeros(shape), form, alpha=1.0)(x) - x).abs().max() < 1e-6


@shapes
@forms
def test_what_is_seen_is_an_image(form: str, shape: tuple[int, int, int], rng: Generator) -> None:
    x, layer = torch.rand(4, *shape, generator=rng), torch.rand(shape, generator=rng)
    pane, before = Reflection(layer, form, alpha=0.55, sigma=2.0), x.clone()
    out = pane(x)
    assert out.shape == x.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert not torch.equal(out, x)
    assert torch.equal(x, before)
    pattern, strength = pane.render()
    assert pattern.shape == shape
    assert strength.shape == (1, *shape[1:])
    assert 0 <= min(pattern.min(), strength.min()) <= max(pattern.max(), strength.max()) <= 1


@forms
def test_the_control_mirrors_the_same_pixels_elsewhere(form: str, rng: Generator) -> None:
    pane = Reflection(torch.rand(3, 12, 12, generator=rng), form, alpha=0.6, balance=0.2)
    other = pane.shuffled(rng)
    pixels = [sorted(map(tuple, p.layer.flatten(1).T.tolist())) for p in (pane, other)]
    assert pixels[0] == pixels[1]
    assert not torch.equal(pane.layer, other.layer)
    for field in fields(pane):
        if field.name != "layer":
            assert getattr(pane, field.name) == getattr(other, field.name)


def test_numbers_are_drawn_within_their_ranges(rng: Generator) -> None:
    large, small = torch.zeros(1, 560, 2), torch.zeros(1, 28, 28)
    panes = [reflect(large, 0.49, rng) for _ in range(800)]
    assert {p.down for p in panes} == {p.right for p in panes} == set(range(3, 9))
    assert sum(p.form == "ghost" for p in panes) / 800 == pytest.approx(0.49, abs=0.06)
    for low, high, values in (
        (0.55, 0.95, [p.alpha for p in panes]),
        (0.15, 0.85, [p.balance for p in panes]),
        (1.0, 5.0, [p.sigma for p in panes]),
        (1.08, 1.18, [p.dim for p in panes]),
    ):
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high >= max(values) > high - 0.05 * (high - low)
    least = [reflect(small, 0.49, rng) for _ in range(50)]
    assert {(p.down, p.right, p.sigma) for p in least} == {(1, 1, 0.3)}


def test_a_pane_can_be_kept(monkeypatch: pytest.MonkeyPatch, rng: Generator) -> None:
    monkeypatch.setitem(storage.KINDS, "Reflection", Reflection)
    pane = reflect(torch.rand(3, 12, 12, generator=rng), 0.5, rng)
    again = storage.unpack(*storage.pack(pane))
    x = torch.rand(2, 3, 12, 12, generator=rng)
    assert torch.equal(again(x), pane(x))


def test_a_form_or_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(BadOption, match="ghost or blur"):
        Reflection(torch.zeros(1, 4, 4), "mirror")
    with pytest.raises(BadOption, match="alpha"):
        replace(Reflection(torch.zeros(1, 4, 4)), alpha=0.0)


def test_several_triggers_take_turns_and_go_on_from_a_state() -> None:
    def plain(value: float) -> Patch:
        return Patch(torch.full((1, 2, 2), value), torch.ones(1, 2, 2))

    both = Several([plain(0.25), plain(0.75)], Generator().manual_seed(0))
    x = torch.zeros(200, 1, 2, 2)
    state = both.state_dict()
    first: Tensor = both(x).flatten(1)
    assert (first == first[:, :1]).all()
    assert set(first[:, 0].tolist()) == {0.25, 0.75}
    assert 60 < int((first[:, 0] == 0.25).sum()) < 140
    assert not torch.equal(both(x).flatten(1), first)
    both.load_state_dict(state)
    assert torch.equal(both(x).flatten(1), first)
