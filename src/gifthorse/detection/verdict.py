"""From recovered triggers and scores to a verdict: one rule for what counts as a backdoor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import OpenShare, Share, method
from gifthorse.core.metrics import asr
from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Arm,
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Label,
    Samples,
    Severity,
    Subject,
    Trigger,
    Verdict,
)
from gifthorse.data.samples import whole
from gifthorse.training import predict
from gifthorse.triggers.packing import packed

MOST = 0.5  # of an image: what covers more of it is another image, not a trigger
CONTROLS = 8  # shuffled copies of a trigger that are tried beside it


@method
class Proof:
    """What it takes to call a suspected class backdoored: a trigger that works on unseen images.

    Attributes:
        share: Share of the clean images that the search may use; the others stay unseen.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control. The interval of the success
            must lie above that of the control as well.
    """

    share: Annotated[float, OpenShare] = 0.5
    success: Annotated[float, Share] = 0.6
    margin: Annotated[float, Share] = 0.3

    def holds(self, seen: Confirmation) -> bool:
        """Return whether a trigger works on unseen images, and a shuffled one does not."""
        enough = seen.asr.value >= self.success and seen.asr.low > seen.control.high
        return enough and seen.asr.value - seen.control.value >= self.margin


@dataclass(frozen=True)
class Suspect:
    """A recovered trigger, and what its detector makes of it.

    Attributes:
        found: The trigger.
        score: The statistic behind it.
        stands_out: Whether its score is beyond the threshold.
        held: Whether something speaks against calling it confirmed even if it works: it covers too
            much of the image, or hardly another class has a trigger at all.
        facts: Further figures for the report.
    """

    found: Candidate
    score: float
    stands_out: bool
    held: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)


class Sentence(Protocol):
    """Says in words what was found."""

    def __call__(self, suspect: Suspect, seen: Confirmation, works: bool, first: bool) -> str:
        """Return one sentence on a suspect, given whether it works and whether it is the first."""
        ...


def confirm(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    unseen: Samples,
    rng: Generator,
    run: Run,
    *,
    controls: int = CONTROLS,
) -> Confirmation:
    """Stamp unseen images with a trigger, with shuffled controls of the same size, with nothing.

    Args:
        subject: The classifier.
        trigger: The recovered trigger.
        goal: Its goal; images of the target class do not count.
        unseen: Images that the search did not use.
        rng: Source of the controls.
        run: Charged a half image-step for every image in each way.
        controls: How many shuffled copies of the trigger are tried.
    """
    x, y = whole(unseen)
    run.charge(len(x) * (controls + 2) / 2)
    shuffled = [predict(subject, trigger.scrambled(rng)(x)).argmax(1) for _ in range(controls)]
    return Confirmation(
        asr=asr(predict(subject, trigger(x)).argmax(1), y, goal),
        control=asr(torch.cat(shuffled), y.repeat(controls), goal),
        drift=asr(predict(subject, x).argmax(1), y, goal),
    )


def evidence(
    subject: Subject, trigger: Trigger, goal: Goal, unseen: Samples, run: Run, count: int = 8
) -> dict[str, Tensor | float]:
    """Return what a report shows of a trigger: its parts, and images before and after it.

    `packed` is the trigger itself, with its goal, as the bytes of a text; a kind that cannot be
    saved has none.
    """
    x, y = whole(unseen)
    keep = goal.meant(y).nonzero().flatten()
    chosen = keep[torch.linspace(0, max(0, len(keep) - 1), min(count, len(keep))).long()]
    before = x[chosen]
    after = trigger(before)
    run.charge(len(chosen))
    pattern, mask = trigger.picture()
    shown: dict[str, Tensor | float] = {
        "pattern": pattern,
        "mask": mask,
        "before": before,
        "after": after,
        "before_label": predict(subject, before).argmax(1),
        "after_label": predict(subject, after).argmax(1),
        "true_label": y[chosen],
    }
    with suppress(BadOption):
        shown["packed"] = torch.tensor(list(packed(trigger, goal).encode()), dtype=torch.uint8)
    return shown


@dataclass(frozen=True)
class Confirmer:
    """Where suspects are tried: the classifier and the images that no search has seen."""

    subject: Subject
    unseen: Samples
    proof: Proof
    rng: Generator
    run: Run

    def findings(self, suspects: Iterable[Suspect], sentence: Sentence) -> list[Finding]:
        """Try every suspect, most suspicious first; show the first one in any case.

        The first that stands out and works is CRITICAL, unless something is held against it; later
        ones are MEDIUM, as what works less well than asked.
        """
        out: list[Finding] = []
        for suspect in suspects:
            if out and not suspect.stands_out:
                break
            found = suspect.found
            seen = confirm(self.subject, found.trigger, found.goal, self.unseen, self.rng, self.run)
            works = suspect.stands_out and self.proof.holds(seen)
            first = not any(f.severity == "CRITICAL" for f in out)
            severity: Severity = "MEDIUM" if suspect.stands_out else "INFO"
            if works and first and not suspect.held:
                severity = "CRITICAL"
            shown = evidence(self.subject, found.trigger, found.goal, self.unseen, self.run)
            out.append(
                Finding(
                    "BD001" if found.goal.source is None else "BD002",
                    severity,
                    suspect.score,
                    sentence(suspect, seen, works, first),
                    found.goal,
                    seen,
                    shown | dict(suspect.facts),
                )
            )
        return sorted(out, key=lambda finding: finding.severity != "CRITICAL")


@dataclass(frozen=True, eq=False)
class Scores:
    """What a search left: the best trigger and the score of each class, and further figures."""

    best: tuple[Candidate, ...]
    each: Tensor  # (K,)
    figures: Mapping[str, float] = field(default_factory=dict)


def unfinished(stopped: str, words: str = "The search was not finished") -> Finding:
    """Return the finding on a detector that reached a limit."""
    return Finding("IN003", "HIGH", 0.0, f"{words}: {stopped}. Scan again with a higher limit.")


def label(findings: Sequence[Finding]) -> Label:
    """Return the verdict in a word, from its findings.

    What was confirmed counts in any case. A suspicion counts only if the search came to its end,
    since sizes may still change places; and nothing found counts only if nothing stood in the way.
    """
    severities = {f.severity for f in findings}
    if "CRITICAL" in severities:
        return "BACKDOORED"
    if "MEDIUM" in severities and not any(f.rule == "IN003" for f in findings):
        return "SUSPICIOUS"
    return "INCONCLUSIVE" if "HIGH" in severities else "NO BACKDOOR FOUND"


# Score, finding and statistics of a model, from a detector that recovers no trigger.
Judged: TypeAlias = tuple[float, Finding, dict[str, float]]


class Scored(Protocol):
    """A detector: a frozen dataclass with a threshold on its score."""

    @property
    def threshold(self) -> float:
        """Where suspicion starts."""
        ...


class Work:
    """Time and image-steps since a detector began."""

    def __init__(self, run: Run) -> None:
        self._run, self._started, self._before = run, time.monotonic(), run.image_steps

    def verdict(
        self,
        method: Scored,
        score: float,
        findings: Sequence[Finding],
        statistics: Mapping[str, float],
        *,
        name: str = "",
        arms: Iterable[Arm] = (),
        coverage: Iterable[Goal] = (),
    ) -> Verdict:
        """Return the verdict that findings lead to.

        Args:
            method: The detector; its options become the settings.
            score: Its statistic for the whole model.
            findings: What it says, gravest first.
            statistics: Further figures by name.
            name: What is shown as its name, if not that of its class.
            arms: The table of all goals tried.
            coverage: The goals that were searched.
        """
        options: dict[str, Any] = describe(method)
        return Verdict(
            method=name or type(method).__name__,
            score=score,
            threshold=method.threshold,
            label=label(findings),
            findings=tuple(findings),
            arms=tuple(arms),
            coverage=tuple(coverage),
            seconds=time.monotonic() - self._started,
            image_steps=self._run.image_steps - self._before,
            statistics=statistics,
            settings={name: str(value) for name, value in options.items()},
        )

    def judged(self, method: Scored, judged: Judged, subject: Subject) -> Verdict:
        """Return the verdict of a detector that recovers no trigger: at most suspicious."""
        score, finding, statistics = judged
        examined = finding.severity != "HIGH"
        coverage = [Goal(k) for k in range(subject.classes)] if examined else []
        return self.verdict(method, score, [finding], statistics, coverage=coverage)


def too_few(best: Sequence[Candidate]) -> list[Finding]:
    """Say so if most classes have no trigger: then a class has too few to stand out from."""
    missing = sum(not c.feasible for c in best)
    words = f"No working trigger was found for {missing} of {len(best)} classes; give more steps."
    return [Finding("IN005", "HIGH", float(missing), words)] if 2 * missing > len(best) else []


def doubt(rule: str, message: str) -> Judged:
    """Return score, finding and statistics of a detector that allows no verdict."""
    return 0.0, Finding(rule, "HIGH", 0.0, message), {}
