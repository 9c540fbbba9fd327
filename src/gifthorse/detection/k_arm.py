"""K-Arm: screen the goals on clean images, invert the few that are left in turns of a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, NotNegative, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Finding,
    Goal,
    Inverter,
    Labels,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, split, whole
from gifthorse.detection.confirmation import Confirmer, Proof, Suspect
from gifthorse.detection.sentences import Bounded
from gifthorse.detection.verdict import Work, unfinished
from gifthorse.search import finish
from gifthorse.search.k_arm import PIXELS, KArm
from gifthorse.training import predict


@method
class KArmScan:
    """Search only the goals that clean images lean to, and judge the smallest trigger by its size.

    Assumes that a backdoored net ranks the target high on clean images of the victims already, and
    a patch trigger. The bound on sizes is absolute, so one goal is enough for a verdict. The clean
    images are split: half for the search, half to confirm what it found; the screening, which
    makes no trigger, looks at all of them.

    Attributes:
        inverter: What finds the smallest trigger of a goal.
        scheduler: How the goals share the rounds; its mode is set by the screening.
        screening: Whether clean images choose the goals; without it every class is one.
        proof: What it takes to call a suspected class backdoored.
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

    Source: Shen et al., Backdoor Scanning for Deep Neural Networks through K-Arm Optimization,
    ICML 2021, and its released code; the bounds are for Neural Cleanse's masks. Differs: screening
    can be left out, for backdoors that clean images do not lean to; images
    are grouped by their labels, not by predictions; between two classes, where screening says
    nothing, both are searched; the bounds alone make a model suspicious, and only a trigger that
    works on images that the search did not use, and does not when shuffled, a backdoored one;
    without the symmetric check the bound decides about pairs; goals start each at
    random, as the inverter starts them, where the code starts all alike, and pairs from a nearly
    opaque square in the middle and in one color.
    """

    inverter: Inverter
    scheduler: KArm = KArm()
    screening: bool = True
    proof: Proof = Proof()
    top: Annotated[float, Share] = 0.25
    everywhere: Annotated[float, Share] = 0.95
    within: Annotated[float, Share] = 0.9
    victims: Annotated[int, AtLeast(1)] = 3
    global_bound: Annotated[float, NotNegative] = 1720.0
    pair_bound: Annotated[float, NotNegative] = 1000.0
    symmetric: bool = True
    ratio: Annotated[float, NotNegative] = 10.0

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over the goals that the screening left."""
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        search, unseen = split(clean, self.proof.share, spawn(rng))
        goals = self._screen(subject, clean, search, run)
        case = _Case(self, subject, search, unseen, kept, rng)
        findings = case.judged(goals)
        return work.verdict(
            self,
            case.score,
            findings,
            case.statistics,
            arms=(
                Arm(c.goal, c.size, c.asr, case.bound / max(c.size, 0.1), c.feasible, c.rounds)
                for c in case.best
            ),
            coverage=(c.goal for c in case.best),
        )

    @property
    def threshold(self) -> float:
        """The score where suspicion starts: how often the smallest trigger fits into the bound."""
        return 1.0

    def _screen(self, subject: Subject, clean: Samples, search: Subset, run: Run) -> list[Goal]:
        if run.stop_reason:
            return []
        if not self.screening:
            return [Goal(target) for target in range(subject.classes)]
        x, y = whole(clean)
        chances = predict(subject, x).float().softmax(1)
        run.charge(len(x) / 2)
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
    """One model under the scan: what was found so far."""

    def __init__(
        self,
        rules: KArmScan,
        subject: Subject,
        search: Subset,
        unseen: Subset,
        run: Run,
        rng: Generator,
    ) -> None:
        self.rules, self.subject, self.run, self.rng = rules, subject, run, rng
        self.search, self.unseen = search, unseen
        self.best: tuple[Candidate, ...] = ()
        self.stopped = run.stop_reason
        self.score = self.bound = 0.0
        self.statistics: dict[str, float] = {}

    def judged(self, goals: Sequence[Goal]) -> list[Finding]:
        """Search the goals, judge the smallest trigger, and say what there is to say."""
        pairs = any(g.source is not None for g in goals)
        scale = self.subject.shape[1] * self.subject.shape[2] / PIXELS
        self.bound = scale * (self.rules.pair_bound if pairs else self.rules.global_bound)
        self.statistics = {"arms_screened": float(len(goals)), "bound": self.bound}
        findings: list[Finding] = []
        if goals and not self.stopped:
            # Two classes without a source: one that never succeeds must not hold up the other.
            mode = replace(
                self.rules.scheduler, mode="pair" if len(goals) > 1 or pairs else "global"
            )
            self.best = self._run(goals, mode, "search")
            smallest = min(self.best, key=lambda c: (not c.feasible, c.size))
            findings += self._judge(smallest)
        elif not self.stopped:
            findings.append(Finding("BD001", "INFO", 0.0, _nothing(self.subject)))
        if self.stopped:
            rounds = sum(c.rounds for c in self.best)
            how = f"{self.stopped}, after {rounds} rounds over {len(goals)} goals"
            findings.append(unfinished(how))
        return findings

    def _run(self, goals: Sequence[Goal], scheduler: KArm, name: str) -> tuple[Candidate, ...]:
        inversion = self.rules.inverter(self.subject, self.search, goals, spawn(self.rng))
        self.stopped = finish(inversion, scheduler, self.run.checkpoint(name))
        return inversion.best

    def _judge(self, found: Candidate) -> list[Finding]:
        """Hold the smallest trigger against the bound, its reverse, and unseen images."""
        rules = self.rules
        small = found.feasible and found.size < self.bound
        ratio = self._reverse(found) if small else math.inf
        self.score = self.bound / max(found.size, 0.1)
        facts = {"size": found.size, "bound": self.bound}
        if math.isfinite(ratio):
            self.score = min(self.score, ratio / rules.ratio)
            facts["ratio"] = self.statistics["ratio"] = ratio
        self.statistics["smallest"] = found.size
        self.statistics["smallest_class"] = float(found.goal.target)
        near = ratio <= rules.ratio  # never so for NaN
        suspect = Suspect(found, self.score, small and not near, math.isnan(ratio), facts)
        draw = spawn(self.rng)
        confirmer = Confirmer(self.subject, self.unseen, rules.proof, draw, self.run)
        return confirmer.findings([suspect], Bounded(len(self.best), self.bound, ratio))

    def _reverse(self, found: Candidate) -> float:
        """Return how much larger the trigger of the reversed pair is.

        Infinite where nobody asks; NaN where it should be known and is not.
        """
        source, target = found.goal.source, found.goal.target
        if source is None or not self.rules.symmetric:
            return math.inf
        if self.stopped or target not in whole(self.search)[1]:
            return math.nan
        scheduler = replace(self.rules.scheduler, mode="back", rounds=found.rounds)
        (back,) = self._run([Goal(source, target)], scheduler, "back")
        # A search that was cut short only has an upper bound of the reversed size.
        return math.nan if self.stopped else back.size / max(found.size, 0.1)


def _nothing(subject: Subject) -> str:
    return (
        f"0 goals survived the screening: no class of {subject.classes} ranks high on almost all "
        "clean images, nor on almost all of another class, so no trigger was searched."
    )
