"""K-Arm: screen the goals on clean images, invert the few that are left in turns of a bandit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, OpenShare, Share, method
from gifthorse.core.options import describe
from gifthorse.core.run import LocalSession
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Hunt,
    Inverter,
    Label,
    Labels,
    Samples,
    Session,
    Severity,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, split, whole
from gifthorse.detection.confirmation import confirm, exhibit
from gifthorse.detection.inspector import named
from gifthorse.search.k_arm import PIXELS, KArm
from gifthorse.training import predict

CONFIRMING = 5  # image-steps of a confirmation: with the trigger, 8 shuffled ones, and without


@method
class KArmScan:
    """Search only the goals that clean images lean to, and judge the smallest trigger by its size.

    Assumes that a backdoored net ranks the target high on clean images of the victims already, and
    a patch trigger. The bound on sizes is absolute, so one goal is enough for a verdict. The clean
    images are split: half for the search, half to confirm what it found; the screening, which
    makes no trigger, looks at all of them.

    Attributes:
        inverter: What finds the smallest trigger of a goal.
        turns: How the goals share the rounds; its mode is set by the screening.
        screening: Whether clean images choose the goals; without it every class is one.
        share: Share of the clean images that the search may use.
        top: Share of the classes that count as high ranks; two classes count for 8 or fewer.
        everywhere: A class that ranks high on more than this share of all images is the only goal.
        within: Else, a class that ranks high on at least this share of another class's images
            makes a pair with it.
        victims: Most pairs with the same target.
        global_bound: A trigger from all classes below this size is a backdoor's, in pixels of a
            224 x 224 image; scaled by `H * W`.
        pair_bound: The same for a trigger from one class.
        symmetric: Whether a pair must also be much harder to reverse.
        ratio: Least factor between the sizes of the reversed and the found trigger.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control.

    Source: Shen et al., Backdoor Scanning for Deep Neural Networks through K-Arm Optimization,
    ICML 2021, and its released code; the bounds are for Neural Cleanse's masks. Differs: screening
    can be left out, for backdoors that clean images do not lean to; images
    are grouped by their labels, not by predictions; between two classes, where screening says
    nothing, both are searched; the bounds alone make a model suspicious, and only a trigger that
    works on images that the search did not use, and does not when shuffled, a backdoored one;
    without the symmetric check the bound decides about pairs.
    """

    pairs: ClassVar[bool] = True  # class pairs are looked for, too

    inverter: Inverter
    turns: KArm = KArm()
    screening: bool = True
    share: Annotated[float, OpenShare] = 0.5
    top: Annotated[float, Share] = 0.25
    everywhere: Annotated[float, Share] = 0.95
    within: Annotated[float, Share] = 0.9
    victims: Annotated[int, AtLeast(1)] = 3
    global_bound: Annotated[float, NotNegative] = 1720.0
    pair_bound: Annotated[float, NotNegative] = 1000.0
    symmetric: bool = True
    ratio: Annotated[float, NotNegative] = 10.0
    success: Annotated[float, Share] = 0.6
    margin: Annotated[float, Share] = 0.3

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        rng: Generator,
        *,
        session: Session | None = None,
    ) -> Verdict:
        """Return the verdict over the goals that the screening left."""
        session, started = session or LocalSession(), time.monotonic()
        before = session.image_steps
        search, unseen = split(clean, self.share, spawn(rng))
        goals = self._screen(subject, clean, search, session)
        case = _Case(self, subject, search, unseen, session, session.over)
        case.invert(goals, rng)
        return Verdict(
            method=type(self).__name__,
            score=case.score,
            threshold=1.0,
            label=case.label,
            findings=tuple(case.findings),
            arms=tuple(
                Arm(c.goal, c.size, c.asr, case.bound / max(c.size, 0.1), c.feasible, c.rounds)
                for c in case.best
            ),
            seconds=time.monotonic() - started,
            image_steps=session.image_steps - before,
            statistics=case.statistics | {"image_steps": session.image_steps - before},
            settings={k: str(v) for k, v in describe(self).items()},
        )

    def _screen(
        self, subject: Subject, clean: Samples, search: Subset, session: Session
    ) -> list[Goal]:
        if session.over:
            return []
        if not self.screening:
            return [Goal(target) for target in range(subject.classes)]
        x, y = whole(clean)
        chances = predict(subject, x).float().softmax(1)
        session.spend(len(x) / 2)
        goals = candidates(
            chances,
            y,
            top=self.top,
            everywhere=self.everywhere,
            within=self.within,
            victims=self.victims,
        )
        there = set(whole(search)[1].tolist())
        return [g for g in goals if g.source is None or g.source in there]


def candidates(
    chances: Tensor,
    labels: Labels,
    *,
    top: float = 0.25,
    everywhere: float = 0.95,
    within: float = 0.9,
    victims: int = 3,
    least: float = 1e-8,
) -> list[Goal]:
    """Return the goals that clean images lean to: one target, or pairs, or none.

    Args:
        chances: Softmax outputs on clean images, `(N, K)`.
        labels: Their classes, `(N,)`; a class may be missing.
        top: Share of K that counts as high ranks; two classes count for K of 8 or fewer.
        everywhere: A class that ranks high on more than this share of all images is the only goal.
        within: Share of a class's images on which the target of a pair ranks high.
        victims: Most pairs with the same target, those with the largest sum of softmax.
        least: Sum and median of the target's softmax, where it ranks high, lie above this.

    Returns:
        One goal without a source; or pairs, by target, likeliest first; or, for two classes, both.

    Source: K-Arm's released code, Arm_Pre_Screening.py.

    Example:
        >>> candidates(torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]), torch.tensor([0, 1]))
        [Goal(target=0, source=None)]
    """
    count, classes = chances.shape
    k = 2 if classes <= 8 else round(top * classes)  # halves to even, as the released code rounds
    if classes <= k:
        return [Goal(c) for c in range(classes)]
    high = torch.zeros_like(chances, dtype=torch.bool)
    high.scatter_(1, chances.topk(k).indices, torch.ones_like(high))
    often = high.sum(0)
    if int(often.max()) > everywhere * count:
        return [Goal(int(often.argmax()))]
    found: list[tuple[float, Goal]] = []
    for source in labels.unique().tolist():
        mine = labels == source
        share = high[mine].double().mean(0)
        leaning = chances[mine].masked_fill(~high[mine], math.nan)
        total, middle = leaning.nansum(0), leaning.nanquantile(0.5, 0)
        close = (share >= within) & (total > least) & (middle > least)
        close[source] = False
        found += [(float(total[t]), Goal(t, source)) for t in close.nonzero().flatten().tolist()]
    found.sort(key=lambda pair: (pair[1].target, -pair[0]))
    goals = [goal for _, goal in found]
    rank = [sum(g.target == goal.target for g in goals[:i]) for i, goal in enumerate(goals)]
    return [goal for goal, before in zip(goals, rank, strict=True) if before < victims]


class _Case:
    """One model under the scan: what was found so far and what that makes of it."""

    def __init__(
        self,
        rules: KArmScan,
        subject: Subject,
        search: Subset,
        unseen: Subset,
        session: Session,
        stopped: str,
    ) -> None:
        self.rules, self.subject, self.session = rules, subject, session
        self.search, self.unseen, self.stopped = search, unseen, stopped
        self.best: tuple[Candidate, ...] = ()
        self.findings: list[Finding] = []
        self.score = self.bound = 0.0
        self.statistics: dict[str, float] = {}

    @property
    def label(self) -> Label:
        """The verdict in a word."""
        worst = {f.severity for f in self.findings}
        if "CRITICAL" in worst:
            return "BACKDOORED"
        if self.stopped:
            return "INCONCLUSIVE"
        return "SUSPICIOUS" if "MEDIUM" in worst else "NO BACKDOOR FOUND"

    def invert(self, goals: Sequence[Goal], rng: Generator) -> None:
        """Search the goals, judge the smallest trigger, and say what there is to say."""
        pairs = any(g.source is not None for g in goals)
        scale = self.subject.shape[1] * self.subject.shape[2] / PIXELS
        self.bound = scale * (self.rules.pair_bound if pairs else self.rules.global_bound)
        self.statistics = {"arms_screened": float(len(goals)), "bound": self.bound}
        if goals and not self.stopped:
            # Two classes without a source: one that never succeeds must not hold up the other.
            mode = replace(self.rules.turns, mode="pair" if len(goals) > 1 or pairs else "global")
            self.best = self._run(goals, mode, rng)
            self._judge(min(self.best, key=lambda c: (not c.feasible, c.size)), rng)
        elif not self.stopped:
            self.findings.append(Finding("BD001", "INFO", 0.0, _nothing(self.subject)))
        if self.stopped:
            rounds = sum(c.rounds for c in self.best)
            message = (
                f"The search was not finished: {self.stopped}, after {rounds} rounds over "
                f"{len(goals)} goals. Give it a higher limit."
            )
            self.findings.append(Finding("IN003", "HIGH", 0.0, message))

    def _run(self, goals: Sequence[Goal], turns: KArm, rng: Generator) -> tuple[Candidate, ...]:
        hunt: Hunt = self.rules.inverter(self.subject, self.search, goals, spawn(rng))
        spent = hunt.image_steps
        self.session.spend(spent)  # what the start of the hunt cost
        for standing in turns(hunt):
            self.session.spend(hunt.image_steps - spent)
            spent = hunt.image_steps
            words = f"{len(goals)} goals, smallest {standing.size.min().item():.0f} px"
            self.session.report(int(standing.rounds.sum()), turns.rounds, words)
            self.stopped = self.session.over
            if self.stopped:
                break
        return hunt.best

    def _judge(self, found: Candidate, rng: Generator) -> None:
        """Hold the smallest trigger against the bound, its reverse, and unseen images."""
        rules, goal = self.rules, found.goal
        small = found.feasible and found.size < self.bound
        ratio = self._reverse(found, rng) if small else math.inf
        seen = confirm(self.subject, found.trigger, goal, self.unseen, spawn(rng))
        self.session.spend(CONFIRMING * len(self.unseen))
        severity: Severity = "CRITICAL" if _works(seen, rules) else "MEDIUM"
        if not small or ratio <= rules.ratio:
            severity = "INFO"
        elif math.isnan(ratio):
            severity = "MEDIUM"
        self.score = self.bound / max(found.size, 0.1)
        facts = {"size": found.size, "bound": self.bound}
        if math.isfinite(ratio):
            self.score = min(self.score, ratio / rules.ratio)
            facts["ratio"] = self.statistics["ratio"] = ratio
        self.statistics["smallest"] = found.size
        self.statistics["smallest_class"] = float(goal.target)
        rule = "BD001" if goal.source is None else "BD002"
        words = self._words(found, seen, severity, ratio)
        evidence = exhibit(self.subject, found.trigger, goal, self.unseen) | facts
        self.findings.append(Finding(rule, severity, self.score, words, goal, seen, evidence))

    def _reverse(self, found: Candidate, rng: Generator) -> float:
        """Return how much larger the trigger of the reversed pair is.

        Infinite where nobody asks; NaN where it should be known and is not.
        """
        source, target = found.goal.source, found.goal.target
        if source is None or not self.rules.symmetric:
            return math.inf
        if self.stopped or target not in whole(self.search)[1]:
            return math.nan
        turns = replace(self.rules.turns, mode="back", rounds=found.rounds)
        (back,) = self._run([Goal(source, target)], turns, rng)
        # A search that was cut short only has an upper bound of the reversed size.
        return math.nan if self.stopped else back.size / max(found.size, 0.1)

    def _words(self, found: Candidate, seen: Confirmation, severity: Severity, ratio: float) -> str:
        goal, count, back = named(found.goal), len(self.best), math.isfinite(ratio)
        size, limit = f"{found.size:.1f} px", f"below the bound of {self.bound:.1f} px"
        rate = f"{seen.asr.value:.0%} of {seen.asr.trials} unseen images"
        if severity == "CRITICAL":
            reverse = f"; the way back takes {ratio:.0f} times as much" if back else ""
            return f"A trigger of {size} sends {rate} to {goal}, {limit}{reverse}."
        if severity == "MEDIUM":
            unknown = "the way back could not be searched to compare"
            why = unknown if math.isnan(ratio) else "too few to confirm it"
            return f"{goal.capitalize()} needs only {size}, {limit}: {rate}, but {why}."
        survived = f"{count} goal{'s' * (count != 1)} survived the screening"
        if not found.feasible:
            return f"{survived}; the search found no trigger for any."
        why = f"not {limit}"
        if back:
            why = f"the way back takes only {ratio:.1f} times as much: classes close by nature"
        return f"{survived}; the smallest trigger, for {goal}, has {size}, {why}."


def _works(seen: Confirmation, rules: KArmScan) -> bool:
    enough = seen.asr.value >= rules.success and seen.asr.low > seen.control.high
    return enough and seen.asr.value - seen.control.value >= rules.margin


def _nothing(subject: Subject) -> str:
    return (
        f"0 goals survived the screening: no class of {subject.classes} ranks high on almost all "
        "clean images, nor on almost all of another class, so no trigger was searched."
    )
