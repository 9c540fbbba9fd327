"""How a search moves: rates against torch's scheduler, turned images against scipy."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform
from tests.toys import BANDS, SIDE, Doubles, band_images, bands
from torch import Generator, Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from gifthorse.core.tensors import from_box
from gifthorse.core.types import Goal, Samples
from gifthorse.data.samples import whole
from gifthorse.search import (
    CostController,
    MaskPattern,
    Objective,
    RandomAffine,
    Search,
    SearchConfig,
)
from gifthorse.search.parametrizations.masks import Parts

ARM = torch.tensor([0])


def lonely(
    config: SearchConfig, form: MaskPattern | None = None, clean: Samples | None = None
) -> Search:
    """A search for one class, the third, whose weight of size stays as it is."""
    objective, rng = Objective(form or MaskPattern(), CostController.fixed(1, 1e-3)), Generator()
    return Search(
        bands(2), clean or band_images(), [Goal(3)], rng.manual_seed(0), objective, config
    )


# Rates -------------------------------------------------------------------------------------------


def test_a_cosine_falls_from_the_rate_to_almost_nothing() -> None:
    inversion = lonely(SearchConfig(batch=10, lr=0.2, rounds=4, schedule="cosine"))  # twelve steps
    assert inversion.data.steps == 3
    steps = torch.tensor([1, 7, 12, 13, 50])
    last = 0.2 * (1 + math.cos(math.pi * 11 / 12)) / 2
    assert inversion._rate(steps).tolist() == pytest.approx([0.2, 0.1, last, 0, 0], abs=1e-7)
    assert last < 0.004


def test_a_constant_rate_is_constant() -> None:
    inversion = lonely(SearchConfig(batch=10, lr=0.2, rounds=4))
    assert inversion._rate(torch.tensor([1, 7, 12, 50])).tolist() == pytest.approx([0.2] * 4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_search_moves_as_torch_does(schedule: str, double: None) -> None:
    rounds = 15
    config = SearchConfig(batch=30, success_threshold=1.1, rounds=rounds, schedule=schedule)  # type: ignore[arg-type]
    inversion = lonely(config, clean=Doubles(band_images()))
    u, v = theirs = [p[0].clone().requires_grad_() for p in inversion.variables]
    optimizer = Adam(theirs, lr=0.1, betas=(0.5, 0.9))
    cosine = CosineAnnealingLR(optimizer, rounds)
    x, y = whole(Doubles(band_images()))
    x = x[y != 3]
    for _ in range(rounds):
        inversion.step(ARM)
        mask, pattern = from_box(u), from_box(v)
        z = bands(2)((1 - mask) * x + mask * pattern)
        optimizer.zero_grad()
        loss = F.cross_entropy(z, torch.full((30,), 3)) + 1e-3 * mask.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule == "cosine":
            cosine.step()
    for mine, plain in zip(inversion.variables, theirs, strict=True):
        assert (mine[0] - plain).abs().max() < 1e-9


class Spy(MaskPattern):
    """Notes which images it is asked to stamp in a step, by their place in the pool."""

    seen: list[list[int]] = []  # noqa: RUF012 - one list for a frozen dataclass

    def stamp(self, parts: Parts, x: Tensor) -> Tensor:
        pool = whole(band_images())[0]
        same = (x[0, :, None] == pool).flatten(2).all(2)
        Spy.seen.append(same.nonzero()[:, 1].tolist())
        return super().stamp(parts, x)


def test_a_floor_lets_images_come_up_again() -> None:
    inversion, Spy.seen = (
        lonely(SearchConfig(batch=8, success_threshold=1.1, min_steps=7), Spy()),
        [],
    )
    inversion.step(ARM)
    assert inversion.data.steps == 7
    assert inversion.image_steps == 7 * 8
    passes = [list(chain(*Spy.seen[i : i + 3])) for i in (0, 3, 6)]  # three batches of 30 images
    assert [len(p) for p in passes] == [24, 24, 8]
    assert all(len(set(p)) == len(p) for p in passes)  # no image twice in a pass
    assert passes[0] != passes[1]


@pytest.mark.parametrize(("steps", "floor", "taken"), [(0, 2, 3), (2, 0, 2), (2, 5, 5), (1, 1, 1)])
def test_a_round_has_its_least_and_most_steps(steps: int, floor: int, taken: int) -> None:
    inversion = lonely(SearchConfig(batch=8, success_threshold=1.1, steps=steps, min_steps=floor))
    inversion.step(ARM)
    assert inversion.data.steps == taken
    assert inversion.image_steps == 8 * taken


# Turned images -----------------------------------------------------------------------------------

SHAPE = (2, 12, 8)


def pictures(arms: int, each: int) -> Tensor:
    rng = Generator().manual_seed(5)
    return torch.rand(arms, each, *SHAPE, generator=rng, dtype=torch.float64)


def seeds(arms: int) -> list[Generator]:
    return [Generator().manual_seed(arm) for arm in range(arms)]


def test_nothing_turns_at_scale_1_and_no_degrees() -> None:
    x = pictures(2, 3)
    assert torch.allclose(RandomAffine(1.0, 0.0)(x, seeds(2)), x, atol=1e-12)
    assert torch.allclose(RandomAffine(1.0, 0.0)(x.float(), seeds(2)), x.float(), atol=1e-5)


@pytest.mark.parametrize(("scale", "degrees"), [(0.99, 1.0), (0.5, 0.0), (1.0, 40.0), (0.7, 20.0)])
def test_images_shrink_and_turn_about_their_middle(scale: float, degrees: float) -> None:
    x = pictures(2, 3)
    got = RandomAffine(scale, degrees)(x, seeds(2))
    _, height, width = SHAPE
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2]).double().numpy()
    for arm, rng in enumerate(seeds(2)):
        for i, (a, b) in enumerate(torch.rand(3, 2, generator=rng).tolist()):
            shrunk, angle = scale + (1 - scale) * a, math.radians(degrees * (2 * b - 1))
            cos, sin = math.cos(angle) / shrunk, math.sin(angle) / shrunk
            back = torch.tensor([[cos, sin], [-sin, cos]]).double().numpy()  # rows, then columns
            for channel in range(SHAPE[0]):
                expected = affine_transform(
                    x[arm, i, channel].numpy(),
                    back,
                    middle - back @ middle,
                    order=1,
                    mode="grid-constant",
                )
                assert abs(got[arm, i, channel].numpy() - expected).max() < 1e-5


def test_what_comes_from_outside_is_black() -> None:
    got = RandomAffine(0.5, 0.0)(torch.ones(1, 20, *SHAPE), seeds(1))
    least = got.flatten(1, 2).mean((2, 3))  # at least a quarter of the image is left
    assert 0.2 < least.min() < least.max() <= 1
    assert got[..., 0, 0].min() == 0


def test_each_arm_turns_by_its_own_generator() -> None:
    x, turning = pictures(3, 4), RandomAffine(0.8, 15.0)
    together = turning(x, seeds(3))
    for arm in range(3):
        alone = turning(x[arm : arm + 1], [Generator().manual_seed(arm)])
        assert torch.equal(together[arm], alone[0])
    assert not torch.equal(*(turning(x[:1], [g])[0] for g in seeds(2)))


def test_gradients_reach_the_stamped_images() -> None:
    x = pictures(1, 1).requires_grad_()
    weight = torch.rand(x.shape, generator=Generator().manual_seed(6), dtype=torch.float64)
    (slope,) = torch.autograd.grad((RandomAffine()(x, seeds(1)) * weight).sum(), x)
    assert (slope[..., 2:-2, 2:-2] - weight[..., 2:-2, 2:-2]).abs().max() < 0.5
    assert slope[..., 2:-2, 2:-2].min() > 0


def test_a_search_sees_turned_images_and_judges_plain_ones() -> None:
    calls: list[Tensor] = []

    def black(stamped: Tensor, rngs: object) -> Tensor:
        calls.append(stamped)
        return stamped * 0

    objective = Objective(MaskPattern(), CostController.fixed(BANDS), stamped_transform=black)
    goals, config = (
        [Goal(k) for k in range(BANDS)],
        SearchConfig(batch=30, success_threshold=0.0, rule="success"),
    )
    inversion = Search(
        bands(2), band_images(), goals, Generator().manual_seed(0), objective, config
    )
    before = [p.clone() for p in inversion.variables]
    inversion.step(torch.arange(BANDS))
    assert [c.shape for c in calls] == [(BANDS, 30, 1, SIDE, SIDE)]
    for mine, old in zip(inversion.variables, before, strict=True):
        assert torch.equal(mine, old)  # black images teach nothing
    # Of a black image class 0 is what argmax says; what is stored was tested on plain images.
    assert inversion.progress.success.tolist() == [1.0, 0, 0, 0, 0, 0]
    assert inversion.best[0].asr < 1
