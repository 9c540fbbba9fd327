"""Unlearning: recover triggers, stamp them on clean images with true labels, and fine-tune."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import Positive, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.stats import log_depth
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Batch,
    Candidate,
    Goal,
    Images,
    Inverter,
    Labels,
    Samples,
    Subject,
    Trigger,
)
from gifthorse.inversion import NeuralCleanse
from gifthorse.search import Exhaustive, Scheduler, found
from gifthorse.training import Checkpointed, Mix, Recipe, RngState, Stateful, fit
from gifthorse.triggers.packing import unpacked

log = logging.getLogger("gifthorse")


@method
class Unlearning:
    """Teach a net that images with a recovered trigger belong to the classes they come from.

    Assumes that the inverter finds something like the true trigger. Cost: one search over all
    classes, then `recipe.epochs` passes over the clean images. If the wrong class stands out, the
    net is taught to resist a trigger that nobody planted, which does little harm and no good.

    Attributes:
        inverter: What finds the smallest trigger of each class.
        scheduler: In which order classes are searched.
        classes: The targets whose triggers are unlearned, and alone searched; empty searches all
            and takes those that `pick` says.
        triggers: Triggers to unlearn in place of a search, as a scan's JSON result holds them
            (findings, trigger, packed); `classes`, `pick` and `threshold` then mean nothing.
        pick: Unlearn the `outliers` among the sizes, none of them if none stands out, or in any
            case the `smallest`.
        threshold: How far (robust deviations of log size below the median) an outlier lies.
        share: Share of the images in every batch that are stamped.
        recipe: How the net is tuned.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. VI-C (20 % of the images stamped).
    Differs: outliers are found on log sizes, with a floor of 0.2 on the deviation; batches are
    stamped anew in every pass, after augmentation; the trigger is used as it was found, not read
    back from a picture; 20 epochs at a constant rate of 0.01 where the paper has one, since it
    has a tenth of the training set and a scan has a few hundred images.
    """

    inverter: Inverter = NeuralCleanse()
    scheduler: Scheduler = Exhaustive()
    classes: tuple[int, ...] = ()
    triggers: tuple[str, ...] = ()
    pick: Literal["outliers", "smallest"] = "outliers"
    threshold: Annotated[float, Positive] = 3.0
    share: Annotated[float, PositiveShare] = 0.2
    recipe: Recipe = Recipe(epochs=20, lr=0.01, schedule="constant")

    def __post_init__(self) -> None:
        for text in self.triggers:
            unpacked(text)  # raises

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net, or a copy of the given one if no class stands out.

        Raises:
            BadOption: If `classes` names a class that is not there, or a trigger does not fit.
            Incomplete: If the run ends before the search does; what it found is kept.
        """
        return self.recovering(subject, clean, rng, run)[0]

    def recovering(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> tuple[Subject, tuple[tuple[Trigger, Goal], ...]]:
        """Return the tuned net, as a call does, and the triggers that were unlearned.

        Raises:
            BadOption: If `classes` names a class that is not there, or a trigger does not fit.
            Incomplete: If the run ends before the search does; what it found is kept.
        """
        wrong = [k for k in self.classes if not 0 <= k < subject.classes]
        if wrong:
            raise BadOption(f"classes must be 0 to {subject.classes - 1}; got {wrong[0]}")
        run = run.keyed(self, subject, clean, rng)
        known = self._given(subject) or self._found(subject, clean, spawn(rng), run)
        if not known:
            log.info("no class stands out, so there is nothing to unlearn: the net is unchanged")
            return replace(subject, net=deepcopy(subject.net)), ()
        draw, triggers = spawn(rng), [trigger for trigger, _ in known]
        tuned = fit(
            subject,
            clean,
            self.recipe,
            rng,
            mix=stamping(triggers, self.share, draw),
            callbacks=[
                RngState(draw),
                *(Checkpointed(t) for t in triggers if isinstance(t, Stateful)),
            ],
            run=run,
        )
        return tuned, tuple(known)

    def _given(self, subject: Subject) -> list[tuple[Trigger, Goal]]:
        """Return the triggers of the option, each tried on an image of the net's size."""
        known = [unpacked(text) for text in self.triggers]
        for trigger, _ in known:
            size, blank = trigger.render()[0].shape, torch.zeros(1, *subject.shape)
            try:
                fits = trigger(blank).shape == blank.shape
            except RuntimeError:  # of torch: the sizes do not match
                fits = False
            if not fits:
                raise BadOption(
                    f"images are {subject.shape}, but a trigger in triggers is {tuple(size)}: "
                    "scan with images of the size that you repair with"
                )
        return known

    def _found(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> list[tuple[Trigger, Goal]]:
        """Search, and return what is to be unlearned."""
        targets = sorted(set(self.classes)) or list(range(subject.classes))
        inversion = self.inverter(subject, clean, [Goal(k) for k in targets], rng)
        best = found(inversion, self.scheduler, run.checkpoint("search"), "nothing was unlearned")
        return [(c.trigger, c.goal) for c in self.chosen(best)]

    def chosen(self, found: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates to unlearn, of one a class; only such as were found at all."""
        feasible = [c for c in found if c.feasible]
        if self.classes:
            return feasible
        if self.pick == "smallest":
            return sorted(feasible, key=lambda c: c.size)[:1]
        deep = log_depth(torch.tensor([c.size for c in found])) >= self.threshold
        return [c for c, out in zip(found, deep.tolist(), strict=True) if out and c.feasible]


def stamping(triggers: Sequence[Trigger], share: float, rng: Generator) -> Mix:
    """Return a mix that stamps a share of every batch and leaves all labels as they are.

    Args:
        triggers: Each stamped image gets one of them, drawn anew.
        share: Share of the batch, in (0, 1]; rounded, and at least one image.
        rng: Source of the draws.
    """

    def mix(x: Images, y: Labels, index: Tensor) -> Batch:
        rows = torch.randperm(len(x), generator=rng)[: max(1, round(share * len(x)))]
        which = torch.randint(len(triggers), (len(rows),), generator=rng)
        x = x.clone()
        for k, trigger in enumerate(triggers):
            hit = rows[which == k].to(x.device)
            if len(hit):
                x[hit] = trigger(x[hit])
        return x, y

    return mix
