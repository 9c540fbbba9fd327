"""What every inverter keeps to: it finds the plant, never loses a best, and arms do not meet."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from tests.toys import BANDS, SIDE, Bands, band_images, bands, corner, smallest_mask
from torch import Generator

from gifthorse.data.samples import whole
from gifthorse.inversion import INVERTERS
from gifthorse.inversion.neural_cleanse import PIXEL_BASELINE, ZOO, NeuralCleanse
from gifthorse.metrics import asr
from gifthorse.training import predict
from gifthorse.types import Candidate, Goal, Hunt

PLANTED, ROUNDS = 2, 150
ALL = torch.arange(BANDS)
GOALS = [Goal(k) for k in range(BANDS)]

# The smallest trigger for the planted class, in the inverter's own measure.
CLOSED = {
    "neural_cleanse": smallest_mask(Bands(PLANTED), band_images(), PLANTED),
    "pixel": 1.0,
}
names = pytest.mark.parametrize("name", sorted(INVERTERS))


def hunt(name: str, seed: int = 0) -> Hunt:
    rng = Generator().manual_seed(seed)
    return INVERTERS[name](bands(PLANTED), band_images(), GOALS, rng)


@cache
def trace(name: str) -> list[tuple[Candidate, ...]]:
    running = hunt(name)
    out = [running.best]
    for _ in range(ROUNDS):
        running.step(ALL)
        out.append(running.best)
    return out


@names
def test_the_plant_is_found_within_a_quarter_of_the_closed_form(name: str) -> None:
    best = trace(name)[-1]
    assert CLOSED[name] * 0.999 <= best[PLANTED].size <= 1.25 * CLOSED[name]
    assert min(best, key=lambda c: c.size).goal == Goal(PLANTED)
    assert sorted(c.size for c in best)[1] > 5 * best[PLANTED].size


@names
def test_the_found_trigger_lies_where_the_plant_does(name: str) -> None:
    _, strength = trace(name)[-1][PLANTED].trigger.picture()
    assert int(strength.flatten().argmax()) == int(corner().mask.flatten().argmax())


@names
def test_the_best_never_gets_worse(name: str) -> None:
    for before, after in pairwise(trace(name)):
        for a, b in zip(before, after, strict=True):
            assert b.size <= a.size
            assert b.feasible or not a.feasible
            assert b.rounds == a.rounds + 1


@names
def test_before_the_first_round_every_arm_counts_as_the_whole_image(name: str) -> None:
    for k, candidate in enumerate(trace(name)[0]):
        assert (candidate.size, candidate.feasible, candidate.rounds) == (SIDE * SIDE, False, 0)
        assert candidate.goal == Goal(k)


@names
def test_what_a_candidate_says_of_its_trigger_is_true(name: str) -> None:
    x, y = whole(band_images())
    for candidate in trace(name)[-1]:
        assert candidate.feasible
        stamped = candidate.trigger(x)
        assert stamped.shape == x.shape
        assert -1e-6 <= stamped.min() <= stamped.max() <= 1 + 1e-6
        got = asr(predict(bands(PLANTED), stamped).argmax(1), y, candidate.goal).value
        assert got == pytest.approx(candidate.asr, abs=1e-6)


@names
def test_arms_stepped_alone_or_together_end_alike(name: str) -> None:
    # In float32 rounding parts the paths of single pixels, so sizes are compared (in float64 the
    # paths themselves: tests/search).
    together, alone = hunt(name), hunt(name)
    for _ in range(40):
        together.step(ALL)
    for arm in ALL:
        for _ in range(40):
            alone.step(arm.view(1))
    for a, b in zip(together.best, alone.best, strict=True):
        assert a.size == pytest.approx(b.size, rel=0.05, abs=0.05)
        assert a.feasible == b.feasible
        assert a.rounds == b.rounds


@names
def test_the_same_seed_gives_the_same_triggers_whatever_else_is_random(name: str) -> None:
    pictures = []
    for unrelated, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(unrelated)
        running = hunt(name, seed)
        for _ in range(12):
            running.step(ALL)
        pictures.append(torch.cat([torch.cat(c.trigger.picture()) for c in running.best]))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


@names
def test_a_goal_with_a_source_needs_only_that_class(name: str) -> None:
    rng = Generator().manual_seed(0)
    running = INVERTERS[name](bands(), band_images(), [Goal(0), Goal(0, source=1)], rng)
    for _ in range(150):
        running.step(torch.arange(2))
    x, y = whole(band_images())
    pair = running.best[1]
    assert pair.feasible
    assert pair.size < 3 * smallest_mask(Bands(), band_images(), 0)
    got = asr(predict(bands(), pair.trigger(x)).argmax(1), y, pair.goal)
    assert got.trials == 6
    assert got.value == pytest.approx(pair.asr, abs=1e-6)


@names
def test_subject_and_images_stay_as_they_were(name: str) -> None:
    subject, clean = bands(PLANTED), band_images()
    pixels = clean.images.clone()
    running = INVERTERS[name](subject, clean, GOALS, Generator().manual_seed(0))
    running.step(ALL)
    assert torch.equal(clean.images, pixels)
    assert not subject.net.training


@pytest.mark.parametrize("preset", [PIXEL_BASELINE, ZOO], ids=["pixel_baseline", "zoo"])
def test_presets_of_neural_cleanse_find_the_plant(preset: NeuralCleanse) -> None:
    running = preset(bands(PLANTED), band_images(), GOALS, Generator().manual_seed(0))
    for _ in range(100):
        running.step(ALL)
    assert min(running.best, key=lambda c: c.size).goal == Goal(PLANTED)
