"""Judge a defense on a model: the one place that sees trigger, target and test images."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from gifthorse.bench.measures import digest, neurons_apart, peak_bytes, resaved, seconds
from gifthorse.bench.outcome import Cost, Kind, Outcome
from gifthorse.bench.reading import found
from gifthorse.bench.sieves import Sieve
from gifthorse.bench.splits import Sizes, Splits, splits
from gifthorse.bench.trials import Terms, Trial, asked, changed, measured, tested
from gifthorse.core.errors import BadOption, GifthorseError
from gifthorse.core.metrics import accuracy, collapsed
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Detector, Filter, Images, Implant, Remedy, Subject, Trigger
from gifthorse.filtering.scoring import takes_labels
from gifthorse.training import predict

__all__ = ["Sizes", "Splits", "Terms", "digest", "evaluate", "evaluate_clean", "splits"]

Defense: TypeAlias = Remedy | Filter | Detector
Online: TypeAlias = Callable[[Images], object] | None  # what is asked about each image later


# 1. Judging -----------------------------------------------------------------------------------


def evaluate(
    made: Implant,
    defense: Defense,
    data: Splits,
    rng: Generator,
    run: Run,
    *,
    kind: Kind,
    terms: Terms = Terms(),
) -> Outcome:
    """Try a defense on a backdoored model.

    The defense gets a private copy of the net without its history, and clean images. Suspects come
    with the net's own answers for labels, clean and stamped ones shuffled together. Every call of a
    filter starts from the same seed, so that it draws the same partners for all images. One that
    cleans training sets is shown a poisoned one instead, with its labels (`Sieve.purged`).

    Args:
        made: The model and the truth about it; all of it stays as it was.
        defense: What is tried.
        data: The defender's images, and those that are judged on.
        rng: Source of all randomness.
        kind: What the defense is.
        terms: How it is judged.
        run: Who watches, and when it must stop.

    Raises:
        GifthorseError: If the defense changed the weights it was given.
        Incomplete: If the run was over before the defense was done; a detector then says so.
    """
    return _Case(made.subject, made, data, terms, run, rng).judge(defense, kind)


def evaluate_clean(
    subject: Subject,
    defense: Defense,
    data: Splits,
    rng: Generator,
    run: Run,
    *,
    kind: Kind,
    terms: Terms = Terms(),
) -> Outcome:
    """Try a defense on a clean model: what it costs, and its false alarms.

    Arguments and errors are those of `evaluate`.
    """
    return _Case(subject, None, data, terms, run, rng).judge(defense, kind)


# 2. The three kinds of defense ----------------------------------------------------------------


class _Case:
    """A model under judgment: the private copy of it, and what it says of the test images."""

    def __init__(
        self,
        subject: Subject,
        made: Implant | None,
        data: Splits,
        terms: Terms,
        run: Run,
        rng: Generator,
    ) -> None:
        self.given = Subject(deepcopy(subject.net).eval(), subject.shape, subject.classes)
        self.digest = digest(self.given.net)
        self.data, self.terms, self.run = data, terms, run
        self.seed, self.draw = spawn(rng).initial_seed(), spawn(rng)
        self.made, self.trial = made, tested(data.test, made)
        self.before = asked(self.given, self.trial)
        self.place = None if made is None else _place(made.trigger, self.trial)

    def judge(self, defense: Defense, kind: Kind) -> Outcome:
        """Return the outcome of a defense, with its cost."""
        spent = self.run.image_steps
        if kind == "remedy":
            outcome, online = self._remedy(cast("Remedy", defense))
        elif kind == "filter":
            outcome, online = self._filter(cast("Filter", defense))
        elif kind == "detector":
            outcome, online = self._detector(cast("Detector", defense))
        else:
            raise BadOption(f"kind must be remedy, filter or detector; got {kind!r}")
        if digest(self.given.net) != self.digest:
            raise GifthorseError(
                "the defense changed the weights of the net that it was given, so nothing that is "
                "said of it holds: it must work on a copy"
            )
        spent = self.run.image_steps - spent
        cost = replace(outcome.cost, image_steps=spent, peak_bytes=peak_bytes())
        if self.terms.timed and online is not None:
            x = self.trial.x
            once, many = (
                seconds(online, x[torch.arange(n) % len(x)], self.terms.repeats) for n in (1, 128)
            )
            cost = replace(cost, seconds_1=once, seconds_128=many)
        images = {k: len(getattr(self.data, k)) for k in ("fit", "calibration", "test")}
        before = measured(self.before, self.trial)
        return replace(outcome, before=before, cost=cost, images=images)

    def _rng(self) -> Generator:
        return Generator().manual_seed(self.seed)

    def _remedy(self, remedy: Remedy) -> tuple[Outcome, Online]:
        started = time.monotonic()
        made = remedy(self.given, self.data.fit, self._rng(), self.run)
        cost = Cost(fit_seconds=time.monotonic() - started)
        net = resaved(made.net, self.given.net)
        repaired = replace(made, net=deepcopy(made.net).eval() if net is None else net)
        answers = asked(repaired, self.trial)
        changes = changed(self.before, answers, self.trial)
        if net is not None and self.trial.stamped is not None:  # reforming inputs moves no neuron
            both = self.trial.x[self.trial.meant], self.trial.stamped[self.trial.meant]
            changes["nsr_before"] = neurons_apart(self.given, *both)
            changes["nsr"] = neurons_apart(repaired, *both)
        own = [accuracy(v.clean.argmax(1), self.trial.y) for v in (self.before, answers)]
        outcome = Outcome(
            "remedy",
            {},
            measured(answers, self.trial),
            changes,
            cost=cost,
            reloaded=net is not None,
            status="collapsed" if collapsed(own[0], own[1]) else "ok",
        )
        return outcome, lambda x: predict(repaired, x)

    def _filter(self, method: Filter) -> tuple[Outcome, Online]:
        sieve = Sieve(method, self.given, self.data, self.terms, self.run, self.seed, self.draw)
        if takes_labels(method):
            return sieve.purged(self.made), None
        return sieve.sifted(self.trial, self.before), sieve.asked

    def _detector(self, detector: Detector) -> tuple[Outcome, Online]:
        started = time.monotonic()
        verdict = detector(self.given, self.data.fit, self._rng(), self.run)
        cost = Cost(fit_seconds=time.monotonic() - started)
        target = None if self.trial.goal is None else self.trial.goal.target
        said = found(verdict, target, self.place)
        return Outcome("detector", {}, {}, found=said, cost=cost), None


def _place(trigger: Trigger, trial: Trial) -> Tensor | None:
    """Return the true mask `(H, W)`, or None of a trigger that has no fixed place of its own."""
    assert trial.stamped is not None
    mask = trigger.picture()[1].amax(0)
    touched = (trial.stamped - trial.x).abs().amax((0, 1)) > 1e-6
    if mask.shape != touched.shape or bool((mask > 0).all()) or bool((touched & (mask <= 0)).any()):
        return None
    return mask
