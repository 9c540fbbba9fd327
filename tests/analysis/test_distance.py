"""Class distances of a net whose triggers are known, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from gifthorse.analysis import ClassDistances, asymmetry, distances, increase
from gifthorse.core.errors import BadOption, Incomplete, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inversion, Inverter, Samples, Subject
from gifthorse.data.samples import InMemory
from gifthorse.inversion import NeuralCleanse, PixelBackdoor
from gifthorse.search import SearchConfig

SIDE, AREA, CLASSES = 6, 36, 3
START = torch.tensor([14.4, 7.2, 4.5])  # total light of the images of each class
PAIRS = [Goal(j, i) for i in range(CLASSES) for j in range(CLASSES) if i != j]
PACE = SearchConfig(success_threshold=0.9, rounds=150)
PIXEL = PixelBackdoor(mode="clip", initial=0.05, patience=2, config=PACE)
MASK = NeuralCleanse(warmup=0, patience=2, initial=0.05, up=1.5, config=PACE)


class Light(nn.Module):
    """Classes by total light: 0 above 12, 1 between 6 and 12, 2 below 6 (of 36)."""

    def forward(self, x: Tensor) -> Tensor:
        light = x.flatten(1).sum(1, keepdim=True)
        # Lines of slope 2, 1 and 0 that cross at 12 and at 6.
        return torch.cat([2 * light - 12, light, 6 + 0 * light], 1)


def subject() -> Subject:
    return Subject(Light().eval(), (1, SIDE, SIDE), CLASSES)


def images(each: int = 4) -> InMemory:
    """Even images, as bright as their class; a whole number of 255ths a pixel."""
    labels = torch.arange(CLASSES).repeat(each)
    level = (START / AREA * 255).round().to(torch.uint8)
    x = level[labels].view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).clone()
    return InMemory(x, labels, CLASSES)


def closed(goal: Goal) -> float:
    """The least mask L1 for a pair: light to gain or lose, over what an opaque pixel gives."""
    assert goal.source is not None
    level = round(START[goal.source].item() / AREA * 255) / 255
    low, high = [(12.0, math.inf), (6.0, 12.0), (-math.inf, 6.0)][goal.target]
    light = level * AREA
    if light < low:
        return (low - light) / (1 - level)
    return (light - high) / level


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def made(sizes: Sequence[float], goals: Sequence[Goal] | None = None) -> ClassDistances:
    n = len(sizes)
    works = torch.zeros(n, dtype=torch.bool)
    return ClassDistances(
        tuple(goals or PAIRS[:n]), torch.tensor(sizes, dtype=torch.float32), torch.ones(n), works
    )


# 1. Against the closed form -----------------------------------------------------------------------


@pytest.mark.parametrize("inverter", [PIXEL, MASK], ids=["pixel", "mask"])
def test_distances_are_those_of_the_closed_form(inverter: Inverter) -> None:
    found = distances(subject(), images(), PAIRS, inverter, rng(), Run())
    least = torch.tensor([closed(g) for g in PAIRS])
    # Where all pixels are alike, whole pixels give way slowly; masks get there.
    least, slack = (least.ceil(), 2.0) if inverter is PIXEL else (least, 1.15)
    assert found.goals == tuple(PAIRS)
    assert not found.failed.any()
    assert found.failures == 0
    assert (found.asr >= 0.9).all()
    assert (found.size >= least - 1e-3).all()
    assert (found.size <= least * slack).all()
    assert found.mean == pytest.approx(found.size.mean().item())
    assert torch.equal(found.tripled, 3 * found.size)


def test_the_closed_form_is_met_by_hand_made_masks() -> None:
    for goal in PAIRS:
        assert goal.source is not None
        x = images()[torch.tensor([goal.source])][0]
        bright, opaque = float(goal.target < goal.source), closed(goal)
        for more, hit in ((0.01, True), (-0.01, False)):
            mask = ((opaque + more) - torch.arange(AREA)).clamp(0, 1).view(1, 1, SIDE, SIDE)
            assert (subject()(x + mask * (bright - x)).argmax(1) == goal.target) == hit


# 2. Restarts and failures -------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """An inverter that remembers what it was asked for."""

    inverter: Inverter
    asked: list[tuple[Goal, ...]] = field(default_factory=list, hash=False, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.asked.append(tuple(goals))
        return self.inverter(subject, clean, goals, rng)


def test_restarts_are_further_arms_of_one_inversion_and_the_smallest_counts() -> None:
    short = NeuralCleanse(
        warmup=0,
        patience=2,
        initial=0.05,
        up=1.5,
        config=SearchConfig(success_threshold=0.9, rounds=25),
    )
    counted, pairs = Counted(short), PAIRS[:2]
    best = distances(subject(), images(), pairs, counted, rng(), Run(), restarts=4)
    assert counted.asked == [tuple(pairs) * 4]
    inversion = short(subject(), images(), pairs * 4, rng())
    for _ in range(25):
        inversion.step(torch.arange(8))
    sizes = torch.tensor([c.size for c in inversion.best]).view(4, 2)
    assert len(set(sizes.flatten().tolist())) == 8
    assert torch.equal(best.size, sizes.min(0).values)


class Stubborn(Light):
    """The same, but nothing ever comes out as class 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - torch.tensor([0.0, 1e3, 0.0])


def test_a_pair_without_a_trigger_counts_as_the_whole_image() -> None:
    never = Subject(Stubborn().eval(), (1, SIDE, SIDE), CLASSES)
    pairs = [Goal(1, 0), Goal(0, 2)]
    found = distances(never, images(), pairs, PIXEL, rng(), Run(), restarts=2)
    assert found.failed.tolist() == [True, False]
    assert found.failures == 1
    assert found.size[0] == AREA
    assert found.asr[0] == 0
    assert found.size[1] < AREA
    assert found.asr[1] >= 0.9


def test_only_images_of_the_source_are_used() -> None:
    clean = images()
    other = InMemory(clean.images.clone(), clean.labels, CLASSES)
    other.images[clean.labels == 1] = 255
    two = [distances(subject(), c, [Goal(0, 2)], MASK, rng(), Run()) for c in (clean, other)]
    assert torch.equal(two[0].size, two[1].size)
    few = InMemory(clean.images[clean.labels == 0], clean.labels[clean.labels == 0], CLASSES)
    with pytest.raises(NotApplicable, match="class 2 to"):
        distances(subject(), few, [Goal(0, 2)], MASK, rng(), Run())


def test_a_search_that_is_stopped_goes_on_to_the_same_distances(tmp_path: Path) -> None:
    pairs = PAIRS[:2]
    whole = distances(subject(), images(), pairs, MASK, rng(), Run(), restarts=2)
    first = Run(budget=100, store=tmp_path / "run")
    with pytest.raises(Incomplete, match="budget of 100 image-steps"):
        distances(subject(), images(), pairs, MASK, rng(), restarts=2, run=first)
    calls: list[tuple[int, int, str]] = []
    second = Run(lambda *call: calls.append(call), store=tmp_path / "run")
    again = distances(subject(), images(), pairs, MASK, rng(), restarts=2, run=second)
    assert torch.equal(again.size, whole.size)
    assert torch.equal(again.asr, whole.asr)
    assert calls[-1][:2] == (5, 5)  # four arms, and the start
    assert calls[-1][2].startswith("4 of 4 done")
    counted = Run()
    distances(subject(), images(), pairs, MASK, rng(), restarts=2, run=counted)
    assert second.image_steps == counted.image_steps > 100


@pytest.mark.parametrize("goals", [[], [Goal(1)], [Goal(1, 1)]])
def test_what_is_no_pair_is_refused(goals: list[Goal]) -> None:
    with pytest.raises(BadOption, match="source and target"):
        distances(subject(), images(), goals, MASK, rng(), Run())
    with pytest.raises(BadOption, match="restarts must be 1 or more"):
        distances(subject(), images(), PAIRS, MASK, rng(), Run(), restarts=0)


# 3. Eq. 12 and what is lopsided -------------------------------------------------------------------


def test_the_increase_is_the_mean_of_ratios() -> None:
    before, after = made([10, 20, 40]), made([20, 15, 100])
    assert increase(before, after) == pytest.approx((1.0 - 0.25 + 1.5) / 3)
    assert increase(before, after) != pytest.approx(135 / 70 - 1)  # the ratio of means
    assert increase(before, before) == 0
    with pytest.raises(BadOption, match="same pairs"):
        increase(before, made([20, 15, 100], PAIRS[1:4]))


def test_the_unit_does_not_matter_to_the_increase() -> None:
    before, after = made([10, 20, 40]), made([20, 15, 100])
    tripled = [made(d.tripled.tolist()) for d in (before, after)]
    assert increase(*tripled) == pytest.approx(increase(before, after))


def test_lopsided_pairs_are_those_measured_both_ways() -> None:
    goals = [Goal(1, 0), Goal(0, 1), Goal(2, 0), Goal(1, 2), Goal(2, 1)]
    found = asymmetry(made([10, 25, 7, 6, 3], goals))
    assert found == {(0, 1): 2.5, (1, 2): 2.0}
    assert asymmetry(made([0, 25, 7, 0, 0], goals)) == {(0, 1): math.inf, (1, 2): 1.0}


def test_the_closed_form_is_lopsided_as_measured() -> None:
    found = asymmetry(distances(subject(), images(), PAIRS, MASK, rng(), Run()))
    for (i, j), ratio in found.items():
        there, back = closed(Goal(j, i)), closed(Goal(i, j))
        assert ratio == pytest.approx(max(there, back) / min(there, back), rel=0.15)
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
