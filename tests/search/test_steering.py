"""What steers a search between its rounds, and what it keeps: against plain float64 code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.toys import BANDS, SIDE, Doubles, band_images, bands, corner
from torch import Generator, Tensor
from torch.optim import Adam

from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.tensors import from_box, to_box
from gifthorse.core.types import Goal, Samples, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.search import (
    BoundedChange,
    CostController,
    MaskPattern,
    Objective,
    OneVariable,
    Parametrization,
    RandomAffine,
    Search,
    SearchConfig,
    SignedPixels,
)
from gifthorse.search.losses import Elastic, Term
from gifthorse.search.objective import ImageTransform
from gifthorse.search.parametrizations.masks import Parts
from gifthorse.training import predict

ALL = torch.arange(BANDS)
PACE = SearchConfig(batch=15, success_threshold=0.9)
ONES = torch.ones(1, 1, SIDE, SIDE)


def search(
    form: Parametrization | None = None,
    config: SearchConfig = PACE,
    *,
    clean: Samples | None = None,
    cost: CostController | None = None,
    terms: tuple[tuple[float, Term], ...] = (),
    view: ImageTransform | None = None,
    seed: int = 0,
) -> Search:
    """A search on the planted bands for all six classes."""
    cost = cost or CostController.start(BANDS, patience=3)
    objective = Objective(form or MaskPattern(), cost, terms=terms, stamped_transform=view)
    goals, rng = [Goal(k) for k in range(BANDS)], Generator().manual_seed(seed)
    return Search(bands(2), clean or band_images(), goals, rng, objective, config)


def after(inversion: Search, rounds: int) -> Search:
    for _ in range(rounds):
        inversion.step(ALL)
    return inversion


def uneven() -> Subset:
    """One image of class 0 only: 30 images to search class 0 with, 25 for every other."""
    data = band_images()
    most = (data.labels != 0) | (torch.arange(len(data)) < BANDS)
    return Subset(data, most.nonzero().flatten())


def others(clean: Samples, target: int) -> Tensor:
    x, y = whole(clean)
    return x[y != target]


def entropy(mask: Tensor, pattern: Tensor, x: Tensor, target: int) -> Tensor:
    """The mean cross entropy of masked images, as plain as it can be written."""
    z = bands(2)((1 - mask) * x + mask * pattern)
    return F.cross_entropy(z, torch.full((len(x),), target))


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


# Gradient and objective --------------------------------------------------------------------------


def drawn(arms: int, seed: int = 3) -> Parts:
    rng = Generator().manual_seed(seed)
    return torch.rand(arms, 1, SIDE, SIDE, generator=rng), torch.rand(
        arms, 1, SIDE, SIDE, generator=rng
    )


def slopes_agree(inversion: Search, clean: Samples, arms: list[int]) -> None:
    """Compare the gradient with central differences at a few places of every arm."""
    parts = drawn(len(arms))
    got = inversion.gradient(parts, torch.tensor(arms))
    step = 1e-5
    for row, arm in enumerate(arms):
        for which in range(2):
            for place in [(0, 0, 0), (0, 3 * arm, 7), (0, 17, 2), (0, 9, 9)]:
                ends = []
                for sign in (step, -step):
                    moved = [p[row].clone() for p in parts]
                    moved[which][place] += sign
                    ends.append(entropy(moved[0], moved[1], others(clean, arm), arm))
                slope = (ends[0] - ends[1]).item() / (2 * step)
                value = got[which][row][place].item()
                assert value == pytest.approx(slope, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("chunk", [512, 16])
def test_the_gradient_is_that_of_the_mean_loss_over_all_images(chunk: int, double: None) -> None:
    clean = Doubles(band_images())
    inversion = search(
        config=SearchConfig(batch=15, success_threshold=0.9, max_batch=chunk), clean=clean
    )
    slopes_agree(inversion, clean, [4, 1, 2])
    assert inversion.image_steps == 3 * 30


def test_the_gradient_counts_every_image_once(double: None) -> None:
    clean = Doubles(uneven())
    slopes_agree(search(clean=clean), clean, [0, 4])


def test_the_gradient_leaves_the_search_as_it_was() -> None:
    inversion = after(search(), 3)
    before = inversion.state()
    inversion.gradient(drawn(2), torch.tensor([1, 3]))
    now = inversion.state()
    assert all(torch.equal(before[k], now[k]) for k in before if k != "image_steps")


@pytest.mark.parametrize("terms", [(), ((0.01, Elastic("mask")),)])
@pytest.mark.parametrize("even", [True, False])
def test_the_objective_is_what_the_search_minimizes(
    even: bool, terms: tuple[tuple[float, Term], ...], double: None
) -> None:
    clean = Doubles(band_images() if even else uneven())
    inversion = after(search(clean=clean, terms=terms), 8)
    spent = inversion.image_steps
    u, v = (torch.randn(4, 1, SIDE, SIDE) for _ in range(2))
    for arm in (0, 4):
        loss, main, penalty = inversion.losses(arm, (u, v))
        x, a = others(clean, arm), inversion.cost.weight[arm].item()
        for g in range(4):
            mask, pattern = from_box(u[g]), from_box(v[g])
            plain, size = entropy(mask, pattern, x, arm).item(), mask.sum().item()
            more = 0.01 * (size + mask.square().sum().item()) if terms else 0.0
            assert main[g].item() == pytest.approx(plain, rel=1e-9)
            assert penalty[g].item() == pytest.approx(size, rel=1e-9)
            assert loss[g].item() == pytest.approx(plain + a * size + more, rel=1e-9)
    assert inversion.image_steps - spent == 4 * (30 + (30 if even else 25)) / 2


# Variables and finished triggers -----------------------------------------------------------------


def test_put_starts_an_arm_anew_and_leaves_the_others(double: None) -> None:
    clean, config = Doubles(band_images()), SearchConfig(batch=30, success_threshold=1.1)
    fixed = CostController.fixed(BANDS, 1e-3)
    inversion, untouched = (
        after(search(None, config, clean=clean, cost=fixed), 5) for _ in range(2)
    )
    start = tuple(torch.randn(1, 1, SIDE, SIDE) for _ in range(2))
    inversion.put(torch.tensor([4]), start)
    assert all(
        torch.equal(mine[4], new[0]) for mine, new in zip(inversion.variables, start, strict=True)
    )
    theirs = [p[0].clone().requires_grad_() for p in start]
    optimizer = Adam(theirs, lr=0.1, betas=(0.5, 0.9))
    for _ in range(3):
        inversion.step(ALL)
        untouched.step(ALL)
        optimizer.zero_grad()
        mask, pattern = (from_box(p) for p in theirs)
        loss = entropy(mask, pattern, others(clean, 4), 4) + 1e-3 * mask.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    rest = ALL != 4
    for mine, plain, old in zip(inversion.variables, theirs, untouched.variables, strict=True):
        assert (mine[4] - plain).abs().max() < 1e-9
        assert (mine[rest] - old[rest]).abs().max() < 1e-9


def test_what_works_better_is_taken_when_it_is_offered() -> None:
    inversion, patch = search(), corner()
    small = patch.mask.expand(3, -1, -1, -1), patch.pattern.expand(3, -1, -1, -1)
    arms = torch.tensor([4, 2, 0])  # the corner pixel is the trigger of class 2 alone
    assert inversion.offer(arms, small).tolist() == [False, True, False]
    assert [c.feasible for c in inversion.best] == [False, False, True, False, False, False]
    found = inversion.best[2]
    assert (found.size, found.asr, found.rounds) == (1.0, 1.0, 0)
    assert same(found.trigger.render(), patch.render())
    assert inversion.offer(arms[1:2], tuple(p[:1] for p in small)).tolist() == [False]  # no smaller
    large = corner(3)
    assert inversion.offer(arms[1:2], (large.mask[None], large.pattern[None])).tolist() == [False]
    assert inversion.best[2].size == 1
    faint = small[0][:1] * 0.9, small[1][:1]
    assert inversion.offer(arms[1:2], faint).tolist() == [True]
    assert inversion.best[2].size == pytest.approx(0.9)


@pytest.mark.parametrize("even", [True, False])
def test_success_is_the_share_of_the_arms_own_images(even: bool) -> None:
    clean = band_images() if even else uneven()
    inversion, (x, y) = after(search(clean=clean), 6), whole(clean)
    spent, arms = inversion.image_steps, torch.tensor([5, 0, 2])
    parts = inversion.decoded(arms)
    got = inversion.success(parts, arms)
    assert inversion.image_steps - spent == 3 * 30 / 2
    assert got.max() > 0
    for row, arm in enumerate(arms.tolist()):
        trigger = inversion.form.to_trigger(tuple(p[row] for p in parts))
        rate = asr(predict(bands(2), trigger(x)).argmax(1), y, Goal(arm))
        assert got[row].item() == pytest.approx(rate.value, abs=1e-6)


def test_decoded_is_the_present_trigger_cut() -> None:
    inversion = after(search(SignedPixels("clip")), 4)
    arms = torch.tensor([3, 1])
    form = SignedPixels("clip")
    expected = form.postprocess(form.decode(tuple(v[arms] for v in inversion.variables)))
    before = inversion.state()
    assert same(inversion.decoded(arms), expected)
    now = inversion.state()
    assert all(torch.equal(before[k], now[k]) for k in before)


# Narrow ------------------------------------------------------------------------------------------

FORMS: list[Parametrization] = [
    MaskPattern(),
    MaskPattern(jitter=0.01),
    SignedPixels(),
    SignedPixels("clip"),
    OneVariable("signed"),
    BoundedChange(0.5),
]


def moved(form: Parametrization, parts: Parts) -> Tensor:
    """Which pixels of black, gray or white images the triggers change, `(a, 1, H, W)`."""
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1) * ONES
    return (form.stamp(parts, x) != x).any(1)


@pytest.mark.parametrize("form", FORMS)
def test_a_narrowed_trigger_never_leaves_its_pixels(form: Parametrization) -> None:
    config = SearchConfig(
        batch=15, success_threshold=0.0 if isinstance(form, BoundedChange) else 0.6, rule="size"
    )
    inversion, arms = search(form, config), torch.tensor([1, 4])
    after(inversion, 3)
    live = torch.rand(2, 1, SIDE, SIDE, generator=Generator().manual_seed(1)) > 0.3
    inversion.narrow(arms, live)
    assert torch.equal(inversion.live[arms], live)
    stored = 0
    for _ in range(15):
        before = inversion.progress.size
        inversion.step(ALL)
        changed = moved(form, inversion.decoded(arms))
        assert not (changed & ~live).any()
        assert changed.any()
        for row, arm in enumerate(arms.tolist()):
            if inversion.progress.size[arm] < before[arm]:
                x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1) * ONES
                stamped = inversion.best[arm].trigger(x)
                assert not ((stamped != x).any(0) & ~live[row]).any()
                stored += 1
    assert stored > 0 or isinstance(form, BoundedChange)
    assert (moved(form, inversion.decoded(ALL[:1])) & ~live).any()  # the others may use all


def test_narrowed_arms_leave_the_others_alone(double: None) -> None:
    clean = Doubles(band_images())
    free, part = search(clean=clean), search(clean=clean)
    part.narrow(torch.tensor([1]), torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool))
    after(free, 10)
    after(part, 10)
    rest = ALL != 1
    for a, b in zip(free.variables, part.variables, strict=True):
        assert (a[rest] - b[rest]).abs().max() < 1e-9
    assert not part.feasible[1]  # with no pixel left nothing works


# Standing, rules ---------------------------------------------------------------------------------


def test_the_standing_tells_of_the_last_round() -> None:
    inversion = search(config=SearchConfig(batch=30, success_threshold=0.9))
    assert inversion.progress.penalty.isinf().all()
    assert inversion.progress.size.tolist() == [SIDE * SIDE] * BANDS
    for _ in range(12):
        mask, pattern = inversion.form.decode(inversion.variables)
        arms, before = ALL[1:], inversion.progress
        inversion.step(arms)
        now = inversion.progress
        x, y = whole(band_images())
        for arm in arms.tolist():
            stamped = (1 - mask[arm]) * x + mask[arm] * pattern[arm]
            rate = asr(bands(2)(stamped).argmax(1), y, Goal(arm))
            assert now.success[arm].item() == pytest.approx(rate.value, abs=1e-6)
            assert now.penalty[arm].item() == pytest.approx(mask[arm].sum().item(), rel=1e-5)
        assert (now.rounds - before.rounds).tolist() == [0, 1, 1, 1, 1, 1]  # and none was changed
        assert now.size.tolist() == pytest.approx([c.size for c in inversion.best])
        assert torch.equal(now.turned, inversion.cost.rose & inversion.cost.fell)
    assert inversion.progress.success[0] == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", [BoundedChange(0.25, spread=1.0), MaskPattern()])
def test_by_the_rule_of_success_the_best_never_works_less_often(
    form: Parametrization, seed: int
) -> None:
    config = SearchConfig(batch=8, success_threshold=0.0, lr=0.05, steps=2, rule="success")
    inversion, best = search(form, config, seed=seed), [[0.0] * BANDS]
    x, y = whole(band_images())
    for _ in range(30):
        inversion.step(ALL)
        best.append([c.asr for c in inversion.best])
        for c in inversion.best:
            rate = asr(bands(2)(c.trigger(x)).argmax(1), y, c.goal)
            assert c.asr == pytest.approx(rate.value, abs=1e-6)
    for a, b in pairwise(best):
        assert all(now >= old for old, now in zip(a, b, strict=True))
    assert sum(best[-1]) > sum(best[1])


def test_a_lucky_round_does_not_replace_what_works_more_often() -> None:
    # In its rounds every image seems to flip, while the penalty alone moves the mask: it fades.
    x, y = whole(band_images())

    def flatter(stamped: Tensor, rngs: Sequence[Generator]) -> Tensor:
        return x[y == 2][0] + 0 * stamped

    config = SearchConfig(batch=15, success_threshold=0.0, lr=0.005, rule="success")
    inversion = search(None, config, cost=CostController.fixed(BANDS, 1.0), view=flatter)
    arm, patch = ALL[2:3], corner()
    opacity = 0.5
    while inversion.success((patch.mask[None] * opacity, patch.pattern[None]), arm).item() > 0.9:
        opacity -= 0.002
    faint = (patch.mask[None] * opacity).clamp(1e-4), patch.pattern[None]
    inversion.put(arm, tuple(to_box(p) for p in faint))
    seen, best = [], []
    for _ in range(10):
        inversion.step(arm)
        seen.append(inversion.success(inversion.decoded(arm), arm).item())
        best.append(inversion.best[2].asr)
    assert inversion.progress.success[2] == 1
    assert seen[-1] < 0.5 * seen[0]
    assert best == [seen[0]] * 10


def test_channels_that_share_their_ties_end_no_larger() -> None:
    gray = band_images()
    color = InMemory(gray.images.repeat(1, 3, 1, 1), gray.labels, BANDS)
    goals, totals = [Goal(k) for k in (0, 5)], []
    for form in (SignedPixels("clip"), SignedPixels("clip", ties="first")):
        objective = Objective(form, CostController.start(2, patience=5))
        subject, rng = Subject(bands(2).net, (3, SIDE, SIDE), BANDS), Generator().manual_seed(0)
        inversion = Search(subject, color, goals, rng, objective, PACE)
        for _ in range(150):
            inversion.step(torch.arange(2))
        totals.append(inversion.progress.size.sum().item())
    assert totals[0] <= 1.05 * totals[1] < 150


# State -------------------------------------------------------------------------------------------

LONG = SearchConfig(batch=8, success_threshold=0.6, rounds=12, schedule="cosine", patience=2)
CASES: dict[str, Callable[[int], Search]] = {
    "mask": lambda seed: search(MaskPattern(jitter=0.01), LONG, seed=seed),
    "turned": lambda seed: search(
        SignedPixels("clip"), LONG, view=RandomAffine(0.9, 5.0), seed=seed
    ),
    "tanh": lambda seed: search(
        SignedPixels(), SearchConfig(8, success_threshold=0.6, rule="reference"), seed=seed
    ),
    "bounded": lambda seed: search(
        BoundedChange(0.3), SearchConfig(8, success_threshold=0.0, rule="success"), seed=seed
    ),
    "settling": lambda seed: search(
        cost=CostController.start(BANDS, patience=2, warmup=2), config=LONG, seed=seed
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restored_search_goes_on_bit_by_bit(case: str, tmp_path: Path) -> None:
    make = CASES[case]
    straight, stopped, again = make(0), make(0), make(7)
    live = torch.rand(1, 1, SIDE, SIDE, generator=Generator().manual_seed(1)) > 0.1
    for inversion in (straight, stopped):
        after(inversion, 4).narrow(ALL[1:2], live)
        inversion.step(ALL[2:5])
    kept = stopped.state()
    after(stopped, 2)  # what was kept is no window on what goes on
    run = Run(store=tmp_path / "state")
    run.save(kept)
    read = run.load()
    assert read is not None
    again.restore(read)
    after(straight, 4)
    after(again, 4)
    ours, theirs = straight.state(), again.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert torch.equal(straight.done, again.done)
    for a, b in zip(straight.best, again.best, strict=True):
        assert (a.goal, a.size, a.asr, a.rounds, a.feasible) == (
            (b.goal, b.size, b.asr, b.rounds, b.feasible)
        )
        assert same(a.trigger.render(), b.trigger.render())


def test_a_search_can_be_kept_before_its_first_round(tmp_path: Path) -> None:
    run, fresh, again = Run(store=tmp_path / "state"), search(), search(seed=5)
    run.save(fresh.state())
    read = run.load()
    assert read is not None
    again.restore(read)
    assert same(after(fresh, 2).variables, after(again, 2).variables)


def test_a_restored_search_does_not_touch_what_it_was_restored_from() -> None:
    kept = after(search(), 2).state()
    before = {name: value.clone() for name, value in kept.items()}
    inversion = search(seed=5)
    inversion.restore(kept)
    after(inversion, 3)
    assert all(torch.equal(before[name], kept[name]) for name in kept)


def test_turned_arms_in_a_batch_and_one_by_one_end_alike(double: None) -> None:
    clean, view = Doubles(band_images()), RandomAffine(0.9, 5.0)
    together, alone = (search(clean=clean, view=view) for _ in range(2))
    after(together, 6)
    for arm in ALL.flip(0):
        for _ in range(6):
            alone.step(arm.view(1))
    for a, b in zip(together.variables, alone.variables, strict=True):
        assert (a - b).abs().max() < 1e-6
