"""Confirmation on unseen images, with triggers whose effect on the bands is known."""

from __future__ import annotations

import pytest
import torch
from tests.toys import BANDS, SIDE, band_images, bands, corner
from torch import Generator, Tensor

from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import Candidate, Goal, Images, Trigger
from gifthorse.data.samples import Subset, whole
from gifthorse.detection.confirmation import Suspect, confirm, evidence
from gifthorse.training import predict
from gifthorse.triggers import Patch

UNSEEN = band_images(each=4, seed=9)


def test_the_true_trigger_works_and_shuffled_ones_do_not(rng: Generator) -> None:
    seen = confirm(bands(2), corner(), Goal(2), UNSEEN, rng, Run(), controls=8)
    assert (seen.asr.value, seen.asr.trials) == (1.0, 20)
    assert (seen.no_trigger.value, seen.no_trigger.trials) == (0.0, 20)
    assert (seen.control.value, seen.control.trials) == (0.0, 160)
    assert seen.asr.low > seen.control.high


def test_only_images_of_the_source_count_where_there_is_one(rng: Generator) -> None:
    seen = confirm(bands(2), corner(), Goal(2, source=4), UNSEEN, rng, Run(), controls=3)
    assert (seen.asr.trials, seen.no_trigger.trials, seen.control.trials) == (4, 4, 12)


def test_what_a_trigger_does_to_further_classes_counts_as_well(rng: Generator) -> None:
    """The corner makes class 2 of classes 0 and 1, and never class 3 of class 4."""
    clean, goals = band_images(), (Goal(2, 1), Goal(3, 4))
    seen = confirm(bands(2), corner(), Goal(2, 0), clean, rng, Run(), also=goals)
    assert (seen.asr.value, seen.asr.trials) == (2 / 3, 18)
    assert seen.control.trials == 8 * 18
    shown = evidence(bands(2), corner(), Goal(2, 0), clean, Run(), also=goals)
    assert isinstance(shown["true_label"], Tensor)
    assert set(shown["true_label"].tolist()) == {0, 1, 4}


@pytest.mark.parametrize(
    ("goals", "named"),
    [
        ((Goal(2),), ("BD001", Goal(2))),
        ((Goal(2, 0),), ("BD002", Goal(2, 0))),
        ((Goal(2, 0), Goal(2, 1)), ("BD001", Goal(2))),
        ((Goal(2, 0), Goal(0, 1)), ("BD007", None)),
    ],
)
def test_a_finding_is_named_by_all_that_its_trigger_does(
    goals: tuple[Goal, ...], named: tuple[str, Goal | None]
) -> None:
    found = Candidate(goals[0], corner(), 1.0, 1.0, 1)
    assert Suspect(found, 1.0, True, also=goals[1:]).named == named


def test_a_trigger_of_another_class_confirms_nothing(rng: Generator) -> None:
    assert confirm(bands(2), corner(), Goal(3), UNSEEN, rng, Run()).asr.value == 0.0


def test_drift_is_what_the_net_does_without_a_trigger(rng: Generator) -> None:
    data = band_images(each=4, seed=9)
    wrong = type(data)(
        data.images, data.labels.roll(1), BANDS
    )  # a net that is wrong here and there
    x, y = whole(wrong)
    expected = asr(predict(bands(), x).argmax(1), y, Goal(2))
    assert expected.value > 0
    assert confirm(bands(), corner(), Goal(2), wrong, rng, Run()).no_trigger == expected


class Counting:
    """A trigger that counts how many controls were drawn from it."""

    def __init__(self) -> None:
        self.controls = 0

    def __call__(self, x: Images, /) -> Images:
        return corner()(x)

    def shuffled(self, rng: Generator, /) -> Trigger:
        self.controls += 1
        return corner().shuffled(rng)

    def render(self) -> tuple[Tensor, Tensor]:
        return corner().render()


@pytest.mark.parametrize("controls", [1, 5])
def test_controls_are_as_many_as_asked(controls: int, rng: Generator) -> None:
    trigger = Counting()
    seen = confirm(bands(2), trigger, Goal(2), UNSEEN, rng, Run(), controls=controls)
    assert trigger.controls == controls
    assert seen.control.trials == 20 * controls


def test_a_bright_band_is_no_better_than_its_control_where_place_does_not_matter(
    rng: Generator,
) -> None:
    # A veil over the whole image has only one arrangement: control and trigger are the same.
    veil = Patch(torch.ones(1, SIDE, SIDE), torch.full((1, SIDE, SIDE), 0.5))
    seen = confirm(bands(2), veil, Goal(2), UNSEEN, rng, Run())
    assert seen.asr.value == seen.control.value


def test_an_exhibit_shows_images_before_and_after() -> None:
    shown = evidence(bands(2), corner(), Goal(2), UNSEEN, Run(), count=5)
    before, after = shown["before"], shown["after"]
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert before.shape == after.shape == (5, 1, SIDE, SIDE)
    assert torch.equal(after, corner()(before))
    assert torch.equal(torch.as_tensor(shown["before_label"]), torch.as_tensor(shown["true_label"]))
    assert torch.as_tensor(shown["after_label"]).tolist() == [2] * 5
    assert 2 not in torch.as_tensor(shown["true_label"]).tolist()
    assert torch.equal(torch.as_tensor(shown["mask"]), corner().mask)


def test_an_exhibit_spreads_over_the_images_and_takes_no_more_than_there_are() -> None:
    shown = torch.as_tensor(
        evidence(bands(2), corner(), Goal(2), UNSEEN, Run(), count=99)["true_label"]
    )
    assert len(shown) == 20
    some = torch.as_tensor(
        evidence(bands(2), corner(), Goal(2, 5), UNSEEN, Run(), count=2)["true_label"]
    )
    assert some.tolist() == [5, 5]


def test_where_no_image_counts_nothing_is_claimed(rng: Generator) -> None:
    only = Subset(UNSEEN, (UNSEEN.labels == 2).nonzero().flatten())
    seen = confirm(bands(2), corner(), Goal(2), only, rng, Run())
    assert (seen.asr.trials, seen.asr.low, seen.asr.high) == (0, 0.0, 1.0)
    shown = evidence(bands(2), corner(), Goal(2), only, Run())
    assert len(torch.as_tensor(shown["before"])) == 0
