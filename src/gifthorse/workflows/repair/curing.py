"""A remedy on some of the clean images, and what it did on the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor

from gifthorse.analysis.distance import ClassDistances, distances
from gifthorse.core.errors import BadOption, Incomplete
from gifthorse.core.metrics import accuracy, clean_drop
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Goal,
    Inverter,
    Rate,
    Remedy,
    Samples,
    Subject,
    Trigger,
)
from gifthorse.data.samples import Subset, split, whole
from gifthorse.detection.confirmation import confirm, evidence
from gifthorse.models.normalize import Classifier
from gifthorse.report.repairs import Exhibit, TriggerEffect
from gifthorse.training import FlipCheck, evaluate, flippable, predict
from gifthorse.workflows.prepare import Prepared
from gifthorse.workflows.repair.known import Truth, options_of

Known: TypeAlias = Sequence[tuple[Trigger, Goal]]
Whose: TypeAlias = Literal["true", "recovered"]
FLIP = "recipe.flip"  # the option of every remedy that tunes a net by a recipe


@runtime_checkable
class Recovering(Protocol):
    """A remedy that recovers triggers on its way, and says which."""

    def recovering(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> tuple[Subject, tuple[tuple[Trigger, Goal], ...]]:
        """Return what a call returns, and the triggers with what they do."""
        ...


@dataclass(frozen=True, eq=False)
class Repaired:
    """A repaired model beside the one it was made from.

    Attributes:
        subject: The repaired classifier.
        before: Clean accuracy of the model as it came.
        after: That of the repaired one.
        drop: How much was lost, with an interval that knows that the images are the same.
        effects: The true trigger, if known, and those that were recovered, before and after.
        exhibits: What to draw of each, as in the evidence of a finding; also `healed_before_label`
            and `healed_after_label`, what the repaired model says.
        mirroring: Whether the remedy might mirror images; None if it never does, or was told.
        unchanged: Whether the remedy left all weights as they were.
        images: Clean images that the remedy used.
        unseen: Clean images that it did not use, and that figures are from.
        seconds: Wall time of the remedy.
    """

    subject: Subject
    before: Rate
    after: Rate
    drop: Rate
    effects: tuple[TriggerEffect, ...]
    exhibits: tuple[Exhibit, ...]
    mirroring: FlipCheck | None
    unchanged: bool
    images: int
    unseen: Samples
    seconds: float

    @property
    def reforms(self) -> bool:
        """Whether images are reformed, before a net whose weights stay as they were."""
        return not isinstance(self.subject.net, Classifier)

    @property
    def judged(self) -> int:
        """How many images the figures are from."""
        return len(self.unseen)


def repair(
    prepared: Prepared,
    remedy: Remedy,
    rng: Generator,
    run: Run,
    *,
    share: float = 0.5,
    truth: Truth | None = None,
    known: Known = (),
    mirror: bool = True,
) -> Repaired:
    """Apply a remedy with some of the clean images and judge it on the others.

    Args:
        prepared: The model and its clean images, as a scan takes them in.
        remedy: What makes it safer; it never sees the images that it is judged on.
        rng: Source of all randomness.
        share: Share of the clean images that the remedy may use, in (0, 1).
        truth: The true trigger, if known; the remedy does not see it.
        known: Triggers recovered before, to judge by if the remedy recovers none itself.
        mirror: Whether a remedy that mirrors images is kept from it where that does harm.
        run: Who watches.

    Raises:
        BadOption: If the share leaves no images to one side.
        Incomplete: If the model fails the checks that a scan begins with.
    """
    used, unseen = _divided(prepared, share, spawn(rng))
    started, given = time.monotonic(), prepared.subject
    mirroring = flippable(given, used) if mirror and options_of(remedy).get(FLIP) else None
    if mirroring is not None and not mirroring.harmless:
        remedy = vary(remedy, {FLIP: False})
    found: Known = ()
    if isinstance(remedy, Recovering):
        made, found = remedy.recovering(given, used, rng, run)
    else:
        made = remedy(given, used, rng, run)
    seconds = time.monotonic() - started
    rows: list[tuple[Whose, Trigger, Goal]] = [("recovered", *one) for one in found or known]
    if truth is not None:
        rows.insert(0, ("true", truth.trigger, truth.goal))
    tried = [_tried((given, made), unseen, row, spawn(rng)) for row in rows]
    effects, exhibits = tuple(e for e, _ in tried), tuple(shown for _, shown in tried)
    said, says, y = evaluate(given, unseen), evaluate(made, unseen), whole(unseen)[1]
    rates = accuracy(said, y), accuracy(says, y), clean_drop(said, says, y)
    return Repaired(
        made, *rates, effects, exhibits, mirroring, _same(given, made), len(used), unseen, seconds
    )


def _divided(prepared: Prepared, share: float, rng: Generator) -> tuple[Subset, Subset]:
    """Return the images for the remedy and those to judge it by."""
    for check in prepared.checks:
        if check.severity in ("HIGH", "CRITICAL"):
            raise Incomplete(f"nothing was repaired: {check.message}", rule=check.rule)
    if not 0 < share < 1:
        raise BadOption(f"share must lie between 0 and 1, both excluded; got {share}")
    used, unseen = split(prepared.samples, share, rng)
    if not len(used) or not len(unseen):
        raise BadOption(f"share {share} leaves no images to repair with or to judge by: add images")
    return used, unseen


def _same(given: Subject, made: Subject) -> bool:
    before, after = given.net.state_dict(), made.net.state_dict()
    return (
        bool(before)
        and before.keys() == after.keys()
        and all(torch.equal(v, after[k]) for k, v in before.items())
    )


def _tried(
    nets: tuple[Subject, Subject],
    unseen: Subset,
    row: tuple[Whose, Trigger, Goal],
    rng: Generator,
) -> tuple[TriggerEffect, Exhibit]:
    """Try a trigger on both nets with the same controls; return also what to draw of it."""
    (given, made), (whose, trigger, goal), state = nets, row, rng.get_state()
    before = confirm(given, trigger, goal, unseen, rng, Run())
    after = confirm(made, trigger, goal, unseen, rng.set_state(state), Run())
    shown = evidence(given, trigger, goal, unseen, Run())
    healed = {
        f"healed_{name}_label": predict(made, images).argmax(1)
        for name in ("before", "after")
        if isinstance(images := shown[name], Tensor) and len(images)
    }
    return TriggerEffect(whose, goal, before, after), shown | healed


def spread(
    given: Subject, done: Repaired, inverter: Inverter, rng: Generator, run: Run
) -> tuple[ClassDistances, ClassDistances]:
    """Return how far other classes lie from the targets of the triggers, before and after.

    Each pair of classes is searched once on each net, on images that the remedy did not use.

    Args:
        given: The classifier as it came.
        done: What came of it.
        inverter: What finds small triggers; its measure is the unit.
        rng: Source of all randomness, the same for both.
        run: Who watches.

    Raises:
        BadOption: If there is no trigger, and so no target.
        Incomplete: If the run ends before the searches do.
    """
    targets = sorted({effect.goal.target for effect in done.effects})
    there = sorted(set(whole(done.unseen)[1].tolist()))
    pairs = [Goal(t, s) for t in targets for s in there if s != t]
    if not pairs:
        raise BadOption(
            "--distances are those from the target of a trigger, and none is known: name one with "
            "--scan or --truth"
        )
    state = spawn(rng).get_state()
    before, after = (
        distances(
            net, done.unseen, pairs, inverter, Generator().set_state(state), restarts=1,
            run=run,
        )
        for net in (given, done.subject)
    )  # fmt: skip
    return before, after
