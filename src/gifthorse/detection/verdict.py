"""From recovered triggers and scores to a verdict: one rule for what counts as a backdoor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from gifthorse.core.options import describe
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Arm,
    Candidate,
    Finding,
    Goal,
    Label,
    Subject,
    Verdict,
)


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
