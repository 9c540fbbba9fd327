"""UMD: which class pairs have small triggers that turn each other's images?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, OpenShare, PositiveShare, Share, method
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
from gifthorse.data.gallery import balanced
from gifthorse.data.samples import Subset, labels_of, split, whole
from gifthorse.detection.confirmation import DIFFUSE, Confirmer, Proof, Suspect
from gifthorse.detection.cores import bound_of_many, closest_core, links, prominence
from gifthorse.detection.inspector import winners
from gifthorse.detection.nearest import nearest_pairs
from gifthorse.detection.sentences import Linked
from gifthorse.detection.verdict import Work, too_few, unfinished
from gifthorse.search import Exhaustive, finish
from gifthorse.training import predict


@method
class UMD:
    """Search a trigger for each class pair, and see which of them turn images of other pairs, too.

    Where a backdoor turns images of several classes, each to a class of its own, the trigger of any
    of its pairs turns those of the others; what separates two classes by nature does not. The core
    of pairs that are linked so is judged by the size of its triggers beside those of all other
    pairs. A pair that is linked with none may stand out by its size alone, if its trigger works on
    images that the search did not use. Assumes a trigger that is the same for all images, and that
    most pairs have none. Needs a few images of each class.

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
        sure: How seldom a clean net's largest deviation may be called one, as a share of nets.
        turned: A class belongs to what a trigger does if it sends this share of its images to one
            other class.

    Source: Xiang, Xiong and Li, UMD: Unsupervised Model Detection for X2X Backdoor Attacks, ICML
    2023 (arXiv 2305.18651): links, clustering, inverse sizes, threshold. Differs: a screening by
    the last layer where classes are many; a pair alone is judged as well, by the logarithm of its
    size and on unseen images; the classes that a core's best trigger turns are added to its label
    map; the deviation has a floor; the score is divided by its threshold, which depends on the
    number of pairs; nothing is called backdoored unless one trigger does all that is said of it on
    images that the search did not use, and a shuffled one does not.
    """

    inverter: Inverter
    proof: Proof = field(default=Proof())
    every: Annotated[int, AtLeast(3)] = 10
    share: Annotated[float, PositiveShare] = 0.1
    most: Annotated[int, AtLeast(10)] = 200
    images: Annotated[int, AtLeast(1)] = 10
    starts: Annotated[int, AtLeast(1)] = 5
    least: Annotated[int, AtLeast(2)] = 5
    sure: Annotated[float, OpenShare] = 0.95
    turned: Annotated[float, Share] = 0.5

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over the class pairs that were searched.

        Raises:
            NotApplicable: If too few classes have an image for search and confirmation.
        """
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        search, unseen = split(clean, self.proof.share, spawn(rng))
        goals = self._pairs(subject, search, unseen, run)
        inversion = self.inverter(subject, search, goals, spawn(rng))
        stopped = finish(inversion, Exhaustive(), kept)
        best = inversion.best
        if stopped:
            arms = (Arm(c.goal, c.size, c.asr, 0.0, c.feasible, c.rounds) for c in best)
            return work.verdict(self, 0.0, [unfinished(stopped)], {}, arms=arms)
        tried = _Tried.of(subject, best, search, unseen, self.images, run)
        bound = bound_of_many(len(best), self.sure)
        alone = log_depth(torch.tensor([c.size for c in best])).clamp(min=0) / bound
        core, joint = self._core(tried, bound)
        suspects = self._suspects(tried, alone, core, joint, subject)
        confirmer = Confirmer(subject, unseen, self.proof, spawn(rng), run)
        findings: list[Finding] = confirmer.findings(suspects, Linked(best)) + too_few(best)
        figures = {
            "core": float(len(core)),
            "core_score": joint,
            "pair_score": max((s.score for s in suspects if not s.also), default=0.0),
            "bound": bound,
            "pairs_searched": float(len(best)),
        }
        rows = zip(best, alone.tolist(), strict=True)
        return work.verdict(
            self,
            max((s.score for s in suspects), default=0.0),
            findings,
            figures,
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
        if len(pairs) <= self.least:
            raise NotApplicable(
                f"UMD compares a class pair with {self.least} others or more, and there are "
                f"{len(pairs)} with two images of the source: add images, or take another detector"
            )
        if subject.classes <= self.every:
            return pairs
        count = min(self.most, max(self.least + 1, round(self.share * len(pairs))))
        return nearest_pairs(subject, search, pairs, count, run)

    def _core(self, tried: _Tried, bound: float) -> tuple[list[int], float]:
        """Return the closest core, and how prominent it is over the bound; 0 if none is."""
        linked = links(tried.transfer(), tried.sources)
        core = closest_core(linked, tried.sources, starts=self.starts, least=self.least)
        if not core:
            return [], 0.0
        sizes = torch.tensor([c.size for c in tried.best])
        return core, max(0.0, prominence(sizes, core)) / bound

    def _suspects(
        self, tried: _Tried, alone: Tensor, core: list[int], joint: float, subject: Subject
    ) -> list[Suspect]:
        """Return the core's best trigger, its pairs, and pairs alone, the most suspicious first."""
        area, best = subject.shape[1] * subject.shape[2], tried.best
        found, members = list[Suspect](), set[int]()
        if core:
            lead = tried.leader(core)
            goals = tried.map_of(lead, self.turned)
            facts = {"size": best[lead].size, "pairs": float(len(goals) + 1), "core": joint}
            wide = best[lead].size > DIFFUSE * area
            joined = Suspect(best[lead], joint, bool(goals) and joint >= 1, wide, facts, goals)
            if joined.stands_out:
                members, several = set(core), joined.named[1] is None
                own = (Suspect(best[i], joint, True, True) for i in core if several)
                return [joined, *own, *self._alone(tried, alone, members)]
            found.append(replace(joined, score=min(joint, 0.999)))
        singles = self._alone(tried, alone, members)
        return sorted([*found, *singles], key=lambda s: (s.stands_out, s.score), reverse=True)

    def _alone(self, tried: _Tried, alone: Tensor, members: set[int]) -> list[Suspect]:
        """Return the pairs whose triggers work on unseen images, the smallest first.

        With few images of a class a trigger may be small since it fits just those.
        """
        general = [i for i in range(len(alone)) if tried.unseen[i] >= self.proof.success]
        return [
            Suspect(
                tried.best[i],
                alone[i].item(),
                bool(alone[i] >= 1) and tried.best[i].feasible,
                facts={"size": tried.best[i].size, "depth": alone[i].item()},
            )
            for i in sorted(general, key=lambda i: -alone[i].item())
            if i not in members
        ]


@dataclass(frozen=True)
class _Tried:
    """What the trigger of every pair makes of images of all classes.

    Attributes:
        best: The trigger of each pair.
        y: True labels of the images that the search used, `(n,)`.
        said: What they come out as under each trigger, `(N, n)`; -1 under one that never worked.
        unseen: Share of images of its own source that the search did not use and that each trigger
            sends to its target, `(N,)`.
    """

    best: Sequence[Candidate]
    y: Labels
    said: Tensor
    unseen: Tensor

    @classmethod
    def of(
        cls,
        subject: Subject,
        best: Sequence[Candidate],
        search: Samples,
        unseen: Samples,
        images: int,
        run: Run,
    ) -> _Tried:
        """Stamp some images of every class with every trigger."""
        x, y = whole(search)
        x_new, y_new = whole(unseen)
        some = torch.from_numpy(balanced(y.numpy(), images * len(y.unique())))
        x, y = x[some], y[some]
        said, works = torch.full((len(best), len(y)), -1), torch.zeros(len(best))
        for i, candidate in enumerate(best):
            if not candidate.feasible:
                continue
            own = x_new[candidate.goal.applies_to(y_new)]
            run.charge((len(x) + len(own)) / 2)
            out = predict(subject, candidate.trigger(torch.cat([x, own]))).argmax(1)
            said[i] = out[: len(x)]
            works[i] = (out[len(x) :] == candidate.goal.target).float().mean()
            run.report(i + 1, len(best), "trying the triggers of pairs on other classes")
        return cls(best, y, said, works)

    @property
    def sources(self) -> Tensor:
        """The source of each pair, `(N,)`."""
        return torch.tensor([c.goal.source or 0 for c in self.best])

    def transfer(self) -> Tensor:
        """Return the share of images of pair j that the trigger of pair i turns, `(N, N)`."""
        columns = [
            (self.said[:, c.goal.applies_to(self.y)] == c.goal.target).float().mean(1)
            for c in self.best
        ]
        return torch.stack(columns, 1)

    def leader(self, core: Sequence[int]) -> int:
        """Return the pair of a core whose trigger turns most images of the others."""
        own = self.transfer()[core][:, core].sum(1)
        return core[int(own.argmax())]

    def map_of(self, pair: int, least: float) -> tuple[Goal, ...]:
        """Return what the trigger of a pair does to images of other classes, as pairs."""
        said, out = self.said[pair], list[Goal]()
        for source in self.y.unique().tolist():
            mine = said[self.y == source]
            target = int(mine.mode().values)
            share = (mine == target).float().mean().item()
            if source not in (self.best[pair].goal.source, target) and share >= least:
                out.append(Goal(target, source))
        return tuple(out)
