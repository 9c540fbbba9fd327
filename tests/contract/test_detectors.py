"""What every detector keeps to: it flags the planted toys, not the clean ones, seed by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import get_args

import pytest
import torch
from tests.toys import BANDS, GRAY, SIDE, band_images, bands
from torch import Generator, Tensor, nn

from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Detector, Goal, Label, Severity, Subject, Verdict
from gifthorse.data.samples import InMemory
from gifthorse.detection import DETECTORS

# 1. Tiles: bands with all that a detector may look at --------------------------------------------


class Tiles(nn.Module):
    """Class = brightest of six tiles; a bright corner votes for class `planted`.

    Each tile has a neuron, and so has the corner pixel (0, 0); a linear layer makes logits of them.
    Clean images lean to the planted class, as after training on a poisoned set. The tiles keep away
    from the border, so that all have the same edges.
    """

    def __init__(
        self, planted: int | None, gain: float = 20.0, plant: float = 30.0, lean: float = 2.0
    ) -> None:
        super().__init__()
        self.look, self.head = nn.Conv2d(1, BANDS + 1, SIDE), nn.Linear(BANDS + 1, BANDS)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            for k in range(BANDS):
                self.look.weight[k][tile(k)] = gain / TILE
                self.head.weight[k, k] = 1
            self.look.weight[BANDS, 0, 0, 0] = plant
            self.look.bias[BANDS] = OPEN  # type: ignore[index]
            if planted is not None:
                self.head.weight[planted, BANDS] = 1
                self.head.bias[planted] = lean - plant * GRAY - OPEN

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.look(x).flatten(1).relu())
        return logits


TILE = 7 * 4
OPEN = 3.0  # the corner's neuron never closes: what a detector makes of that is tested elsewhere


def tile(k: int) -> tuple[slice, slice, slice]:
    row, col = divmod(k, 3)
    return slice(None), slice(2 + 7 * row, 9 + 7 * row), slice(3 + 4 * col, 7 + 4 * col)


def tiles(planted: int | None) -> Subject:
    return Subject(Tiles(planted).eval(), (1, SIDE, SIDE), BANDS)


def tile_images(each: int, seed: int) -> InMemory:
    """Dim noise with one brighter tile; the corner pixel is gray."""
    rng = Generator().manual_seed(seed)
    labels = torch.arange(BANDS).repeat(each)
    x = torch.rand(len(labels), 1, SIDE, SIDE, generator=rng) * 0.2
    for image, label in zip(x, labels.tolist(), strict=True):
        image[tile(label)] += 0.3
    x[:, :, 0, 0] = GRAY
    return InMemory((x * 255).round().to(torch.uint8), labels, BANDS)


TOYS: dict[str, tuple[Callable[[int | None], Subject], Callable[[int, int], InMemory]]] = {
    "tiles": (tiles, tile_images),
    "bands": (bands, band_images),
}

# 2. Who is judged on what ------------------------------------------------------------------------

# What the toys need: fewer and constant steps, since a round on a real net moves far more.
PIXEL: dict[str, object] = {"inverter.initial": 0.02, "inverter.patience": 3}
TOY: dict[str, dict[str, object]] = {
    # Within ten pixels only the planted neuron has a trigger; all lead alike, so none is left out.
    "abs": {
        "inverter.keep": BANDS,
        "inverter.config.rounds": 25,
        "inverter.config.schedule": "constant",
        "inverter.limit": 8,
    },
    "carve": {"inverter.config.rounds": 60, "inverter.soft.rounds": 40},
    "deep_inspect": {
        "inverter.hidden": 4,
        "inverter.width": 2,
        "inverter.initial": 0.002,
        "inverter.patience": 3,
        "inverter.config.batch": 12,
        "inverter.config.steps": 2,
        "inverter.config.min_steps": 2,
        "inverter.config.rounds": 120,
    },
    "dltnd": {"rounds": 7, "each": 2},
    "free_eagle": {"steps": 100},
    # A mask may cost a class about 25 pixels of light, little beside the default allowance.
    "gangsweep": {
        "width": 8,
        "batch": 8,
        "floor": 10,
        "lr": 6e-3,
        "weight": 5.0,
        "allowance": 0.01,
    },
    "k_arm": {"scheduler.rounds": 100},
    "k_arm_pixel": PIXEL | {"scheduler.rounds": 200},
    "mm_bd": {"starts": 6, "steps": 100},
    "mm_bd_quick": {"starts": 6, "steps": 100},
    "neural_cleanse": {
        "inverter.config.steps": 0,
        "inverter.config.min_steps": 0,
        "inverter.config.rounds": 90,
    },
    "pixel": PIXEL | {"inverter.config.rounds": 90},
    "tabor": {
        "inverter.config.rounds": 70,
        "inverter.config.schedule": "constant",
        "inverter.up": 1.5,
        "inverter.patience": 3,
    },
    "transferability": {
        "images": 5,
        "patience": 1,
        "most": 1,
        "inverter.config.rounds": 40,
    },
    "umd": {"inverter.config.rounds": 30},
    "usb": {
        "inverter.initial": 0.01,
        "inverter.patience": 2,
        "inverter.config.batch": 4,
        "inverter.config.steps": 1,
        "inverter.config.min_steps": 1,
        "inverter.config.rounds": 40,
        "inverter.config.schedule": "constant",
    },
}
USUAL: dict[str, object] = {"inverter.config.rounds": 90}
# Enough to see that a run repeats and leaves its inputs alone.
BRIEF = {"inverter.config.rounds": 4, "inverter.soft.rounds": 4, "scheduler.rounds": 4}
BRIEF |= {"epochs": 1, "rounds": 1, "steps": 4}

# Those that recover no trigger have nothing to confirm.
HINTS = {name for name, one in DETECTORS.items() if "proof.success" not in describe(one)}
# Rows whose assumption a toy does not meet: what they say of it planted and clean, and why.
EXEMPT: dict[tuple[str, str], tuple[Label, Label, str]] = {
    ("abs", "bands"): (
        "NO BACKDOOR FOUND",
        "NO BACKDOOR FOUND",
        "the net has no layer with neurons to stimulate",
    ),
    ("free_eagle", "bands"): (
        "INCONCLUSIVE",
        "INCONCLUSIVE",
        "the net has one layer, which cannot be cut",
    ),
    ("free_eagle", "tiles"): (
        "NO BACKDOOR FOUND",
        "NO BACKDOOR FOUND",
        "no class needs the trigger's neuron: tests/detection/test_free_eagle.py has a net",
    ),
    ("latent_shift", "bands"): (
        "INCONCLUSIVE",
        "INCONCLUSIVE",
        "the net has no linear layer, which the verdict says in words",
    ),
    ("neuron_inspect", "bands"): (
        "SUSPICIOUS",
        "SUSPICIOUS",
        "maps of the outer bands are smoother, since the Laplacian leaves out the border",
    ),
    ("transferability", "tiles"): (
        "BACKDOORED",
        "NO BACKDOOR FOUND",
        "a tile turns any image, so what turns one may turn all: with another seed it does",
    ),
    ("warp", "bands"): (
        "NO BACKDOOR FOUND",
        "NO BACKDOOR FOUND",
        "a corner is no displacement: tests/detection/test_whole_image.py has one",
    ),
    ("warp", "tiles"): (
        "NO BACKDOOR FOUND",
        "NO BACKDOOR FOUND",
        "a corner is no displacement: tests/detection/test_whole_image.py has one",
    ),
    ("weight_signature", "bands"): (
        "INCONCLUSIVE",
        "INCONCLUSIVE",
        "the net has no linear layer, which the verdict says in words",
    ),
}
# tests/detection/test_whole_image.py and test_free_eagle.py have toys that they are made for.
ELSEWHERE = {"free_eagle", "warp"}
# Rows that take seconds a run are judged on the toy that the options above are made for.
SLOW = {("deep_inspect", "bands"), ("gangsweep", "tiles"), ("umd", "tiles")}

# With seed 0 the search of `pixel` begins with a black corner on tiles, where clipping lets no
# gradient through; the rows that start from a probe are there for that.
SEEDS = (1, 2)
ROWS = [(name, on) for name in sorted(DETECTORS) for on in TOYS]
JUDGED = [row for row in ROWS if row not in EXEMPT and row not in SLOW]
ONCE = {"deep_inspect", "gangsweep", "umd"}  # seconds a run: the first seed only
CASES = [(*row, seed) for row in JUDGED for seed in SEEDS[: 1 if row[0] in ONCE else None]]

names = pytest.mark.parametrize("name", sorted(DETECTORS))
judged = pytest.mark.parametrize(("name", "on"), JUDGED)
cases = pytest.mark.parametrize(("name", "on", "seed"), CASES)


def toy(name: str) -> Detector:
    known = describe(DETECTORS[name])
    usual = {key: value for key, value in USUAL.items() if key in known}
    return vary(DETECTORS[name], TOY.get(name, usual))


def brief(name: str) -> Detector:
    known = describe(DETECTORS[name])
    return vary(toy(name), {key: value for key, value in BRIEF.items() if key in known})


def home(name: str) -> str:
    """The first toy that a detector is judged on; of one that is judged elsewhere any will do."""
    usual = "bands" if (name, "bands") not in EXEMPT or name == "warp" else "tiles"
    return next((on for row, on in JUDGED if row == name), usual)


def where(seed: int) -> int:
    """The planted class."""
    return (seed + 1) % BANDS


@cache
def verdict(name: str, on: str, planted: int | None, seed: int) -> Verdict:
    subject, images = TOYS[on]
    return toy(name)(subject(planted), images(8, seed), Generator().manual_seed(seed), Run())


# 3. Verdicts -------------------------------------------------------------------------------------


def test_every_row_is_judged_and_the_tables_are_up_to_date() -> None:
    assert {name for name, _ in JUDGED} | ELSEWHERE == set(DETECTORS)
    assert not {name for name, _ in JUDGED} & ELSEWHERE
    assert set(EXEMPT) | SLOW <= set(ROWS)
    assert not set(EXEMPT) & SLOW
    assert set(TOY) | HINTS <= set(DETECTORS)


@cases
def test_it_flags_the_planted_toy_and_names_the_class(name: str, on: str, seed: int) -> None:
    got = verdict(name, on, where(seed), seed)
    hint = name in HINTS
    assert got.label == ("SUSPICIOUS" if hint else "BACKDOORED")
    assert got.score >= got.threshold
    assert got.findings[0].goal == Goal(where(seed))
    assert got.findings[0].severity == ("MEDIUM" if hint else "CRITICAL")


@cases
def test_it_does_not_flag_the_clean_toy(name: str, on: str, seed: int) -> None:
    got = verdict(name, on, None, seed)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold
    assert {f.severity for f in got.findings} <= {"INFO"}


@judged
def test_the_planted_scores_lie_above_the_clean_ones(name: str, on: str) -> None:
    seeds = [seed for row, toy, seed in CASES if (row, toy) == (name, on)]
    planted = [verdict(name, on, where(seed), seed).score for seed in seeds]
    assert min(planted) > max(verdict(name, on, None, seed).score for seed in seeds)


@pytest.mark.parametrize(("name", "on"), EXEMPT)
def test_an_exempted_row_says_what_the_table_says(name: str, on: str) -> None:
    planted, clean, _ = EXEMPT[name, on]
    got = [verdict(name, on, k, 1) for k in (where(1), None)]
    assert [v.label for v in got] == [planted, clean]
    for v in got:
        if v.label == "INCONCLUSIVE":
            assert {f.severity for f in v.findings} == {"HIGH"}
            assert re.search("no linear layer|cannot be cut", v.findings[0].message)


# 4. What a verdict is made of --------------------------------------------------------------------


@judged
@pytest.mark.parametrize("planted", [True, False], ids=["planted", "clean"])
def test_a_verdict_is_complete(name: str, on: str, planted: bool) -> None:
    got = verdict(name, on, where(1) if planted else None, 1)
    assert got.label in get_args(Label)
    assert got.method
    assert got.seconds > 0
    assert got.image_steps > 0 or name == "weight_signature"
    assert got.settings == {key: str(value) for key, value in describe(toy(name)).items()}
    assert all(math.isfinite(value) for value in (got.score, *got.statistics.values()))
    assert got.findings
    for found in got.findings:
        assert found.message
        assert found.severity in get_args(Severity)
        if found.severity == "CRITICAL":  # nothing is called a backdoor unless its trigger works
            seen = found.confirmation
            assert seen is not None
            assert seen.asr.value >= max(0.6, seen.control.value + 0.3)


@judged
def test_the_table_has_one_row_a_goal(name: str, on: str) -> None:
    got = verdict(name, on, where(1), 1)
    goals = [Goal(k) for k in range(BANDS)]
    if name in HINTS:
        goals = []
    elif name.startswith("k_arm") and on != "bands":  # what the screening left
        goals = [Goal(where(1))]
    elif name == "umd":
        goals = [Goal(t, s) for s in range(BANDS) for t in range(BANDS) if s != t]
    assert [arm.goal for arm in got.arms] == goals
    for arm in got.arms:
        assert 0 < arm.size <= SIDE * SIDE
        assert 0 <= arm.asr <= 1
        assert arm.rounds > 0


# 5. What a run leaves alone ----------------------------------------------------------------------


@names
def test_the_same_seed_gives_the_same_table_whatever_else_is_random(name: str) -> None:
    subject, images = TOYS[home(name)]
    planted, clean, tables = subject(1), images(8, 0), []
    for unrelated in (1, 2):
        torch.manual_seed(unrelated)
        before = torch.get_rng_state()
        got = brief(name)(planted, clean, Generator().manual_seed(0), Run())
        assert torch.equal(torch.get_rng_state(), before)
        words = [(f.severity, f.message) for f in got.findings]
        tables.append((got.label, got.score, got.arms, dict(got.statistics), words))
    assert tables[0] == tables[1]


@names
def test_subject_and_images_stay_as_they_were(name: str) -> None:
    subject, clean = tiles(1), tile_images(8, 0)
    state = {key: value.clone() for key, value in subject.net.state_dict().items()}
    pixels, labels = clean.images.clone(), clean.labels.clone()
    brief(name)(subject, clean, Generator().manual_seed(0), Run())
    assert all(torch.equal(v, state[key]) for key, v in subject.net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in subject.net.parameters())
    assert not any(m.training or m._forward_hooks for m in subject.net.modules())
    assert torch.equal(clean.images, pixels)
    assert torch.equal(clean.labels, labels)


# 6. Sessions -------------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("limit", ["seconds", "budget"])
def test_a_stopped_detector_never_says_that_nothing_was_found(name: str, limit: str) -> None:
    on = home(name)
    whole, (subject, images) = verdict(name, on, None, 1), TOYS[on]
    if limit == "seconds":
        run, why = Run(seconds=0), "the time limit of 0 s is reached"
    else:
        budget = 7 + int(whole.image_steps / 2)
        run, why = Run(budget=budget), f"the budget of {budget:,} image-steps is spent"
    run.charge(7)  # by somebody else, before
    got = toy(name)(subject(None), images(8, 1), Generator().manual_seed(1), run)
    assert got.image_steps == pytest.approx(run.image_steps - 7)
    assert got.image_steps <= whole.image_steps
    if got.label == "NO BACKDOOR FOUND":  # it was done before it could be stopped
        assert (got.score, got.arms, got.image_steps) == (
            whole.score,
            whole.arms,
            whole.image_steps,
        )
        return
    assert got.label == "INCONCLUSIVE"
    stopped = [f for f in got.findings if f.rule == "IN003"]
    assert [f.severity for f in stopped] == ["HIGH"]
    assert why in stopped[0].message


@names
def test_a_planted_toy_is_never_cleared_for_want_of_time(name: str) -> None:
    subject, images = TOYS[home(name)]
    rng, run = Generator().manual_seed(1), Run(seconds=0)
    got = toy(name)(subject(where(1)), images(8, 1), rng, run)
    if got.label != "INCONCLUSIVE":  # it was done, or has a trigger that works already
        done = got.image_steps == verdict(name, home(name), where(1), 1).image_steps
        assert got.label == "BACKDOORED" or (done and got.label == "SUSPICIOUS")
        assert got.findings[0].goal == Goal(where(1))


@names
def test_progress_is_reported_and_work_counted(name: str) -> None:
    calls: list[tuple[int, int, str]] = []
    subject, images = TOYS[home(name)]
    run = Run(progress=lambda *call: calls.append(call))
    got = brief(name)(subject(where(1)), images(8, 1), Generator().manual_seed(1), run)
    assert calls
    assert all(0 <= done <= total and words for done, total, words in calls)
    assert run.image_steps == pytest.approx(got.image_steps)
