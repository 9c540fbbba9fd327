from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.report.examples import arms, backdoored, index, nothing_found, square

from gifthorse.core.types import Goal, Verdict
from gifthorse.report.facts import compared, cut, footprint, locate
from gifthorse.report.pictures import HEIGHT, heat, png, size_chart


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_picture_comes_back_pixel_by_pixel() -> None:
    pixels = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    image = decoded(png(pixels / 255))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())


def test_gray_nan_and_out_of_range_are_drawn() -> None:
    image = decoded(png(torch.tensor([[[0.0, 1.0, 2.0, -1.0, float("nan")]]])))
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 255, 255, 0, 0]]


def test_a_trigger_is_opaque_just_where_its_mask_is() -> None:
    pattern, mask = square()
    image = np.asarray(decoded(png(pattern, mask)))
    assert image.shape == (32, 32, 4)
    assert (image[..., 3] > 0).sum() == 9
    assert image[28, 28].tolist() == [255, 0, 0, 255]
    assert image[28, 29].tolist() == [255, 255, 51, 255]
    assert image[0, 0].tolist() == [0, 0, 0, 0]


def test_heat_is_black_where_nothing_changed_and_brightest_at_the_largest_change() -> None:
    before = torch.zeros(2, 3, 4, 4)
    after = before.clone()
    after[0, 1, 2, 3], after[1, 0, 0, 0] = 0.5, 1.0
    colors = heat(before, after)
    assert colors.shape == (2, 3, 4, 4)
    light = colors.sum(1)
    assert (light > 0).sum() == 2
    assert light[1, 0, 0] == light.max() > light[0, 2, 3]


def test_without_a_mask_the_footprint_is_what_changed() -> None:
    before = torch.rand(3, 3, 8, 8)
    after = before.clone()
    after[1, 2, 0:2, 1:4] += 0.5
    spot = footprint({"before": before, "after": after})
    assert spot is not None
    assert (spot.pixels, spot.box, spot.place) == (6, (1, 0, 4, 2), "upper left")
    assert footprint({"figure": 1.0}) is None


def test_faint_parts_of_a_mask_are_not_counted_as_pixels() -> None:
    mask = torch.full((32, 32), 0.01)
    mask[15:17, 15:17] = 0.8
    spot = locate(mask)
    assert (spot.pixels, spot.place) == (4, "center")
    assert spot.l1 == pytest.approx(4 * 0.8 + 1020 * 0.01)
    assert locate(torch.zeros(4, 4)).box is None
    assert locate(torch.ones(4, 4)).place == "across the image"


def test_sizes_are_compared_with_the_median_of_the_others() -> None:
    verdict = Verdict("x", 1.0, 2.0, "SUSPICIOUS", arms=arms([10.0, 30.0, 20.0, 40.0]))
    comparison = compared(verdict, Goal(0))
    assert comparison is not None
    assert (comparison.median, comparison.others) == (30.0, 3)
    assert comparison.ratio == pytest.approx(1 / 3)
    assert compared(verdict, Goal(7)) is None


@pytest.mark.parametrize("log", [False, True])
def test_the_cut_is_where_the_index_meets_the_threshold(log: bool) -> None:
    sizes = torch.tensor([5.0, 40.0, 50.0, 55.0, 60.0, 70.0, 80.0], dtype=torch.float64)
    scale = sizes.log() if log else sizes
    scores = index(scale.tolist())
    table = tuple(
        replace(arm, index=score) for arm, score in zip(arms(sizes.tolist()), scores, strict=True)
    )
    verdict = Verdict("x", max(scores), 2.0, "SUSPICIOUS", arms=table)
    middle = scale.quantile(0.5)
    expected = middle - 2 * 1.4826 * (scale - middle).abs().quantile(0.5)
    assert cut(verdict) == pytest.approx(float(expected.exp() if log else expected), rel=1e-3)
    assert cut(replace(verdict, score=123.0)) is None


def test_the_chart_marks_median_and_ends_on_its_axis() -> None:
    report = nothing_found()
    chart = size_chart(report, report.verdicts[0])
    assert chart is not None
    assert chart.named
    assert all(0 <= bar.y <= HEIGHT for bar in chart.bars)
    assert all(bar.y + bar.height == pytest.approx(HEIGHT) for bar in chart.bars)
    assert not any(bar.outlier for bar in chart.bars)
    assert chart.bars[3].title.startswith('class 3 "cat": 39.9 pixels, index')
    assert size_chart(report, replace(report.verdicts[0], arms=())) is None


def test_of_several_goals_with_one_target_the_smallest_is_drawn() -> None:
    report = backdoored()
    base = report.verdicts[1]
    pair = replace(base.arms[14], goal=Goal(14, source=2), size=4.3)
    chart = size_chart(report, replace(base, arms=(*base.arms, pair)))
    assert chart is not None
    assert [bar.size for bar in chart.bars if bar.number == 14] == [4.3]
