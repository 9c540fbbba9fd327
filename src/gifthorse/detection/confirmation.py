"""Does a recovered trigger work on images that the search never saw, and only it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import BadOption
from gifthorse.core.fields import OpenShare, Share, method
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Samples,
    Severity,
    Subject,
    Trigger,
)
from gifthorse.data.samples import whole
from gifthorse.training import predict
from gifthorse.triggers.packing import packed

MOST = 0.5  # of an image: what covers more of it is another image, not a trigger
DIFFUSE = 0.25  # what covers more is not small enough to stand out as a trigger
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
        also: Further class pairs that the same trigger turns; together they are the goal.
    """

    found: Candidate
    score: float
    stands_out: bool
    held: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    also: tuple[Goal, ...] = ()

    @property
    def goals(self) -> tuple[Goal, ...]:
        """All that the trigger does."""
        return (self.found.goal, *self.also)

    @property
    def named(self) -> tuple[str, Goal | None]:
        """The rule of the report and the one goal; None where several classes are targets."""
        targets = {goal.target for goal in self.goals}
        if len(targets) > 1:
            return "BD007", None
        goal = Goal(*targets) if self.also else self.found.goal
        return "BD001" if goal.source is None else "BD002", goal


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
    also: Sequence[Goal] = (),
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
        also: Further goals of the trigger, whose images count as well.
    """
    x, y = whole(unseen)
    run.charge(len(x) * (controls + 2) / 2)
    shuffled = [predict(subject, trigger.shuffled(rng)(x)).argmax(1) for _ in range(controls)]
    return Confirmation(
        asr=asr(predict(subject, trigger(x)).argmax(1), y, goal, *also),
        control=asr(torch.cat(shuffled), y.repeat(controls), goal, *also),
        no_trigger=asr(predict(subject, x).argmax(1), y, goal, *also),
    )


def evidence(
    subject: Subject,
    trigger: Trigger,
    goal: Goal,
    unseen: Samples,
    run: Run,
    count: int = 8,
    *,
    also: Sequence[Goal] = (),
) -> dict[str, Tensor | float]:
    """Return what a report shows of a trigger: its parts, and images before and after it.

    `packed` is the trigger itself, with its goal, as the bytes of a text; a kind that cannot be
    saved has none. Images of further goals of the trigger (`also`) are shown as well.
    """
    x, y = whole(unseen)
    turned = torch.stack([g.applies_to(y) for g in (goal, *also)]).any(0)
    keep = turned.nonzero().flatten()
    chosen = keep[torch.linspace(0, max(0, len(keep) - 1), min(count, len(keep))).long()]
    before = x[chosen]
    after = trigger(before)
    run.charge(len(chosen))
    pattern, mask = trigger.render()
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
            found, also = suspect.found, suspect.also
            tried = self.subject, found.trigger, found.goal, self.unseen
            seen = confirm(*tried, self.rng, self.run, also=also)
            works = suspect.stands_out and self.proof.holds(seen)
            first = not any(f.severity == "CRITICAL" for f in out)
            severity: Severity = "MEDIUM" if suspect.stands_out else "INFO"
            if works and first and not suspect.held:
                severity = "CRITICAL"
            shown = evidence(*tried, self.run, also=also) | dict(suspect.facts)
            rule, goal = suspect.named
            said = sentence(suspect, seen, works, first)
            out.append(Finding(rule, severity, suspect.score, said, goal, seen, shown))
        return sorted(out, key=lambda finding: finding.severity != "CRITICAL")
