"""Judge a model, as it is or under a defense: the one place that sees trigger, target and tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from gifthorse.bench.filters import FilterEvaluation
from gifthorse.bench.measures import digest, peak_bytes, resaved, seconds, separation_of
from gifthorse.bench.outcome import Cost, DefenseKind, DefenseOutcome, read_verdict
from gifthorse.bench.protocol import EvalConfig, Splits
from gifthorse.core.errors import BadOption, GifthorseError
from gifthorse.core.metrics import (
    accuracy,
    asr,
    asr_drop,
    change,
    clean_drop,
    collapsed,
    confidence_change,
    der,
    rir,
    robust_accuracy,
    target_confidence,
)
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Detector,
    Filter,
    Images,
    Implant,
    Remedy,
    Samples,
    Subject,
    Trigger,
)
from gifthorse.filtering.scoring import takes_labels
from gifthorse.training import predict
from gifthorse.workflows.evaluate import (
    EvalImages,
    Figure,
    Predictions,
    eval_images,
    figures,
    figures_of,
    predictions,
)

Defense: TypeAlias = Remedy | Filter | Detector
Online: TypeAlias = Callable[[Images], object] | None  # what is asked about each image later


# 1. A model as it is --------------------------------------------------------------------------


def evaluate_bare(
    model: Implant | Subject, test: Samples, benign: Subject | None = None
) -> dict[str, Figure]:
    """Return the figures of a model without a defense; of an implant its neurons' separation, too.

    That of the benign net under the same trigger is `nsr_benign`.

    Args:
        model: The model, and the truth about it if it is an implant.
        test: Images that nothing was trained on.
        benign: The net before the attack, for the drop in accuracy.
    """
    made = model if isinstance(model, Implant) else None
    images = eval_images(test, made)
    subject = made.subject if made else cast("Subject", model)
    out: dict[str, Figure] = dict(figures(subject, images, benign))
    if images.stamped is not None:
        apart = separation_of(subject, images)
        out["nsr"] = None if apart is None else apart.value
        out["nsr_chance"] = None if apart is None else apart.chance
        if benign is not None:  # what the trigger does to a net that does not know it
            alike = separation_of(benign, images)
            out["nsr_benign"] = None if alike is None else alike.value
    return out


# 2. A model under a defense -------------------------------------------------------------------


def evaluate(
    model: Implant | Subject,
    defense: Defense,
    data: Splits,
    rng: Generator,
    run: Run,
    *,
    kind: DefenseKind,
    evaluation: EvalConfig = EvalConfig(),
) -> DefenseOutcome:
    """Try a defense on a model: what it finds or mends; of a clean model its cost and false alarms.

    The defense gets a private copy of the net without its history, and clean images. Suspects come
    with the net's own answers for labels, clean and stamped ones shuffled together. Every call of a
    filter starts from the same seed, so that it draws the same partners for all images. One that
    cleans training sets is shown a poisoned one instead, with its labels.

    Args:
        model: The model, and the truth about it if it is an implant; all of it stays as it was.
        defense: What is tried.
        data: The defender's images, and those that are judged on.
        rng: Source of all randomness.
        kind: What the defense is.
        evaluation: How it is judged.
        run: Who watches, and when it must stop.

    Raises:
        GifthorseError: If the defense changed the weights it was given.
        Incomplete: If the run was over before the defense was done; a detector then says so.
    """
    return _Case(model, data, evaluation, run, rng).judge(defense, kind)


class _Case:
    """A model under judgment: the private copy of it, and what it says of the test images."""

    def __init__(
        self,
        model: Implant | Subject,
        data: Splits,
        evaluation: EvalConfig,
        run: Run,
        rng: Generator,
    ) -> None:
        self.made = model if isinstance(model, Implant) else None
        subject = self.made.subject if self.made else cast("Subject", model)
        self.given = Subject(deepcopy(subject.net).eval(), subject.shape, subject.classes)
        self.digest = digest(self.given.net)
        self.data, self.evaluation, self.run = data, evaluation, run
        self.seed, self.draw = spawn(rng).initial_seed(), spawn(rng)
        self.images = eval_images(data.test, self.made)
        self.before = predictions(self.given, self.images)

    def judge(self, defense: Defense, kind: DefenseKind) -> DefenseOutcome:
        """Return the outcome of a defense, with its cost."""
        spent = self.run.image_steps
        if kind == "remedy":
            outcome, online = self._remedy(cast("Remedy", defense))
        elif kind == "filter":
            outcome, online = self._filter(cast("Filter", defense))
        elif kind == "detector":
            outcome, online = self._detector(cast("Detector", defense)), None
        else:
            raise BadOption(f"kind must be remedy, filter or detector; got {kind!r}")
        if digest(self.given.net) != self.digest:
            raise GifthorseError(
                "the defense changed the weights of the net that it was given, so nothing that is "
                "said of it holds: it must work on a copy"
            )
        spent = self.run.image_steps - spent
        cost = replace(outcome.cost, image_steps=spent, peak_bytes=peak_bytes())
        if self.evaluation.timed and online is not None:
            x = self.images.x
            once, many = (
                seconds(online, x[torch.arange(n) % len(x)], self.evaluation.repeats)
                for n in (1, 128)
            )
            cost = replace(cost, seconds_1=once, seconds_128=many)
        counts = {k: len(getattr(self.data, k)) for k in ("fit", "calibration", "test")}
        before = figures_of(self.before, self.images)
        return replace(outcome, before=before, cost=cost, images=counts)

    def _rng(self) -> Generator:
        return Generator().manual_seed(self.seed)

    def _remedy(self, remedy: Remedy) -> tuple[DefenseOutcome, Online]:
        started = time.monotonic()
        made = remedy(self.given, self.data.fit, self._rng(), self.run)
        cost = Cost(fit_seconds=time.monotonic() - started)
        net = resaved(made.net, self.given.net)
        repaired = replace(made, net=deepcopy(made.net).eval() if net is None else net)
        said = predictions(repaired, self.images)
        changes = changed(self.before, said, self.images)
        if net is not None and self.images.stamped is not None:  # reforming inputs moves no neuron
            for name, subject in (("nsr_before", self.given), ("nsr", repaired)):
                apart = separation_of(subject, self.images)
                changes[name] = None if apart is None else apart.value
        own = [accuracy(v.clean.argmax(1), self.images.y) for v in (self.before, said)]
        outcome = DefenseOutcome(
            "remedy",
            {},
            figures_of(said, self.images),
            changes,
            cost=cost,
            reloaded=net is not None,
            status="collapsed" if collapsed(own[0], own[1]) else "ok",
        )
        return outcome, lambda x: predict(repaired, x)

    def _filter(self, method: Filter) -> tuple[DefenseOutcome, Online]:
        case = FilterEvaluation(
            method, self.given, self.data, self.evaluation, self.run, self.seed, self.draw
        )
        if takes_labels(method):
            return case.cleaning(self.made), None
        return case.guarding(self.images, self.before), case.scores

    def _detector(self, detector: Detector) -> DefenseOutcome:
        started = time.monotonic()
        verdict = detector(self.given, self.data.fit, self._rng(), self.run)
        cost = Cost(fit_seconds=time.monotonic() - started)
        target = None if self.made is None else self.made.goal.target
        place = None if self.made is None else _place(self.made.trigger, self.images)
        return DefenseOutcome(
            "detector", {}, {}, found=read_verdict(verdict, target, place), cost=cost
        )


def changed(before: Predictions, after: Predictions, images: EvalImages) -> dict[str, Figure]:
    """Return what a repair changed."""
    y, first, last = images.y, before.clean.argmax(1), after.clean.argmax(1)
    out: dict[str, Figure] = {
        "cad": clean_drop(first, last, y),
        "ccc_change": confidence_change(before.clean, after.clean, y),
    }
    if before.stamped is None or after.stamped is None or images.goal is None:
        return out
    goal, own = images.goal, (accuracy(first, y), accuracy(last, y))
    logits = (before.stamped, after.stamped)
    hits = tuple(v.argmax(1) for v in logits)
    return out | {
        "ard": asr_drop(hits[0], hits[1], y, goal),
        "tmc_change": change(*(target_confidence(v, y, goal) for v in logits)),
        "der": der((asr(hits[0], y, goal), asr(hits[1], y, goal)), own),
        "rir": rir((robust_accuracy(hits[0], y, goal), robust_accuracy(hits[1], y, goal)), own),
    }


def _place(trigger: Trigger, images: EvalImages) -> Tensor | None:
    """Return the true mask `(H, W)`, or None of a trigger that has no fixed place of its own."""
    assert images.stamped is not None
    mask = trigger.render()[1].amax(0)
    touched = (images.stamped - images.x).abs().amax((0, 1)) > 1e-6
    if mask.shape != touched.shape or bool((mask > 0).all()) or bool((touched & (mask <= 0)).any()):
        return None
    return mask
