"""Whether clean images may be mirrored, on nets that know left from right and one that does not."""

from __future__ import annotations

import logging

import pytest
import torch
from tests.toys import BANDS, WIRED_CLASSES, band_images, bands, wired, wired_images

from gifthorse.data.samples import InMemory
from gifthorse.training import flippable


def test_a_net_that_reads_bright_columns_must_not_see_them_mirrored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Class k is the k-th block of columns: mirrored it is the last but k."""
    with caplog.at_level(logging.INFO, "gifthorse"):
        found = flippable(wired(), wired_images(each=4))
    assert WIRED_CLASSES % 2 == 0  # of an odd number one class stays where it is
    assert (found.plain.value, found.mirrored.value) == (1.0, 0.0)
    assert not found.harmless
    assert "must not be mirrored" in caplog.text


def test_a_net_that_reads_bright_rows_may(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gifthorse"):
        found = flippable(bands(), band_images(each=4))
    assert (found.plain.value, found.mirrored.value) == (1.0, 1.0)
    assert found.plain.trials == 4 * BANDS
    assert found.harmless
    assert "may be mirrored" in caplog.text


@pytest.mark.parametrize(("points", "harmless"), [(0.05, False), (0.24, False), (0.25, True)])
def test_a_few_points_are_no_harm(points: float, harmless: bool) -> None:
    """Of three classes the middle one stays where it is; a quarter of the images are of another."""
    shape = (3, 12, 14)
    net, data = wired(None, shape, 3), wired_images(4, 0, shape, 3)
    ones, zeros = (data.labels == 1).nonzero()[:3, 0], (data.labels == 0).nonzero()[:1, 0]
    index = torch.cat([ones, zeros])
    found = flippable(net, InMemory(data.images[index], data.labels[index], 3), points)
    assert (found.plain.value, found.mirrored.value) == (1.0, 0.75)
    assert found.harmless is harmless


def test_a_net_that_is_as_wrong_either_way_is_not_harmed() -> None:
    data = band_images(each=4)
    wrong = InMemory(data.images, data.labels.roll(1), BANDS)
    found = flippable(bands(), wrong)
    assert found.plain.value == found.mirrored.value == 0
    assert found.harmless
