"""A hand-set detector whose evidence is known, and a toy net beside the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.toys import blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.analysis import attribution
from gifthorse.analysis.attribution import (
    attention_shift,
    explained,
    grad_cam,
    map_distance,
    saliency,
    shift,
)
from gifthorse.core.errors import BadImages, ShapeMismatch, UsageError
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import whole
from gifthorse.triggers import Patch

SIDE, TARGET = 16, 1


def detector(gain: float = 1.0) -> Subject:
    """One channel that a white square of 3 x 3 alone wakes; class 1 grows with it, class 0 not."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    line = nn.Linear(1, 2)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.fill_(-8.0)  # type: ignore[union-attr]
        line.weight.copy_(torch.tensor([[0.0], [gain]]))
        line.bias.zero_()
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), line)
    return Subject(net.eval(), (1, SIDE, SIDE), 2)


def square(top: int = 10, left: int = 4) -> Patch:
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, top : top + 3, left : left + 3] = 1
    return Patch(torch.ones(1, SIDE, SIDE), mask)


@pytest.fixture
def dim(rng: Generator) -> Tensor:
    return torch.rand(5, 1, SIDE, SIDE, generator=rng) * 0.5


def test_the_map_of_a_detector_peaks_on_the_trigger_and_nowhere_else(dim: Tensor) -> None:
    maps = grad_cam(detector(), square()(dim), TARGET)
    assert maps.layer == "1"
    assert maps.zero == 0
    for seen in maps.values:
        assert divmod(int(seen.argmax()), SIDE) == (11, 5)
        assert float(seen[11, 5]) == 1.0
        assert int((seen > 0).sum()) == 1
    where = grad_cam(detector(), square(2, 9)(dim), TARGET).values[0]
    assert divmod(int(where.argmax()), SIDE) == (3, 10)


def test_a_map_without_evidence_stays_zero_and_is_counted(dim: Tensor) -> None:
    clean = grad_cam(detector(), dim, TARGET)
    assert clean.zero == 5
    assert clean.values.count_nonzero() == 0
    against = grad_cam(detector(-1.0), square()(dim), torch.tensor([0, 1, 0, 1, 1]))
    assert against.zero == 5  # no slope for class 0, a negative one for class 1


def test_maps_are_those_of_the_formula_and_lie_in_0_to_1() -> None:
    net, (x, y) = blobs(), whole(blob_images(each=4))
    inner: nn.Sequential = net.net.get_submodule("net")  # type: ignore[assignment]
    maps = inner[:6]((x - 0.5) / 0.5)
    logits = inner[6:](maps).gather(1, y[:, None]).sum()
    (slope,) = torch.autograd.grad(logits, maps)
    raw = (slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    low = raw / raw.amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
    expected = F.interpolate(low, (12, 12), mode="bilinear", align_corners=False)[:, 0]
    got = grad_cam(net, x, y, size=3)
    assert got.values.shape == (20, 12, 12)
    torch.testing.assert_close(got.values, expected, atol=1e-5, rtol=0)
    assert 0 <= float(got.values.min()) <= float(got.values.max()) <= 1
    assert got.zero == int((raw.amax((1, 2, 3)) == 0).sum())
    assert all(p.requires_grad for p in net.net.parameters())


def test_saliency_of_a_linear_net_is_its_weight() -> None:
    line = nn.Linear(2 * 9, 3)
    net = Subject(nn.Sequential(nn.Flatten(), line), (2, 3, 3), 3)
    strength = line.weight[2].detach().view(2, 3, 3).abs().amax(0)
    low, high = strength.min(), strength.max()
    got = saliency(net, torch.rand(4, 2, 3, 3), 2, size=3)
    torch.testing.assert_close(got, ((strength - low) / (high - low)).expand(4, -1, -1))
    flat = Subject(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), (2, 3, 3), 3)
    with torch.no_grad():
        flat.net.get_submodule("1").weight.fill_(2.0)  # type: ignore[operator]
    assert saliency(flat, torch.rand(1, 2, 3, 3), 0).count_nonzero() == 0


def test_the_four_cells_tell_the_backdoored_net_and_its_target(dim: Tensor) -> None:
    stamped, y = square()(dim), torch.zeros(5, dtype=torch.int64)
    nets = {"benign": detector(0.0), "trojan": detector()}
    cells = attention_shift(nets, dim, stamped, y, Goal(TARGET))
    found = {(n, k): cells[n][k].distance.value for n in nets for k in ("original", "target")}
    # one place of 256 goes from 0 to 1; everything else stays zero
    assert found.pop(("trojan", "target")) == pytest.approx(1 / 256)
    assert set(found.values()) == {0.0}
    assert cells["benign"]["target"].zero == 10
    assert cells["trojan"]["target"].zero == 5
    assert shift(detector(), dim, dim, TARGET).distance.value == 0.0


def test_the_distance_is_the_mean_absolute_difference(rng: Generator) -> None:
    a, b = torch.rand(2, 3, 4, 5, generator=rng)
    expected = [
        sum(abs(p - q) for p, q in zip(u, v, strict=True)) / 20
        for u, v in zip(a.flatten(1).tolist(), b.flatten(1).tolist(), strict=True)
    ]
    assert map_distance(a, b).tolist() == pytest.approx(expected)
    with pytest.raises(ShapeMismatch, match="one shape"):
        map_distance(a, b[:1])


def test_a_report_gets_as_many_maps_as_there_is_time_for(dim: Tensor) -> None:
    got = explained(detector(), dim, square()(dim), Goal(TARGET))
    before, after = got["looks_before"], got["looks_after"]
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert before.shape == after.shape == (5, SIDE, SIDE)
    assert got["attention_shift"] == pytest.approx(1 / 256)
    assert got["neuron_separation"] == 0.0  # there is but one neuron
    assert explained(detector(), dim, dim, Goal(TARGET), seconds=0.0) == {}
    assert explained(detector(), dim[:0], dim[:0], Goal(TARGET)) == {}


def test_without_captum_the_error_names_the_remedy(
    dim: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'gifthorse\[explain\]'"):
        grad_cam(detector(), dim, TARGET)
    assert explained(detector(), dim, dim, Goal(TARGET)) == {}


def test_what_makes_no_sense_is_refused(dim: Tensor) -> None:
    with pytest.raises(ShapeMismatch, match="0 to 1"):
        grad_cam(detector(), dim, 2)
    with pytest.raises(BadImages, match="at least one image"):
        saliency(detector(), dim[:0], 0)
