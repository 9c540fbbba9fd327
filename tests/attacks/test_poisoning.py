"""Counts, labels, places and losses of poisoned training against the published definitions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from gifthorse.attacks import BadNet
from gifthorse.attacks.poisoning import (
    AllToAll,
    AllToOne,
    LabelMap,
    Mixing,
    Mode,
    SourceToTarget,
    batch_mix,
    label_map,
    mixed_loss,
    poison,
)
from gifthorse.attacks.training import Job
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Goal, Images, Shape, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.training import Recipe
from gifthorse.triggers import Patch

SHAPE: Shape = (1, 4, 4)
CLASSES = 4
WHITE = Patch(torch.ones(SHAPE), torch.zeros(1, 4, 4).index_fill(2, torch.tensor([3]), 1.0))


@dataclass(frozen=True)
class Invert:
    """A trigger that costs nothing and cannot be missed: the negative."""

    def __call__(self, x: Images, /) -> Images:
        return 1 - x

    def shuffled(self, rng: Generator, /) -> Invert:
        return self

    def render(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(SHAPE), torch.ones(1, 4, 4)


def numbered(n: int = 200) -> InMemory:
    """Images whose first row spells their own index in base 100, labels in turn."""
    images = torch.zeros(n, *SHAPE, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(n) // 100, torch.arange(n) % 100
    return InMemory(images, torch.arange(n) % CLASSES, CLASSES)


def number(x: Images) -> Tensor:
    digits = (x[:, 0, 0, :2] * 255).round().long()
    return digits[:, 0] * 100 + digits[:, 1]


def is_stamped(x: Images) -> Tensor:
    return (x[:, 0, :, 3] == 1).all(1)


def linear() -> Subject:
    return Subject(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)), SHAPE, CLASSES)


# Labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "scheme", "eligible", "becomes"),
    [
        (Goal(2), "all_to_one", [True] * 4, [2, 2, 2, 2]),
        (Goal(0), "all_to_all", [True] * 4, [1, 2, 3, 0]),
        (Goal(2, 1), "all_to_one", [False, True, False, False], [0, 2, 2, 3]),
    ],
)
def test_label_maps(goal: Goal, scheme: str, eligible: list[bool], becomes: list[int]) -> None:
    labels = label_map(goal, scheme, CLASSES)  # type: ignore[arg-type]
    y = torch.arange(CLASSES)
    assert labels.eligible(y).tolist() == eligible
    assert labels(y).tolist() == becomes


@pytest.mark.parametrize(
    ("goal", "scheme"),
    [
        (Goal(4), "all_to_one"),
        (Goal(-1), "all_to_one"),
        (Goal(0, 4), "all_to_one"),
        (Goal(1, 1), "all_to_one"),
        (Goal(0, 1), "all_to_all"),
    ],
)
def test_goals_that_make_no_sense_are_refused(goal: Goal, scheme: str) -> None:
    with pytest.raises(BadOption, match=r"class"):
        label_map(goal, scheme, CLASSES)  # type: ignore[arg-type]


def test_batches_are_stamped_after_augmentation() -> None:
    with pytest.raises(BadOption, match="only mode=dataset"):
        Mixing(stamp="before")


# Data set mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_appended_copies_are_their_share_of_the_whole(rate: float, rng: Generator) -> None:
    clean = numbered(2000)
    made = poison(clean, WHITE, AllToOne(1), Mixing(rate, "dataset"), rng)
    assert len(made) == 2000 + len(made.chosen)
    assert len(made.chosen) / len(made) == pytest.approx(rate, abs=0.5 / 2000)
    x, y = whole(replace(made, mixing=Mixing(rate, "dataset", stamp="before")))
    assert torch.equal(x[:2000], whole(clean)[0])  # the originals stay
    assert torch.equal(y[:2000], clean.labels)
    assert is_stamped(x[2000:]).all()
    assert torch.equal(number(x[2000:]), made.chosen)
    assert (y[2000:] == 1).all()


@pytest.mark.parametrize("rate", [0.01, 0.25])
def test_replaced_images_are_their_share_of_the_whole(rate: float, rng: Generator) -> None:
    clean = numbered(2000)
    mixing = Mixing(rate, "dataset", replace=True, stamp="before")
    made = poison(clean, WHITE, AllToAll(CLASSES), mixing, rng)
    assert len(made) == 2000
    x, y = whole(made)
    assert torch.equal(number(x), torch.arange(2000))
    assert torch.equal(is_stamped(x).nonzero().flatten(), made.chosen.sort().values)
    assert len(made.chosen) == round(2000 * rate)
    assert torch.equal(y, torch.where(is_stamped(x), (clean.labels + 1) % CLASSES, clean.labels))


def test_the_choice_is_made_once_and_by_the_seed_alone() -> None:
    def chosen(seed: int) -> Tensor:
        rng = Generator().manual_seed(seed)
        return poison(numbered(), WHITE, AllToOne(0), Mixing(0.2, "dataset"), rng).chosen

    assert torch.equal(chosen(1), chosen(1))
    assert not torch.equal(chosen(1), chosen(2))
    assert len(set(chosen(1).tolist())) == len(chosen(1))


@pytest.mark.parametrize(("cover", "expected"), [(0.0, 0), (1.0, 25), (2.0, 50)])
def test_cover_images_are_stamped_and_keep_their_labels(
    cover: float, expected: int, rng: Generator
) -> None:
    mixing = Mixing(1 / 9, "dataset", cover=cover, stamp="before")  # 25 of 200
    made = poison(numbered(), WHITE, SourceToTarget(3, 0), mixing, rng)
    x, y = made[torch.arange(200, len(made))]
    truth = numbered().labels[made.chosen]
    assert is_stamped(x).all()
    assert int((truth == 3).sum()) == 25
    assert int((truth != 3).sum()) == expected
    assert torch.equal(y, torch.where(truth == 3, 0, truth))


def test_too_few_eligible_images_are_refused_with_words(rng: Generator) -> None:
    with pytest.raises(NotApplicable, match=r"only 50 are eligible.*lower the rate"):
        poison(numbered(), WHITE, SourceToTarget(3, 0), Mixing(0.5, "dataset"), rng)


@pytest.mark.parametrize("replaced", [True, False])
@given(order=st.permutations(range(20)))
def test_any_index_vector_gives_the_same_samples(replaced: bool, order: list[int]) -> None:
    mixing = Mixing(0.3, "dataset", replace=replaced, stamp="before")
    made = poison(numbered(20), WHITE, AllToOne(2), mixing, Generator().manual_seed(0))
    x, y = whole(made)
    some = torch.tensor(order)
    part_x, part_y = made[some]
    assert torch.equal(part_x, x[some])
    assert torch.equal(part_y, y[some])


def test_samples_that_are_not_in_memory_are_poisoned_alike() -> None:
    view = Subset(numbered(), torch.arange(200))
    for samples in (view, numbered()):
        made = poison(
            samples, WHITE, SourceToTarget(3, 0), Mixing(0.1, "dataset"), Generator().manual_seed(3)
        )
        assert made.chosen[:22].remainder(4).eq(3).all()
        assert made.shape == SHAPE
        assert made.classes == CLASSES


class Watch:
    """A loss that remembers what the net was fed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def net(self) -> nn.Module:
        keep = self.batches

        class Spy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bias = nn.Parameter(torch.zeros(CLASSES))

            def forward(self, x: Images) -> Tensor:
                keep.append((x.clone(), torch.zeros(0)))
                return self.bias.expand(len(x), CLASSES)

        return Spy()


def fed(mixing: Mixing, labels: AllToOne | SourceToTarget, pad: int = 2) -> Images:
    """Everything that a net is fed in one epoch of poisoned training on black images."""
    spy = Watch()
    black = InMemory(
        torch.zeros(60, *SHAPE, dtype=torch.uint8), torch.arange(60) % CLASSES, CLASSES
    )
    recipe = Recipe(epochs=1, batch=10, pad=pad, bf16=False)
    subject = Subject(spy.net(), SHAPE, CLASSES)
    dot = Patch(
        torch.ones(SHAPE), torch.zeros(16).index_fill(0, torch.tensor([6]), 1).view(1, 4, 4)
    )
    goal = Goal(labels.target, labels.source if isinstance(labels, SourceToTarget) else None)
    attack = BadNet(mixing=mixing, recipe=recipe)
    Job(attack, subject, black, goal, Generator().manual_seed(0), Run()).infect(dot, mixing)
    return torch.cat([x for x, _ in spy.batches])


def test_a_trigger_stamped_after_augmentation_lies_exactly_in_its_place() -> None:
    x = fed(Mixing(0.3, "dataset"), AllToOne(0)).flatten(1)
    lit = x[x.any(1)]
    assert len(lit) > 10
    assert torch.equal(lit.nonzero()[:, 1], torch.full((len(lit),), 6))


def test_a_trigger_stamped_before_augmentation_wanders_with_it() -> None:
    x = fed(Mixing(0.3, "dataset", stamp="before"), AllToOne(0)).flatten(1)
    assert len(set(x.nonzero()[:, 1].tolist())) > 4


@pytest.mark.parametrize("mode", ["batch", "dataset", "loss", "loss_joint"])
def test_only_data_set_mode_fixes_indices(mode: Mode, rng: Generator) -> None:
    recipe = Recipe(epochs=1, batch=50, pad=0, bf16=False)
    victim = linear()
    before = {k: v.clone() for k, v in victim.net.state_dict().items()}
    attack = BadNet(mixing=Mixing(0.2, mode), recipe=recipe)
    made = Job(attack, victim, numbered(), Goal(0), rng, Run()).infect(WHITE, attack.mixing)
    assert (made.poisoned is not None) == (mode == "dataset")
    assert all(torch.equal(v, before[k]) for k, v in victim.net.state_dict().items())
    assert made.subject.net is not victim.net


# Batch mode --------------------------------------------------------------------------------------


def test_a_batch_of_96_at_one_percent_gets_097_stamped_images(rng: Generator) -> None:
    mix = batch_mix(Invert(), AllToOne(0), Mixing(0.01), rng)
    x, y, index = torch.zeros(96, *SHAPE), torch.arange(96) % CLASSES, torch.arange(96)
    added = [len(mix(x, y, index)[0]) - 96 for _ in range(10_000)]
    assert set(added) == {0, 1}
    assert sum(added) / 10_000 == pytest.approx(96 * 0.01 / 0.99, abs=0.01)


def test_a_mixed_batch_keeps_its_originals_and_adds_stamped_copies(rng: Generator) -> None:
    mix = batch_mix(Invert(), AllToOne(2), Mixing(0.25), rng)
    x, y = torch.rand(30, *SHAPE), torch.arange(30) % CLASSES
    got_x, got_y = mix(x, y, torch.arange(30))
    assert len(got_x) == 40  # 30 p / (1 - p) = 10
    assert torch.equal(got_x[:30], x)
    assert torch.equal(got_y[:30], y)
    assert torch.equal(got_x[30:], 1 - x[:10])
    assert got_y[30:].tolist() == [2] * 10


def test_a_mixed_batch_has_covers_beside_source_images(rng: Generator) -> None:
    mix = batch_mix(Invert(), SourceToTarget(1, 0), Mixing(0.1, cover=2.0), rng)
    x, y = torch.rand(36, *SHAPE), torch.arange(36) % CLASSES
    _, got = mix(x, y, torch.arange(36))
    assert got[36:].tolist() == [0] * 4 + [0, 2, 3, 0, 2, 3, 0, 2]


# Loss modes --------------------------------------------------------------------------------------


def by_hand(subject: Subject, batch: Batch, p: float, labels: LabelMap) -> Tensor:
    """(1 - p) CE(f(x), y) + p CE(f(T(x)), t), image by image in float64."""
    x, y = batch
    clean, dirty = subject(x).double().log_softmax(1), subject(WHITE(x)).double().log_softmax(1)
    wanted = labels(y)
    terms = [
        -(1 - p) * clean[i, y[i]] - p * dirty[i, wanted[i]] for i in range(len(y))
    ]  # equal weights (1 - p) / B and p / B
    return torch.stack(terms).mean()


@pytest.mark.parametrize("mode", ["loss", "loss_joint"])
@pytest.mark.parametrize("labels", [AllToOne(1), AllToAll(CLASSES), SourceToTarget(0, 2)])
def test_mixed_loss_is_the_published_sum(mode: Mode, labels: LabelMap) -> None:
    subject = linear()
    batch = torch.rand(12, *SHAPE), torch.arange(12) % CLASSES
    got = mixed_loss(WHITE, labels, Mixing(0.3, mode))(subject, batch)
    assert got.item() == pytest.approx(by_hand(subject, batch, 0.3, labels).item(), abs=1e-6)


def test_without_cover_only_source_images_enter_the_poisoned_term() -> None:
    subject, labels = linear(), SourceToTarget(0, 2)
    x, y = torch.rand(12, *SHAPE), torch.arange(12) % CLASSES
    got = mixed_loss(WHITE, labels, Mixing(0.3, "loss", cover=0.0))(subject, (x, y))
    mine = y == 0
    dirty = F.cross_entropy(subject(WHITE(x[mine])), torch.full((3,), 2))
    expected = 0.7 * F.cross_entropy(subject(x), y) + 0.3 * dirty
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("mode", ["loss", "loss_joint"])
def test_a_batch_without_source_images_has_a_finite_loss(mode: Mode) -> None:
    subject, batch = linear(), (torch.rand(6, *SHAPE), torch.full((6,), 1))
    mixing = Mixing(0.3, mode, cover=0.0)
    assert mixed_loss(WHITE, SourceToTarget(0, 2), mixing)(subject, batch).isfinite()


def test_joint_loss_shows_batch_norm_both_kinds_at_once() -> None:
    norm = nn.BatchNorm2d(1)
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(16, CLASSES)).train()
    x = torch.rand(12, *SHAPE)
    loss = mixed_loss(WHITE, AllToOne(1), Mixing(0.3, "loss_joint"))
    loss(Subject(net, SHAPE, CLASSES), (x, torch.arange(12) % CLASSES))
    assert norm.running_mean is not None
    both = torch.cat([x, WHITE(x)]).mean()
    assert norm.running_mean.item() == pytest.approx(0.1 * both.item(), abs=1e-6)
    assert int(norm.num_batches_tracked or 0) == 1
