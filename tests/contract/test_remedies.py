"""What every remedy keeps to: it halves a backdoor, costs little, repeats, and spares its input."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import ATTACKS
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Remedy, Subject, Trigger
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.remedies import REMEDIES
from gifthorse.training import evaluate, predict

GOAL = Goal(2)
TRAIN, CLEAN, TEST = (blob_images(each=n, seed=s) for n, s in ((80, 0), (20, 2), (40, 1)))

# A hundred clean images and small batches; float32, since not all machines have bfloat16.
TOY: dict[str, object] = {
    "recipe.epochs": 10, "recipe.batch": 20, "recipe.lr": 0.05, "recipe.pad": 1,
    "recipe.bf16": False,
}  # fmt: skip

UNLEARNING: dict[str, object] = {
    "inverter.config.rounds": 60, "inverter.initial": 0.02, "pick": "smallest", "recipe.epochs": 5,
    "recipe.lr": 0.02, "inverter.config.bf16": False,
}  # fmt: skip

HARDENING: dict[str, object] = {
    "inverter.config.rounds": 40, "later": 20, "every": 4, "held": 0.2, "drop": 0.05,
    "recipe.lr": 0.01, "inverter.config.bf16": False,
}  # fmt: skip
SMALL: dict[str, object] = {"inverter.initial": 0.02, "inverter.patience": 3}

# What single remedies need besides, on images of 12 x 12 and a net that learned in seconds.
OWN: dict[str, dict[str, object]] = {
    "down_up": {"ratio": 0.4},
    "fine_tuning": {"recipe.epochs": 20, "recipe.decay": 0.1},
    "projection": {
        "width": 8, "recipe.epochs": 30, "recipe.lr": 0.5, "recipe.pad": 0,
    },
    "adversarial_retraining": {"eps": 0.1},
    "anp": {"steps": 120, "batch": 80},  # all that is not held out: the masks depend on no draw
    "hardening_nc": HARDENING | SMALL | {"every": 0, "share": 0.5},
    "hardening_nc_iterative": HARDENING | SMALL,
    "hardening_pixel": HARDENING | SMALL,
    "hardening_uap": HARDENING,
    "i_bau": {"batch": 10, "share": 0.5, "ascent": 20, "rounds": 2},
    "smoothing": {"copies": 20, "sigma": 0.1},
    "unlearning": UNLEARNING | {"inverter.config.steps": 0, "inverter.config.min_steps": 0},
    "unlearning_quick": UNLEARNING,
}  # fmt: skip

# Whose success turns on rounding: what is pruned is tuned again, on some processors to a half, on
# others to three quarters.
WAVERING = {"fine_pruning"}
# Why a remedy is not meant to help against an opaque patch on this net; its row checks that.
HELPLESS = {
    "hardening_uap": "changes of every pixel by 4/255 at most are not an opaque patch",
    "i_bau": "one faint change of the whole image is not an opaque patch",
    "clp": "no single channel carries the trigger in layers of 16 and 32 channels",
    "smoothing": "the noise is next to nothing beside an opaque patch",
}

# What takes away the smallest change that leads to a class, or the channels that few weights turn,
# faces a patch of one pixel. Of a patch of nine, as large as half a blob, neither is true on these
# nets: searches end in 14 to 30 pixels elsewhere, and seed and rounding decide what is left.
DOT = {"anp", "hardening_nc", "hardening_nc_iterative", "hardening_pixel"}

names = pytest.mark.parametrize("name", sorted(REMEDIES))


def toy(name: str, **changes: object) -> Remedy:
    """The remedy with a short recipe."""
    known = describe(REMEDIES[name])
    short = {key: value for key, value in TOY.items() if key in known} | OWN.get(name, {})
    return vary(REMEDIES[name], short | changes)


@cache
def implant(side: int, epochs: int) -> Implant:
    short = {f"recipe.{key}": value for key, value in describe(QUICK).items()}
    own = {"mixing.rate": 0.1, "stamp.size": side, "recipe.epochs": epochs}
    attack = vary(ATTACKS["badnet"], short | own)
    return attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())


def planted(name: str) -> Implant:
    """The backdoor that a remedy is given."""
    return implant(1, 12) if name in DOT else implant(3, QUICK.epochs)


@cache
def healed(name: str) -> Subject:
    return toy(name)(planted(name).subject, CLEAN, Generator().manual_seed(0), Run())


def success(subject: Subject, trigger: Trigger) -> float:
    x, y = whole(TEST)
    return asr(predict(subject, trigger(x)).argmax(1), y, GOAL).value


def right(subject: Subject) -> float:
    return accuracy(evaluate(subject, TEST), TEST.labels).value


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


@names
def test_it_halves_the_success_of_a_patch(name: str) -> None:
    given = planted(name)
    before, after = (success(s, given.trigger) for s in (given.subject, healed(name)))
    assert before >= 0.9
    if name in WAVERING:
        assert after < before
        return
    assert (after > before / 2) == (name in HELPLESS)


@names
def test_it_costs_little_accuracy(name: str) -> None:
    assert right(planted(name).subject) - right(healed(name)) <= 0.05


def test_only_remedies_that_are_there_are_singled_out() -> None:
    assert set(HELPLESS) | set(OWN) | DOT <= set(REMEDIES)


@names
def test_the_result_is_a_classifier_ready_for_use(name: str) -> None:
    made, given = healed(name), planted(name).subject
    assert not any(module.training for module in made.net.modules())
    assert (made.shape, made.classes) == (given.shape, given.classes)
    x = whole(TEST)[0][:5].requires_grad_()
    logits = deepcopy(made)(x)
    assert logits.shape == (5, 5)
    (slope,) = torch.autograd.grad(logits.max(1).values.sum(), x)
    assert slope.isfinite().all()
    assert (slope != 0).any()


@names
def test_what_it_says_of_an_image_does_not_depend_on_the_batch(name: str) -> None:
    x = whole(TEST)[0][:20]
    at_once = predict(healed(name), x)
    for size in (1, 7):
        assert torch.allclose(predict(healed(name), x, size), at_once, atol=1e-4)
    assert torch.equal(predict(healed(name), x), at_once)


@names
def test_the_same_seed_gives_the_same_result_whatever_else_is_random(name: str) -> None:
    torch.manual_seed(5)
    again = toy(name)(planted(name).subject, CLEAN, Generator().manual_seed(0), Run())
    kept = state(again)
    assert all(torch.equal(v, kept[k]) for k, v in state(healed(name)).items())
    x = whole(TEST)[0][:20]
    assert torch.equal(predict(again, x), predict(healed(name), x))


@names
def test_inputs_stay_as_they_were(name: str) -> None:
    given = deepcopy(planted(name).subject)
    given.net.requires_grad_(False)
    before, unrelated = state(given), torch.get_rng_state()
    clean = InMemory(CLEAN.images.clone(), CLEAN.labels.clone(), CLEAN.classes)
    made = toy(name)(given, clean, Generator().manual_seed(0), Run())
    assert all(torch.equal(v, before[k]) for k, v in given.net.state_dict().items())
    assert list(before) == list(given.net.state_dict())
    assert not any(module.training for module in given.net.modules())
    assert not any(p.requires_grad for p in given.net.parameters())
    assert torch.equal(clean.images, CLEAN.images)
    assert torch.equal(clean.labels, CLEAN.labels)
    assert torch.equal(torch.get_rng_state(), unrelated)
    theirs = {p.data_ptr() for p in given.net.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in made.net.parameters())


@names
def test_it_works_on_two_classes_of_gray_oblong_images(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(240, 2),
    )
    subject = Subject(Classifier(net, NORMALIZATIONS["none"], 1).eval(), (1, 7, 8), 2)
    labels = torch.arange(2).repeat(20)
    images = (torch.rand(40, 1, 7, 8) * 100 + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    clean = InMemory(images, labels, 2)
    short = {"recipe.epochs": 1} if "recipe.epochs" in describe(REMEDIES[name]) else {}
    made = toy(name, **short)(subject, clean, Generator().manual_seed(0), Run())
    logits = predict(made, whole(clean)[0])
    assert logits.shape == (40, 2)
    assert logits.isfinite().all()
