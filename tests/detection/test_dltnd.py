"""DLTND: its formulas against closed forms, and its verdict on the bands."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from tests.toys import BANDS, SIDE, band_images, bands
from torch import Generator, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Verdict
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection.dltnd import DLTND, Veil, _Contest, few, margin, soft_threshold
from gifthorse.search import PatchInit
from gifthorse.triggers import Patch

SEEDS = (0, 1)
planted_or_not = pytest.mark.parametrize("seed", SEEDS)


@cache
def verdict(planted: int | None, seed: int) -> Verdict:
    return DLTND()(bands(planted), band_images(8, seed), Generator().manual_seed(seed), Run())


# 1. Formulas -------------------------------------------------------------------------------------


def test_the_soft_threshold_minimizes_its_proximal_objective() -> None:
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    for m in (-0.8, -0.05, 0.0, 0.05, 0.3, 0.9, 1.7):
        for by in (0.0, 0.1, 0.5):
            objective = (grid - m) ** 2 / 2 + by * grid.abs()
            got = soft_threshold(torch.tensor(m, dtype=torch.float64), by).item()
            assert got == pytest.approx(grid[objective.argmin()].item(), abs=1e-4)


def test_the_soft_threshold_takes_one_step_size_for_each_label() -> None:
    m = torch.full((2, 1, 1, 2, 2), 0.5)
    out = soft_threshold(m, torch.tensor([0.1, 0.7]).view(-1, 1, 1, 1, 1))
    assert torch.allclose(out[0], torch.tensor(0.4))
    assert torch.equal(out[1], torch.zeros(1, 1, 2, 2))


def test_the_margin_is_the_lead_over_the_best_other_logit() -> None:
    z = torch.tensor([[[3.0, 1.0, -2.0], [0.0, 4.0, 4.5]]])
    assert margin(z, torch.tensor([[0, 1]])).tolist() == [[2.0, -0.5]]
    assert margin(z, torch.tensor([[2, 2]])).tolist() == [[-5.0, 0.5]]


def test_images_of_other_classes_are_to_leave_and_those_of_the_label_to_stay() -> None:
    x = torch.eye(3).view(3, 3, 1, 1)  # logits are the pixels themselves
    label = torch.tensor([[0, 1, 2]])
    sign = torch.tensor([[-1.0, 1.0, 1.0]])  # arm of label 0
    contest = _Contest(nn.Flatten(), x, label, sign)
    m, q = torch.zeros(1, 1, 3, 1, 1), torch.zeros(1, 1, 3, 1, 1)
    assert contest.terms(m, q).tolist() == [[-1.0, 1.0, 1.0]]  # only image 0 does as it should
    q[0, 0, 0] = 1.0
    assert contest.terms(m + 1, q).tolist() == [[-1.0, -1.0, -1.0]]  # all are class 0


def test_a_label_has_one_perturbation_or_one_for_each_image() -> None:
    x = torch.zeros(2, 1, 1, 2)
    contest = _Contest(nn.Flatten(), x, torch.zeros(1, 2).long(), torch.ones(1, 2))
    m = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 2)
    stamped = contest.stamped(m, torch.ones(1, 2, 1, 1, 2))
    assert stamped.flatten(1).tolist() == [[1.0, 1.0], [0.5, 0.5]]


def test_few_takes_at_most_so_many_of_each_class() -> None:
    x, y = whole(band_images(4))
    assert few(x, y, 2)[1].bincount().tolist() == [2] * BANDS
    assert len(few(x, y, 99)[0]) == len(x)


def test_a_veil_with_one_opacity_for_all_channels_is_a_patch() -> None:
    rng = Generator().manual_seed(0)
    x, pattern, mask = (torch.rand(n, 5, 5, generator=rng) for n in (3, 3, 1))
    veil, patch = Veil(pattern, mask.expand(3, 5, 5)), Patch(pattern, mask)
    assert torch.allclose(veil(x[None]), patch(x[None]))
    shuffled = veil.shuffled(Generator().manual_seed(1))
    same = patch.shuffled(Generator().manual_seed(1))
    assert torch.equal(shuffled.pattern, same.pattern)
    assert torch.equal(shuffled.mask, same.mask.expand(3, 5, 5))
    assert torch.equal(veil.render()[1], mask)


def test_each_channel_of_a_veil_has_its_own_opacity() -> None:
    mask = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    assert Veil(torch.ones(3, 1, 1), mask)(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [
        0,
        0.5,
        1,
    ]


# 2. The verdict ----------------------------------------------------------------------------------


@planted_or_not
def test_it_flags_the_planted_class(seed: int) -> None:
    where = (seed + 1) % BANDS
    got = verdict(where, seed)
    assert got.label == "BACKDOORED"
    assert got.findings[0].goal == Goal(where)
    assert got.arms[where].index == got.score >= got.threshold
    seen = got.findings[0].confirmation
    assert seen is not None
    assert seen.asr.value >= 0.6
    assert seen.asr.value - seen.control.value >= 0.3


def test_a_linear_net_is_the_limit_of_the_published_rule() -> None:
    # Whatever is stamped, the outputs move by the same vector: all labels have cosines near 1.
    published = DLTND(outlier=None, rounds=3)
    got = published(bands(None), band_images(8, 0), Generator().manual_seed(0), Run())
    assert all(arm.index > got.threshold for arm in got.arms if arm.feasible)


@planted_or_not
def test_it_does_not_flag_the_clean_bands(seed: int) -> None:
    got = verdict(None, seed)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold


def test_a_label_counts_only_if_its_mask_is_an_outlier_in_size() -> None:
    masks = torch.zeros(1, 5, 1, 3, 3)
    masks[0, :, 0, 0, 0] = torch.tensor([8.0, 8.0, 8.0, 8.0, 4.0])
    cosines, passed = torch.full((1, 5), 0.9), torch.ones(1, 5).bool()
    found = (masks, masks, cosines, cosines, passed)
    subject = replace(bands(), classes=5)
    # log 2 over the least deviation, 0.2, is 3.5.
    for outlier, want in ((None, [0.9] * 5), (2.0, [0, 0, 0, 0, 0.9]), (3.6, [0.0] * 5)):
        assert DLTND(outlier=outlier)._scores(subject, *found).each.tolist() == pytest.approx(want)


def test_among_two_classes_no_size_is_an_outlier() -> None:
    with pytest.raises(NotApplicable, match="set outlier to null"):
        DLTND()(replace(bands(), classes=2), band_images(2), Generator().manual_seed(0), Run())


@pytest.mark.parametrize("probe", [PatchInit(), None], ids=["probe", "nothing"])
def test_a_universal_perturbation_begins_transparent(probe: PatchInit | None) -> None:
    x, _ = whole(band_images(2))
    detector = DLTND(probe=probe)
    m, q = detector._start(bands(2).net, x, Generator().manual_seed(0), Run())
    assert m.shape == q.shape == (BANDS, 1, SIDE, SIDE)
    assert set(m.flatten().tolist()) <= {0.0, 1.0}
    assert int(m[2].sum()) == (4 if probe else 0)  # a patch of 2 x 2
    if probe:
        assert m[2, 0, 0, 0] == 1  # on the planted corner
    assert (q[m == 0] == 0.5).all()


def test_from_nothing_a_pixel_grows_only_if_its_step_is_larger_than_what_is_taken() -> None:
    # Adam moves it by lr, the threshold takes lr / c: at c of 1 or less it never leaves 0.
    x = torch.zeros(2, 1, 1, 2)
    x[0, ..., 0], x[1, ..., 1] = 1.0, 1.0
    label = torch.tensor([[0, 1]])
    contest = _Contest(nn.Flatten(), x, label, torch.tensor([[1.0, 1.0]]))
    detector = DLTND(steps=10)
    for c, grown in ((0.5, 0.0), (4.0, 10 * 0.01 * 3 / 4)):
        start = torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2)
        m, _ = detector._solve(contest, torch.tensor([c]), 0.01, start, Run())
        assert m.max().item() == pytest.approx(grown, abs=5e-3)


@planted_or_not
def test_the_universal_mask_covers_the_planted_corner(seed: int) -> None:
    mask = verdict((seed + 1) % BANDS, seed).findings[0].evidence["mask"]
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0, 0] == mask.max()


def test_of_a_planted_model_the_true_target_has_the_highest_cosines() -> None:
    # Without the test on sizes, scores are the published ones.
    published = DLTND(outlier=None, rounds=3)
    got = published(bands(2), band_images(8, 0), Generator().manual_seed(0), Run())
    assert max(got.arms, key=lambda arm: arm.index).goal == Goal(2)
    assert got.arms[2].index > 0.95


def test_bisection_moves_towards_the_border_of_success_each_label_on_its_own() -> None:
    seen: list[tuple[list[float], list[bool]]] = []

    class Spy(DLTND):
        def _solve(self, contest, c, lr, start, run):  # type: ignore[no-untyped-def]
            out = super()._solve(contest, c, lr, start, run)
            if start[0].shape[1] == 1:
                done = (contest.terms(*out) <= 0).float().mean(1) > self.passed
                seen.append((c.tolist(), done.tolist()))
            return out

    Spy(rounds=4)(bands(1), band_images(8, 0), Generator().manual_seed(0), Run())
    assert seen[0][0] == pytest.approx([0.01] * BANDS)
    for k in range(BANDS):
        low, high = 0.0, 6.0
        for (now, done), (then, _) in pairwise(seen):
            low, high = (low, now[k]) if done[k] else (now[k], high)
            assert then[k] == pytest.approx((low + high) / 2)


def test_labels_in_turns_score_as_labels_together() -> None:
    data = band_images(8, 0)
    short = {"rounds": 2, "steps": 30}
    together = DLTND(**short)(bands(1), data, Generator().manual_seed(0), Run())  # type: ignore[arg-type]
    turns = DLTND(max_batch=50, **short)(bands(1), data, Generator().manual_seed(0), Run())  # type: ignore[arg-type]
    for a, b in zip(together.arms, turns.arms, strict=True):
        assert a.size == pytest.approx(b.size, rel=0.05)
        assert a.feasible == b.feasible


def test_a_verdict_is_complete() -> None:
    got = verdict(1, 0)
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert got.settings == {k: str(v) for k, v in describe(DLTND()).items()}
    # A probe asks about 8 images, bare and with 4 patches at 17 by 17 places, forward alone.
    probe = 8 * (1 + 4 * 17 * 17) / 2
    # 24 images by 6 labels: two steps each for the single and 8 universal runs, a half and 1.5 a
    # round to look at them; a confirmation on 24 images, and 8 of them shown before and after.
    assert got.image_steps == probe + 144 * (2 * 101 * 9 + 0.5 + 1.5 * 8) + 5 * 24 + 8
    assert got.seconds > 0


def test_a_run_that_must_stop_gives_no_verdict() -> None:
    run = Run(budget=1000)
    got = DLTND(probe=None)(bands(1), band_images(), Generator().manual_seed(0), run)
    assert got.label == "INCONCLUSIVE"
    assert [f.rule for f in got.findings] == ["IN003"]
    assert "1,000 image-steps" in got.findings[0].message
    assert got.image_steps < 1400


def test_images_of_one_class_are_refused() -> None:
    x = torch.zeros(6, 1, SIDE, SIDE, dtype=torch.uint8)
    with pytest.raises(NotApplicable, match="two or more classes"):
        DLTND()(
            bands(), InMemory(x, torch.zeros(6).long(), BANDS), Generator().manual_seed(0), Run()
        )


def test_the_smallest_solution_stands_for_a_label_or_a_better_one_nearly_as_small() -> None:
    sums = torch.tensor([[10.0, 40.0], [10.5, 30.0], [12.0, 10.9], [5.0, 0.2]])  # (R, K)
    masks = torch.zeros(4, 2, 1, 3, 3)
    masks[..., 0, 0] = sums[..., None]
    quantiles = torch.tensor([[0.1, 0.9], [0.8, 0.9], [0.99, 0.3], [0.9, 0.9]])
    passed = torch.tensor([[True, True], [True, True], [True, True], [False, True]])
    detector = DLTND(outlier=None)
    got = detector._scores(replace(bands(), classes=2), masks, masks, quantiles, quantiles, passed)
    # Label 0: 10 is the smallest of all, 10.5 is near and better, 12 too large, 5 has not passed.
    # Label 1: only 10.9 is near; 0.2 is an empty mask.
    assert got.each.tolist() == pytest.approx([0.8, 0.3])
    assert [c.size for c in got.best] == pytest.approx([10.5, 10.9])
