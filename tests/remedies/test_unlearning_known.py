"""Unlearning what an earlier search found, and saying what was unlearned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from tests.remedies.badnet import CLEAN, GOAL, TUNING, planted, right, same, success
from tests.toys import corner
from torch import Generator

from gifthorse.core.errors import BadOption
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Inversion, Inverter, Samples, Subject
from gifthorse.remedies.unlearning import Unlearning
from gifthorse.triggers import Patch
from gifthorse.triggers.packing import packed


def rng() -> Generator:
    return Generator().manual_seed(0)


@dataclass(frozen=True)
class Never:
    """An inverter that must not be asked."""

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        raise AssertionError("searched again")


def knowing(*texts: str, inverter: Inverter = Never()) -> Unlearning:
    return vary(Unlearning(inverter), TUNING | {"triggers": texts})


def test_a_given_trigger_is_unlearned_without_a_search() -> None:
    made = planted().subject
    text = packed(planted().trigger, GOAL)
    healed, found = knowing(text).recovering(made, CLEAN, rng(), Run())
    assert [goal for _, goal in found] == [GOAL]
    assert packed(*found[0]) == text
    assert success(made) >= 0.9
    assert success(healed) <= 0.05
    assert right(made) - right(healed) <= 0.02
    assert same(healed, knowing(text)(made, CLEAN, rng(), Run()))


def test_what_cannot_be_a_trigger_is_refused_at_once() -> None:
    with pytest.raises(BadOption, match="no trigger is packed in 'nonsense'"):
        knowing("nonsense")


def test_a_trigger_of_another_size_is_refused() -> None:
    text = packed(corner(), Goal(0))  # 1 x 18 x 18, the images are 3 x 12 x 12
    with pytest.raises(BadOption, match=r"\(3, 12, 12\), but a trigger in triggers is \(1, 18"):
        knowing(text)(planted().subject, CLEAN, rng(), Run())


def test_a_patch_that_is_larger_than_the_image_would_not_pass_for_one() -> None:
    small = planted().trigger
    assert isinstance(small, Patch)
    wide = Patch(small.pattern.repeat(1, 1, 2), small.mask.repeat(1, 1, 2))
    with pytest.raises(BadOption, match="scan with images of the size that you repair with"):
        knowing(packed(wide, GOAL))(planted().subject, CLEAN, rng(), Run())
