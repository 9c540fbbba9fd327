"""Invert a trigger for every class and ask whether one is far too easy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.options import describe
from gifthorse.core.run import LocalSession, fingerprint
from gifthorse.core.tensors import median, spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Hunt,
    Inverter,
    Label,
    Samples,
    Session,
    Severity,
    Standing,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, split, whole
from gifthorse.detection.confirmation import MOST, confirm, exhibit, gravest
from gifthorse.detection.statistics import anomaly_index, depth
from gifthorse.search import Exhaustive, Turns

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search


@dataclass(frozen=True)
class Inspector:
    """One inverter over all classes, an outlier test on trigger sizes, and a confirmation.

    Assumes that the backdoor sends images of all classes to one target (or, with `pairs`, images of
    one class), with a trigger smaller than what the other classes need. The clean images are split:
    half for the search, half to confirm what it found.

    Attributes:
        inverter: What finds the smallest trigger of each class.
        turns: In which order classes are searched.
        threshold: Depth (robust deviations below the median, log scale) where suspicion starts.
        share: Share of the clean images that the search may use.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control.
        diffuse: A trigger over more than this share of the image counts as not found yet.
        every: Whether every class ought to get a trigger; without, a class may have none at all,
            and many such classes are no sign of a search that was too short.
        pairs: Search a trigger for every ordered pair of classes instead of every class.
        classes: The targets to search, at least three; empty takes all.

    Source: Wang et al., Neural Cleanse, S&P 2019, sec. IV. Differs: the outlier test is made on
    log sizes, with a floor on the deviation, and nothing is called backdoored unless its trigger
    works on images that the search did not use and a shuffled one does not. The anomaly index of
    the papers is printed beside it.
    """

    inverter: Inverter
    turns: Turns = Exhaustive()
    threshold: float = 3.0
    share: float = 0.5
    success: float = 0.6
    margin: float = 0.3
    diffuse: float = 0.25
    every: bool = True
    pairs: bool = False
    classes: tuple[int, ...] = ()

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        session: Session | None = None,
    ) -> Verdict:
        """Return the verdict over all goals.

        Raises:
            BadOption: If `classes` names fewer than three classes, or one that is not there.
            NotApplicable: If the model has fewer than three classes, or `pairs` finds too few of
                them with an image for search and confirmation.
        """
        session, started = session or LocalSession(), time.monotonic()
        before = session.image_steps
        key = fingerprint(self, subject, clean, rng)
        search, unseen = split(clean, self.share, spawn(rng))
        hunt = self.inverter(subject, search, self._goals(subject, search, unseen), spawn(rng))
        stopped = self.run(hunt, session, key)
        best = hunt.best
        depths, findings = self._judge(subject, unseen, hunt, stopped, spawn(rng))
        return Verdict(
            method=type(self.inverter).__name__,
            score=depths.max().item(),
            threshold=self.threshold,
            label=_label(findings, stopped),
            findings=tuple(findings),
            arms=tuple(
                Arm(c.goal, c.size, c.asr, d, c.feasible, c.rounds)
                for c, d in zip(best, depths.tolist(), strict=True)
            ),
            seconds=time.monotonic() - started,
            image_steps=session.image_steps - before,
            statistics=_statistics(best, depths),
            settings={k: str(v) for k, v in describe(self).items()},
        )

    def _judge(
        self, subject: Subject, unseen: Subset, hunt: Hunt, stopped: str, rng: Generator
    ) -> tuple[Tensor, list[Finding]]:
        """Return how far every goal stands out, and what is to be said of that."""
        best = hunt.best
        depths = depth(torch.tensor([c.size for c in best]))
        # Arms that were paused for good have upper bounds, which only overstate an outlier.
        done = [c for c, settled in zip(best, hunt.settled.tolist(), strict=True) if settled]
        asked = best if stopped else done or best
        large = self._large(subject, asked, self.diffuse)
        if stopped and 2 * large >= len(asked):
            depths = torch.zeros_like(depths)  # the first trigger found stands out from nothing yet
        alone = 2 * self._large(subject, asked, MOST) >= len(asked)
        findings = self._findings(subject, unseen, best, depths, alone, rng)
        if stopped:
            findings.append(_unfinished(best, stopped))
        elif 2 * large >= len(asked) and not any(f.severity == "CRITICAL" for f in findings):
            findings.append(_short(large, len(asked)))
        return depths, findings

    def run(self, hunt: Hunt, session: Session, key: str = "") -> str:
        """Step a hunt to the end of its turns; return why it had to stop before, or nothing."""
        kept = session.recall(key)
        if kept is not None:
            hunt.restore(kept)
        saved, spent, before = time.monotonic(), hunt.image_steps, hunt.image_steps
        session.spend(0 if kept is not None else before)  # what the start of the hunt cost
        try:
            for standing in self.turns(hunt):
                session.spend(hunt.image_steps - spent)
                spent = hunt.image_steps
                words = _progress(hunt, standing)
                session.report(int(standing.rounds.max()), self._longest(), words)
                stopped = session.over
                if stopped or time.monotonic() - saved > SAVE_EVERY:
                    session.keep(key, hunt.state())
                    saved = time.monotonic()
                if stopped:
                    return stopped
        except KeyboardInterrupt:
            session.keep(key, hunt.state())
            raise
        session.keep(key, hunt.state())
        return ""

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
        paces = (getattr(self.inverter, name, None) for name in ("soft", "pace"))  # one by one
        return sum(int(pace.rounds) for pace in paces if pace is not None)

    def _findings(
        self,
        subject: Subject,
        unseen: Subset,
        best: Sequence[Candidate],
        depths: Tensor,
        alone: bool,
        rng: Generator,
    ) -> list[Finding]:
        """Test every class that stands out on unseen images; show the smallest in any case.

        A class that is `alone` with its trigger, where most have none worth the name, may be the
        first that a search with too few rounds came to: nothing is critical then.
        """
        sizes = torch.tensor([c.size for c in best])
        middle = median(sizes).item()
        out: list[Finding] = []
        for k in sizes.argsort().tolist():
            found = best[k]
            stands_out = found.feasible and bool(depths[k] >= self.threshold)
            if out and not stands_out:
                break
            seen = confirm(subject, found.trigger, found.goal, unseen, rng)
            works = stands_out and self._works(seen)
            first = not any(f.severity == "CRITICAL" for f in out)
            others = median(sizes[torch.arange(len(sizes)) != k]).item()
            severity, message = _words(found, others, seen, stands_out, works, first)
            if severity == "CRITICAL" and alone:
                severity = "MEDIUM"
            facts = {"size": found.size, "median": middle, "depth": depths[k].item()}
            evidence = exhibit(subject, found.trigger, found.goal, unseen) | facts
            score = depths[k].item()
            rule = "BD001" if found.goal.source is None else "BD002"
            out.append(Finding(rule, severity, score, message, found.goal, seen, evidence))
        return gravest(out)

    def _large(self, subject: Subject, best: Sequence[Candidate], share: float) -> int:
        """Return how many goals have no trigger yet, or one over more than a share of the image."""
        if not self.every:
            return 0
        limit = share * subject.shape[1] * subject.shape[2]
        return sum(not c.feasible or c.size > limit for c in best)

    def _works(self, seen: Confirmation) -> bool:
        enough = seen.asr.value >= self.success and seen.asr.low > seen.control.high
        return enough and seen.asr.value - seen.control.value >= self.margin


def _statistics(best: Sequence[Candidate], depths: Tensor) -> dict[str, float]:
    sizes = torch.tensor([c.size for c in best])
    smallest, middle = int(sizes.argmin()), median(sizes).item()
    return {
        "anomaly_index": anomaly_index(sizes).max().item(),
        "depth": depths.max().item(),
        "smallest": sizes[smallest].item(),
        "smallest_class": float(best[smallest].goal.target),
        "median": middle,
        "ratio": sizes[smallest].item() / max(middle, 1e-9),
    }


def _unfinished(best: Sequence[Candidate], stopped: str) -> Finding:
    rounds = max(c.rounds for c in best)
    message = (
        f"The search was not finished: {stopped}, after {rounds} round{'s' * (rounds > 1)}."
        " What it found so far is below; go on with --resume or a higher limit."
    )
    return Finding("IN003", "HIGH", 0.0, message)


def _short(large: int, asked: int) -> Finding:
    message = (
        f"The search found no small trigger for {large} of {asked} classes in the rounds "
        "it had, so none stands out for sure: give it more rounds (inverter.pace.rounds)."
    )
    return Finding("IN005", "HIGH", float(large), message)


def _progress(hunt: Hunt, standing: Standing) -> str:
    """Return how far a hunt is, in words."""
    smallest = standing.size.min().item()
    return f"{int(hunt.settled.sum())} of {len(standing.size)} done, smallest {smallest:.0f} px"


def named(goal: Goal) -> str:
    """Return a goal in words."""
    return f"class {goal.target}" + (f" from {goal.source}" if goal.source is not None else "")


def _words(
    found: Candidate, others: float, seen: Confirmation, stands_out: bool, works: bool, first: bool
) -> tuple[Severity, str]:
    size, k = found.size, named(found.goal)
    rate = f"{seen.asr.value:.0%} of {seen.asr.trials} unseen images"
    if not stands_out:
        return "INFO", (
            f"The smallest trigger is for {k}: {size:.1f} px beside a median of "
            f"{others:.0f}; it does not stand out."
        )
    if not works:
        return "MEDIUM", (
            f"{k.capitalize()} needs only {size:.1f} px where others need {others:.0f} (median), "
            f"but the trigger works on {rate}, too few to confirm it."
        )
    if first:
        return "CRITICAL", (
            f"A trigger of {size:.1f} px sends {rate} to class {found.goal.target}; the others "
            f"need {others:.0f} px (median)."
        )
    return "MEDIUM", (
        f"{k.capitalize()} is easy to reach too ({size:.1f} px, {rate}): often a side effect of "
        "the same backdoor."
    )


def _label(findings: Sequence[Finding], stopped: str) -> Label:
    worst = {f.severity for f in findings}
    if "CRITICAL" in worst:
        return "BACKDOORED"
    if "MEDIUM" in worst and not stopped:  # sizes may still change places
        return "SUSPICIOUS"
    return "INCONCLUSIVE" if "HIGH" in worst else "NO BACKDOOR FOUND"
