"""GangSweep: features, the statistic against a closed form, and its verdict on the bands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.toys import BANDS, SIDE, band_images, bands, blob_images, blobs
from torch import Generator, nn

from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Samples, Subject, Verdict
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection.confirmation import Proof
from gifthorse.detection.gangsweep import GangSweep, Painter
from gifthorse.detection.scored import paced, penultimate
from gifthorse.detection.scored import verdict as judged
from gifthorse.detection.verdict import Scores
from gifthorse.models.folding import frozen
from gifthorse.triggers import Additive

# A mask may cost a class of the bands about 25 pixels of light; that is little beside the default
# allowance, under which no class has to look for its cheapest way.
TOY = GangSweep(width=8, batch=8, floor=10, lr=6e-3, weight=5.0, allowance=0.01)
SEEDS = (1, 4)
seeds = pytest.mark.parametrize("seed", SEEDS)


@cache
def verdict(planted: int | None, seed: int) -> Verdict:
    return TOY(bands(planted), band_images(8, seed), Generator().manual_seed(seed), Run())


# 1. Features and formulas ------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [nn.Module.eval, frozen], ids=["plain", "folded"])
def test_the_features_are_what_the_last_linear_layer_reads(prepare) -> None:  # type: ignore[no-untyped-def]
    net = blobs().net
    x, _ = whole(blob_images(each=4))
    read = penultimate(prepare(net), x)
    layer = next(m for m in net.modules() if isinstance(m, nn.Linear))
    assert read.shape == (20, 128)
    assert torch.allclose(layer(read), net(x), atol=1e-4)


def test_a_net_without_a_linear_layer_gives_its_logits() -> None:
    x, _ = whole(band_images(1))
    assert torch.equal(penultimate(bands().net, x), bands()(x))
    assert verdict(None, 1).statistics["features"] == 0


def test_no_hook_stays_behind_even_after_an_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    penultimate(net, torch.zeros(2, 1, 2, 2))
    with pytest.raises(RuntimeError):
        penultimate(net, torch.zeros(2, 1, 3, 3))
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_the_ratio_is_the_trace_of_the_covariance_over_the_squared_mean() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(40, 5))
    after = before + rng.normal(3.0, 0.5, size=(40, 5))
    shift = after - before
    want = np.trace(np.cov(shift.T)) + 0.25 * np.trace(np.cov(before.T))
    want /= np.sum(shift.mean(0) ** 2)
    got = GangSweep(ridge=0.25)._ratio(torch.from_numpy(before), torch.from_numpy(after))
    assert got.item() == pytest.approx(want)


def test_scores_are_depths_of_the_logarithm_and_do_not_depend_on_its_scale() -> None:
    ratios = torch.tensor([1.0, 1.2, 0.9, 0.01, 1.1])
    best = [_candidate(k, 1.0) for k in range(5)]
    ones = torch.ones(5)
    each = TOY._scores(nn.Identity(), best, ratios, ones).each
    logs = ratios.double().log().numpy()
    spread = max(0.2, 1.4826 * float(np.median(np.abs(logs - np.median(logs)))))
    assert each[3].item() == pytest.approx((np.median(logs) - logs[3]) / spread)
    assert torch.allclose(TOY._scores(nn.Identity(), best, ratios * 1e-6, ones).each, each)


def test_a_class_whose_mask_does_not_work_is_no_suspect() -> None:
    ratios, best = torch.tensor([1.0, 1.2, 0.9, 0.01, 1.1]), [_candidate(k, 1.0) for k in range(5)]
    best[3] = _candidate(3, 0.1)
    assert TOY._scores(nn.Identity(), best, ratios, torch.ones(5)).each[3] == 0


@pytest.mark.parametrize("shape", [(1, 18, 18), (3, 12, 12), (3, 7, 9)])
def test_masks_have_the_shape_of_the_images_and_lie_within_one(shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        painter = Painter(shape[0], 4)
    masks = painter(torch.rand(2, *shape) * 100)
    assert masks.shape == (2, *shape)
    assert masks.abs().max() <= 1


def _candidate(k: int, asr: float) -> Candidate:
    return Candidate(Goal(k), Additive(torch.zeros(1, SIDE, SIDE)), 1.0, asr, 1, asr >= 0.6)


# 2. The verdict ----------------------------------------------------------------------------------


@seeds
def test_it_flags_the_planted_class(seed: int) -> None:
    where = (seed + 1) % BANDS
    got = verdict(where, seed)
    assert got.label == "BACKDOORED"
    assert got.findings[0].goal == Goal(where)
    assert got.arms[where].index == got.score >= got.threshold
    # What to check, 1: the masks of different images are alike.
    assert got.statistics["mask_cosine"] > 0.95


@seeds
def test_it_does_not_flag_the_clean_bands(seed: int) -> None:
    got = verdict(None, seed)
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold


@seeds
def test_the_mask_lights_the_planted_corner(seed: int) -> None:
    mask = verdict((seed + 1) % BANDS, seed).findings[0].evidence["mask"]
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0, 0] == mask.max()


def test_a_verdict_is_complete() -> None:
    got = verdict(2, 1)
    assert [arm.goal for arm in got.arms] == [Goal(k) for k in range(BANDS)]
    assert got.settings == {k: str(v) for k, v in describe(TOY).items()}
    # 100 steps of 8 images for 6 classes; 20 search images forward, 20 unseen ones twice; and a
    # confirmation on 24 images, and 8 of them shown before and after.
    assert got.image_steps == 6 * (100 * 8 + 20 / 2 + 20) + 5 * 24 + 8
    assert got.seconds > 0


def test_the_size_hinge_makes_masks_smaller() -> None:
    sizes = []
    for weight in (0.0, 50.0):
        x, y = whole(band_images(4))
        run = Run()
        detector = GangSweep(width=4, epochs=3, weight=weight, allowance=0.0, lr=1e-2)
        rng = Generator().manual_seed(0)
        masks = detector._paint(frozen(bands().net), x[y != 0], 0, rng, run)
        sizes.append(masks.abs().mean().item())
    assert sizes[1] < sizes[0] / 2


def test_training_lowers_the_cross_entropy_to_the_target() -> None:
    x, y = whole(band_images(4))
    x, net = x[y != 0], frozen(bands().net)
    masks = GangSweep(width=4, epochs=3, lr=1e-2)._paint(
        net, x, 0, Generator().manual_seed(0), Run()
    )
    target = torch.zeros(len(x)).long()
    after = F.cross_entropy(net((x + masks).clamp(0, 1)), target)
    assert after < F.cross_entropy(net(x), target) / 4


def test_the_same_seed_gives_the_same_table_whatever_else_is_random() -> None:
    tables = []
    short = GangSweep(width=4, epochs=1, floor=3)
    for unrelated, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(unrelated)
        got = short(bands(1), band_images(), Generator().manual_seed(seed), Run())
        tables.append([(a.size, a.asr, a.index) for a in got.arms])
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_run_that_must_stop_gives_no_verdict() -> None:
    run = Run(budget=1000)
    got = TOY(bands(1), band_images(), Generator().manual_seed(0), run)
    assert got.label == "INCONCLUSIVE"
    assert [f.rule for f in got.findings] == ["IN003"]
    assert "1,000 image-steps" in got.findings[0].message


def test_too_few_images_are_refused() -> None:
    x = torch.zeros(6, 1, SIDE, SIDE, dtype=torch.uint8)
    with pytest.raises(NotApplicable, match="outside class 0"):
        TOY(bands(), InMemory(x, torch.zeros(6).long(), BANDS), Generator().manual_seed(0), Run())


# 3. From scores to a verdict ---------------------------------------------------------------------


def corner(light: float) -> Additive:
    """Light in the corner, or the same light elsewhere."""
    delta = torch.zeros(1, SIDE, SIDE)
    delta[0, 0, 0] = light
    return Additive(delta)


@dataclass(frozen=True)
class Given:
    """A scorer that finds what it is told to."""

    scores: tuple[float, ...]
    working: tuple[int, ...]
    missing: int = 0
    threshold: float = 2.0
    proof: Proof = Proof()
    size: float = 1.0

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, run: Run
    ) -> Scores:
        best = tuple(
            Candidate(
                Goal(k),
                corner(float(k in self.working)),
                self.size,
                1.0,
                1,
                k < BANDS - self.missing,
            )
            for k in range(BANDS)
        )
        return Scores(best, torch.tensor(self.scores))


@pytest.mark.parametrize(
    ("scores", "working", "missing", "label", "severities"),
    [
        ([0.0, 5.0, 0.0, 0.0, 0.0, 0.0], [1], 0, "BACKDOORED", ["CRITICAL"]),
        ([0.0, 5.0, 0.0, 0.0, 0.0, 0.0], [], 0, "SUSPICIOUS", ["MEDIUM"]),
        ([3.0, 5.0, 0.0, 0.0, 0.0, 0.0], [1], 0, "BACKDOORED", ["CRITICAL", "MEDIUM"]),
        ([5.0, 3.0, 0.0, 0.0, 0.0, 0.0], [1], 0, "BACKDOORED", ["CRITICAL", "MEDIUM"]),
        ([0.0, 1.9, 0.0, 0.0, 0.0, 0.0], [1], 0, "NO BACKDOOR FOUND", ["INFO"]),
        ([0.0, 1.9, 0.0, 0.0, 0.0, 0.0], [1], 4, "INCONCLUSIVE", ["INFO", "HIGH"]),
        ([0.0, 5.0, 0.0, 0.0, 0.0, 0.0], [1], 4, "BACKDOORED", ["CRITICAL", "HIGH"]),
    ],
)
def test_a_class_is_backdoored_only_if_it_stands_out_and_its_trigger_works(
    scores: list[float], working: list[int], missing: int, label: str, severities: list[str]
) -> None:
    scorer = Given(tuple(scores), tuple(working), missing)
    rng = Generator().manual_seed(0)
    got = judged(scorer, bands(1), band_images(), rng, Run())
    assert got.label == label
    assert [f.severity for f in got.findings] == severities


@pytest.mark.parametrize(("size", "label"), [(81.0, "BACKDOORED"), (82.0, "SUSPICIOUS")])
def test_what_covers_more_than_a_quarter_proves_nothing(size: float, label: str) -> None:
    scorer = Given((0.0, 5.0, 0.0, 0.0, 0.0, 0.0), (1,), size=size)  # of 18x18 pixels
    rng = Generator().manual_seed(0)
    got = judged(scorer, bands(1), band_images(), rng, Run())
    assert got.label == label
    assert got.findings[0].goal == Goal(1)


def test_work_is_counted_before_it_is_done_and_stops_at_the_limit() -> None:
    batch = (torch.zeros(1), torch.zeros(1))
    run = Run(budget=25)
    stream = paced([batch] * 5, run, 10.0)
    with pytest.raises(Incomplete, match="25 image-steps"):
        list(stream)
    assert run.image_steps == 30
