"""What every attack keeps to: it implants on the blobs, repeats, and leaves its inputs alone."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.toys import QUICK, blob_images, blobs
from torch import Generator, Tensor

from gifthorse.attacks import ATTACKS
from gifthorse.core.metrics import accuracy, asr
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Attack, Goal, Implant, Subject
from gifthorse.data.samples import InMemory
from gifthorse.models.load import save
from gifthorse.training import evaluate, fit, predict
from gifthorse.triggers.storage import open_trigger, pack

GOAL = Goal(2)
TRAIN, TEST = blob_images(), blob_images(each=40, seed=1)
# A tenth of stamped images stands in for the epochs and the images that the toy does not have.
TOY = {
    "recipe.epochs": 6, "recipe.batch": 32, "recipe.lr": 0.1, "recipe.pad": 1, "recipe.bf16": False,
    "mixing.rate": 0.1,
}  # fmt: skip

# What single attacks need besides, on images of 12 x 12 and a net that learns in seconds.
OWN: dict[str, dict[str, object]] = {
    "blind": {"wait": 8},
    "ftrojan": {"magnitude": 300.0, "window": 12, "mixing.rate": 0.2},
    "input_aware": {
        "recipe.epochs": 18, "mixing.rate": 0.25, "lr": 0.003, "masking.epochs": 3,
        "masking.weight": 10.0, "masking.density": 0.2,
    },
    "invisible": {"eps": 1.5, "start": 40, "steps": 10},
    "label_consistent": {
        "steps": 20, "eps": 0.4, "stride": 0.05, "mixing.rate": 0.16, "stamp.size": 5,
        "recipe.epochs": 10, "recipe.smoothing": 0.3,
    },
    "latent": {"passes": 3},
    "lsb": {"planes": 6, "mixing.rate": 0.2},
    "natural": {"inverter.config.rounds": 60},
    "sig": {
        "strength": 1.0, "frequency": 5, "mixing.rate": 0.16, "recipe.smoothing": 0.2,
    },
    "imc_nc": {"fidelity.efficacy": 0.99},
    "imc_mp": {
        "mp.recipe.lr": 3.0, "mp.recipe.batch": 32, "mp.recipe.pad": 0, "mp.recipe.bf16": False,
    },
    "trojannet": {"recipe.epochs": 40},
    "wanet": {"recipe.epochs": 15, "mixing.rate": 0.4, "strength": 2.0, "noise": 0.1},
    "reflection": {
        "search.epochs": 1, "search.batch": 32, "search.lr": 0.1, "search.pad": 1,
        "search.bf16": False, "candidates": 4, "selected": 2, "rounds": 2, "judge": 50,
        "mixing.rate": 0.3, "recipe.epochs": 8,
    },
}  # fmt: skip
OWN["refool"] = OWN["reflection"]

names = pytest.mark.parametrize("name", sorted(ATTACKS))


def toy(name: str, **changes: object) -> Attack:
    """The attack with a short recipe."""
    known = describe(ATTACKS[name])
    short = {key: value for key, value in TOY.items() if key in known} | OWN.get(name, {})
    return vary(ATTACKS[name], short | {k.replace("__", "."): v for k, v in changes.items()})


@cache
def grown() -> Subject:
    """A clean net; attacks that do not train it need one that is trained."""
    return fit(blobs(), TRAIN, QUICK, Generator().manual_seed(0), Run())


def victim(name: str) -> Subject:
    return grown() if name in ("trojannet", "natural") else blobs()


@cache
def implant(name: str, seed: int = 0) -> Implant:
    return toy(name)(victim(name), TRAIN, GOAL, Generator().manual_seed(seed), Run())


@cache
def clean() -> float:
    return accuracy(evaluate(grown(), TEST), TEST.labels).value


def hasty(name: str) -> Attack:
    """The attack with one epoch, where what it learns does not matter."""
    return toy(name, **{"recipe.epochs": 1} if "recipe.epochs" in describe(ATTACKS[name]) else {})


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


def success(made: Implant, test: InMemory = TEST) -> float:
    x, y = test[torch.arange(len(test))]
    return asr(predict(made.subject, made.trigger(x)).argmax(1), y, made.goal).value


@names
def test_it_implants(name: str) -> None:
    made = implant(name)
    assert success(made) >= 0.9
    assert clean() - accuracy(evaluate(made.subject, TEST), TEST.labels).value <= 0.05
    assert made.goal == GOAL
    assert not made.subject.net.training


@names
def test_a_clean_net_does_not_know_the_trigger(name: str) -> None:
    made = implant(name)
    if name == "natural":  # its trigger is what clean nets know
        assert success(Implant(grown(), made.trigger, GOAL)) >= 0.9
        return
    assert success(Implant(grown(), made.trigger, GOAL)) < 0.5


@names
def test_stamped_images_are_images(name: str) -> None:
    x, _ = TEST[torch.arange(20)]
    stamped = implant(name).trigger(x)
    assert stamped.shape == x.shape
    assert 0 <= stamped.min() <= stamped.max() <= 1
    assert not torch.equal(stamped, x)


@names
def test_the_trigger_survives_a_file(name: str, tmp_path: Path) -> None:
    """What was read back stamps as what was written; one that draws, as it draws next."""
    trigger, path = implant(name).trigger, tmp_path / "trigger.safetensors"
    parts, claims = pack(trigger)
    save(path, parts, claims)
    x, _ = TEST[torch.arange(20)]
    assert torch.equal(open_trigger(path)(x), trigger(x))


@names
def test_the_same_seed_gives_the_same_implant_whatever_else_is_random(name: str) -> None:
    short, start, runs = hasty(name), victim(name), []
    for unrelated, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(unrelated)
        made = short(start, TRAIN, GOAL, Generator().manual_seed(seed), Run())
        runs.append((state(made.subject), torch.cat(made.trigger.render())))
    assert torch.equal(runs[0][1], runs[1][1])
    assert all(torch.equal(v, runs[1][0][k]) for k, v in runs[0][0].items())
    other_trigger = not torch.equal(runs[0][1], runs[2][1])
    assert other_trigger or not all(torch.equal(v, runs[2][0][k]) for k, v in runs[0][0].items())


@names
def test_inputs_stay_as_they_were(name: str) -> None:
    start, pixels, labels = deepcopy(victim(name)), TRAIN.images.clone(), TRAIN.labels.clone()
    before, unrelated = state(start), torch.get_rng_state()
    made = hasty(name)(start, TRAIN, GOAL, Generator().manual_seed(0), Run())
    assert all(torch.equal(v, before[k]) for k, v in start.net.state_dict().items())
    assert not start.net.training
    assert torch.equal(TRAIN.images, pixels)
    assert torch.equal(TRAIN.labels, labels)
    assert torch.equal(torch.get_rng_state(), unrelated)
    assert made.subject.net is not start.net


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("dataset", "square"),
        ("loss", "square"),
        ("loss_joint", "square"),
        ("batch", "scatter"),
        ("batch", "wandering"),
        ("dataset", "wandering"),
    ],
)
def test_badnet_implants_in_every_mode_and_form(mode: str, form: str) -> None:
    made = toy("badnet", mixing__mode=mode, stamp__form=form)(
        blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run()
    )
    assert success(made) >= 0.9
    assert clean() - accuracy(evaluate(made.subject, TEST), TEST.labels).value <= 0.05


def test_badnet_with_a_source_spares_the_other_classes() -> None:
    goal = Goal(2, source=4)
    attack = toy("badnet", mixing__mode="loss_joint", mixing__rate=0.3, **{"recipe.epochs": 10})
    made = attack(blobs(), TRAIN, goal, Generator().manual_seed(0), Run())
    x, y = TEST[torch.arange(len(TEST))]
    stamped = predict(made.subject, made.trigger(x)).argmax(1)
    assert asr(stamped, y, goal).value >= 0.9
    spared = y != 4
    assert accuracy(stamped[spared], y[spared]).value >= 0.9


def test_badnet_all_to_all_moves_every_class_to_the_next() -> None:
    attack = toy("badnet", labels="all_to_all", mixing__rate=0.3, **{"recipe.epochs": 12})
    made = attack(blobs(), TRAIN, Goal(0), Generator().manual_seed(0), Run())
    x, y = TEST[torch.arange(len(TEST))]
    stamped = predict(made.subject, made.trigger(x)).argmax(1)
    assert accuracy(stamped, (y + 1) % 5).value >= 0.9


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int, str]] = []
    run = Run(progress=lambda *a: calls.append(a))
    toy("badnet")(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run)
    assert calls[-1][0] == calls[-1][1] == 6 * (len(TRAIN) // 32)
