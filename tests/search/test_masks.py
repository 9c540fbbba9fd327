"""What a trigger under construction is, stamps and weighs, by numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from gifthorse.core.tensors import STEP, from_box, to_box
from gifthorse.search.parametrizations.bounded import BoundedChange
from gifthorse.search.parametrizations.masks import (
    MaskPattern,
    Parametrization,
    Parts,
    SignedPixels,
)
from gifthorse.search.parametrizations.one_variable import OneVariable
from gifthorse.triggers import Additive, Patch

ARMS, SHAPE = 3, (3, 4, 5)
FORMS: list[Parametrization] = [
    MaskPattern(),
    MaskPattern("l2"),
    SignedPixels(),
    SignedPixels("clip"),
    SignedPixels("clip", spread="plain"),
    SignedPixels("clip", ties="first"),
    OneVariable(),
    OneVariable("signed"),
    OneVariable("signed", spread="plain"),
    BoundedChange(0.1, spread=1.0),
]


def start(form: Parametrization, rng: Generator) -> tuple[Tensor, ...]:
    rows = [form.start(SHAPE, rng) for _ in range(ARMS)]
    return tuple(torch.stack(v) for v in zip(*rows, strict=True))


def penalty(form: Parametrization, variables: Parts) -> Tensor:
    return form.penalty(variables, form.decode(variables))


def row(*values: float) -> Tensor:
    """One arm, one channel, one row of pixels."""
    return torch.tensor(values).view(1, 1, 1, -1)


# Any form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_each_arm_stamps_like_its_frozen_trigger(form: Parametrization, rng: Generator) -> None:
    parts = form.decode(start(form, rng))
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng)
    stamped = form.stamp(parts, x)
    assert stamped.shape == x.shape
    for arm in range(ARMS):
        trigger = form.to_trigger(tuple(p[arm] for p in parts))
        assert torch.allclose(stamped[arm], trigger(x[arm]), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("measure", ["penalty", "size", "soft_size", "postprocess", "decode"])
def test_arms_are_measured_one_by_one(form: Parametrization, measure: str, rng: Generator) -> None:
    given_to = start(form, rng)
    if measure not in ("penalty", "decode"):
        given_to = form.decode(given_to)

    def measured(what: Parts) -> Tensor | Parts:
        got: Tensor | Parts
        got = penalty(form, what) if measure == "penalty" else getattr(form, measure)(what)
        return got

    together = measured(given_to)
    for arm in range(ARMS):
        alone = measured(tuple(v[arm : arm + 1] for v in given_to))
        for a, b in zip(
            alone if isinstance(alone, tuple) else [alone],
            together if isinstance(together, tuple) else [together],
            strict=True,
        ):
            assert torch.allclose(a[0], b[arm], atol=1e-5)


# Mask and pattern --------------------------------------------------------------------------------


def test_a_mask_starts_uniform_between_the_margins() -> None:
    variables = MaskPattern().start((3, 60, 60), Generator().manual_seed(0))
    for part, channels in zip(MaskPattern().decode(variables), (1, 3), strict=True):
        assert part.shape == (channels, 60, 60)
        assert part.mean().item() == pytest.approx(0.5, abs=0.03)
        assert part.std().item() == pytest.approx(12**-0.5, abs=0.02)
        assert 1e-4 - 1e-6 <= part.min() <= part.max() <= 1 - 1e-4 + 1e-6


def test_a_mask_mixes_as_published(rng: Generator) -> None:
    form = MaskPattern()
    mask, pattern = parts = form.decode(start(form, rng))
    x = torch.rand(ARMS, 2, *SHAPE, generator=rng)
    expected = (1 - mask[:, None]) * x + mask[:, None] * pattern[:, None]
    assert torch.allclose(form.stamp(parts, x), expected, atol=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [("l1", 0.5 + 0.3 + 0.4), ("l2", 0.5**0.5)])
def test_the_norm_of_a_mask_is_taken_over_one_channel(norm: str, expected: float) -> None:
    mask, pattern = row(0.5, 0.3, 0.4), torch.rand(1, 3, 1, 3)
    form = MaskPattern(norm)  # type: ignore[arg-type]
    assert penalty(form, (to_box(mask), to_box(pattern))).item() == pytest.approx(expected, 1e-5)
    assert form.size((mask, pattern)).item() == pytest.approx(1.2)
    assert isinstance(form.to_trigger((mask[0], pattern[0])), Patch)


def test_without_jitter_a_search_goes_on_where_it_was(rng: Generator) -> None:
    form = MaskPattern()
    variables = start(form, rng)
    resumed = form.restart(form.decode(variables), variables, rng)
    assert all(torch.equal(a, b) for a, b in zip(resumed, variables, strict=True))


def test_jitter_restarts_around_the_stored_trigger(rng: Generator) -> None:
    form = MaskPattern(jitter=0.01)
    stored = torch.full((1, 1, 30, 30), 0.5), torch.ones(1, 3, 30, 30)
    resumed = form.decode(form.restart(stored, start(form, rng), rng))
    off = (resumed[0] - 0.5).abs()
    assert 0.009 < off.max() <= 0.01 + 1e-6
    assert resumed[1].min() >= 0.99 - 1e-6
    assert resumed[1].max() <= 1 - 1e-4 + 1e-6  # a saturated pixel can move again


# Added and removed light -------------------------------------------------------------------------


def test_light_starts_as_published() -> None:
    for b in SignedPixels().start((3, 60, 60), Generator().manual_seed(0)):
        assert 0 <= b.min() <= b.max() < 1
        assert b.mean().item() == pytest.approx(0.5, abs=0.03)


def test_tanh_mode_and_clip_mode_decode_by_their_equations() -> None:
    b = row(-30.0, -0.5, 0.0, 0.25, 30.0)
    plus, minus = SignedPixels("tanh").decode((b, -b))
    expected = torch.tensor(np.tanh([-30.0, -0.5, 0.0, 0.25, 30.0]) / 2 + 0.5).float()
    assert torch.allclose(plus.flatten(), expected, atol=1e-6)
    assert torch.allclose(minus.flatten(), 1 - expected, atol=1e-6)
    plus, _ = SignedPixels("clip").decode((b, b))
    assert plus.flatten().tolist() == [0.0, 0.0, 0.0, 0.25, 1.0]


def test_light_is_added_removed_and_clipped() -> None:
    parts = row(0.5, 0.0, 0.9), row(0.0, 0.5, 0.2)
    x = torch.tensor([0.7, 0.2, 0.1]).view(1, 1, 1, 1, 3)
    assert torch.allclose(SignedPixels().stamp(parts, x).flatten(), torch.tensor([1.0, 0.0, 0.8]))


@pytest.mark.parametrize("mode", ["tanh", "clip"])
@pytest.mark.parametrize("gamma", [10.0, 3.0])
def test_the_penalty_is_equation_5(mode: str, gamma: float, rng: Generator) -> None:
    form = SignedPixels(mode, gamma)  # type: ignore[arg-type]
    variables = tuple(torch.randn(ARMS, *SHAPE, generator=rng) * 5 for _ in range(2))
    got = penalty(form, variables)
    for arm in range(ARMS):
        expected = 0.0
        for b in variables:
            values = np.tanh(b[arm].double().numpy() / gamma) / (2 - 1e-7) + 0.5
            for i in range(SHAPE[1]):
                for j in range(SHAPE[2]):
                    expected += max(values[c, i, j] for c in range(SHAPE[0]))
        assert got[arm].item() == pytest.approx(expected, rel=1e-6)


def test_an_untouched_image_costs_one_a_pixel_with_a_slope_of_a_twentieth() -> None:
    b = torch.zeros(1, 1, 4, 5, requires_grad=True)
    size = penalty(SignedPixels(), (b, torch.zeros(1, 1, 4, 5)))
    assert size.item() == pytest.approx(20)  # R is H * W at b = 0
    size.sum().backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert torch.allclose(b.grad, torch.full_like(b, 1 / 20))


def test_channels_that_tie_leave_together() -> None:
    b = torch.zeros(1, 3, 1, 1, requires_grad=True)
    penalty(SignedPixels(), (b, b.detach())).sum().backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert b.grad.flatten().tolist() == pytest.approx([1 / 60] * 3)


def test_cut_drops_what_an_8_bit_image_cannot_show() -> None:
    #            both kept  below 1/255  cancels     exactly 1/255  nearly cancels
    plus = row(0.500, 0.0030, 0.300, STEP, 0.200)
    minus = row(0.100, 0.5000, 0.300, 0.000, 0.199)
    got = [p.flatten().tolist() for p in SignedPixels().postprocess((plus, minus))]
    assert got[0] == pytest.approx([0.5, 0.0, 0.0, STEP, 0.0])
    assert got[1] == pytest.approx([0.1, 0.5, 0.0, 0.0, 0.0])
    assert SignedPixels().size((plus, minus)).item() == 3


def test_a_pixel_counts_once_however_many_channels_change() -> None:
    plus = torch.zeros(1, 3, 2, 2)
    plus[0, :, 0, 0] = torch.tensor([0.1, 0.5, 0.2])
    minus = torch.zeros(1, 3, 2, 2)
    minus[0, 1, 1, 1] = 0.25
    assert SignedPixels().size((plus, minus)).item() == 2
    assert SignedPixels().soft_size((plus, minus)).item() == pytest.approx(0.75)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_cutting_leaves_only_changes_of_a_step_or_more(pixels: list[tuple[float, float]]) -> None:
    form = SignedPixels()
    parts = tuple(row(*column) for column in zip(*pixels, strict=True))
    once = form.postprocess(parts)
    change = (once[0] - once[1]).abs().flatten()
    assert ((change == 0) | (change >= STEP - 2e-6)).all()
    assert form.size(once).item() == change.count_nonzero()
    assert all(torch.equal(a, b) for a, b in zip(form.postprocess(once), once, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_snap_in_tanh_mode_goes_through_the_inverse(values: list[float]) -> None:
    form, stored = SignedPixels("tanh"), row(*values)
    sunken = torch.full_like(stored, -20.0)
    resumed = form.restart((stored, stored), (sunken, sunken), Generator())
    lifted = stored.clamp(1e-3, 1 - 1e-3)
    assert torch.allclose(from_box(resumed[0]), lifted, atol=2e-6)
    assert torch.allclose(resumed[0], resumed[1])


def test_snap_by_hand() -> None:
    stored = row(0.0, 0.5, 1.0), row(0.0, 0.0, 0.25)
    sunken = row(-4.0, -4.0, -4.0), row(-4.0, -4.0, -4.0)
    plus, minus = SignedPixels("tanh").restart(stored, sunken, Generator())
    edge = float(np.arctanh(0.998))  # 0.499 * 2
    assert plus.flatten().tolist() == pytest.approx([-edge, 0.0, edge], abs=1e-4)
    assert minus.flatten().tolist() == pytest.approx([-edge, -edge, np.arctanh(-0.5)], abs=1e-4)
    plus, minus = SignedPixels("clip").restart(stored, sunken, Generator())
    assert plus.flatten().tolist() == [0.0, 0.5, 1.0]  # negative variables come back to the edge
    assert minus.flatten().tolist() == [0.0, 0.0, 0.25]


def test_a_snapped_pixel_feels_the_net_again_in_clip_mode() -> None:
    form = SignedPixels("clip")
    (b, _) = form.restart((row(0.0), row(0.0)), (row(-3.0), row(-3.0)), Generator())
    b = b.clone().requires_grad_()
    form.decode((b, row(0.0)))[0].sum().backward()  # type: ignore[no-untyped-call]
    assert b.grad is not None
    assert b.grad.item() == 1.0


def test_light_freezes_to_an_additive_trigger() -> None:
    plus, minus = torch.rand(SHAPE), torch.rand(SHAPE)
    trigger = SignedPixels().to_trigger((plus, minus))
    assert isinstance(trigger, Additive)
    assert torch.equal(trigger.delta, plus - minus)


# Further ways to weigh, and one variable ---------------------------------------------------------


@pytest.mark.parametrize("mode", ["tanh", "clip"])
def test_the_plain_penalty_sums_the_largest_changes_of_either_sign(
    mode: str, rng: Generator
) -> None:
    form = SignedPixels(mode, spread="plain")  # type: ignore[arg-type]
    variables = tuple(torch.randn(ARMS, *SHAPE, generator=rng) for _ in range(2))
    got = penalty(form, variables)
    for arm in range(ARMS):
        expected = 0.0
        for b in variables:
            raw = b[arm].double().numpy()
            values = np.tanh(raw) / (2 - 1e-7) + 0.5 if mode == "tanh" else raw.clip(0, 1)
            expected += values.max(0).sum()
        assert got[arm].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ties", "slopes"), [("share", [1 / 60] * 3), ("first", [1 / 20, 0, 0])])
def test_ties_share_the_gradient_or_the_first_channel_takes_it(
    ties: str, slopes: list[float], rng: Generator
) -> None:
    form = SignedPixels(ties=ties)  # type: ignore[arg-type]
    b = torch.zeros(1, 3, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(form, (b, b.detach())).sum(), b)
    assert gradient.flatten().tolist() == pytest.approx(slopes)
    apart = tuple(torch.randn(ARMS, *SHAPE, generator=rng) for _ in range(2))
    assert torch.equal(penalty(form, apart), penalty(SignedPixels(), apart))  # where none tie


def test_a_clear_start_shows_nothing_and_a_hard_trigger_is_opaque_or_absent(rng: Generator) -> None:
    form = MaskPattern(clear=True, hard=True)
    mask, pattern = form.decode(form.start((3, 6, 5), rng))
    assert torch.allclose(mask, torch.full((1, 6, 5), 3.4e-4), atol=1e-6)
    assert pattern.std() > 0.2
    soft = torch.tensor([0.1, 0.49, 0.5, 0.9]).view(1, 1, 2, 2)
    cut, same = form.postprocess((soft, pattern))
    assert cut.flatten().tolist() == [0, 0, 1, 1]
    assert same is pattern
    assert form.size((cut, pattern)).item() == 2
