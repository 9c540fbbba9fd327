"""Invert a trigger for every class and ask whether one is far too easy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gifthorse.data.samples import Subset, split
from gifthorse.detection.confirmation import confirm, exhibit
from gifthorse.detection.statistics import anomaly_index, depth
from gifthorse.options import describe
from gifthorse.search import Exhaustive, Turns
from gifthorse.tensors import median, spawn
from gifthorse.types import (
    Arm,
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Hunt,
    Inverter,
    Label,
    Progress,
    Samples,
    Severity,
    Subject,
    Verdict,
)


@dataclass(frozen=True)
class Inspector:
    """One inverter over all classes, an outlier test on trigger sizes, and a confirmation.

    Assumes that the backdoor sends images of all classes to one target, with a trigger smaller
    than what the other classes need. The clean images are split: half for the search, half to
    confirm what it found.

    Attributes:
        inverter: What finds the smallest trigger of each class.
        turns: In which order classes are searched.
        threshold: Depth (robust deviations below the median, log scale) where suspicion starts.
        share: Share of the clean images that the search may use.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control.
        diffuse: A trigger over more than this share of the image counts as not found yet.

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

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        progress: Progress | None = None,
    ) -> Verdict:
        """Return the verdict over all classes."""
        started = time.monotonic()
        search, unseen = split(clean, self.share, spawn(rng))
        goals = [Goal(k) for k in range(subject.classes)]
        hunt = self.inverter(subject, search, goals, spawn(rng))
        best = self.run(hunt, progress)
        sizes = torch.tensor([c.size for c in best])
        depths, indices = depth(sizes), anomaly_index(sizes)
        findings = self._findings(subject, unseen, best, depths, spawn(rng))
        findings += self._cut_short(subject, best, findings)
        smallest = int(sizes.argmin())
        middle = median(sizes).item()
        return Verdict(
            method=type(self.inverter).__name__,
            score=depths.max().item(),
            threshold=self.threshold,
            label=_label(findings),
            findings=tuple(findings),
            arms=tuple(
                Arm(c.goal, c.size, c.asr, d, c.feasible, c.rounds)
                for c, d in zip(best, depths.tolist(), strict=True)
            ),
            seconds=time.monotonic() - started,
            statistics={
                "anomaly_index": indices.max().item(),
                "depth": depths.max().item(),
                "smallest": sizes[smallest].item(),
                "smallest_class": float(smallest),
                "median": middle,
                "ratio": sizes[smallest].item() / max(middle, 1e-9),
            },
            settings={k: str(v) for k, v in describe(self).items()},
        )

    def run(self, hunt: Hunt, progress: Progress | None = None) -> tuple[Candidate, ...]:
        """Step a hunt to the end of its turns; return the best trigger of each goal."""
        best = hunt.best
        for best in self.turns(hunt):
            if progress is not None:
                done = int(hunt.settled.sum())
                found = [c.size for c in best if c.feasible]
                words = f"smallest {min(found):.0f} px" if found else "searching"
                progress(max(c.rounds for c in best), self._longest(), f"{done} done, {words}")
        return best

    def _longest(self) -> int:
        pace = getattr(self.inverter, "pace", None)
        return int(pace.rounds) if pace is not None else 0

    def _findings(
        self,
        subject: Subject,
        unseen: Subset,
        best: Sequence[Candidate],
        depths: Tensor,
        rng: Generator,
    ) -> list[Finding]:
        """Test every class that stands out on unseen images; show the smallest in any case."""
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
            severity, message = _words(found, middle, seen, stands_out, works, first)
            facts = {"size": found.size, "median": middle, "depth": depths[k].item()}
            evidence = exhibit(subject, found.trigger, found.goal, unseen) | facts
            score = depths[k].item()
            out.append(Finding("BD001", severity, score, message, found.goal, seen, evidence))
        return out

    def _cut_short(
        self, subject: Subject, best: Sequence[Candidate], found: Sequence[Finding]
    ) -> list[Finding]:
        """Say so if most classes have no small trigger yet: then no class can stand out."""
        _, height, width = subject.shape
        large = sum(not c.feasible or c.size > self.diffuse * height * width for c in best)
        if 2 * large < len(best) or any(f.severity == "CRITICAL" for f in found):
            return []
        message = (
            f"The search found no small trigger for {large} of {len(best)} classes in the rounds "
            "it had, so no class can stand out: give it more rounds (inverter.pace.rounds)."
        )
        return [Finding("IN003", "HIGH", float(large), message)]

    def _works(self, seen: Confirmation) -> bool:
        enough = seen.asr.value >= self.success and seen.asr.low > seen.control.high
        return enough and seen.asr.value - seen.control.value >= self.margin


def _words(
    found: Candidate, middle: float, seen: Confirmation, stands_out: bool, works: bool, first: bool
) -> tuple[Severity, str]:
    k, size = found.goal.target, found.size
    rate = f"{seen.asr.value:.0%} of {seen.asr.trials} unseen images"
    if not stands_out:
        return "INFO", (
            f"The smallest trigger is for class {k}: {size:.1f} px beside a median of "
            f"{middle:.0f}; it does not stand out."
        )
    if not works:
        return "MEDIUM", (
            f"Class {k} needs only {size:.1f} px where others need {middle:.0f} (median), but the "
            f"trigger works on {rate}, too few to confirm it."
        )
    if first:
        return "CRITICAL", (
            f"A trigger of {size:.1f} px sends {rate} to class {k}; the other classes need "
            f"{middle:.0f} px (median)."
        )
    return "MEDIUM", (
        f"Class {k} is easy to reach too ({size:.1f} px, {rate}): often a side effect of the same "
        "backdoor."
    )


def _label(findings: Sequence[Finding]) -> Label:
    worst = {f.severity for f in findings}
    if "CRITICAL" in worst:
        return "BACKDOORED"
    if "MEDIUM" in worst:
        return "SUSPICIOUS"
    return "INCONCLUSIVE" if "HIGH" in worst else "NO BACKDOOR FOUND"
