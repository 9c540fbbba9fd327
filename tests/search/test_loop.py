"""The loop over triggers: against a plain transcription, batched against serial, closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tests.toys import BANDS, SIDE, Bands, Doubles, band_images, bands, smallest_mask
from torch import Generator, Tensor, nn
from torch.optim import Adam
from torch.profiler import ProfilerActivity, profile

from gifthorse.core.errors import Halted, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.pacing import paced
from gifthorse.core.tensors import STEP, from_box
from gifthorse.core.types import Candidate, Goal, Samples, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.search import (
    CostController,
    MaskPattern,
    Objective,
    Parametrization,
    Search,
    SearchConfig,
    SignedPixels,
)
from gifthorse.search.adam import adam
from gifthorse.search.data import HALVINGS, usable
from gifthorse.training import predict
from gifthorse.triggers import Additive, Patch

ALL = torch.arange(BANDS)
GOALS = [Goal(k) for k in range(BANDS)]
PACE = SearchConfig(batch=8, success_threshold=0.9)
FORMS: list[Parametrization] = [
    MaskPattern(),
    MaskPattern(jitter=0.01),
    SignedPixels(),
    SignedPixels("clip"),
]


class Pixels64(SignedPixels):
    """The same with sizes in the type of the search, so that it can run in float64."""

    def size(self, parts: tuple[Tensor, ...]) -> Tensor:
        return super().size(parts).to(parts[0])


EXACT: list[Parametrization] = [*FORMS[:2], Pixels64(), Pixels64("clip")]


def search(
    form: Parametrization,
    *,
    subject: Subject | None = None,
    clean: Samples | None = None,
    goals: Sequence[Goal] = GOALS,
    config: SearchConfig = PACE,
    cost: CostController | None = None,
    seed: int = 0,
) -> Search:
    """A search on the planted bands, with costs that move often."""
    return Search(
        subject or bands(2),
        clean or band_images(),
        goals,
        Generator().manual_seed(seed),
        Objective(form, cost or CostController.start(len(goals), patience=3)),
        config,
    )


def apart(a: Search, b: Search) -> float:
    """The largest difference between the variables of two searches."""
    return max((u - v).abs().max().item() for u, v in zip(a.variables, b.variables, strict=True))


def alike(a: Sequence[Candidate], b: Sequence[Candidate]) -> bool:
    keys = [[(c.goal, c.size, c.asr, c.rounds, c.feasible) for c in best] for best in (a, b)]
    pictures = [torch.stack([torch.cat(c.trigger.render()) for c in best]) for best in (a, b)]
    return keys[0] == keys[1] and torch.allclose(pictures[0], pictures[1], atol=1e-6)


# Adam --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", [(0.5, 0.9), (0.9, 0.999)])
def test_adam_is_torchs_for_every_arm_however_often_it_steps(
    betas: tuple[float, float], rng: Generator, double: None
) -> None:
    ours = torch.rand(3, 2, 4, generator=rng)
    theirs = [row.clone().requires_grad_() for row in ours]
    optimizers = [Adam([row], lr=0.1, betas=betas) for row in theirs]
    first, second = torch.zeros_like(ours), torch.zeros_like(ours)
    steps = torch.zeros(3, dtype=torch.int64)
    for arms in ([0, 1, 2], [1], [1, 2], [0], [2, 0], [1], [0, 1, 2]):
        index = torch.tensor(arms)
        gradient = torch.randn(len(arms), 2, 4, generator=rng)
        steps[index] += 1
        rows, moments = ours[index], [[first[index]], [second[index]]]
        rate = torch.full((len(arms),), 0.1)
        adam([rows], [gradient], moments, steps[index], rate, betas)
        ours[index], first[index], second[index] = rows, moments[0][0], moments[1][0]
        for arm, g in zip(arms, gradient, strict=True):
            theirs[arm].grad = g
            optimizers[arm].step()
    assert torch.allclose(ours, torch.stack([row.detach() for row in theirs]), atol=1e-12, rtol=0)


# The whole loop ----------------------------------------------------------------------------------

BAR = 0.88  # no number of hits among 30 images is that share, so rounding cannot decide


def mask_stamp(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    mask, pattern = from_box(u), from_box(v)
    return (1 - mask) * x + mask * pattern


def mask_size(u: Tensor, v: Tensor) -> Tensor:
    return from_box(u).sum()


def light_stamp(u: Tensor, v: Tensor, x: Tensor) -> Tensor:
    return (x + u.clamp(0, 1) - v.clamp(0, 1)).clamp(0, 1)


def light_size(u: Tensor, v: Tensor) -> Tensor:
    return from_box(u.amax(0) / 10).sum() + from_box(v.amax(0) / 10).sum()


def transcription(
    start: Sequence[Tensor],
    x: Tensor,
    target: int,
    stamp: Callable[[Tensor, Tensor, Tensor], Tensor],
    size: Callable[[Tensor, Tensor], Tensor],
    loss: str,
    rounds: int,
) -> tuple[list[Tensor], float]:
    """The shared engine for one arm and full batches, as plain as it can be written."""
    subject, a, up, down = bands(2), 1e-3, 0, 0
    u, v = variables = [t.clone().requires_grad_() for t in start]
    optimizer, y = Adam(variables, lr=0.1, betas=(0.5, 0.9)), torch.full((len(x),), target)
    best = (float(SIDE * SIDE), float("inf"))
    for _ in range(rounds):
        z = subject(stamp(u, v, x))
        ce = F.cross_entropy(z, y)
        if loss == "prob":
            ce = (-math.log(1e-7) * (1 - z.softmax(1)[:, target])).mean()
        optimizer.zero_grad()
        (ce + a * size(u, v)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ok = (z.argmax(1) == target).double().mean() >= BAR
        with torch.no_grad():
            best = keep(best, ok, u, v, x, target) if stamp is light_stamp else best
        up, down = (up + 1, 0) if ok else (0, down + 1)
        if up >= 3:
            up, a = 0, a * 1.5
        elif down >= 3:
            down, a = 0, a / 1.5**1.5
    return [t.detach() for t in variables], best[0]


def keep(
    best: tuple[float, float], ok: Tensor, u: Tensor, v: Tensor, x: Tensor, target: int
) -> tuple[float, float]:
    """Accept the truncated light after the step if it is smaller and works; then snap."""
    plus, minus = (torch.where(t.clamp(0, 1) < STEP, 0.0, t.clamp(0, 1)) for t in (u, v))
    gone = (plus - minus).abs() < STEP - 1e-6
    plus, minus = plus.masked_fill(gone, 0), minus.masked_fill(gone, 0)
    change = (plus - minus).abs().amax(0)
    mine = float(change.count_nonzero()), float(change.sum())
    works = (bands(2)(light_stamp(plus, minus, x)).argmax(1) == target).double().mean() >= BAR
    if not (ok and works and mine < best):
        return best
    u.copy_(plus)
    v.copy_(minus)
    return mine


@pytest.mark.parametrize("loss", ["ce", "prob"])
@pytest.mark.parametrize("form", [MaskPattern(), Pixels64("clip")])
def test_the_loop_is_the_plain_one_for_every_arm(
    form: Parametrization, loss: str, double: None
) -> None:
    config = SearchConfig(batch=30, success_threshold=BAR, loss=loss)  # type: ignore[arg-type]
    ours = search(form, clean=Doubles(band_images()), config=config)
    start = [v.clone() for v in ours.variables]
    for _ in range(40):
        ours.step(ALL)
    x, y = whole(Doubles(band_images()))
    mask = isinstance(form, MaskPattern)
    functions = (mask_stamp, mask_size) if mask else (light_stamp, light_size)
    for arm in range(BANDS):
        theirs, size = transcription(
            [v[arm] for v in start], x[y != arm], arm, *functions, loss, 40
        )
        for a, b in zip(ours.variables, theirs, strict=True):
            assert (a[arm] - b).abs().max() < 1e-6
        if not mask:
            assert ours.best[arm].size == size


@pytest.mark.parametrize("form", EXACT)
def test_arms_in_a_batch_and_one_by_one_end_alike(form: Parametrization, double: None) -> None:
    clean = Doubles(band_images())
    together, alone = search(form, clean=clean), search(form, clean=clean)
    for _ in range(20):
        together.step(ALL)
    for arm in ALL.flip(0):
        for _ in range(20):
            alone.step(arm.view(1))
    assert apart(together, alone) < 1e-6
    assert alike(together.best, alone.best)
    assert torch.equal(together.cost.weight, alone.cost.weight)
    assert together.image_steps == alone.image_steps


@pytest.mark.parametrize("form", EXACT)
def test_arms_that_pause_and_come_back_end_alike(form: Parametrization, double: None) -> None:
    clean = Doubles(band_images())
    steady, halting = search(form, clean=clean), search(form, clean=clean)
    for _ in range(20):
        steady.step(ALL)
    left = [20] * BANDS
    shuffle = Generator().manual_seed(1)
    while any(left):
        awake = [k for k in range(BANDS) if left[k] and torch.rand((), generator=shuffle) < 0.5]
        order = torch.randperm(len(awake), generator=shuffle)
        if awake:
            halting.step(torch.tensor(awake)[order])
        left = [n - (k in awake) for k, n in enumerate(left)]
    assert apart(steady, halting) < 1e-6
    assert alike(steady.best, halting.best)


def test_arms_with_unequal_numbers_of_images_are_independent_too(double: None) -> None:
    data = band_images()
    most = (data.labels != 0) | (torch.arange(len(data)) < BANDS)  # one image of class 0
    clean = Doubles(Subset(data, most.nonzero().flatten()))
    config = SearchConfig(
        batch=10, success_threshold=0.9
    )  # 30 images for class 0, 25 for the others
    together, alone = (search(MaskPattern(), clean=clean, config=config) for _ in range(2))
    for _ in range(5):
        together.step(ALL)
    for arm in ALL:
        for _ in range(5):
            alone.step(arm.view(1))
    assert apart(together, alone) < 1e-6


def test_memory_does_not_change_the_result(double: None) -> None:
    clean = Doubles(band_images())
    wide = search(Pixels64(), clean=clean)
    narrow = search(
        Pixels64(), clean=clean, config=SearchConfig(batch=8, success_threshold=0.9, max_batch=16)
    )
    for _ in range(20):
        wide.step(ALL)
        narrow.step(ALL)
    assert apart(wide, narrow) < 1e-6
    assert alike(wide.best, narrow.best)


def test_the_seed_alone_decides() -> None:
    ends = []
    for unrelated, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(unrelated)
        inversion = search(MaskPattern(jitter=0.01), seed=seed)
        for _ in range(10):
            inversion.step(ALL)
        ends.append(inversion)
    assert apart(ends[0], ends[1]) == 0
    assert apart(ends[0], ends[2]) > 0.01


# What is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_trigger_has_its_size_and_its_success(form: Parametrization) -> None:
    inversion, (x, y) = search(form), whole(band_images())
    for _ in range(80):
        inversion.step(ALL)
    for found in inversion.best:
        assert found.feasible
        assert found.rounds == 80
        stamped = predict(bands(2), found.trigger(x)).argmax(1)
        assert asr(stamped, y, found.goal).value == pytest.approx(found.asr, abs=1e-6)
        assert found.asr >= 0.9 - 1e-6
        if isinstance(found.trigger, Patch):
            size = found.trigger.mask.sum().item()
        else:
            assert isinstance(found.trigger, Additive)
            size = float((found.trigger.delta.abs() > 0).any(0).sum())
            assert found.trigger.delta[found.trigger.delta != 0].abs().min() >= STEP - 2e-6
        assert found.size == pytest.approx(size, rel=1e-5)


def test_success_is_a_share_of_the_images_of_the_arm() -> None:
    data = band_images()
    few = Subset(data, ((data.labels != 0) | (torch.arange(len(data)) < BANDS)).nonzero()[:, 0])
    inversion, (x, y) = search(MaskPattern(), clean=few), whole(few)  # 30 for class 0, else 25
    for _ in range(40):
        inversion.step(ALL)
    for found in inversion.best:
        got = asr(predict(bands(2), found.trigger(x)).argmax(1), y, found.goal)
        assert got.trials == (30 if found.goal.target == 0 else 25)
        assert got.value == pytest.approx(found.asr, abs=1e-6)


@pytest.mark.parametrize("rule", ["size", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_the_best_never_gets_worse(form: Parametrization, rule: str) -> None:
    inversion = search(form, config=SearchConfig(batch=8, success_threshold=0.9, rule=rule))  # type: ignore[arg-type]
    sizes = [[float(SIDE * SIDE)] * BANDS]
    for _ in range(60):
        inversion.step(ALL)
        sizes.append([c.size for c in inversion.best])
    for before, after in pairwise(sizes):
        assert all(b <= a for a, b in zip(before, after, strict=True))
    assert sizes[-1] < sizes[0]


def test_a_notch_keeps_small_gains_out() -> None:
    inversion = search(
        MaskPattern(), config=SearchConfig(batch=8, success_threshold=0.9, min_improvement=0.05)
    )
    last = [c.size for c in inversion.best]
    for _ in range(60):
        inversion.step(ALL)
        now = [c.size for c in inversion.best]
        first = [size == SIDE * SIDE for size in last]
        assert all(a == b or b <= 0.95 * a or f for a, b, f in zip(last, now, first, strict=True))
        last = now
    assert max(last) < 30


@pytest.mark.parametrize("heed", [0, 3])
def test_a_failed_test_lowers_the_weight_if_it_is_heeded(
    heed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches alone say yes in every round, the test on all images never does."""
    inversion = search(
        MaskPattern(),
        config=SearchConfig(batch=8, success_threshold=0.0, failed_test_patience=heed),
    )
    monkeypatch.setattr(
        inversion.data, "verify", lambda parts, arms: torch.full((len(arms),), -1.0)
    )
    before = inversion.cost.weight.clone()
    for _ in range(40):
        inversion.step(ALL)
    assert not bool(inversion.feasible.any())
    assert bool((inversion.cost.weight < before if heed else inversion.cost.weight > before).all())
    assert bool((inversion.cost.fell == (heed > 0)).all())
    assert bool((inversion.cost.rose == (heed == 0)).all())


def test_a_candidate_stays_as_it_was_found() -> None:
    inversion = search(MaskPattern())
    for _ in range(30):
        inversion.step(ALL)
    before = inversion.best
    pictures = [torch.cat(c.trigger.render()).clone() for c in before]
    for _ in range(30):
        inversion.step(ALL)
    assert all(
        torch.equal(torch.cat(c.trigger.render()), p) for c, p in zip(before, pictures, strict=True)
    )
    assert inversion.best[0].size < before[0].size


class Constant(nn.Module):
    """A net that nothing can move: class 0 always wins."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * 0 + torch.eye(BANDS)[0].to(x)


@pytest.mark.parametrize("form", FORMS)
def test_an_arm_that_cannot_succeed_counts_as_the_whole_image(form: Parametrization) -> None:
    subject = Subject(Constant(), (1, SIDE, SIDE), BANDS)
    inversion = search(form, subject=subject)
    for _ in range(5):
        inversion.step(ALL)
    for found in inversion.best[1:]:
        assert (found.size, found.feasible, found.asr) == (SIDE * SIDE, False, 0.0)
        assert found.trigger(whole(band_images())[0]).min() >= 0
    assert inversion.best[0].feasible
    assert inversion.best[0].asr == 1.0


def test_before_any_round_nothing_is_claimed() -> None:
    for found in search(SignedPixels()).best:
        assert (found.size, found.feasible, found.rounds) == (SIDE * SIDE, False, 0)


# Images and turns --------------------------------------------------------------------------------


class Counting(Bands):
    """Counts its images: forward and back, forward alone. `len` keeps it from being traced."""

    trained = tested = 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            Counting.trained += len(x)
        else:
            Counting.tested += len(x)
        return super().forward(x)


@pytest.mark.parametrize(
    ("batch", "most", "seen"), [(8, 0, 24), (30, 0, 30), (500, 0, 30), (8, 2, 16), (8, 9, 24)]
)
def test_image_steps_are_counted(batch: int, most: int, seen: int) -> None:
    subject = Subject(Counting(2), (1, SIDE, SIDE), BANDS)
    inversion = search(MaskPattern(), subject=subject, config=SearchConfig(batch=batch, steps=most))
    Counting.trained = Counting.tested = 0  # what showed that a faster net is the same is no search
    inversion.step(ALL)
    inversion.step(torch.tensor([1, 4]))
    assert Counting.trained == 8 * seen  # six arms, then two; full batches of 30 images
    assert inversion.image_steps == 8 * seen + Counting.tested / 2
    assert Counting.tested % 30 == 0  # a trigger is tested on all images of its arm
    assert inversion.rounds.tolist() == [1, 2, 1, 1, 2, 1]


def test_a_search_that_tests_no_trigger_spends_its_steps_alone() -> None:
    inversion = search(MaskPattern(), config=SearchConfig(batch=8, success_threshold=1.1))
    inversion.step(ALL)
    inversion.step(torch.tensor([1, 4]))
    assert inversion.image_steps == 8 * 24


@pytest.mark.parametrize("goal", [Goal(3), Goal(3, source=5)])
def test_only_images_that_the_goal_is_about_are_used(goal: Goal, rng: Generator) -> None:
    images = torch.randint(256, (36, 1, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    labels = torch.arange(36) % BANDS
    images[:, 0, 1, 0] = torch.arange(36).to(torch.uint8)
    used: set[int] = set()

    class Spy(MaskPattern):
        """Remembers which images it was asked to stamp."""

        def stamp(self, parts: tuple[Tensor, ...], x: Tensor) -> Tensor:
            used.update((x[..., 0, 1, 0] * 255).round().long().flatten().tolist())
            return super().stamp(parts, x)

    inversion = search(
        Spy(), clean=InMemory(images, labels, BANDS), goals=[goal], config=SearchConfig(batch=3)
    )
    for _ in range(2):
        inversion.step(torch.tensor([0]))
    wanted = labels == 5 if goal.source is not None else labels != 3
    assert used == set(wanted.nonzero().flatten().tolist())


def test_a_cap_on_images_spreads_them_over_the_classes() -> None:
    y = torch.arange(4).repeat_interleave(25)
    index, count = usable(y, [Goal(0), Goal(1, source=2)], 30)
    assert count.tolist() == [30, 25]
    assert y[index[0]].bincount().tolist() == [0, 10, 10, 10]
    assert set(y[index[1]].tolist()) == {2}
    assert usable(y, [Goal(0)], 0)[1].tolist() == [75]
    capped = search(
        MaskPattern(), config=SearchConfig(batch=8, success_threshold=0.9, max_images=6)
    )
    assert capped.data.count.tolist() == [6] * len(capped.goals)
    assert capped.data.batch == 6


def test_a_goal_without_images_is_refused_with_words() -> None:
    data = band_images()
    only = Subset(data, (data.labels == 2).nonzero().flatten())
    with pytest.raises(NotApplicable, match=r"no clean image of any other class.*class 2"):
        search(MaskPattern(), clean=only, goals=[Goal(2)])
    with pytest.raises(NotApplicable, match="no clean image of class 4"):
        search(MaskPattern(), clean=only, goals=[Goal(2, source=4)])


def test_an_arm_settles_when_its_rounds_are_used_up() -> None:
    inversion = search(MaskPattern(), config=SearchConfig(batch=8, success_threshold=0.9, rounds=3))
    for left in (2, 1, 0):
        inversion.step(ALL[:3])
        assert inversion.done.tolist() == [left == 0] * 3 + [False] * 3


def test_patience_ends_an_arm_that_stopped_gaining() -> None:
    config = SearchConfig(
        batch=8, success_threshold=0.9, rounds=500, patience=10, min_delta=0.01, min_rounds=50
    )
    inversion, ended = search(MaskPattern(), config=config), [0] * BANDS
    sizes: list[list[float]] = []
    while not inversion.done.all():
        inversion.step((~inversion.done).nonzero().flatten())
        sizes.append([c.size for c in inversion.best])
        ended = [e or (len(sizes) if s else 0) for e, s in zip(ended, inversion.done, strict=True)]
    for arm, last in enumerate(ended):
        assert 50 <= last < 500
        # nothing in the last ten rounds was 1 % smaller than what was there before
        assert sizes[last - 1][arm] > 0.99 * sizes[last - 11][arm]
        assert bool(inversion.cost.rose[arm])
        assert bool(inversion.cost.fell[arm])


# The subject -------------------------------------------------------------------------------------


def test_the_subject_stays_as_it_was() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, BANDS),
    )  # fmt: skip
    net[0].weight.requires_grad_(False)
    net[1].train()
    net[2].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    inversion = search(MaskPattern(), subject=Subject(net, (1, SIDE, SIDE), BANDS))
    for _ in range(3):
        inversion.step(ALL)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [m.training for m in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert [type(m).__name__ for m in net][:2] == ["Conv2d", "BatchNorm2d"]


# Closed forms ------------------------------------------------------------------------------------


def longer(inversion: Search, rounds: int) -> tuple[Candidate, ...]:
    for _ in range(rounds):
        inversion.step(ALL)
    return inversion.best


@pytest.mark.parametrize("planted", [None, 0, 2])
def test_masks_come_close_to_the_linear_program(planted: int | None) -> None:
    net = Bands(planted)
    subject = Subject(net.eval(), (1, SIDE, SIDE), BANDS)
    found = longer(
        search(
            MaskPattern(), subject=subject, config=SearchConfig(batch=8, success_threshold=0.99)
        ),
        200,
    )
    for k, candidate in enumerate(found):
        least = smallest_mask(net, band_images(), k)
        assert 0.999 * least <= candidate.size <= 1.25 * least
        if k != planted:  # 0.3 * 54 pixels / 0.9 of headroom, and the noise on top
            assert 17.5 < least < 19


def test_a_planted_pixel_is_found_and_it_is_the_planted_one() -> None:
    found = longer(search(SignedPixels()), 150)[2]
    assert found.size == 1
    assert isinstance(found.trigger, Additive)
    assert found.trigger.delta.nonzero().tolist() == [[0, 0, 0]]


def test_without_a_plant_pixels_are_at_least_what_a_mask_needs() -> None:
    found = longer(search(SignedPixels(), subject=bands()), 300)
    for k, candidate in enumerate(found):
        # one image in ten may fail, so a little less than the mask for all of them
        assert 0.85 * smallest_mask(Bands(), band_images(), k) < candidate.size
        assert candidate.size < 1.7 * smallest_mask(Bands(), band_images(), k)


def test_without_the_snap_pixels_end_larger() -> None:
    class Stuck(SignedPixels):
        """Goes on with the variables as they are."""

        def restart(
            self, parts: tuple[Tensor, ...], variables: tuple[Tensor, ...], rng: Generator
        ) -> tuple[Tensor, ...]:
            return variables

    sizes = [
        sum(c.size for c in longer(search(form, subject=bands()), 300))
        for form in (SignedPixels("clip"), Stuck("clip"))
    ]
    assert sizes[0] < 0.9 * sizes[1]


@pytest.mark.parametrize("form", FORMS[::2])
def test_a_late_round_allocates_and_asks_no_more_than_an_early_one(form: Parametrization) -> None:
    """Counted over eight rounds, since a round in which an arm meets the bar does more."""
    inversion, most = search(form), []
    for start in (20, 50):
        while inversion.progress.rounds[0] < start:
            inversion.step(ALL)
        counted = []
        for _ in range(8):
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
                inversion.step(ALL)
            each = {event.key: event.count for event in seen.key_averages()}
            counted.append(
                [each[k] for k in ("aten::_local_scalar_dense", "aten::empty", "[memory]")]
            )
        most.append(torch.tensor(counted).amax(0))
    assert (most[1] <= most[0]).all()
    assert 0 < most[0][0] <= 8  # host reads a round


def test_bfloat16_is_for_the_net_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gifthorse.search.hooks.half", lambda device: torch.bfloat16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, BANDS))
    subject, (x, y) = Subject(net, (1, SIDE, SIDE), BANDS), whole(band_images())
    inversion = search(
        SignedPixels(),
        subject=subject,
        config=SearchConfig(batch=8, success_threshold=0.9, bf16=True),
    )
    for found in longer(inversion, 40):
        assert found.feasible  # and judged in float32:
        stamped = predict(subject, found.trigger(x)).argmax(1)
        assert asr(stamped, y, found.goal).value == pytest.approx(found.asr, abs=1e-6)
    assert all(v.dtype == torch.float32 for v in inversion.variables)


class Small:
    """A net on a machine with memory for so many images at once, forward and back."""

    def __init__(self, net: Callable[[Tensor], Tensor], most: int) -> None:
        self.net, self.most, self.fell = net, most, 0

    def __call__(self, x: Tensor, *, bf16: bool = False) -> Tensor:
        if len(x) > self.most:
            self.fell += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.net(x)

    def seen(self, shape: object) -> None:
        return None


@pytest.mark.parametrize("most", [16, 8])
def test_out_of_memory_fewer_images_go_at_once_and_nothing_else_changes(most: int) -> None:
    wide, short = search(FORMS[1]), search(FORMS[1])  # one that draws
    short.data._net = scarce = Small(wide.data._net, most)  # type: ignore[assignment]
    for _ in range(3):
        wide.step(ALL)
        short.step(ALL)
    assert scarce.fell > 0
    assert short.data.abreast <= 4 * most  # of arms that have 8 images each
    assert apart(wide, short) < 1e-6


def test_memory_that_suffices_for_no_arm_is_an_error() -> None:
    short = search(MaskPattern())
    short.data._net = scarce = Small(short.data._net, 1)  # type: ignore[assignment]
    before = [v.clone() for v in short.variables]
    with pytest.raises(RuntimeError, match="can't allocate"):
        short.step(ALL)
    assert scarce.fell <= 1 + HALVINGS
    assert all(map(torch.equal, before, short.variables))


def test_left_within_a_round_it_goes_on_as_if_it_never_was() -> None:
    whole, left = search(FORMS[1]), search(FORMS[1])
    whole.step(ALL)
    whole.step(ALL)
    left.step(ALL)
    breaths = 0

    def soon(kept: bool) -> str:
        nonlocal breaths
        breaths += 1
        return "it is late" * (breaths == 2)

    with paced(soon), pytest.raises(Halted, match="it is late"):
        left.step(ALL)
    assert (left.rounds == 1).all()
    left.step(ALL)
    assert apart(whole, left) == 0
