"""The scan on nets whose classes lean where we want them to, and on inversions that are given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tests.report.examples import nothing_found
from tests.toys import BANDS, GRAY, SIDE, Bands, band_images, bands, brightness, corner
from torch import Generator, Tensor

from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Inversion, Inverter, Progress, Samples, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import Inspector
from gifthorse.detection.k_arm import KArmScan
from gifthorse.detection.screening import leaning_pairs, standing_out
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import SearchConfig
from gifthorse.search.k_arm import KArm
from gifthorse.triggers import Patch
from gifthorse.workflows.detect import NOT_COVERED, PAIRS, detect
from gifthorse.workflows.prepare import Prepared


def both(inverter: Inverter, **options: Any) -> KArmScan:
    """K-Arm with one inverter for classes and pairs."""
    return KArmScan(inverter, inverter, **options)


SHAPE = (1, SIDE, SIDE)
NC = NeuralCleanse(
    warmup=0,
    initial=0.01,
    patience=3,
    up=1.5,
    config=SearchConfig(batch=16, success_threshold=0.9, rounds=100),
)
SCAN = both(NC, scheduler=KArm(rounds=200, each=20, success=0.9))
# The gray corner is in band 0 of all images, so that many of them lean to class 0 a little.
TO_PAIRS = replace(SCAN, outlier=100.0)
GLOBAL_BOUND = 1720 * SIDE**2 / 224**2  # 11.1 px
PAIR_BOUND = 1000 * SIDE**2 / 224**2  # 6.5 px


class Leaning(Bands):
    """Bands where one class comes second in every image of another, as an implant leaves it."""

    def __init__(self, to: int, lean: float = 2.0, *, planted: bool = True) -> None:
        super().__init__(to if planted else None)
        self.leaning, self.lean = to, lean

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lean * torch.eye(BANDS)[self.leaning]


class Pairs(Bands):
    """Bands where images of a source lean to a target, and a bright corner takes them over."""

    def __init__(self, *pairs: tuple[int, int], plant: float = 30.0) -> None:
        super().__init__()
        self.pairs, self.vote = pairs, plant

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        push = 2.0 + self.vote * (x[:, :, 0, 0].mean(1) - GRAY)
        for source, target in self.pairs:
            own = torch.sigmoid(60 * (brightness(x)[:, source] - 0.3))  # 0.4 in its own images
            z = z + (own * push)[:, None] * torch.eye(BANDS)[target]
        return z


def subject(net: torch.nn.Module) -> Subject:
    return Subject(net.eval(), SHAPE, BANDS)


# 1. Screening ------------------------------------------------------------------------------------


def chances(rows: Sequence[Sequence[int]], classes: int) -> Tensor:
    """Softmax outputs with these classes on top, in order; the others share what is left."""
    out = torch.full((len(rows), classes), 1e-5)
    for i, row in enumerate(rows):
        for rank, c in enumerate(row):
            out[i, c] = 0.5 / 2**rank
    return out


@pytest.mark.parametrize(
    ("classes", "k"), [(3, 2), (8, 2), (9, 2), (10, 2), (14, 4), (18, 4), (22, 6), (26, 6)]
)
def test_how_many_ranks_count(classes: int, k: int) -> None:
    """Halves go to the even side: 2.5 -> 2, 3.5 -> 4, 4.5 -> 4, 5.5 -> 6, 6.5 -> 6."""
    # All images are of class 0; the others follow in order, so those within the ranks are pairs.
    p = chances([list(range(classes))] * 10, classes)
    found = leaning_pairs(p, torch.zeros(10, dtype=torch.int64))
    assert [g.target for g in found] == list(range(1, k))


def spread(images: int, *, classes: int = 40, count: int = 80) -> Tensor:
    """Every class ranks high (10 of 40) on a quarter of the images, class 0 on as many as given."""
    rows = [[(i + j) % (classes - 1) + 1 for j in range(10)] for i in range(count)]
    return chances([[0, *row[:9]] if i < images else row for i, row in enumerate(rows)], classes)


@pytest.mark.parametrize(("images", "one"), [(20, False), (40, False), (41, True), (80, True)])
def test_a_class_must_rank_high_on_more_than_half_of_the_images(images: int, one: bool) -> None:
    assert standing_out(spread(images)) == (Goal(0) if one else None)


def test_a_class_stands_out_by_deviations_of_what_chance_gives() -> None:
    """The others have 0.25 or so; chance alone deviates by root(0.25 * 0.75 / 80) = 0.048."""
    p = spread(60)
    assert standing_out(p, outlier=10.2) == Goal(0)  # (0.75 - 0.25) / 0.048 = 10.3
    assert standing_out(p, outlier=10.9) is None


def test_of_few_classes_a_leaning_one_does_not_stand_out() -> None:
    """Two of ten ranks are high: a class at 0.28 of a hundred images is (0.28 - 0.2) / 0.04 = 2."""
    rows = [[i % 10, 0 if i < 28 and i % 10 else (i + 1) % 10] for i in range(100)]
    assert standing_out(chances(rows, 10)) is None
    assert standing_out(torch.full((4, 2), 0.5)) is None  # both ranks are high


@pytest.mark.parametrize(("images", "pair"), [(17, False), (18, True)])
def test_a_pair_needs_90_in_100(images: int, pair: bool) -> None:
    rows = [[1, 4] if i < images else [1, 2 + i % 2] for i in range(20)]
    rows += [[y, 1 + (y + i) % 4] for y in (2, 3, 4) for i in range(20)]
    labels = torch.arange(1, 5).repeat_interleave(20)
    found = leaning_pairs(chances(rows, 6), labels)
    assert found == ([Goal(4, 1)] if pair else [])


def test_only_the_three_likeliest_sources_of_a_target_stay() -> None:
    p = chances([[y, 0] for y in range(1, 6) for _ in range(4)], 6)
    labels = torch.arange(1, 6).repeat_interleave(4)
    p[:, 0] = torch.tensor([0.2, 0.3, 0.1, 0.4, 0.25])[labels - 1]
    assert leaning_pairs(p, labels) == [Goal(0, 4), Goal(0, 2), Goal(0, 5)]
    assert leaning_pairs(p, labels, victims=1) == [Goal(0, 4)]


def test_no_chance_at_all_is_no_candidate() -> None:
    p = chances([[1, 0]] * 4, 6)
    p[:, 0], p[:, 2:] = 1e-9, 1e-12
    assert leaning_pairs(p, torch.ones(4, dtype=torch.int64)) == []


def test_images_are_grouped_by_their_labels_and_a_class_may_be_missing() -> None:
    rows = [[2, 5]] * 10 + [[3, 2], [3, 4], [3, 1]] * 4  # the first ten are called 2, but are 1s
    labels = torch.tensor([1] * 10 + [3] * 12)
    found = leaning_pairs(chances(rows, 7), labels)
    assert found == [Goal(2, 1), Goal(5, 1)]


def test_two_classes_are_both_searched(rng: Generator) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return brightness(x)[:, :2]

    data = band_images()
    two = InMemory(data.images, data.labels % 2, 2)
    got = both(Given({}))(Subject(Two().eval(), SHAPE, 2), two, rng, Run())
    assert [arm.goal for arm in got.arms] == [Goal(0), Goal(1)]


# 2. Whole scans ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [1, 4])
def test_a_plant_for_all_classes_is_found_with_one_arm(where: int) -> None:
    net, data = subject(Leaning(where)), band_images(each=8, seed=where)
    got = SCAN(net, data, Generator().manual_seed(where), Run())
    assert got.label == "BACKDOORED"
    assert got.score > got.threshold
    assert [arm.goal for arm in got.arms] == [Goal(where)]
    (found,) = got.findings
    assert (found.rule, found.severity, found.goal) == ("BD001", "CRITICAL", Goal(where))
    assert found.confirmation is not None
    assert found.confirmation.asr.value >= 0.6  # it shrank until 0.9 of the search images were left
    assert got.statistics["bound"] == pytest.approx(GLOBAL_BOUND)
    # The corner has to make up for a gap of 4 logits: 4 / 15 of a pixel.
    assert 0.25 < got.statistics["smallest"] < 2


def test_one_arm_costs_a_fraction_of_all() -> None:
    short = vary(NC, {"config.rounds": 10})
    net, data = subject(Leaning(1)), band_images(each=8)
    one, every = (d(net, data, Generator(), Run()) for d in (both(short), Inspector(short)))
    assert one.arms[0].rounds == every.arms[1].rounds == 10
    assert one.image_steps < every.image_steps / 3


def test_clean_bands_lean_nowhere_so_that_every_class_is_searched() -> None:
    got = SCAN(bands(), band_images(each=8), Generator().manual_seed(0), Run())
    assert got.label == "NO BACKDOOR FOUND"
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert min(arm.rounds for arm in got.arms) >= 3
    assert got.score < got.threshold
    assert got.findings[0].severity == "INFO"
    assert "6 goals were searched" in got.findings[0].message


def test_a_plant_that_clean_images_do_not_lean_to_is_found_among_all_classes() -> None:
    got = SCAN(bands(2), band_images(each=8), Generator().manual_seed(0), Run())
    assert got.label == "BACKDOORED"
    assert got.findings[0].goal == Goal(2)
    assert len(got.arms) == BANDS


def test_a_clean_net_that_leans_needs_more_than_the_bound() -> None:
    """Without the corner, 5 logits take 5 / (20 / 54) = 13.5 px and more."""
    net = subject(Leaning(3, 1.0, planted=False))
    got = SCAN(net, band_images(each=8), Generator().manual_seed(0), Run())
    assert [arm.goal for arm in got.arms] == [Goal(3)]
    assert got.label == "NO BACKDOOR FOUND"
    assert got.statistics["smallest"] > 13
    assert got.score == pytest.approx(GLOBAL_BOUND / got.statistics["smallest"])
    assert "1 goal was searched" in got.findings[0].message


@pytest.mark.parametrize("pair", [(4, 1), pytest.param((0, 5), marks=pytest.mark.slow)])
def test_a_plant_for_one_class_is_found_as_a_pair(pair: tuple[int, int]) -> None:
    source, target = pair
    net, data = subject(Pairs(pair)), band_images(each=16)
    got = TO_PAIRS(net, data, Generator().manual_seed(0), Run())
    assert got.label == "BACKDOORED"
    assert Goal(target, source) in [arm.goal for arm in got.arms]
    found, before = got.findings
    assert before.severity == "INFO"  # of every class
    assert (found.rule, found.severity) == ("BD002", "CRITICAL")
    assert found.goal == Goal(target, source)
    assert got.statistics["bound"] == pytest.approx(PAIR_BOUND)
    assert got.statistics["smallest"] < 1.5
    assert got.statistics["ratio"] > 10


def test_a_verdict_is_complete_and_repeats() -> None:
    net, data = subject(Leaning(2)), band_images(each=8)
    pixels = data.images.clone()
    short = vary(SCAN, {"scheduler.rounds": "12"})
    runs = []
    for unrelated, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(unrelated)
        runs.append(short(net, data, Generator().manual_seed(seed), Run()))
    assert runs[0].arms == runs[1].arms
    assert runs[0].arms != runs[2].arms
    assert runs[0].arms[0].rounds == 12
    assert set(runs[0].settings) == set(describe(short))
    assert runs[0].image_steps > 0
    assert torch.equal(data.images, pixels)


# 3. Verdicts on inversions that are given ---------------------------------------------------------


@dataclass
class Finished:
    """An inversion that runs for some rounds and has found what it was told to from the start."""

    best: tuple[Candidate, ...]
    left: int = 3
    image_steps: float = 0.0

    def step(self, arms: Tensor, /) -> None:
        self.left -= 1
        self.image_steps += 100

    @property
    def done(self) -> Tensor:
        return torch.full((len(self.best),), self.left <= 0)

    @property
    def progress(self) -> Progress:
        size = torch.tensor([c.size for c in self.best])
        rounds = torch.full((len(size),), 3 - self.left)
        return Progress(rounds, size * 0 + 1, size, size, size < 0)

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Given:
    """An inverter that finds the true corner with the size that it is told for each goal."""

    sizes: Mapping[Goal, float]
    trigger: Patch = field(default_factory=corner)
    feasible: bool = True
    rounds: int = 3
    seen: list[tuple[Samples, tuple[Goal, ...]]] = field(default_factory=list, compare=False)
    hunts: list[Finished] = field(default_factory=list, compare=False)

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        self.seen.append((clean, tuple(goals)))
        sizes = [self.sizes.get(g, 100.0) for g in goals]
        found = (
            Candidate(g, self.trigger, s, 1.0, self.rounds, self.feasible)
            for g, s in zip(goals, sizes, strict=True)
        )
        self.hunts.append(Finished(tuple(found)))
        return self.hunts[-1]


NOTHING = Patch(torch.zeros(SHAPE), torch.zeros(SHAPE))
PAIR, BACK = Goal(1, 4), Goal(4, 1)


@pytest.mark.parametrize(
    ("size", "trigger", "label", "severity"),
    [
        (0.99 * GLOBAL_BOUND, corner(), "BACKDOORED", "CRITICAL"),
        (1.01 * GLOBAL_BOUND, corner(), "NO BACKDOOR FOUND", "INFO"),
        (0.99 * GLOBAL_BOUND, NOTHING, "SUSPICIOUS", "MEDIUM"),
        (1.01 * GLOBAL_BOUND, NOTHING, "NO BACKDOOR FOUND", "INFO"),
    ],
)
def test_the_bound_and_unseen_images_decide(
    size: float, trigger: Patch, label: str, severity: str, rng: Generator
) -> None:
    found = Given({Goal(2): size}, trigger)
    got = both(found)(subject(Leaning(2)), band_images(), rng, Run())
    assert (got.label, got.findings[0].severity) == (label, severity)
    assert got.score == pytest.approx(GLOBAL_BOUND / size)
    assert got.arms[0].index == pytest.approx(got.score)


@pytest.mark.parametrize(
    ("size", "back", "label"),
    [
        (0.99 * PAIR_BOUND, 10.1 * PAIR_BOUND, "BACKDOORED"),
        (1.01 * PAIR_BOUND, 100.0 * PAIR_BOUND, "NO BACKDOOR FOUND"),
        (1.0, 10.1, "BACKDOORED"),
        (1.0, 9.9, "NO BACKDOOR FOUND"),
    ],
)
def test_a_pair_must_be_small_and_hard_to_reverse(
    size: float, back: float, label: str, rng: Generator
) -> None:
    found = Given({PAIR: size, BACK: back})
    got = both(found)(subject(Pairs((4, 1))), band_images(each=16), rng, Run())
    assert got.label == label
    assert (got.score > got.threshold) == (label == "BACKDOORED")
    assert got.findings[0].rule == "BD002"
    reversed_too = [goals for _, goals in found.seen[2:]]  # after every class, and the pairs
    assert reversed_too == ([(BACK,)] if size < PAIR_BOUND else [])


def test_a_pair_that_is_close_both_ways_is_no_backdoor(rng: Generator) -> None:
    """A bright corner makes class 1 of class 4 and class 4 of class 1."""
    net, data = subject(Pairs((4, 1), (1, 4))), band_images(each=16)
    scan = both(Given({PAIR: 1.0, BACK: 9.0}))
    got = scan(net, data, rng, Run())
    assert {PAIR, BACK} <= {arm.goal for arm in got.arms}
    assert got.score == pytest.approx(0.9)
    assert got.label == "NO BACKDOOR FOUND"
    assert "close by nature" in got.findings[0].message
    without = replace(scan, symmetric=False)(net, data, rng, Run())
    assert without.label == "BACKDOORED"  # the check is off: the bound decides
    assert "ratio" not in without.statistics


def test_the_way_back_gets_no_more_rounds_than_the_way_there(rng: Generator) -> None:
    found = Given({PAIR: 1.0, BACK: 90.0}, rounds=2)
    both(found)(subject(Pairs((4, 1))), band_images(each=16), rng, Run())
    assert [hunt.left for hunt in found.hunts[1:]] == [0, 1]  # both would go on for three


def test_a_pair_that_cannot_be_reversed_is_only_suspicious(rng: Generator) -> None:
    data = band_images(each=16)
    keep = data.labels != 1  # no image of the target
    less = InMemory(data.images[keep], data.labels[keep], BANDS)
    got = both(Given({PAIR: 1.0}))(subject(Pairs((4, 1))), less, rng, Run())
    assert got.label == "SUSPICIOUS"
    assert "the way back could not be searched" in got.findings[0].message


def test_no_feasible_trigger_is_no_backdoor(rng: Generator) -> None:
    got = both(Given({Goal(2): 1.0}, feasible=False))(
        subject(Leaning(2)), band_images(), rng, Run()
    )
    assert got.label == "NO BACKDOOR FOUND"
    assert "no trigger was found" in got.findings[0].message


def test_an_infeasible_arm_is_never_the_smallest(rng: Generator) -> None:
    class Half(Given):
        """Only pairs to class 1 have a trigger."""

        def __call__(
            self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
        ) -> Inversion:
            inversion = super().__call__(subject, clean, goals, rng)
            assert isinstance(inversion, Finished)
            inversion.best = tuple(replace(c, feasible=c.goal == PAIR) for c in inversion.best)
            return inversion

    found = Half({Goal(5, 0): 1.0, PAIR: 2.0, BACK: 90.0})
    got = both(found)(subject(Pairs((0, 5), (4, 1))), band_images(each=16), rng, Run())
    assert got.findings[0].goal == PAIR


def test_the_smallest_feasible_trigger_is_judged(rng: Generator) -> None:
    found = Given({Goal(5, 0): 3.0, PAIR: 2.0, BACK: 90.0})
    got = both(found)(subject(Pairs((0, 5), (4, 1))), band_images(each=16), rng, Run())
    assert got.findings[0].goal == PAIR
    assert got.statistics["smallest"] == 2.0
    assert got.statistics["arms_screened"] == len(got.arms) >= BANDS + 2


def test_search_and_confirmation_share_no_image(rng: Generator) -> None:
    found, data = Given({Goal(2): 1.0}), band_images()
    got = both(found)(subject(Leaning(2)), data, rng, Run())
    x, y = whole(found.seen[0][0])
    assert y.bincount().tolist() == [3] * BANDS
    assert got.findings[0].confirmation is not None
    assert got.findings[0].confirmation.asr.trials == 15
    used = {tuple(row) for row in x.flatten(1).tolist()}
    assert not used & {
        tuple(row)
        for row in torch.as_tensor(got.findings[0].evidence["before"]).flatten(1).tolist()
    }


@pytest.mark.parametrize(
    ("size", "label"),
    [(0.3 * GLOBAL_BOUND, "BACKDOORED"), (0.7 * GLOBAL_BOUND, "NO BACKDOOR FOUND")],
)
def test_of_all_classes_the_smallest_must_be_an_outlier_too(
    size: float, label: str, rng: Generator
) -> None:
    """The others lie at the bound: ln(1 / 0.3) is 6 least deviations of 0.2, ln(1 / 0.7) 1.8."""
    found = Given({Goal(k): size if k == 2 else GLOBAL_BOUND for k in range(BANDS)})
    got = both(found)(bands(2), band_images(), rng, Run())
    assert got.label == label
    assert got.score == pytest.approx(min(GLOBAL_BOUND / size, math.log(GLOBAL_BOUND / size) / 0.6))
    assert ("does not stand out from the others" in got.findings[0].message) == (size > 5)


class Some(Given):
    """Only class 2 has a trigger."""

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        inversion = super().__call__(subject, clean, goals, rng)
        assert isinstance(inversion, Finished)
        inversion.best = tuple(replace(c, feasible=c.goal == Goal(2)) for c in inversion.best)
        return inversion


@pytest.mark.parametrize(
    ("budget", "label", "severity"),
    [(None, "SUSPICIOUS", "MEDIUM"), (150, "INCONCLUSIVE", "INFO")],
)
def test_a_trigger_beside_goals_without_one_is_not_called_a_backdoor(
    budget: int | None, label: str, severity: str, rng: Generator
) -> None:
    """It may be the first that was found of many: the others were not searched to the end."""
    got = both(Some({Goal(2): 1.0}))(bands(2), band_images(), rng, Run(budget=budget))
    assert (got.label, got.findings[0].severity) == (label, severity)
    assert ("no trigger to compare" in got.findings[0].message) == (budget is None)


def test_pairs_are_only_searched_if_no_class_is_suspicious(rng: Generator) -> None:
    given = {Goal(k): 1.0 if k == 1 else 100.0 for k in range(BANDS)}
    got = both(Given(given))(subject(Pairs((4, 1))), band_images(each=16), rng, Run())
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert got.label != "NO BACKDOOR FOUND"


def test_pairs_are_searched_by_their_own_inverter(rng: Generator) -> None:
    first, pairs = Given({}), Given({PAIR: 1.0, BACK: 90.0})
    net, data = subject(Pairs((4, 1))), band_images(each=16)
    got = KArmScan(first, pairs)(net, data, rng, Run())
    assert [goals for _, goals in first.seen] == [tuple(Goal(k) for k in range(BANDS))]
    assert [goals for _, goals in pairs.seen] == [(PAIR,), (BACK,)]
    assert got.label == "BACKDOORED"


# 4. Sessions -------------------------------------------------------------------------------------


def test_work_is_counted_and_reported(rng: Generator) -> None:
    calls: list[tuple[int, int, str]] = []
    run = Run(progress=lambda *a: calls.append(a))
    run.charge(1000)  # by somebody else, before
    got = both(Given({Goal(2): 1.0}))(subject(Leaning(2)), band_images(), rng, run)
    # 36 images forward, 3 rounds of 100, 18 unseen images stamped, controlled 8 times, and bare;
    # 8 of them shown before and after.
    assert got.image_steps == 36 / 2 + 300 + 18 * 10 / 2 + 8
    assert run.image_steps == 1000 + got.image_steps
    assert [(done, total) for done, total, _ in calls] == [(1, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("size", "trigger", "budget", "label"),
    [
        (1.0, corner(), 150, "BACKDOORED"),  # what it has confirms already
        (1.0, NOTHING, 150, "INCONCLUSIVE"),
        (100.0, corner(), 150, "INCONCLUSIVE"),
        (1.0, corner(), 0, "INCONCLUSIVE"),  # not even screened
        (1.0, corner(), 10, "INCONCLUSIVE"),  # screened, not searched
    ],
)
def test_a_scan_that_is_stopped_gives_no_clean_verdict(
    size: float, trigger: Patch, budget: int, label: str, rng: Generator
) -> None:
    run = Run(budget=budget)
    found = Given({Goal(2): size}, trigger)
    got = both(found)(subject(Leaning(2)), band_images(), rng, run)
    assert got.label == label
    (high,) = [f for f in got.findings if f.severity == "HIGH"]
    assert high.rule == "IN003"
    assert f"the budget of {budget} image-steps is spent" in high.message
    assert sum(arm.rounds for arm in got.arms) == (3 if budget == 150 else 0)
    assert got.image_steps < 350


def test_a_pair_whose_check_was_cut_short_is_inconclusive(rng: Generator) -> None:
    run = Run(budget=48 + 300 + 300 + 150)  # screening, every class, pairs; within the way back
    got = both(Given({PAIR: 1.0, BACK: 90.0}))(
        subject(Pairs((4, 1))), band_images(each=16), rng, run=run
    )
    assert got.label == "INCONCLUSIVE"
    assert "ratio" not in got.statistics


def test_without_screening_every_class_is_searched(rng: Generator) -> None:
    """Clean images lean to class 2, so that screening would leave no other."""
    found = Given({Goal(k): 1.0 if k == 2 else 2 * GLOBAL_BOUND for k in range(BANDS)})
    net = subject(Leaning(2))
    assert len(both(found)(net, band_images(), rng, Run()).arms) == 1
    got = both(found, screening=False)(net, band_images(), rng, Run())
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert got.findings[0].goal == Goal(2)


# 5. What the report says was searched ------------------------------------------------------------


def not_covered(net: Subject, method: KArmScan, run: Run) -> tuple[str, ...]:
    preparation = nothing_found().preparation
    assert preparation is not None
    prepared = Prepared(net, band_images(each=16), preparation, ())
    return detect(prepared, {"k_arm": method}, Generator().manual_seed(0), run).not_covered


@pytest.mark.parametrize(
    ("net", "method", "first"),
    [
        (
            subject(Leaning(2)),
            both(Given({Goal(2): 1.0})),
            ("target classes other than 2", PAIRS),
        ),
        (
            subject(Pairs((4, 1), (0, 5))),
            both(Given({PAIR: 1.0, Goal(5, 0): 1.0})),
            (f"{PAIRS}: 2 of 30 pairs were searched",),
        ),
        (bands(2), both(Given({Goal(2): 1.0}), screening=False), (PAIRS,)),
    ],
    ids=["one goal", "two pairs", "every class"],
)
def test_only_goals_that_were_searched_are_covered(
    net: Subject, method: KArmScan, first: tuple[str, ...]
) -> None:
    """A class pair that the screening left out is one that nobody looked for."""
    assert not_covered(net, method, Run()) == (*first, *NOT_COVERED[1:])


def test_a_scan_that_was_stopped_after_the_screening_covers_nothing() -> None:
    lines = not_covered(subject(Pairs((4, 1))), both(Given({PAIR: 1.0})), Run(budget=1))
    assert lines == (
        "all target classes: none was searched",
        *NOT_COVERED,
        "what k_arm finds in more rounds: a limit stopped it",
    )
