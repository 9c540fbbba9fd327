"""K-Arm: screen the goals on clean images, invert those that are left in turns of a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator

from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.run import Run
from gifthorse.core.stats import log_depth
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Finding,
    Goal,
    Inverter,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, labels_of, split, whole
from gifthorse.detection.confirmation import Confirmer, Proof, Suspect
from gifthorse.detection.screening import leaning_pairs, standing_out
from gifthorse.detection.sentences import Bounded
from gifthorse.detection.verdict import Work, unfinished
from gifthorse.search import finish
from gifthorse.search.k_arm import PIXELS, KArm, Mode
from gifthorse.training import predict


@method
class KArmScan:
    """Search the goals that clean images lean to, and judge the smallest trigger by its size.

    Where one class stands out among all by how many clean images it ranks high on, it is the only
    goal. Where none does, as the rule is with few classes, backdoored or not, every class is one,
    and each gets its rounds. If no trigger is suspicious then, the class pairs follow that clean
    images lean to. Assumes a patch trigger. The bounds on sizes are absolute, so one goal is enough
    for a verdict. The clean images are split: half for the search, half to confirm what it found;
    the screening, which makes no trigger, looks at all of them.

    Attributes:
        inverter: What finds the smallest trigger of a goal.
        pairwise: The same for a class pair.
        scheduler: How the goals share the rounds; its mode is set by what they are.
        screening: Whether clean images choose the goals; without it every class is one.
        proof: What it takes to call a suspected class backdoored.
        top: Share of the classes that count as high ranks; two classes count for 8 or fewer.
        outlier: Robust deviations above the median of all classes from which the share of images
            that a class ranks high on stands out.
        most: Least share of all images that such a class ranks high on.
        within: A class that ranks high on at least this share of another class's images makes a
            pair with it.
        victims: Most pairs with the same target.
        global_bound: A trigger from all classes below this size is a backdoor's, in pixels of a
            224 x 224 image; scaled by `H * W`.
        pair_bound: The same for a trigger from one class.
        depth: Where every class was searched, robust deviations of the logarithm by which the
            smallest trigger must also lie below the median of all.
        symmetric: Whether a pair must also be much harder to reverse.
        ratio: Least factor between the sizes of the reversed and the found trigger.

    Source: Shen et al., Backdoor Scanning for Deep Neural Networks through K-Arm Optimization,
    ICML 2021, and its released code; the bounds are for Neural Cleanse's masks. Differs: an outlier
    test in place of a share of 0.95 of all images, which was found on TrojAI's nets and drops the
    targets of small ones; where it tells nothing, every class and an outlier test on their sizes
    beside the bound, before the pairs, which the code goes on to at once; images are grouped by
    their labels, not by predictions; the bounds alone make a model suspicious, and only a trigger
    that works on images that the search did not use, and does not when shuffled, a backdoored one;
    without the symmetric check the bound decides about pairs; goals start each at random where the
    code starts all alike.
    """

    inverter: Inverter
    pairwise: Inverter
    scheduler: KArm = KArm()
    screening: bool = True
    proof: Proof = Proof()
    top: Annotated[float, Share] = 0.25
    outlier: Annotated[float, NotNegative] = 5.0
    most: Annotated[float, Share] = 0.5
    within: Annotated[float, Share] = 0.9
    victims: Annotated[int, AtLeast(1)] = 3
    global_bound: Annotated[float, NotNegative] = 1720.0
    pair_bound: Annotated[float, NotNegative] = 1000.0
    depth: Annotated[float, Positive] = 3.0
    symmetric: bool = True
    ratio: Annotated[float, NotNegative] = 10.0

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over the goals that the screening left."""
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        search, unseen = split(clean, self.proof.share, spawn(rng))
        goals, pairs = self._screen(subject, clean, search, run)
        case = _Case(self, subject, search, unseen, kept, rng)
        if goals and not case.stopped:
            case.all_to_one(goals)
            if pairs and not case.over:
                case.one_to_one(pairs)
        return work.verdict(
            self,
            case.score,
            case.said(),
            case.statistics,
            arms=case.arms,
            coverage=(arm.goal for arm in case.arms if arm.rounds),
        )

    @property
    def threshold(self) -> float:
        """The score where suspicion starts: how often the smallest trigger fits into the bound."""
        return 1.0

    def _screen(
        self, subject: Subject, clean: Samples, search: Subset, run: Run
    ) -> tuple[list[Goal], list[Goal]]:
        """Return the goals from all classes, and those from single ones with images to search."""
        if run.stop_reason:
            return [], []
        every = [Goal(target) for target in range(subject.classes)]
        if not self.screening:
            return every, []
        x, y = whole(clean)
        chances = predict(subject, x).float().softmax(1)
        run.charge(len(x) / 2)
        one = standing_out(chances, top=self.top, outlier=self.outlier, most=self.most)
        if one is not None:
            return [one], []
        pairs = leaning_pairs(chances, y, top=self.top, within=self.within, victims=self.victims)
        there = set(labels_of(search).tolist())
        return every, [pair for pair in pairs if pair.source in there]


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
        self.stopped, self.score = run.stop_reason, 0.0
        self.arms: list[Arm] = []
        self.findings: list[Finding] = []
        self.statistics: dict[str, float] = {}

    @property
    def over(self) -> bool:
        """Whether something is suspicious already, or no time is left to look for more."""
        return bool(self.stopped) or any(f.severity != "INFO" for f in self.findings)

    def all_to_one(self, goals: Sequence[Goal]) -> None:
        """Search a trigger from all other classes for each goal, and judge the smallest."""
        # Of several, one that never succeeds must not hold up the others, nor end the race.
        mode: Mode = "every" if len(goals) > 1 else "global"
        best = self._run(goals, self.rules.inverter, mode, "search")
        depth, alone = math.inf, False
        if len(best) > 2:
            # The arm that came first stands out from those that were not searched yet.
            alone = 2 * sum(not c.feasible for c in best) >= len(best)
            sizes = torch.tensor([c.size for c in best])
            depth = float(log_depth(sizes)[best.index(_smallest(best))]) / self.rules.depth
            depth = 0.0 if self.stopped else depth
        self._judge(best, self.rules.global_bound, depth, alone)

    def one_to_one(self, pairs: Sequence[Goal]) -> None:
        """Search a trigger for each class pair, and judge the smallest."""
        best = self._run(pairs, self.rules.pairwise, "pair", "pairs")
        self._judge(best, self.rules.pair_bound)

    def said(self) -> list[Finding]:
        """Return the findings, and that they are not all if the run was over too soon."""
        if not self.stopped:
            return self.findings
        rounds = sum(arm.rounds for arm in self.arms)
        how = f"{self.stopped}, after {rounds} rounds over {len(self.arms)} goals"
        return [*self.findings, unfinished(how)]

    def _run(
        self,
        goals: Sequence[Goal],
        inverter: Inverter,
        mode: Mode,
        name: str,
        rounds: int | None = None,
    ) -> tuple[Candidate, ...]:
        scheduler = replace(self.rules.scheduler, mode=mode)
        if rounds is not None:
            scheduler = replace(scheduler, rounds=rounds)
        inversion = inverter(self.subject, self.search, goals, spawn(self.rng))
        self.stopped = finish(inversion, scheduler, self.run.checkpoint(name))
        return inversion.best

    def _judge(
        self,
        best: Sequence[Candidate],
        bound: float,
        depth: float = math.inf,
        alone: bool = False,
    ) -> None:
        """Hold the smallest trigger against the bound, its reverse, and unseen images."""
        rules = self.rules
        bound *= self.subject.shape[1] * self.subject.shape[2] / PIXELS
        self.arms += [
            Arm(c.goal, c.size, c.asr, bound / max(c.size, 0.1), c.feasible, c.rounds) for c in best
        ]
        found = _smallest(best)
        small = found.feasible and found.size < bound and depth > 1
        ratio = self._reverse(found) if small else math.inf
        score = min(bound / max(found.size, 0.1), depth)
        facts = {"size": found.size, "bound": bound}
        if math.isfinite(ratio):
            score = min(score, ratio / rules.ratio)
            facts["ratio"] = self.statistics["ratio"] = ratio
        self.score = max(self.score, score)
        self.statistics |= {
            "arms_screened": float(len(self.arms)),
            "bound": bound,
            "smallest": found.size,
            "smallest_class": float(found.goal.target),
        }
        near = ratio <= rules.ratio  # never so for NaN
        held = alone or math.isnan(ratio)
        suspect = Suspect(found, score, small and not near, held, facts)
        draw = spawn(self.rng)
        confirmer = Confirmer(self.subject, self.unseen, rules.proof, draw, self.run)
        said = confirmer.findings([suspect], Bounded(len(best), bound, ratio))
        self.findings = [*said, *self.findings]  # what was found last is what it all ends with

    def _reverse(self, found: Candidate) -> float:
        """Return how much larger the trigger of the reversed pair is.

        Infinite where nobody asks; NaN where it should be known and is not.
        """
        source, target = found.goal.source, found.goal.target
        if source is None or not self.rules.symmetric:
            return math.inf
        if self.stopped or target not in labels_of(self.search):
            return math.nan
        back, *_ = self._run(
            [Goal(source, target)], self.rules.pairwise, "back", "back", found.rounds
        )
        # A search that was cut short only has an upper bound of the reversed size.
        return math.nan if self.stopped else back.size / max(found.size, 0.1)


def _smallest(best: Sequence[Candidate]) -> Candidate:
    return min(best, key=lambda c: (not c.feasible, c.size))
