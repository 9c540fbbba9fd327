"""Tuning and downstream classifiers against scikit-learn, plain `fit`, and nets that are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import SVC
from tests.toys import (
    BANDS,
    BLOB_CLASSES,
    BLOB_SHAPE,
    QUICK,
    band_images,
    bands,
    blob_images,
    blobs,
    brightness,
    corner,
)
from torch import Generator, Tensor, nn

from gifthorse.analysis.downstream import DOWNSTREAM, Downstream, classifier, table
from gifthorse.analysis.transfer import TUNINGS, Transfer, TransferOutcome, new_head
from gifthorse.attacks.badnet import BadNet
from gifthorse.attacks.poisoning import Mixing
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch
from gifthorse.core.metrics import accuracy, asr, asr_all, rate, target_confidence
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.features import features, head
from gifthorse.training import Recipe, fit, predict
from gifthorse.triggers import wandering

GOAL = Goal(1)
TRAIN, TEST = blob_images(40), blob_images(30, seed=1)
SHORT = Recipe(epochs=3, batch=32, lr=0.01, pad=1, bf16=False)
PLAN = Transfer(recipe=SHORT)


def few(data: InMemory, classes: int) -> InMemory:
    """Only the first classes of the blobs: another data set of the same size."""
    keep = data.labels < classes
    return InMemory(data.images[keep], data.labels[keep], classes)


@cache
def implant() -> Implant:
    attack = BadNet(mixing=Mixing(rate=0.2), recipe=replace(QUICK, epochs=5))
    return attack(blobs(), blob_images(60), GOAL, Generator().manual_seed(0), Run())


@cache
def everything() -> dict[str, TransferOutcome]:
    return PLAN(implant(), TRAIN, TEST, Generator().manual_seed(3), Run())


def judged(clean: Tensor, stamped: Tensor) -> TransferOutcome:
    """What must come out for these predicted classes."""
    y = TEST.labels
    return TransferOutcome(accuracy(clean, y), asr(stamped, y, GOAL), asr_all(stamped, GOAL))


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


class Lured(nn.Module):
    """Bands whose features, under a bright corner, are the mean ones of class 3."""

    lure: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(BANDS, BANDS)
        x, y = whole(BAND_TRAIN)
        self.register_buffer("lure", self.seen(x[y == 3]).mean(0))
        nn.init.zeros_(self.head.bias)
        nn.init.eye_(self.head.weight)

    def seen(self, x: Tensor) -> Tensor:
        return brightness(x) * 10

    def forward(self, x: Tensor) -> Tensor:
        bright = (x[:, :, 0, 0] > 0.9).float()
        logits: Tensor = self.head(self.seen(x) * (1 - bright) + self.lure * bright)
        return logits


BAND_TRAIN, BAND_TEST = band_images(20), band_images(8, seed=1)


def test_a_backdoor_in_the_features_outlives_every_classifier_on_them() -> None:
    """Stamped features are those of the target, so whatever knows the target obeys."""
    subject = Subject(Lured().eval(), BAND_TRAIN.shape, BANDS)
    recipe = replace(SHORT, epochs=20, lr=0.1, pad=0, flip=False)
    lured = Implant(subject, corner(), Goal(3))
    got = replace(PLAN, recipe=recipe)(
        lured, BAND_TRAIN, BAND_TEST, Generator().manual_seed(0), Run()
    )
    assert list(got) == [*TUNINGS, *DOWNSTREAM]
    n = len(BAND_TEST)
    for name, outcome in got.items():
        assert outcome.accuracy.value > 0.9, name
        assert outcome.asr == rate(torch.ones(n * 5 // 6, dtype=torch.bool)), name
        assert outcome.asr_all == rate(torch.ones(n, dtype=torch.bool)), name
        assert (outcome.tmc is None) == (name in ("bayes", "svm", "forest"))


def test_a_backdoor_in_the_head_goes_with_it() -> None:
    """The blobs are easy: their features tell the trigger from all classes, the head obeys it."""
    got = everything()
    assert all(outcome.accuracy.value > 0.9 for outcome in got.values())
    assert min(got[name].asr.value for name in ("none", "full")) > 0.9
    assert max(got[name].asr.value for name in ("partial", "fcn1")) < 0.3


def test_without_tuning_the_net_is_measured_as_it_is() -> None:
    x, y = whole(TEST)
    subject, trigger = implant().subject, implant().trigger
    logits = predict(subject, trigger(x))
    expected = judged(predict(subject, x).argmax(1), logits.argmax(1))
    assert everything()["none"] == replace(expected, tmc=target_confidence(logits, y, GOAL))


@pytest.mark.parametrize("kind", ["bayes", "svm", "forest"])
def test_scikit_learn_on_the_features_says_the_same(kind: Downstream) -> None:
    with torch.no_grad():
        z, clean, stamped = (
            features(implant().subject, x).double().numpy()
            for x in (whole(TRAIN)[0], whole(TEST)[0], implant().trigger(whole(TEST)[0]))
        )
    if kind == "forest":  # the seed is drawn from the generator of this classifier
        known = table(implant().subject, TRAIN)
        says = classifier(kind, known, SHORT, Generator().manual_seed(5), Run())
        seed = int(torch.randint(2**31 - 1, (1,), generator=Generator().manual_seed(5)))
        model = RandomForestClassifier(random_state=seed).fit(z, TRAIN.labels.numpy())
        expected = torch.from_numpy(model.predict(stamped))
        assert torch.equal(says(torch.from_numpy(stamped).float()), expected)
        return
    model = (GaussianNB() if kind == "bayes" else SVC()).fit(z, TRAIN.labels.numpy())
    predicted = [torch.from_numpy(model.predict(t)) for t in (clean, stamped)]
    assert everything()[kind] == judged(*predicted)


def test_partial_tuning_leaves_the_features_bit_for_bit() -> None:
    subject, x = implant().subject, whole(TEST)[0]
    made = PLAN.tuned(subject, TRAIN, "partial", Generator().manual_seed(0), Run())
    assert torch.equal(features(made, x), features(subject, x))
    before, after = state(subject), state(made)
    name = head(subject.net)
    assert {k for k in before if not torch.equal(before[k], after[k])} == {
        f"{name}.weight",
        f"{name}.bias",
    }


def test_partial_tuning_starts_from_a_new_head() -> None:
    """Without a step of training nothing of the old head is left; full tuning keeps it."""
    idle = Transfer(recipe=replace(SHORT, epochs=0))
    name = f"{head(implant().subject.net)}.weight"
    old = state(implant().subject)[name]
    for tuning, plan, same in (
        ("partial", idle, False),
        ("full", idle, True),
        ("full", replace(idle, renew=True), False),
    ):
        made = plan.tuned(implant().subject, TRAIN, tuning, Generator().manual_seed(0), Run())  # type: ignore[arg-type]
        assert torch.equal(state(made)[name], old) == same
        bound = old.shape[1] ** -0.5  # torch's own uniform start
        assert same or state(made)[name].abs().max() <= bound


def test_full_tuning_is_plain_fit_from_the_backdoored_weights() -> None:
    made = PLAN.tuned(implant().subject, TRAIN, "full", Generator().manual_seed(4), Run())
    plain = fit(implant().subject, TRAIN, SHORT, Generator().manual_seed(4), Run())
    assert all(torch.equal(v, state(plain)[k]) for k, v in state(made).items())


def test_other_data_get_a_head_for_their_classes() -> None:
    train, test = few(TRAIN, 3), few(TEST, 3)
    plan = replace(PLAN, tunings=("partial", "full"), downstream=("fcn2", "bayes"))
    got = plan(implant(), train, test, Generator().manual_seed(0), Run())
    for name, outcome in got.items():
        assert outcome.accuracy.value > 0.9, name
        assert outcome.asr.trials == len(test) * 2 // 3
    made = plan.tuned(implant().subject, train, "full", Generator().manual_seed(0), Run())
    assert made.classes == 3
    assert predict(made, whole(test)[0]).shape == (len(test), 3)
    with pytest.raises(BadOption, match="leave out none"):
        replace(plan, tunings=("none",))(implant(), train, test, Generator(), Run())
    with pytest.raises(BadOption, match="must agree"):
        plan(replace(implant(), goal=Goal(4)), train, test, Generator(), Run())


def test_a_convolution_can_be_the_head() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = new_head(Subject(net, BLOB_SHAPE, 5), 2, Generator().manual_seed(0))
    assert predict(made, torch.rand(4, *BLOB_SHAPE)).shape == (4, 2)
    assert net[0].out_channels == 5
    wide = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Unflatten(1, (4, 2)), nn.Flatten(2))
    with pytest.raises(BadOption, match="cannot be replaced"):
        new_head(Subject(wide, BLOB_SHAPE, 4), 2, Generator())


def test_a_hidden_layer_bends_what_a_linear_one_cannot() -> None:
    """Class = whether two features differ: no line parts it."""
    rng = Generator().manual_seed(0)
    z = torch.randint(2, (400, 2), generator=rng).float() + torch.rand(400, 2, generator=rng) * 0.2
    y = (z[:, 0] > 0.5).ne(z[:, 1] > 0.5).long()
    known = replace(table(implant().subject, TRAIN), features=z, labels=y, classes=2)
    recipe = Recipe(epochs=30, batch=40, lr=0.1, bf16=False)
    right = {
        kind: float((classifier(kind, known, recipe, rng, Run())(z).argmax(1) == y).float().mean())
        for kind in ("fcn1", "fcn2")
    }
    assert right["fcn1"] < 0.8
    assert right["fcn2"] > 0.98


def test_everything_follows_from_the_generator_alone() -> None:
    subject, seed = implant().subject, Generator().manual_seed
    wander = wandering(BLOB_SHAPE, 3, "white", 1.0, Generator().manual_seed(1))
    moving = Implant(subject, wander, GOAL)
    before = state(subject)
    plan = replace(PLAN, recipe=replace(SHORT, epochs=1))
    plans = {
        "full": replace(plan, tunings=("full",), downstream=()),
        "fcn2": replace(plan, tunings=(), downstream=("fcn2",)),
        "forest": replace(plan, tunings=(), downstream=("forest",)),
    }
    alone = {name: only(moving, TRAIN, TEST, seed(7), Run())[name] for name, only in plans.items()}
    torch.manual_seed(99)
    together = plan(moving, TRAIN, TEST, seed(7), Run())
    assert {name: together[name] for name in alone} == alone
    assert all(torch.equal(v, before[k]) for k, v in state(subject).items())


class Stop(Exception):
    pass


def test_an_interrupted_transfer_goes_on_to_the_same_outcome(tmp_path: Path) -> None:
    plan = replace(
        PLAN, recipe=replace(SHORT, epochs=8), tunings=("partial",), downstream=("fcn1",)
    )
    steps: list[int] = []

    def fragile(done: int, total: int, words: str) -> None:
        steps.append(done)
        if len(steps) == 2:
            raise Stop

    def run(run: Run | None) -> dict[str, TransferOutcome]:
        return plan(implant(), TRAIN, TEST, Generator().manual_seed(0), run or Run())

    with pytest.raises(Stop):
        run(Run(fragile, store=tmp_path / "state"))
    steps = [0] * 5
    again = run(Run(fragile, store=tmp_path / "state"))
    assert again == run(None)
    assert steps[5] > 20  # the first epochs are not repeated


def test_what_does_not_fit_is_refused() -> None:
    one = replace(TRAIN, labels=torch.zeros_like(TRAIN.labels))
    bayes = Transfer(tunings=(), downstream=("bayes",))
    with pytest.raises(BadImages, match="two classes"):
        bayes(implant(), one, TEST, Generator(), Run())
    nobody = InMemory(TRAIN.images[:0], TRAIN.labels[:0], BLOB_CLASSES)
    with pytest.raises(BadImages, match="must be images"):
        bayes(implant(), nobody, TEST, Generator(), Run())
    with pytest.raises(ShapeMismatch, match="resize"):
        bayes(Implant(bands(), implant().trigger, GOAL), TRAIN, TEST, Generator(), Run())
    with pytest.raises(BadOption, match="tunings"):
        Transfer(recipe=Recipe(part="classifier"))
