"""Invert a trigger for every class and ask whether one is far too easy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, Halted, NotApplicable
from gifthorse.core.fields import AtLeast, Share, method
from gifthorse.core.run import Run
from gifthorse.core.stats import median
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Finding,
    Goal,
    Inversion,
    Inverter,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import split, whole
from gifthorse.detection.confirmation import DIFFUSE, MOST, Confirmer, Proof, Suspect
from gifthorse.detection.nearest import screened
from gifthorse.detection.sentences import Smaller
from gifthorse.detection.statistics import anomaly_index, log_anomaly_index
from gifthorse.detection.verdict import Work
from gifthorse.search import Exhaustive, Scheduler, finish
from gifthorse.training import predict


@method
class Inspector:
    """One inverter over all classes, an outlier test on trigger sizes, and a confirmation.

    Assumes that the backdoor sends images of all classes to one target (or, with `pairs`, images of
    one class), with a trigger smaller than what the other classes need. The clean images are split:
    half for the search, half to confirm what it found.

    Attributes:
        inverter: What finds the smallest trigger of each class.
        scheduler: In which order classes are searched.
        threshold: Depth (robust deviations below the median, log scale) where suspicion starts.
        proof: What it takes to call a suspected class backdoored.
        diffuse: A trigger over more than this share of the image counts as not found yet.
        every: Whether every class ought to get a trigger; without, a class may have none at all,
            many such classes are no sign of a search that was too short, and one that is more
            than `diffuse` stands out from nothing.
        pairs: Search a trigger for every ordered pair of classes instead of every class.
        classes: The targets to search, at least three; empty takes all.
        most: Targets that are all searched. Of more, the `nearest` to the clean images are, and as
            many others as peers, and finding nothing is no answer.
        nearest: See `most`.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV. Differs: the outlier test is made on
    log sizes, among the classes that some clean image is taken for, with a floor on the deviation,
    and nothing is called backdoored unless its trigger works on images that the search did not use
    and a shuffled one does not. The anomaly index of the papers is printed beside it.
    """

    inverter: Inverter
    scheduler: Scheduler = Exhaustive()
    threshold: float = 3.0
    proof: Proof = field(default=Proof())
    diffuse: Annotated[float, Share] = DIFFUSE
    every: bool = True
    pairs: bool = False
    classes: tuple[int, ...] = ()
    most: Annotated[int, AtLeast(3)] = 64
    nearest: Annotated[int, AtLeast(2)] = 12

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over all goals.

        Raises:
            BadOption: If `classes` names fewer than three classes, or one that is not there.
            NotApplicable: If the model has fewer than three classes, or `pairs` finds too few of
                them with an image for search and confirmation.
        """
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        search, unseen = split(clean, self.proof.share, spawn(rng))
        goals = self._goals(subject, search, unseen)
        if not self.classes and not self.pairs and len(goals) > self.most:
            run.report(0, 1, f"screening {len(goals):,} classes")
            some = screened(subject, search, self.nearest, self.nearest, spawn(rng), run)
            goals = [Goal(k) for k in some]
        inversion = self.inverter(subject, search, goals, spawn(rng))
        stopped = finish(inversion, self.scheduler, kept, longest=self._longest())
        best = inversion.best
        confirmer = Confirmer(subject, unseen, self.proof, spawn(rng), run)
        wins = winners(subject, clean, run)
        peers = torch.tensor([bool(wins[c.goal.target]) for c in best])
        depths, findings = self._judge(confirmer, inversion, stopped, peers)
        arms = zip(best, depths.tolist(), strict=True)
        return work.verdict(
            self,
            depths.max().item(),
            findings,
            _statistics(best, depths, peers),
            name=type(self.inverter).__name__,
            arms=(Arm(c.goal, c.size, c.asr, d, c.feasible, c.rounds) for c, d in arms),
            coverage=(c.goal for c in best),
        )

    def _judge(
        self, confirmer: Confirmer, inversion: Inversion, stopped: str, peers: Tensor
    ) -> tuple[Tensor, list[Finding]]:
        """Return how far every goal stands out from its peers, and what is to be said of that.

        A class that is alone with its trigger, where most have none worth the name, may be the
        first that a search with too few rounds came to: nothing is critical then.
        """
        best = inversion.best
        if peers.sum() < 3:
            return torch.zeros(len(best)), [_alone(int(peers.sum()), len(best))]
        alike = [c for c, peer in zip(best, peers.tolist(), strict=True) if peer]
        sizes = torch.tensor([c.size for c in best])
        depths = self._depths(sizes, peers, confirmer.subject)
        # Arms that were paused for good have upper bounds, which only overstate an outlier.
        ended = (inversion.done & peers).tolist()
        done = [c for c, end in zip(best, ended, strict=True) if end]
        asked = alike if stopped else done or alike
        large = self._large(confirmer.subject, asked, self.diffuse)
        if stopped and 2 * large >= len(asked):
            depths = torch.zeros_like(depths)  # the first trigger found stands out from nothing yet
        alone = 2 * self._large(confirmer.subject, asked, MOST) >= len(asked)
        middle = median(sizes[peers]).item()
        suspects = (
            Suspect(
                best[k],
                depths[k].item(),
                best[k].feasible and bool(depths[k] >= self.threshold),
                held=alone,
                facts={"size": best[k].size, "median": middle, "depth": depths[k].item()},
            )
            for k in sizes.argsort().tolist()
        )
        try:
            findings = confirmer.findings(suspects, Smaller(alike))
        except Halted as halt:
            findings, stopped = [], f"{halt} before its triggers were confirmed"
        if stopped:
            findings.append(_unfinished(best, stopped))
        elif 2 * large >= len(asked) and not any(f.severity == "CRITICAL" for f in findings):
            findings.append(_short(large, len(asked)))
        if not (self.classes or self.pairs) and len(best) < confirmer.subject.classes:
            findings.append(_screened(len(best), confirmer.subject.classes))
        return depths, findings

    def _depths(self, sizes: Tensor, peers: Tensor, subject: Subject) -> Tensor:
        """Return how far each size lies below those of the peers; nothing for what is diffuse."""
        depths = log_anomaly_index(sizes, peers=peers)
        limit = self.diffuse * subject.shape[1] * subject.shape[2]
        return depths if self.every else depths.where(sizes <= limit, 0)

    def _goals(self, subject: Subject, search: Samples, unseen: Samples) -> list[Goal]:
        if subject.classes < 3:
            raise NotApplicable(
                f"the model has {subject.classes} classes: one can only stand out from two others; "
                "look at its triggers with gifthorse compare-triggers"
            )
        wrong = [k for k in self.classes if not 0 <= k < subject.classes]
        if wrong or (self.classes and len(set(self.classes)) < 3):
            raise BadOption(
                f"classes must name three or more of 0 to {subject.classes - 1}, or a class has "
                f"nothing to stand out from; got {', '.join(map(str, self.classes))}"
            )
        targets = sorted(set(self.classes)) or list(range(subject.classes))
        if not self.pairs:
            return [Goal(k) for k in targets]
        there = sorted(set(whole(search)[1].tolist()) & set(whole(unseen)[1].tolist()))
        goals = [Goal(t, s) for t in targets for s in there if s != t]
        if len(goals) < 3:
            raise NotApplicable("pairs need two or more images of several classes: add images")
        return goals

    def _longest(self) -> int:
        configs = (
            getattr(self.inverter, name, None) for name in ("soft", "config")
        )  # carve has two
        return sum(int(config.rounds) for config in configs if config is not None)

    def _large(self, subject: Subject, best: Sequence[Candidate], share: float) -> int:
        """Return how many goals have no trigger yet, or one over more than a share of the image."""
        if not self.every:
            return 0
        limit = share * subject.shape[1] * subject.shape[2]
        return sum(not c.feasible or c.size > limit for c in best)


def _statistics(best: Sequence[Candidate], depths: Tensor, peers: Tensor) -> dict[str, float]:
    sizes = torch.tensor([c.size for c in best])
    known = sizes[peers] if peers.sum() >= 3 else sizes
    smallest, middle = int(sizes.argmin()), median(known).item()
    return {
        "anomaly_index": anomaly_index(known).max().item(),
        "depth": depths.max().item(),
        "smallest": sizes[smallest].item(),
        "smallest_class": float(best[smallest].goal.target),
        "median": middle,
        "ratio": sizes[smallest].item() / max(middle, 1e-9),
    }


def winners(subject: Subject, clean: Samples, run: Run) -> Tensor:
    """Return which outputs are the largest for some clean image, or its label, `(K,)` bool.

    An output that never wins is no class that others could be compared with: a head that was made
    wider than its task has many, and what does win stands out from them. A class that has images
    is one, also where the net is wrong about the few that there are.
    """
    x, y = whole(clean)
    run.charge(len(x) / 2)
    said = predict(subject, x).argmax(1)
    return torch.cat([said, y.to(said)]).bincount(minlength=subject.classes) > 0


def _screened(goals: int, classes: int) -> Finding:
    message = (
        f"Only {goals} of {classes:,} classes were searched: those nearest to the clean images and "
        f"others beside them. Name more with --classes, or search all with --set most={classes}."
    )
    return Finding("IN005", "HIGH", float(goals), message)


def _alone(winning: int, goals: int) -> Finding:
    message = (
        f"Of the {goals} goals searched, only {winning} have a target that ever wins on the clean "
        "images: too few to stand out from. Give images of more classes."
    )
    return Finding("IN002", "HIGH", float(winning), message)


def _unfinished(best: Sequence[Candidate], stopped: str) -> Finding:
    rounds = max(c.rounds for c in best)
    message = (
        f"The search was not finished: {stopped}, after {rounds} round{'s' * (rounds != 1)}."
        " What it found so far is below; go on with --resume or a higher limit."
    )
    return Finding("IN003", "HIGH", 0.0, message)


def _short(large: int, asked: int) -> Finding:
    message = (
        f"The search found no small trigger for {large} of {asked} classes in the rounds "
        "it had, so none stands out for sure: give it more rounds (inverter.config.rounds)."
    )
    return Finding("IN005", "HIGH", float(large), message)
