"""K-Arm: screen the goals on clean images, invert those that are left in turns of a bandit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Labels,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, labels_of, split, whole
from gifthorse.detection.confirmation import Confirmer, Proof, Suspect
from gifthorse.detection.screening import PairArm, Victims, pair_arms, standing_out
from gifthorse.detection.sentences import Bounded
from gifthorse.detection.verdict import Work, unfinished
from gifthorse.search import finish
from gifthorse.search.k_arm import PIXELS, KArm
from gifthorse.training import predict


@method
class KArmScan:
    """Search the goals that clean images lean to, and judge the smallest trigger by its size.

    Where one class stands out among all by how many clean images it ranks high on, it is the only
    goal. Where none does, which of few classes is the rule, backdoored or not, every class is an
    arm. If neither brings a backdoor, targets that images of single classes lean to are, each with
    up to three such victims. Assumes a patch trigger. The bound on sizes is absolute, so one goal
    is enough for a verdict. The clean images are split: half for the search, half to confirm what
    it found; the screening, which makes no trigger, looks at all of them.

    Attributes:
        inverter: What finds the smallest trigger of a goal.
        pairwise: The same for images of single classes; None takes `inverter`.
        scheduler: How the goals share the rounds; its mode is set by what they are.
        screening: Whether clean images choose the goals; without it every class is one.
        proof: What it takes to call a suspected class backdoored.
        top: Share of the classes that count as high ranks; two classes count for 8 or fewer.
        outlier: Robust deviations above the median of all classes from which the share of images
            that a class ranks high on stands out.
        most: Least share of all images that such a class ranks high on.
        within: A class that ranks high on at least this share of another class's images makes a
            pair with it.
        victims: Most victims with the same target.
        global_bound: A trigger from all classes below this size is a backdoor's, in pixels of a
            224 x 224 image; scaled by `H * W`.
        pair_bound: The same for a trigger from one class, or up to three.
        depth: Where every class was searched, robust deviations of the logarithm by which the
            smallest trigger must also lie below the median of all.
        symmetric: Whether a pair must also be much harder to reverse.
        ratio: Least factor between the sizes of the reversed and the found trigger.

    Source: Shen et al., Backdoor Scanning for Deep Neural Networks through K-Arm Optimization,
    ICML 2021, and its released code; the bounds are for Neural Cleanse's masks. Differs: an outlier
    test in place of a share of 0.95 of all images, which was found on TrojAI's nets and drops the
    targets of small ones; every class where it cannot tell, and an outlier test
    on their sizes beside the bound, where the code goes on to pairs; images
    are grouped by their labels, not by predictions; the bounds alone make a model suspicious, and
    only a trigger that works on images that the search did not use, and does not when shuffled, a
    backdoored one; without the symmetric check the bound decides about pairs; of several victims
    the likeliest is reversed (the code stops with an error); goals start each at random where the
    code starts all alike.
    """

    inverter: Inverter
    pairwise: Inverter | None = None
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
        case = _Case(self, subject, search, unseen, kept, rng)
        if not case.stopped:
            goals, arms = self._screen(subject, clean, search, run)
            case.all_to_one(goals)
            if arms and not case.suspicious:
                case.from_victims(arms)
        return work.verdict(
            self,
            case.score,
            case.said(),
            case.statistics,
            arms=case.rows,
            coverage=(arm.goal for arm in case.rows),
        )

    @property
    def threshold(self) -> float:
        """The score where suspicion starts: how often the smallest trigger fits into the bound."""
        return 1.0

    def _screen(
        self, subject: Subject, clean: Samples, search: Subset, run: Run
    ) -> tuple[list[Goal], list[PairArm]]:
        """Return the goals from all classes, and the arms from single ones."""
        every = [Goal(target) for target in range(subject.classes)]
        if not self.screening:
            return every, []
        x, y = whole(clean)
        chances = predict(subject, x).float().softmax(1)
        run.charge(len(x) / 2)
        one = standing_out(chances, top=self.top, outlier=self.outlier, most=self.most)
        if one is not None:
            return [one], []
        arms = pair_arms(chances, y, top=self.top, within=self.within, victims=self.victims)
        return every, _with_images(arms, labels_of(search))


def _with_images(arms: Sequence[PairArm], labels: Labels) -> list[PairArm]:
    """Return the arms without victims of which there is no image."""
    there = set(labels.tolist())
    kept = [replace(a, victims=tuple(v for v in a.victims if v in there)) for a in arms]
    return [arm for arm in kept if arm.victims]


@dataclass(frozen=True)
class _Race:
    """The arms that share rounds, and what decides about the smallest of them.

    Attributes:
        goals: One an arm; a source is the number of a group of victims, or a class.
        search: Images to search with, under those numbers.
        inverter: What makes the triggers.
        scheduler: How they share the rounds.
        name: Under which the search is kept.
    """

    goals: Sequence[Goal]
    search: Samples
    inverter: Inverter
    scheduler: KArm
    name: str


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
        self.rows: list[Arm] = []
        self.findings: list[Finding] = []
        self.statistics: dict[str, float] = {"arms_screened": 0.0}
        self.rounds = 0

    @property
    def suspicious(self) -> bool:
        """Whether there is more than information, or no time left to look for more."""
        return bool(self.stopped) or any(f.severity != "INFO" for f in self.findings)

    def all_to_one(self, goals: Sequence[Goal]) -> None:
        """Search a trigger from all other classes for each goal, and judge the smallest."""
        # Of several, one that never succeeds must not hold up the others, nor end the race.
        mode = replace(self.rules.scheduler, mode="every" if len(goals) > 1 else "global")
        bound = self._scaled(self.rules.global_bound)
        race = _Race(goals, self.search, self.rules.inverter, mode, "search")
        best = self._run(race)
        for found in best:
            self._row(found, (found.goal,), bound)
        depth = math.inf
        if len(best) > 2:
            sizes = torch.tensor([c.size for c in best])
            depth = float(log_depth(sizes).max()) / self.rules.depth
        self._judge(min(best, key=_order), self.unseen, bound, len(best), depth)

    def from_victims(self, arms: Sequence[PairArm]) -> None:
        """Search a trigger from the victims of each arm, and judge the smallest."""
        numbers = [self.subject.classes + i for i in range(len(arms))]
        goals = [Goal(arm.target, n) for arm, n in zip(arms, numbers, strict=True)]
        mode = replace(self.rules.scheduler, mode="pair")
        bound, inverter = self._scaled(self.rules.pair_bound), self._pairwise
        race = _Race(goals, Victims(self.search, arms, numbers), inverter, mode, "pairs")
        best = self._run(race)
        named = [replace(c, goal=a.pairs[0]) for c, a in zip(best, arms, strict=True)]
        for found, arm in zip(named, arms, strict=True):
            self._row(found, arm.pairs, bound)
        smallest = min(named, key=_order)
        arm = arms[named.index(smallest)]
        unseen = Victims(self.unseen, [arm], [arm.victims[0]])
        self._judge(smallest, unseen, bound, len(arms))

    def said(self) -> list[Finding]:
        """Return the findings, and that they are not all if the run was over too soon."""
        if not self.stopped:
            return self.findings
        how = f"{self.stopped}, after {self.rounds} rounds over {len(self.rows)} goals"
        return [*self.findings, unfinished(how)]

    @property
    def _pairwise(self) -> Inverter:
        return self.rules.pairwise or self.rules.inverter

    def _scaled(self, bound: float) -> float:
        return bound * self.subject.shape[1] * self.subject.shape[2] / PIXELS

    def _row(self, c: Candidate, goals: Sequence[Goal], bound: float) -> None:
        index = bound / max(c.size, 0.1)
        self.rows += [Arm(g, c.size, c.asr, index, c.feasible, c.rounds) for g in goals]

    def _run(self, race: _Race) -> tuple[Candidate, ...]:
        if race.name != "back":
            self.statistics["arms_screened"] += len(race.goals)
        inversion = race.inverter(self.subject, race.search, race.goals, spawn(self.rng))
        self.stopped = finish(inversion, race.scheduler, self.run.checkpoint(race.name))
        self.rounds += sum(c.rounds for c in inversion.best)
        return inversion.best

    def _judge(
        self,
        found: Candidate,
        unseen: Samples,
        bound: float,
        goals: int,
        depth: float = math.inf,
    ) -> None:
        """Hold a trigger against the bound, its reverse, and unseen images."""
        rules = self.rules
        small = found.feasible and found.size < bound and depth > 1
        ratio = self._reverse(found) if small else math.inf
        score = min(bound / max(found.size, 0.1), depth)
        facts = {"size": found.size, "bound": bound}
        if math.isfinite(ratio):
            score = min(score, ratio / rules.ratio)
            facts["ratio"] = self.statistics["ratio"] = ratio
        self.score = max(self.score, score)
        self.statistics |= {"bound": bound, "smallest": found.size}
        self.statistics["smallest_class"] = float(found.goal.target)
        near = ratio <= rules.ratio  # never so for NaN
        suspect = Suspect(found, score, small and not near, math.isnan(ratio), facts)
        draw = spawn(self.rng)
        confirmer = Confirmer(self.subject, unseen, rules.proof, draw, self.run, self.unseen)
        self.findings += confirmer.findings([suspect], Bounded(goals, bound, ratio))

    def _reverse(self, found: Candidate) -> float:
        """Return how much larger the trigger of the reversed pair is.

        Infinite where nobody asks; NaN where it should be known and is not.
        """
        source, target = found.goal.source, found.goal.target
        if source is None or not self.rules.symmetric:
            return math.inf
        if self.stopped or target not in labels_of(self.search):
            return math.nan
        scheduler = replace(self.rules.scheduler, mode="back", rounds=found.rounds)
        goals, search = [Goal(source, target)], self.search
        (back,) = self._run(_Race(goals, search, self._pairwise, scheduler, "back"))
        # A search that was cut short only has an upper bound of the reversed size.
        return math.nan if self.stopped else back.size / max(found.size, 0.1)


def _order(found: Candidate) -> tuple[bool, float]:
    return not found.feasible, found.size
