"""Clean labels: only images of the target are stamped, and no label ever changes."""

from __future__ import annotations

import re

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks.badnet import BadNet
from gifthorse.attacks.poisoning import (
    CleanLabel,
    Mixing,
    SourceToTarget,
    batch_mix,
    check_supply,
    label_map,
    mixed_loss,
    poison,
)
from gifthorse.attacks.training import Job
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Images
from gifthorse.data.samples import InMemory, whole
from gifthorse.triggers import Patch

CLASSES, TARGET = 4, 2
BRIGHT = Patch(torch.ones(1, 2, 2), torch.ones(1, 2, 2))


def dark(n: int = 80) -> InMemory:
    images = torch.zeros(n, 1, 2, 2, dtype=torch.uint8)
    return InMemory(images, torch.arange(n) % CLASSES, CLASSES)


def lit(x: Images) -> Tensor:
    return x.flatten(1).any(1)


def test_the_map_wants_the_target_of_all_but_stamps_only_its_own() -> None:
    labels, y = label_map(Goal(TARGET), "clean_label", CLASSES), torch.arange(CLASSES)
    assert labels.eligible(y).tolist() == [False, False, True, False]
    assert labels(y).tolist() == [TARGET] * CLASSES
    with pytest.raises(BadOption, match="source class out"):
        label_map(Goal(TARGET, source=1), "clean_label", CLASSES)


@pytest.mark.parametrize("replaced", [True, False])
def test_poisoned_data_has_true_labels_and_stamps_on_one_class(
    replaced: bool, rng: Generator
) -> None:
    mixing = Mixing(0.1, "dataset", replace=replaced, cover=1.0, stamp="before")
    clean = dark()
    made = poison(clean, BRIGHT, CleanLabel(TARGET), mixing, rng)
    x, y = whole(made)
    truth = clean.labels if replaced else torch.cat([clean.labels, clean.labels[made.chosen]])
    assert torch.equal(y, truth)
    assert int(lit(x).sum()) == (8 if replaced else 9)
    assert (y[lit(x)] == TARGET).all()


def test_batches_have_true_labels_and_stamps_on_one_class(rng: Generator) -> None:
    x, y = whole(dark())
    mix = batch_mix(BRIGHT, CleanLabel(TARGET), Mixing(0.1, cover=1.0), rng)
    got_x, got_y = mix(x, y, torch.arange(len(y)))
    assert 8 <= int(lit(got_x).sum()) <= 9
    assert (got_y[lit(got_x)] == TARGET).all()
    assert torch.equal(got_y[:80], y)


@pytest.mark.parametrize("mode", ["loss", "loss_joint"])
def test_losses_ask_for_stamped_images_of_one_class(mode: str) -> None:
    subject, (x, y) = blobs(), whole(blob_images(each=4))
    white = Patch(torch.ones(3, 12, 12), torch.ones(1, 12, 12))
    mixing = Mixing(0.3, mode)  # type: ignore[arg-type]
    got = mixed_loss(white, CleanLabel(TARGET), mixing)(subject, (x, y))
    stamped = subject(torch.ones(1, 3, 12, 12)).log_softmax(1)[0, TARGET]
    clean = subject(x).log_softmax(1)[torch.arange(len(y)), y].mean()
    assert got.item() == pytest.approx(-(0.7 * clean + 0.3 * stamped).item(), abs=1e-5)


@pytest.mark.parametrize("mixing", [Mixing(0.4, "dataset", replace=True), Mixing(0.4, "dataset")])
def test_a_rate_above_the_share_of_the_class_is_refused_with_one_that_works(
    mixing: Mixing, rng: Generator
) -> None:
    with pytest.raises(NotApplicable, match="only 20 are eligible") as caught:
        poison(dark(), BRIGHT, CleanLabel(TARGET), mixing, rng)
    most = float(re.findall(r"to ([\d.]+)$", str(caught.value))[0])
    works = Mixing(most, "dataset", replace=mixing.replace)
    assert len(poison(dark(), BRIGHT, CleanLabel(TARGET), works, rng).chosen) == 20


def test_batch_mode_refuses_a_rate_that_it_cannot_keep(rng: Generator) -> None:
    check_supply(dark(), CleanLabel(TARGET), Mixing(0.2))
    check_supply(dark(), SourceToTarget(0, 1), Mixing(0.2))
    with pytest.raises(NotApplicable, match="lower the rate"):
        check_supply(dark(), CleanLabel(TARGET), Mixing(0.3))
    attack = BadNet(labels="clean_label", mixing=Mixing(0.3), recipe=QUICK)
    with pytest.raises(NotApplicable, match="lower the rate"):
        attack(blobs(), blob_images(each=4), Goal(TARGET), rng, Run())


def test_prepared_images_take_the_place_of_those_that_were_chosen(rng: Generator) -> None:
    """The stock spells its own number; each chosen image must come out as its own stand-in."""
    clean = dark()
    for replaced in (True, False):
        mixing = Mixing(0.2, "dataset", replace=replaced)
        made = poison(clean, BRIGHT, CleanLabel(TARGET), mixing, rng)
        count = len(made.chosen)
        pixels = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        stock = InMemory(pixels.clone(), torch.full((count,), TARGET), CLASSES)
        made = type(made)(clean, made.chosen, BRIGHT, made.labels, mixing, stock)
        order = torch.randperm(len(made), generator=rng)
        got = torch.empty(len(made)).index_copy(0, order, made[order][0][:, 0, 0, 0] * 255)
        expected = torch.zeros(len(made))
        where = made.chosen if replaced else torch.arange(80, 80 + count)
        expected[where] = torch.arange(1, count + 1).float()
        assert torch.equal(got.round(), expected)


def test_only_data_set_mode_prepares_images() -> None:
    attack = BadNet(recipe=QUICK)
    job = Job(attack, blobs(), blob_images(each=4), Goal(TARGET), Generator(), Run())
    with pytest.raises(BadOption, match="mode=dataset; got batch"):
        job.infect(BRIGHT, Mixing(0.2), prepare=lambda chosen: chosen)
