"""From the scores of classes and their triggers to a verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import Incomplete
from gifthorse.core.fields import OpenShare, Share, method
from gifthorse.core.options import describe
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Batch,
    Candidate,
    Confirmation,
    Finding,
    Images,
    Label,
    Samples,
    Session,
    Severity,
    Subject,
    Verdict,
)
from gifthorse.data.samples import split
from gifthorse.detection.confirmation import MOST, confirm, exhibit, gravest

CONFIRMING = 5.0  # image-steps an image: forward with the trigger, 8 shuffled ones, and without


@dataclass(frozen=True, eq=False)
class Scores:
    """What a search left: the best trigger and the score of each class, and further figures."""

    best: tuple[Candidate, ...]
    each: Tensor  # (K,)
    figures: dict[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores every class; `threshold` is where suspicion starts."""

    @property
    def threshold(self) -> float:
        """Least score of a suspect."""
        ...

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, session: Session
    ) -> Scores:
        """Return a score for each class, or raise Incomplete if the session is over before."""
        ...


@method
class Proof:
    """What it takes to call a suspected class backdoored: a trigger that works on unseen images.

    One over more than half of the image proves nothing: it shows another image.

    Attributes:
        share: Share of the clean images that the search may use; the others stay unseen.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control.
    """

    share: Annotated[float, OpenShare] = 0.5
    success: Annotated[float, Share] = 0.6
    margin: Annotated[float, Share] = 0.3

    def verdict(
        self, scorer: Scorer, subject: Subject, clean: Samples, rng: Generator, session: Session
    ) -> Verdict:
        """Split the images, score every class and try the suspects' triggers."""
        started, before = time.monotonic(), session.image_steps
        search, unseen = split(clean, self.share, spawn(rng))
        try:
            scores = scorer.score(subject, search, unseen, spawn(rng), session)
            findings = self._findings(subject, unseen, scores, scorer.threshold, spawn(rng))
            session.spend(CONFIRMING * len(unseen) * len(findings))
            findings += _too_few(scores.best)
        except Incomplete as stop:
            scores, words = Scores((), torch.zeros(1)), f"The search was not finished: {stop}."
            findings = [Finding("IN003", "HIGH", 0.0, f"{words} Scan again with a higher limit.")]
        return Verdict(
            method=type(scorer).__name__,
            score=scores.each.max().item(),
            threshold=scorer.threshold,
            label=_label({f.severity for f in findings}),
            findings=tuple(findings),
            arms=tuple(
                Arm(c.goal, c.size, c.asr, score, c.feasible, c.rounds)
                for c, score in zip(scores.best, scores.each.tolist(), strict=False)
            ),
            seconds=time.monotonic() - started,
            image_steps=session.image_steps - before,
            statistics=scores.figures,
            settings={k: str(v) for k, v in describe(scorer).items()},
        )

    def _findings(
        self, subject: Subject, unseen: Samples, scores: Scores, threshold: float, rng: Generator
    ) -> list[Finding]:
        """Try every suspect, highest score first; show the highest in any case."""
        out: list[Finding] = []
        for k in scores.each.argsort(descending=True).tolist():
            found, score = scores.best[k], scores.each[k].item()
            suspect = found.feasible and score >= threshold
            if out and not suspect:
                break
            seen = confirm(subject, found.trigger, found.goal, unseen, rng)
            small = found.size <= MOST * subject.shape[1] * subject.shape[2]
            severity = self._severity(seen, suspect, small, {f.severity for f in out})
            facts = {"size": found.size, "score": score}
            evidence = exhibit(subject, found.trigger, found.goal, unseen) | facts
            words = _words(found, score, seen, suspect)
            out.append(Finding("BD001", severity, score, words, found.goal, seen, evidence))
        return gravest(out)

    def _severity(
        self, seen: Confirmation, suspect: bool, small: bool, before: set[Severity]
    ) -> Severity:
        lead = seen.asr.value - seen.control.value
        if suspect and small and seen.asr.value >= self.success and lead >= self.margin:
            return "MEDIUM" if "CRITICAL" in before else "CRITICAL"
        return "MEDIUM" if suspect else "INFO"


def _words(found: Candidate, score: float, seen: Confirmation, suspect: bool) -> str:
    verb = "stands out" if suspect else "has the highest score but does not stand out"
    return (
        f"Class {found.goal.target} {verb} (score {score:.2f}); a trigger of {found.size:.1f} px "
        f"sends {seen.asr.value:.0%} of {seen.asr.trials} unseen images there, a shuffled one "
        f"{seen.control.value:.0%}."
    )


def _too_few(best: Sequence[Candidate]) -> list[Finding]:
    """Say so if most classes have no trigger: then a class has too few to stand out from."""
    missing = sum(not c.feasible for c in best)
    words = f"No working trigger was found for {missing} of {len(best)} classes; give more steps."
    return [Finding("IN005", "HIGH", float(missing), words)] if 2 * missing > len(best) else []


def _label(found: set[Severity]) -> Label:
    if "CRITICAL" in found:
        return "BACKDOORED"
    if "HIGH" in found:
        return "INCONCLUSIVE"
    return "SUSPICIOUS" if "MEDIUM" in found else "NO BACKDOOR FOUND"


def paced(batches: Iterable[Batch], session: Session, cost: float) -> Iterator[Batch]:
    """Yield batches and count `cost` image-steps for each.

    Raises:
        Incomplete: If the session is over before the last batch.
    """
    for batch in batches:
        if session.over:
            raise Incomplete(session.over)
        session.spend(cost)
        yield batch


def penultimate(net: nn.Module, x: Images) -> Tensor:
    """Return what the last linear layer of a net reads, `(N, D)`; the logits if it has none."""
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]
    caught: list[Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, read: caught.append(read[0])) for m in last]
    try:
        with torch.no_grad():
            logits: Tensor = net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return (caught[-1] if caught else logits).flatten(1)
