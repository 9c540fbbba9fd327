"""The least warp and the least filter against what gray images and ramps need in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inverter, Subject
from gifthorse.data import InMemory
from gifthorse.inversion import FilterInversion, WarpInversion
from gifthorse.search import Exhaustive, finish
from gifthorse.search.parametrizations.developing import APART, FreeFilter
from gifthorse.search.parametrizations.warped import DisplacementField
from gifthorse.triggers.developed import Developed, rings
from gifthorse.triggers.warp import smooth_field

SIDE = 16
SLOW = {"config.rounds": 300, "config.patience": 300, "config.steps": 0, "up": 1.2}


def brighter(images: Tensor, gap: float) -> tuple[Subject, InMemory]:
    """Two classes: class 1 leads where an image's mean is `gap` over that of the images given."""
    pixels = (images * 255).round().byte()
    layer = nn.Linear(SIDE * SIDE, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1] = 1 / SIDE**2
        layer.bias.copy_(torch.tensor([0.0, -float(pixels.float().mean() / 255) - gap]))
        layer.weight.mul_(100)  # so that the softmax has a slope at such differences
        layer.bias.mul_(100)
    clean = InMemory(pixels, torch.zeros(len(images), dtype=torch.int64), 2)
    return Subject(nn.Sequential(nn.Flatten(), layer).eval(), (1, SIDE, SIDE), 2), clean


def least(method: Inverter, subject: Subject, clean: InMemory) -> float:
    search = method(subject, clean, [Goal(1)], Generator().manual_seed(0))
    assert not finish(search, Exhaustive(), Run())
    (best,) = search.best
    assert best.feasible
    assert subject.net(best.trigger(clean.images.float() / 255)).argmax(1).all()
    return best.size


def test_the_least_filter_of_gray_images_is_light() -> None:
    subject, clean = brighter(torch.full((8, 1, SIDE, SIDE), 0.5), 0.1)
    # The rms of a change is no less than its mean, and a bias alone has no other.
    found = least(vary(FilterInversion(), SLOW | {"config.lr": 0.002}), subject, clean)
    assert found == pytest.approx(0.1 * SIDE**2, rel=0.05)


def test_the_least_warp_of_a_ramp_leads_along_it() -> None:
    ramp = torch.linspace(0, 1, SIDE).expand(8, 1, SIDE, SIDE)
    subject, clean = brighter(ramp, 0.03)
    # A displacement d to the right gives d / 15 more light, wherever it is, but at the edge.
    found = least(vary(WarpInversion(), SLOW | {"config.lr": 0.01}), subject, clean)
    assert 0.03 * (SIDE - 1) <= found / SIDE <= 1.15 * 0.03 * (SIDE - 1)


def test_a_warp_is_stamped_as_its_trigger_stamps() -> None:
    form, rng = DisplacementField(4, (3, 12, 10)), Generator().manual_seed(0)
    parts = form.decode((torch.randn(2, 2, 4, 4, generator=rng),))
    x = torch.rand(2, 5, 3, 12, 10, generator=rng)
    stamped = form.stamp(parts, x)
    for arm in range(2):
        trigger = form.to_trigger(tuple(p[arm] for p in parts))
        assert torch.allclose(trigger(x[arm]), stamped[arm], atol=1e-5)
        moved = trigger.displacement.norm(dim=0).mean()  # type: ignore[attr-defined]
        assert torch.allclose(12 * 10 / 12 * moved, form.size(parts)[arm], rtol=1e-3)


def test_a_shuffled_warp_is_as_strong() -> None:
    rng = Generator().manual_seed(0)
    arrows = smooth_field((3, 4, 4), 4, rng)[None]  # 4 x 4 places: the arrows themselves
    form = DisplacementField(4, (3, 16, 16))
    trigger = form.to_trigger(tuple(p[0] for p in form.decode((arrows,))))
    others = [trigger.shuffled(rng) for _ in range(50)]
    far = torch.stack([o.displacement.norm(dim=0).mean() for o in others])  # type: ignore[attr-defined]
    own = trigger.displacement.norm(dim=0).mean()  # type: ignore[attr-defined]
    assert torch.allclose(far.mean(), own, rtol=0.25)


def test_a_filter_is_stamped_as_its_trigger_stamps() -> None:
    form, rng = FreeFilter((9, 7)), Generator().manual_seed(0)
    parts = tuple(
        torch.randn(2, *shape, generator=rng) * 0.1 for shape in ((3, 3, 3, 3), (3,), (3,))
    )
    x = torch.rand(2, 5, 3, 9, 7, generator=rng)
    stamped = form.stamp(parts, x)
    for arm in range(2):
        trigger = form.to_trigger(tuple(p[arm] for p in parts))
        assert torch.allclose(trigger(x[arm]), stamped[arm], atol=1e-6)
    inner = x[1, 0, :, 3:6, 2:5]  # a pixel and its neighbors
    added = (parts[0][1] * inner).sum((1, 2, 3)) + parts[1][1]
    gain = parts[2][1] * rings(9, 7)[4, 3]
    expected = (inner[:, 1, 1] * (1 + gain) + added).clamp(0, 1)
    assert torch.allclose(stamped[1, 0, :, 4, 3], expected, atol=1e-6)


def test_the_size_of_a_filter_is_the_rms_change_of_drawn_colors() -> None:
    form, rng = FreeFilter((12, 12)), Generator().manual_seed(0)
    kernel, bias, vignette = (
        torch.randn(1, *shape, generator=rng).double() * 0.05
        for shape in ((3, 3, 3, 3), (3,), (3,))
    )
    colors = torch.rand(20_000, 3, generator=rng).double()
    near = torch.randn(20_000, 3, 9, generator=rng).double() * APART**0.5 + colors[..., None]
    place = torch.randint(144, (20_000,), generator=rng)
    gain = vignette[0] * rings(12, 12).double().flatten()[place, None]
    change = torch.einsum("nct,oct->no", near, kernel[0].flatten(2)) + bias[0] + gain * colors
    drawn = 144 * change.square().mean().sqrt()
    assert torch.allclose(form.size((kernel, bias, vignette))[0], drawn, rtol=0.02)


def test_a_shuffled_filter_has_the_same_numbers() -> None:
    rng = Generator().manual_seed(0)
    own = Developed(torch.randn(3, 3, 3, 3), torch.randn(3), torch.randn(3), 8, 8)
    other = own.shuffled(rng)
    assert not torch.equal(own.kernel, other.kernel)
    for mine, theirs in ((own.kernel, other.kernel), (own.bias, other.bias)):
        assert torch.equal(mine.abs().flatten().sort().values, theirs.abs().flatten().sort().values)
    picture, mask = own.render()
    assert picture.shape == (3, 8, 8)
    assert mask.shape == (1, 8, 8)
