"""Classes in another order than the model's: noticed on images it was not found by."""

from __future__ import annotations

import pytest
import torch
from tests.toys import BANDS, Bands, band_images
from torch import Tensor

from gifthorse.core.errors import BadOption
from gifthorse.data.gallery import Gallery
from gifthorse.data.samples import InMemory
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.prepare import Prepared, prepare

NAMES = tuple(f"band {k}" for k in range(BANDS))
MOVED = torch.tensor([2, 0, 1, 3, 5, 4])  # what each class is called in the folder


def taken(labels: Tensor, *, reorder: bool = False, names: tuple[str, ...] = ()) -> Prepared:
    images = band_images().images
    gallery = Gallery(InMemory(images, labels, BANDS), "npz", class_names=names, sha256="")
    return prepare(Bands().eval(), BANDS, gallery, reorder=reorder)


def words(prepared: Prepared) -> str:
    return " ".join(check.message for check in prepared.checks)


def test_another_order_is_said_and_not_used() -> None:
    y = band_images().labels
    said = words(taken(MOVED[y]))
    assert "Clean accuracy is only 16.7%" in said
    assert "is right on 100.0%" in said
    assert "of images that this order was not found by" in said
    # the folder's class 2 is the model's 0, and so on
    assert "(0 is its 1, 1 is its 2, 2 is its 0, 4 is its 5, 5 is its 4)" in said
    assert "--class-order found" in said


def test_another_order_is_used_on_request() -> None:
    y = band_images().labels
    names = tuple(NAMES[int(k)] for k in MOVED.argsort())  # of the folder's numbers
    got = taken(MOVED[y], reorder=True, names=names)
    assert got.samples.labels.equal(y)
    assert got.preparation.class_names == NAMES
    assert got.preparation.accuracy.value == 1
    assert got.checks == taken(y).checks
    assert "on request: 0 is its 1" in got.preparation.notes[-1]


def test_the_right_order_is_left_alone() -> None:
    y = band_images().labels
    got = taken(y, reorder=True)
    assert got.samples.labels.equal(y)
    assert got.preparation.notes == ()


def test_chance_is_no_order() -> None:
    """Labels at random fit some order on the images it is found by, and no others."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        y = torch.randint(0, BANDS, (len(band_images().labels),), generator=rng)
        assert "another order" not in words(taken(y))


def test_only_two_answers_are_known() -> None:
    assert Inputs("nowhere", class_order="found").class_order == "found"
    with pytest.raises(BadOption, match="given or found; got 'mine'"):
        Inputs("nowhere", class_order="mine")
