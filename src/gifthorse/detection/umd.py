"""UMD: which class pairs have small triggers that turn each other's images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.fields import AtLeast, OpenShare, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.stats import log_depth
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Finding,
    Goal,
    Inverter,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import Subset, labels_of, split
from gifthorse.detection.confirmation import DIFFUSE, Confirmer, Proof, Suspect
from gifthorse.detection.cores import bound_of_many, closest_core, links, prominence
from gifthorse.detection.crossed import Crossed
from gifthorse.detection.inspector import winners
from gifthorse.detection.nearest import nearest_pairs
from gifthorse.detection.sentences import Linked
from gifthorse.detection.verdict import Work, doubt, too_few, unfinished
from gifthorse.search import Exhaustive, finish

LISTED = 50  # pairs of one trigger that have a finding of their own


@method
class UMD:
    """Search a trigger for each class pair, and see which of them turn images of other pairs, too.

    Where a backdoor turns images of several classes, each into a class of its own, the trigger of
    any of its pairs turns those of the others; what separates two classes by nature does not. The
    core of pairs that are linked so is judged by the size of its triggers beside those of all other
    pairs, and a trigger that turns most classes, each into its own, by that alone. A pair that is
    linked with none may stand out by its size, if its trigger works on images that the search did
    not use. Assumes a trigger that is the same for all images, and that most pairs have none. Needs
    a few images of each class.

    Attributes:
        inverter: Finds the smallest trigger of a class pair.
        proof: What it takes to call a suspected pair or core backdoored.
        every: Classes up to which all pairs are searched. Of more, the nearest are by the last
            layer (by the logits, where there is no such layer), and finding nothing is no answer
            about the others.
        share: How many those are, as a share of all pairs.
        most: And at most.
        images: Most images of a class on which the triggers of other pairs are tried.
        starts: Strongest links that a core is grown from.
        least: Pairs outside a core that it must be compared with.
        sure: Share of clean nets whose largest deviation, if normal, stays below the threshold.
        wide: A trigger that turns more than this share of the classes, each into a class of its
            own, is suspicious whatever its size: what turns classes by nature turns most of them
            into the same few.

    Source: Xiang, Xiong and Li, UMD: Unsupervised Model Detection for X2X Backdoor Attacks, ICML
    2023 (arXiv 2305.18651): links, clustering, inverse sizes, threshold. Differs: a screening by
    the last layer where classes are many; a trigger that turns most classes is enough, as a core
    needs the searches of several pairs to have met it; a pair alone is judged as well, by the
    logarithm of its size; triggers that fail on unseen images of their own class make no core; the
    median of an even core is the lower one, and the deviation has a floor; the score is divided by
    its threshold, which depends on the number of pairs; nothing is called backdoored unless one
    trigger does all that is said of it on images that the search did not use, and a shuffled one
    does not.
    """

    inverter: Inverter
    proof: Proof = field(default=Proof())
    every: Annotated[int, AtLeast(3)] = 10
    share: Annotated[float, PositiveShare] = 0.1
    most: Annotated[int, AtLeast(10)] = 120
    images: Annotated[int, AtLeast(1)] = 10
    starts: Annotated[int, AtLeast(1)] = 5
    least: Annotated[int, AtLeast(2)] = 5
    sure: Annotated[float, OpenShare] = 0.95
    wide: Annotated[float, PositiveShare] = 0.5

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over the class pairs that were searched."""
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        used = split(clean, self.proof.share, spawn(rng))
        goals = self._pairs(subject, *used, run)
        if len(goals) <= self.least:
            words = (
                f"A class pair is compared with {self.least} others or more, and there are "
                f"{len(goals)} with two images of the source: give images of more classes."
            )
            return work.judged(self, doubt("IN002", words), subject)
        inversion = self.inverter(subject, used[0], goals, spawn(rng))
        stopped = finish(inversion, Exhaustive(), kept)
        best = inversion.best
        if stopped:
            arms = (Arm(c.goal, c.size, c.asr, 0.0, c.feasible, c.rounds) for c in best)
            return work.verdict(self, 0.0, [unfinished(stopped)], {}, arms=arms)
        crossed = Crossed.of(subject, best, used, self.images, self.proof.success, run)
        bound = bound_of_many(len(best), self.sure)
        alone = log_depth(torch.tensor([c.size for c in best])).clamp(min=0) / bound
        suspects, figures = self._suspects(crossed, alone, bound, subject)
        confirmer = Confirmer(subject, used[1], self.proof, spawn(rng), run)
        findings: list[Finding] = confirmer.findings(suspects, Linked(best)) + too_few(best)
        rows = zip(best, alone.tolist(), strict=True)
        return work.verdict(
            self,
            max(figures.values()),
            findings,
            figures | {"bound": bound, "pairs_searched": float(len(best))},
            arms=(Arm(c.goal, c.size, c.asr, depth, c.feasible, c.rounds) for c, depth in rows),
            coverage=goals,
        )

    @property
    def threshold(self) -> float:
        """The score where suspicion starts: deviations over the bound for so many pairs."""
        return 1.0

    def _pairs(self, subject: Subject, search: Subset, unseen: Subset, run: Run) -> list[Goal]:
        """Return the pairs to search: sources with images, targets that some image comes out as."""
        sources = set(labels_of(search).tolist()) & set(labels_of(unseen).tolist())
        targets = winners(subject, search, run).nonzero().flatten().tolist()
        pairs = [Goal(t, s) for s in sorted(sources) for t in targets if s != t]
        if subject.classes <= self.every:
            return pairs
        count = min(self.most, max(self.least + 1, round(self.share * len(pairs))))
        return nearest_pairs(subject, search, pairs, count, run)

    def _suspects(
        self, crossed: Crossed, alone: Tensor, bound: float, subject: Subject
    ) -> tuple[list[Suspect], dict[str, float]]:
        """Return the triggers to try on unseen images, the most suspicious first, and the scores.

        What stands out is named by all that its trigger does. With few images of a class a trigger
        may be small since it fits just those, so it must turn unseen ones of its own class, too.
        """
        best = crossed.best
        sizes = torch.tensor([c.size for c in best])
        general = [i for i in range(len(best)) if crossed.unseen[i] >= self.proof.success]
        ranked = {kind: [(0.0, i) for i in general[:1]] for kind in ("map", "core", "pair")}
        ranked["pair"] += [(alone[i].item(), i) for i in general]
        ranked["map"] += [(self._map_score(crossed, i), i) for i in general]
        core, lead = self._core(crossed, general)
        if core and len(crossed.map_of(lead)) > 1:
            ranked["core"].append((max(0.0, prominence(sizes, core)) / bound, lead))
        top = {
            kind: max(some, key=lambda at: (at[0], -best[at[1]].size), default=(0.0, -1))
            for kind, some in ranked.items()
        }
        order = sorted([top["map"], top["core"], *ranked["pair"]], reverse=True)
        found, named = list[Suspect](), set[Goal]()
        for score, i in order:
            if i >= 0 and best[i].goal not in named:
                more = self._suspect(crossed, i, score, subject)
                found += more
                named |= {goal for suspect in more for goal in suspect.goals}
        found.sort(key=lambda s: (s.stands_out, not s.held, bool(s.also), s.score), reverse=True)
        return found, {f"{kind}_score": score for kind, (score, _) in top.items()}

    def _core(self, crossed: Crossed, some: Sequence[int]) -> tuple[list[int], int]:
        """Return the closest core among some pairs, and which of it turns the others best."""
        transfer, sources = crossed.transfer()[some][:, some], crossed.sources[some]
        linked, least = links(transfer, sources), self.least - (len(crossed.best) - len(some))
        inner = closest_core(linked, sources, starts=self.starts, least=max(0, least))
        if not inner:
            return [], -1
        lead = inner[int(transfer[inner][:, inner].sum(1).argmax())]
        return [some[i] for i in inner], some[lead]

    def _map_score(self, crossed: Crossed, i: int) -> float:
        """Return into how many classes a trigger turns others, over how many would be too many.

        Two are none: they may be two that everything is close to.
        """
        reached = len({goal.target for goal in crossed.map_of(i)})
        return reached / (int(self.wide * crossed.classes) + 1) if reached > 2 else 0.0

    def _suspect(self, crossed: Crossed, i: int, score: float, subject: Subject) -> list[Suspect]:
        """Return a trigger under suspicion with all that it does, then its pairs one by one.

        What sends few classes besides its own to the same target counts as a pair.
        """
        found = crossed.best[i]
        goals = tuple(dict.fromkeys((found.goal, *crossed.map_of(i))))
        several = len({goal.target for goal in goals}) > 1
        if not several and 2 * len(goals) <= crossed.classes:
            goals = goals[:1]
        facts = {"size": found.size, "classes_turned": float(len(goals)), "score": score}
        wide = found.size > DIFFUSE * subject.shape[1] * subject.shape[2]
        lead = Suspect(found, score, score >= 1, wide, facts, goals[1:] if score >= 1 else ())
        if not several or not lead.stands_out:
            return [lead]
        own = (replace(found, goal=goal) for goal in goals[:LISTED])  # for each to be unlearned
        return [lead, *(Suspect(one, score, True, True, facts) for one in own)]
