"""Does a backdoor survive when its features are put to another use?"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from gifthorse.analysis.downstream import DOWNSTREAM, Downstream, classifier, table
from gifthorse.core.errors import BadImages, BadOption, ShapeMismatch
from gifthorse.core.fields import AtLeast, method
from gifthorse.core.metrics import accuracy, asr, asr_all, target_confidence
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Images, Implant, Labels, Rate, Samples, Subject
from gifthorse.data.samples import batches, near
from gifthorse.models.features import features, head
from gifthorse.training import Recipe, fit, frozen_eval

Tuning: TypeAlias = Literal["none", "partial", "full"]

TUNINGS: tuple[Tuning, ...] = ("none", "partial", "full")


@dataclass(frozen=True)
class TransferOutcome:
    """What is left of a backdoor.

    Attributes:
        accuracy: On clean images.
        asr: Attack success, without images of the target class.
        asr_all: Attack success on all images, as TrojanZoo counts.
        tmc: Mean probability of the target where the attack succeeds; None where it never does,
            and for classifiers from scikit-learn, which are asked for classes alone.
    """

    accuracy: Rate
    asr: Rate
    asr_all: Rate
    tmc: Rate | None = None


@method
class Transfer:
    """Tune a backdoored net on clean data, or put other classifiers on its features, and measure.

    Clean data may be those that the net was made with, or others of the same image size.

    Attributes:
        tunings: `none` leaves the net alone; `partial` trains a new last layer on frozen features;
            `full` trains everything from the backdoored weights.
        downstream: Classifiers on the frozen features of the untouched net: `fcn1` a linear layer,
            `fcn2` one with a hidden layer, `bayes` Gaussian naive Bayes, `svm` and `forest` a
            support vector machine and a random forest, the last three as scikit-learn makes them.
        recipe: How nets and layers are trained. Layers on features see every image as it is.
        hidden: Width of the hidden layer of `fcn2`.
        renew: Whether `full` starts with a new last layer. It does in any case if the data have
            another number of classes.

    Source: TrojanZoo sec. 5.2.3, Tables 6 and 7, and the scripts behind them. Differs: a cosine
    schedule; the scripts disagree on whether full tuning keeps the last layer, see `renew`.
    """

    tunings: tuple[Tuning, ...] = TUNINGS
    downstream: tuple[Downstream, ...] = DOWNSTREAM
    recipe: Recipe = Recipe(epochs=50, batch=96, lr=0.01, decay=2e-4, schedule="cosine")
    hidden: Annotated[int, AtLeast(1)] = 128
    renew: bool = False

    def __post_init__(self) -> None:
        if self.recipe.part != "full":
            raise BadOption(
                f"recipe.part follows from tunings and must be full; got {self.recipe.part}"
            )

    def __call__(
        self, implant: Implant, train: Samples, test: Samples, rng: Generator, run: Run
    ) -> dict[str, TransferOutcome]:
        """Return an outcome for every tuning and every downstream classifier, by name.

        What one of them gives does not depend on which others are asked for.

        Args:
            implant: The backdoored net with trigger and goal; of other data, set the goal to a
                class of theirs. It stays as it was.
            train: Clean data to tune on.
            test: Clean data to measure with.
            rng: Source of all randomness.
            run: Who watches, and where an interrupted training is kept.

        Raises:
            BadOption: If the target is no class of the data, or `none` is asked for and the data
                have another number of classes than the net.
            ShapeMismatch: If the images have another size than the net's.
            BadImages: If there are no images, or only of one class to train on.
        """
        _check(implant, train, test)
        subject = implant.subject
        run = run.keyed((self, implant.goal), subject, train, rng, most=64)
        streams: dict[str, Generator] = {name: spawn(rng) for name in (*TUNINGS, *DOWNSTREAM)}
        out: dict[str, TransferOutcome] = {}
        for name in self.tunings:
            stage = run.checkpoint(name)
            learned = self.tuned(subject, train, name, streams[name], run=stage)
            out[name] = _judged(implant, *_asked(learned, learned, implant, test))
        if not self.downstream:
            return out
        known = table(subject, train)
        clean, stamped, y = _asked(subject, lambda x: features(subject, x), implant, test)
        for kind in self.downstream:
            stage = run.checkpoint(kind)
            says = classifier(
                kind, known, self.recipe, streams[kind], hidden=self.hidden, run=stage
            )
            out[kind] = _judged(implant, says(clean), says(stamped), y)
        return out

    def tuned(
        self, subject: Subject, train: Samples, tuning: Tuning, rng: Generator, run: Run
    ) -> Subject:
        """Return the net after tuning; the given one stays as it was.

        Raises:
            BadOption: If an untrained last layer would be needed.
        """
        same = train.classes == subject.classes
        if tuning == "none":
            if not same:
                raise BadOption(
                    f"a net of {subject.classes} classes says nothing about {train.classes} "
                    "without tuning: leave out none"
                )
            return subject
        anew = tuning == "partial" or self.renew or not same
        start = new_head(subject, train.classes, rng) if anew else subject
        recipe = replace(self.recipe, part="classifier" if tuning == "partial" else "full")
        return fit(start, train, recipe, rng, run)


def new_head(subject: Subject, classes: int, rng: Generator) -> Subject:
    """Return a copy of a net with an untrained last layer for so many classes.

    Raises:
        BadOption: If the last layer does not give the logits.
    """
    net = deepcopy(subject.net)
    name = head(net)
    layer: Any = net.get_submodule(name)
    if len(layer.weight) != subject.classes:
        raise BadOption(
            f"the last layer, {name}, has {len(layer.weight)} outputs and the net "
            f"{subject.classes} classes: it cannot be replaced"
        )
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", classes)
    layer.weight = nn.Parameter(layer.weight.new_empty(classes, *layer.weight.shape[1:]))
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.new_empty(classes))
    with seeded(rng, subject.device):
        layer.reset_parameters()
    return replace(subject, net=net, classes=classes)


def _asked(
    subject: Subject, ask: Callable[[Images], Tensor], implant: Implant, test: Samples
) -> tuple[Tensor, Tensor, Labels]:
    """Return what clean and stamped test images give, the same stamps each time, and labels."""
    trigger = deepcopy(implant.trigger)
    with frozen_eval(subject), torch.no_grad():
        every = batches(near(test, subject), 512)
        rows = [(ask(x).cpu(), ask(trigger(x)).cpu(), y.cpu()) for x, y in every]
    clean, stamped, y = (torch.cat(column) for column in zip(*rows, strict=True))
    return clean, stamped, y


def _judged(implant: Implant, clean: Tensor, stamped: Tensor, y: Labels) -> TransferOutcome:
    """Turn logits `(N, K)` or classes `(N,)` into rates."""
    goal = implant.goal
    tmc = target_confidence(stamped, y, goal) if stamped.ndim == 2 else None
    p, q = (t.argmax(1) if t.ndim == 2 else t for t in (clean, stamped))
    return TransferOutcome(accuracy(p, y), asr(q, y, goal), asr_all(q, goal), tmc)


def _check(implant: Implant, train: Samples, test: Samples) -> None:
    for samples in (train, test):
        if samples.shape != implant.subject.shape:
            raise ShapeMismatch(
                f"the net takes images of {implant.subject.shape}; got {samples.shape}: resize them"
            )
    if train.classes != test.classes or not 0 <= implant.goal.target < train.classes:
        raise BadOption(
            f"training data have {train.classes} classes, test data {test.classes}, and the target "
            f"is class {implant.goal.target}: all must agree"
        )
    if not len(train) or not len(test):
        raise BadImages("there must be images to train on and images to measure with")
