"""Dixon's test against its published table and simulation, and the layer that it is made on."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tests.toys import BLOB_CLASSES, bands, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Samples, Subject, Verdict
from gifthorse.detection.weight_signature import WeightSignature, dixon, last_layer

NOTHING = cast(Samples, None)  # the method has no use for images
# Dixon 1951, r10, the largest (or the smallest) of n values, one-sided 5 %; n = 3 to 10.
TABLE = {3: 0.941, 4: 0.765, 5: 0.642, 6: 0.560, 7: 0.507, 8: 0.468, 9: 0.437, 10: 0.412}


def head(weight: Tensor, conv: bool = False) -> Subject:
    """A net whose last layer has these weights, `(K, d)`."""
    classes, width = weight.shape
    last = nn.Conv2d(width, classes, 1) if conv else nn.Linear(width, classes)
    with torch.no_grad():
        last.weight.copy_(weight.view_as(last.weight))
    # An earlier layer that happens to have as many outputs must not be taken.
    first = nn.Linear(4, classes)
    return Subject(nn.Sequential(first, last).eval(), (1, 2, 2), classes)


def means(*values: float) -> Tensor:
    """Weights `(K, 3)` whose rows have these means."""
    return torch.tensor(values)[:, None] + torch.tensor([-0.5, 0.0, 0.5])


def judge(subject: Subject, **options: float) -> Verdict:
    return WeightSignature(**options)(subject, NOTHING, Generator().manual_seed(0), Run())


@pytest.mark.parametrize("n", TABLE)
def test_the_published_critical_values_have_a_chance_of_five_percent(n: int) -> None:
    gap = TABLE[n]
    values = [*torch.linspace(0, 1 - gap, n - 1).tolist(), 1.0]
    q, p = dixon(torch.tensor(values, dtype=torch.float64))
    assert q == pytest.approx(gap)
    assert p == pytest.approx(0.05, abs=0.0015)  # the table has three digits


@pytest.mark.parametrize("n", [3, 10, 43])
def test_the_chance_agrees_with_simulation(n: int, rng: Generator) -> None:
    draws = torch.randn(40_000, n, generator=rng, dtype=torch.float64).sort(1).values
    ratios = (draws[:, -1] - draws[:, -2]) / (draws[:, -1] - draws[:, 0])
    for share in (0.5, 0.1, 0.01):
        q = ratios.quantile(1 - share).item()
        _, p = dixon(torch.cat([torch.linspace(0, 1 - q, n - 1).double(), torch.ones(1).double()]))
        assert p == pytest.approx(share, abs=4 * (share * (1 - share) / 40_000) ** 0.5)


def test_equal_values_and_a_tie_at_the_top_are_no_outliers() -> None:
    assert dixon(torch.ones(5)) == (0.0, 1.0)
    q, p = dixon(torch.tensor([0.0, 1.0, 3.0, 3.0]))
    assert q == 0.0
    assert p == pytest.approx(1.0, abs=1e-6)


def test_the_ratio_is_of_the_high_side_only() -> None:
    assert dixon(torch.tensor([-9.0, 1.0, 1.1, 1.2, 1.3]))[1] > 0.5
    assert dixon(torch.tensor([9.0, 1.0, 1.1, 1.2, 1.3]))[1] < 0.001


def test_the_chance_stays_a_number_for_a_thousand_classes_and_an_enormous_outlier() -> None:
    q, p = dixon(torch.cat([torch.linspace(0, 1, 999), torch.tensor([1e9])]))
    assert q == pytest.approx(1.0)
    assert 0 < p < 1e-200


@pytest.mark.parametrize("conv", [False, True])
def test_a_class_with_large_weights_is_suspicious_and_no_more(conv: bool) -> None:
    got = judge(head(means(0.1, 0.12, 0.09, 0.8, 0.11, 0.1), conv))
    assert got.label == "SUSPICIOUS"
    assert got.score >= got.threshold
    (found,) = got.findings
    assert (found.rule, found.severity, found.goal) == ("BD008", "MEDIUM", Goal(3))
    assert "class 3" in found.message
    assert got.statistics["value_3"] == pytest.approx(0.8)
    assert got.statistics["q"] == pytest.approx((0.8 - 0.12) / (0.8 - 0.09), rel=1e-5)
    assert got.arms == ()
    assert got.image_steps == 0


def test_even_weights_are_not_suspicious() -> None:
    got = judge(head(means(0.1, 0.12, 0.09, 0.13, 0.11, 0.1)))
    assert got.label == "NO BACKDOOR FOUND"
    assert got.score < got.threshold
    assert [f.severity for f in got.findings] == ["INFO"]


def test_what_all_classes_share_has_no_part_in_the_score(rng: Generator) -> None:
    weight = torch.randn(10, 64, generator=rng)
    moved = 3 * (weight + torch.randn(1, 64, generator=rng))
    assert judge(head(moved)).score == pytest.approx(judge(head(weight)).score, rel=1e-4)


def test_one_clean_head_in_twenty_is_flagged(rng: Generator) -> None:
    flags = [
        judge(head(torch.randn(10, 16, generator=rng))).label == "SUSPICIOUS" for _ in range(200)
    ]
    assert 1 <= sum(flags) <= 22  # 10 expected, four deviations are 12


def test_significance_moves_the_threshold() -> None:
    subject = head(means(0.1, 0.12, 0.09, 0.17, 0.11, 0.1))
    p = judge(subject).statistics["p"]
    assert judge(subject, significance=p * 0.9).label == "NO BACKDOOR FOUND"
    assert judge(subject, significance=p * 1.1).label == "SUSPICIOUS"


def test_a_net_without_a_last_layer_is_told_so_in_words() -> None:
    got = judge(bands(1))
    assert got.label == "INCONCLUSIVE"
    assert (got.findings[0].rule, got.findings[0].severity) == ("IN004", "HIGH")
    assert "no linear layer" in got.findings[0].message


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_allow_no_verdict(spoil: float) -> None:
    weight = means(0.1, 0.2, 0.3)
    weight[1, 1] = spoil
    got = judge(head(weight))
    assert (got.label, got.findings[0].rule) == ("INCONCLUSIVE", "FS005")


def test_two_classes_allow_no_verdict() -> None:
    assert judge(head(means(0.1, 5.0))).label == "INCONCLUSIVE"


def test_the_last_layer_is_the_last_that_fits() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(3, 3)
    assert last_layer(nn.Sequential(first, second, nn.Linear(3, 7)), 3) is second
    spatial = nn.Conv2d(4, 3, 3)
    assert last_layer(nn.Sequential(first, spatial), 3) is first
    assert last_layer(nn.Sequential(spatial), 3) is None


def test_classes_are_listed_one_by_one_up_to_fifty(rng: Generator) -> None:
    few = judge(head(torch.randn(50, 4, generator=rng)))
    many = judge(head(torch.randn(51, 4, generator=rng)))
    assert sum(name.startswith("value_") for name in few.statistics) == 50
    assert not any(name.startswith("value_") for name in many.statistics)


def test_net_and_images_stay_as_they_were() -> None:
    subject, clean = blobs(), blob_images(each=1)
    before = {k: v.clone() for k, v in subject.net.state_dict().items()}
    got = WeightSignature()(subject, clean, Generator().manual_seed(0), Run())
    assert len([n for n in got.statistics if n.startswith("value_")]) == BLOB_CLASSES
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
