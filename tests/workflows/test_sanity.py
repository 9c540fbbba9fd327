"""What a verdict may rest on: nets that cannot be searched, images without labels, false labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.toys import BANDS, SIDE, Bands, band_images
from torch import Generator, Tensor, nn

from gifthorse.core.errors import UnfitNet
from gifthorse.core.run import Run
from gifthorse.core.types import Detector, Finding, Normalization, Subject, Verdict
from gifthorse.data.gallery import Gallery
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import WeightSignature
from gifthorse.detection.inspector import winners
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.training import predict
from gifthorse.workflows.detect import detect
from gifthorse.workflows.prepare import Prepared, prepare
from gifthorse.workflows.sanity import behavior, measured


class Odd(Bands):
    """Bands whose answer is made odd; `raw` are the images, `y` the logits."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x), x)


def counted(net: Odd) -> Odd:
    """Let a net remember how many images it saw."""

    def count(module: nn.Module, given: object, out: Tensor) -> None:
        net.seen.add_(len(out))

    net.register_forward_hook(count)
    return net


def checks(net: nn.Module) -> list[Finding]:
    subject = Subject(net.eval(), (1, SIDE, SIDE), BANDS)
    x, _ = whole(band_images())
    return behavior(subject, x, predict(subject, x))


def several(y: Tensor, x: Tensor) -> Tensor:
    """Two labels an image, as a net with sigmoids would be sure of them."""
    return torch.where(y >= y.topk(2, 1).values[:, 1:], 6 + y / 100, y / 100 - 6)


@pytest.mark.parametrize(
    ("change", "rule", "words"),
    [
        (lambda y, x: y / 0, "FS005", "not finite"),
        (lambda y, x: y * 0 + torch.arange(BANDS), "IN004", "the same for every image"),
        (lambda y, x: y + torch.randn_like(y), "IN004", "Two passes"),
        (lambda y, x: y - y.mean(0), "IN004", "other images of its batch"),
        (lambda y, x: y[:, :, None].mean(2) * (1 / (len(y) > 1)), "IN004", "on a single image"),
        (lambda y, x: (y - 3).sigmoid(), "IN004", "several labels"),
        (several, "IN004", "several labels"),
        (lambda y, x: y.detach(), "IN006", "since the net cuts it off"),
        (lambda y, x: y.round(), "IN006", "No gradient reaches 16 of 16 images"),
        (lambda y, x: y + x.pow(0.4).sum((1, 2, 3))[:, None] * y, "IN006", "not finite numbers"),
    ],
)
def test_a_net_that_cannot_be_searched_is_named(
    change: Callable[[Tensor, Tensor], Tensor], rule: str, words: str
) -> None:
    found = checks(Odd(change))
    assert [(f.rule, f.severity) for f in found] == [(rule, "HIGH")]
    assert words in found[0].message


def test_a_net_that_changes_itself_is_named() -> None:
    assert [f.message[:36] for f in checks(counted(Odd(lambda y, x: y)))] == [
        "The net changes its own weights or s"
    ]


class Lie(torch.autograd.Function):
    """A step that changes nothing, and hands back another gradient than its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return -g


class Untrue(Bands):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Lie.apply(x))  # type: ignore[no-untyped-call]


def test_gradients_are_held_against_what_outputs_do() -> None:
    (found,) = checks(Untrue())
    assert found.rule == "IN006"
    assert "change by -100% of what gradients promise" in found.message


@pytest.mark.parametrize("change", [lambda y, x: y, lambda y, x: y.log_softmax(1)])
def test_a_plain_net_is_not_doubted(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert checks(Odd(change)) == []


# Normalizations without labels ------------------------------------------------------------------


def test_being_sure_of_one_class_for_all_is_worth_nothing() -> None:
    plain = NORMALIZATIONS["none"]
    sure = measured(plain, 50.0 * torch.eye(12), None)
    assert sure.merit == pytest.approx(math.log(12))
    same = measured(plain, 50.0 * torch.eye(12)[[3] * 12], None)
    assert same.tried.confidence == 1.0
    assert same.merit == pytest.approx(0, abs=1e-9)
    assert measured(plain, torch.zeros(12, 12), None).merit == pytest.approx(0)
    assert measured(plain, torch.full((12, 12), torch.nan), None).merit == -math.inf
    assert not sure.tried.accuracy.trials
    assert math.isnan(sure.tried.accuracy.value)


def gallery(labels: Tensor | None = None) -> Gallery:
    samples = band_images()
    given = torch.full_like(samples.labels, -1) if labels is None else labels
    return Gallery(InMemory(samples.images, given, BANDS), "npz", sha256="")


def taken(
    labels: Tensor | None = None, net: nn.Module | None = None, chosen: Normalization | None = None
) -> Prepared:
    return prepare(net or Bands().eval(), BANDS, gallery(labels), chosen=chosen)


def test_no_verdict_rests_on_a_guess() -> None:
    found = [c for c in taken().checks if c.severity == "HIGH"]
    assert "nothing tells which normalization is right" in found[0].message  # of six classes
    assert not [c for c in taken(chosen=NORMALIZATIONS["none"]).checks if "nothing" in c.message]


def test_images_without_a_label_are_left_out_if_others_have_one() -> None:
    labels = band_images().labels.clone()
    labels[:4] = -1
    prepared = taken(labels)
    assert prepared.preparation.images == len(labels) - 4
    assert prepared.preparation.notes == ("4 images without a label left out",)
    assert prepared.preparation.accuracy.value == 1.0


def test_a_normalization_that_a_net_fails_on_is_left_out() -> None:
    def careful(y: Tensor, x: Tensor) -> Tensor:
        assert x.amax() <= 1.5
        return y

    names = {
        t.normalization.name for t in taken(band_images().labels, Odd(careful)).preparation.tried
    }
    assert "none" in names
    assert "0-255" not in names
    with pytest.raises(UnfitNet, match="the net fails with normalize=0-255: AssertionError"):
        taken(band_images().labels, Odd(careful), NORMALIZATIONS["0-255"])


# Labels -----------------------------------------------------------------------------------------


def test_a_crowd_in_one_class_is_named_and_withholds_a_pass(rng: Generator) -> None:
    labels = band_images().labels.clone()
    wrong = (labels == 2).nonzero().flatten()[:4]
    labels[wrong] = torch.tensor([0, 1, 3, 4])  # images of class 2 under four other labels
    prepared = taken(labels)
    (crowd,) = prepared.checks
    assert (crowd.rule, crowd.severity) == ("DS002", "MEDIUM")
    assert crowd.message.startswith("4 of 36 images, of 4 other classes, are taken for class 2")
    report = detect(prepared, {"nothing": Quiet()}, rng, Run())
    assert (report.label, report.reason) == ("INCONCLUSIVE", crowd.message)


class Quiet:
    """A detector that finds nothing."""

    def __call__(self, subject: Subject, clean: object, rng: Generator, run: Run) -> Verdict:
        return Verdict("quiet", 0.0, 3.0, "NO BACKDOOR FOUND")


class Loud:
    """A detector that compares all outputs, and suspects one."""

    def __call__(self, subject: Subject, clean: object, rng: Generator, run: Run) -> Verdict:
        found = Finding("BD001", "MEDIUM", 5.0, "odd")
        return Verdict("loud", 5.0, 3.0, "SUSPICIOUS", (found,))


def test_scattered_mistakes_are_no_crowd() -> None:
    labels = band_images().labels.clone()
    labels[[0, 7, 14, 21]] = torch.tensor([3, 4, 5, 0])
    assert taken(labels).checks == ()


class Halves(Bands):
    """Tells bands of the upper from those of the lower half, or of thirds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), self.classes, -1).amax(2)


@pytest.mark.parametrize("classes", [2, 3])
def test_all_right_is_right_enough_of_few_classes(classes: int, rng: Generator) -> None:
    labels = band_images(12).labels * classes // BANDS
    samples = InMemory(band_images(12).images, labels, classes)
    prepared = prepare(Halves(classes).eval(), classes, Gallery(samples, "npz", sha256=""))
    assert prepared.checks == ()
    report = detect(prepared, {"nothing": Quiet()}, rng, Run())
    assert report.label == ("NO BACKDOOR FOUND" if classes > 2 else "INCONCLUSIVE")
    assert ("needs three or more" in report.reason) == (classes == 2)


# Without gradients, without peers ---------------------------------------------------------------


def test_without_gradients_only_what_needs_none_runs(rng: Generator) -> None:
    prepared = taken(band_images().labels, Odd(lambda y, x: y.round()))
    both: dict[str, Detector] = {"weight_signature": WeightSignature(), "nothing": Quiet()}
    report = detect(prepared, both, rng, Run())
    assert [v.method for v in report.verdicts] == ["weight_signature"]
    assert report.label == "INCONCLUSIVE"
    assert [c.rule for c in report.checks] == ["IN006"]
    assert any("what nothing looks for" in line for line in report.not_covered)


def dead(most: int) -> Odd:
    """Bands beside many outputs that never win."""
    return Odd(lambda y, x: torch.cat([y, y.new_full((len(y), most), -9.0)], 1))


@pytest.mark.parametrize(("most", "label"), [(5, "SUSPICIOUS"), (7, "INCONCLUSIVE")])
def test_no_suspicion_rests_on_outputs_that_never_win(
    most: int, label: str, rng: Generator
) -> None:
    prepared = prepare(
        dead(most).eval(),
        BANDS + most,
        gallery(band_images().labels),
        chosen=NORMALIZATIONS["none"],
    )
    report = detect(prepared, {"loud": Loud()}, rng, Run())
    assert report.label == label
    if label == "INCONCLUSIVE":
        assert report.reason.startswith("7 of 13 outputs never win on the clean images")


def test_winners_are_the_outputs_that_are_largest_somewhere() -> None:
    subject = Subject(dead(3).eval(), (1, SIDE, SIDE), BANDS + 3)
    run = Run()
    assert winners(subject, band_images(), run).tolist() == [True] * BANDS + [False] * 3
    assert run.image_steps == len(band_images()) / 2


def test_a_class_with_images_is_a_peer_even_if_the_net_never_names_it() -> None:
    images = band_images()
    wrong = InMemory(images.images, torch.full_like(images.labels, BANDS + 1), BANDS + 3)
    subject = Subject(dead(3).eval(), (1, SIDE, SIDE), BANDS + 3)
    expected = [True] * BANDS + [False, True, False]
    assert winners(subject, wrong, Run()).tolist() == expected


class Seen(nn.Module):
    """Takes the brightest of blue, green and red, in this order, for the class; counts images."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return 9 * x.mean((2, 3))


def test_large_images_are_few_but_for_the_one_that_is_used() -> None:
    y = torch.arange(60) % 3
    x = torch.full((60, 3, 160, 160), 40, dtype=torch.uint8)
    x[torch.arange(60), 2 - y] = 200  # read as red, green, blue it is the last of them
    net = Seen().eval()
    prepared = prepare(net, 3, Gallery(InMemory(x, y, 3), "folders"))
    assert prepared.preparation.normalization.bgr  # found, though only the best was turned
    assert prepared.preparation.accuracy.trials == 60
    trials = [t.accuracy.trials for t in prepared.preparation.tried]
    assert (trials.count(60), min(trials)) == (1, (1 << 21) // (3 * 160 * 160))
    assert net.count < 60 * len(trials)
