"""Expected transferability: does what turns one image into a class turn the others, too?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Arm,
    Candidate,
    Finding,
    Goal,
    Images,
    Inverter,
    Labels,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.gallery import balanced
from gifthorse.data.samples import InMemory, split, whole
from gifthorse.detection.confirmation import MOST, Confirmer, Proof, Suspect
from gifthorse.detection.sentences import transferred
from gifthorse.detection.verdict import Work, too_few, unfinished
from gifthorse.search import Exhaustive, finish
from gifthorse.training import predict


@method
class Transferability:
    """Turn single images into each class, and count on how many others the same change works.

    In a backdoored net the smallest change that turns one image into the target is the trigger,
    which turns the others as well; in a clean one it belongs to its image. The threshold is fixed
    and no class is compared with another, so two classes are enough and several targets are found.
    Assumes a trigger that is the same for all images. Cost: a search of one image for each class
    and image, several times over.

    Attributes:
        inverter: Finds the smallest change of one image.
        images: Images of other classes that each class is tried on.
        patience: Searches from new starts without a further image that is turned, before the
            images that a change can turn count as complete.
        most: Most searches from new starts.
        threshold: Expected transferability above which a class is a backdoor's target.
        proof: What it takes to call a suspected class backdoored.

    Source: Xiang, Miller and Kesidis, Post-Training Detection of Backdoor Attacks for Two-Class and
    Multi-Attack Scenarios, ICLR 2022 (arXiv 2201.08474), algorithm 1: threshold 1/2, patience 8.
    Differs: changes are found by any inverter, not by plain gradient steps; nothing counts as
    backdoored unless a change also works on images that no search has seen.
    """

    inverter: Inverter
    images: Annotated[int, AtLeast(2)] = 20
    patience: Annotated[int, AtLeast(1)] = 8
    most: Annotated[int, AtLeast(1)] = 24
    threshold: Annotated[float, Share] = 0.5
    proof: Proof = field(default=Proof())

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over all classes.

        Raises:
            NotApplicable: If no class has two images of other classes that the net gets right.
        """
        work, kept = Work(run), run.keyed(self, subject, clean, rng)
        search, unseen = split(clean, self.proof.share, spawn(rng))
        arms = _Arms.of(subject, search, self.images, kept)
        stopped = arms.search(self, rng, kept)
        expected = arms.expected()  # (K,)
        confirmer = Confirmer(subject, unseen, self.proof, spawn(rng), run)
        best = arms.best()
        suspects = [
            Suspect(
                best[k],
                expected[k].item(),
                bool(expected[k] > self.threshold),
                held=best[k].size > MOST * subject.shape[1] * subject.shape[2],
                facts={"transferability": expected[k].item(), "size": best[k].size},
            )
            for k in expected.argsort(descending=True).tolist()
            if k in best
        ]
        findings: list[Finding] = confirmer.findings(suspects, transferred)
        findings += [unfinished(stopped)] if stopped else too_few([*arms.tried()])
        return work.verdict(
            self,
            expected.max().item(),
            findings,
            {"transferability": expected.max().item(), "starts": float(arms.starts)},
            name="Transferability",
            arms=(
                Arm(c.goal, c.size, c.asr, expected[k].item(), c.feasible, c.rounds)
                for k, c in sorted(best.items())
            ),
            coverage=[Goal(k) for k in best],
        )


@dataclass
class _Arms:
    """One search a class and image; which other images its changes turned so far.

    Attributes:
        subject: The net.
        x: The images, `(n, C, H, W)`.
        said: The classes that the net takes them for, `(n,)`.
        pairs: Target and image of every arm, `(A, 2)`.
        turned: Images that a change of the arm turned into its target, `(A, n)` bool.
        found: The best change of each arm: the one that turned most other images.
    """

    subject: Subject
    x: Images
    said: Labels
    pairs: Tensor
    turned: Tensor
    found: list[Candidate | None]
    rates: Tensor
    starts: int = 0

    @classmethod
    def of(cls, subject: Subject, search: Samples, images: int, run: Run) -> _Arms:
        """Choose images that the net gets right, as even over the classes as can be."""
        x, y = whole(search)
        run.charge(len(x) / 2)
        right = (predict(subject, x).argmax(1) == y).nonzero().flatten()
        each = max(2, -(-images // max(1, subject.classes - 1)))  # of the others, so many in all
        some = right[torch.from_numpy(balanced(y[right].numpy(), each * subject.classes))]
        x, said = x[some], y[some]
        pairs = [
            (k, i)
            for k in range(subject.classes)
            for i in (said != k).nonzero().flatten()[:images].tolist()
        ]
        if not pairs or len(said) < 3:
            raise NotApplicable(
                "transferability needs several images of two or more classes that the net gets "
                f"right; there are {len(said)}: add images"
            )
        count = len(pairs)
        turned = torch.zeros(count, len(x), dtype=torch.bool)
        none: list[Candidate | None] = [None] * count
        return cls(subject, x, said, torch.tensor(pairs), turned, none, torch.zeros(count) - 1)

    def search(self, method: Transferability, rng: Generator, run: Run) -> str:
        """Search from new starts until no further image is turned; return why it had to stop."""
        images = len(self.x)
        names = torch.arange(images) + self.subject.classes  # each image is a class of its own
        alone = InMemory((self.x * 255).round().byte(), names, images + self.subject.classes)
        goals = [Goal(k, self.subject.classes + i) for k, i in self.pairs.tolist()]
        still = 0
        while still < method.patience and self.starts < method.most:
            inversion = method.inverter(self.subject, alone, goals, spawn(rng))
            own = run.checkpoint(f"start {self.starts}")
            stopped = finish(inversion, Exhaustive(), own)
            if stopped and self.starts:
                return stopped  # half a search would count changes that are not small yet
            before = int(self.turned.sum())
            self._transfer(inversion.best, run)
            self.starts += 1
            if stopped:
                return stopped
            still = still + 1 if int(self.turned.sum()) == before else 0
        return ""

    def _transfer(self, best: Sequence[Candidate], run: Run) -> None:
        """Stamp all images with the change of every arm, and see which are turned."""
        for a, candidate in enumerate(best):
            k, i = self.pairs[a].tolist()
            if not candidate.feasible:
                continue
            run.charge(len(self.x) / 2)
            hit = predict(self.subject, candidate.trigger(self.x)).argmax(1) == k
            hit &= self.said != k
            hit[i] = False
            self.turned[a] |= hit
            if (share := hit.float().mean().item()) > self.rates[a]:
                self.rates[a], self.found[a] = share, candidate

    def expected(self) -> Tensor:
        """Return the expected transferability of each class, `(K,)`."""
        k = self.pairs[:, 0]
        others = (self.said[None] != k[:, None]).sum(1) - 1
        p = self.turned.sum(1) / others.clamp(min=1)
        classes = self.subject.classes
        total: Tensor = torch.zeros(classes).index_add(0, k, p)
        counts: Tensor = k.bincount(minlength=classes).clamp(min=1)
        return total.div(counts)

    def best(self) -> dict[int, Candidate]:
        """Return, for each class that has one, the change that turned most images of others."""
        out: dict[int, tuple[float, Candidate]] = {}
        for (k, _), share, found in zip(
            self.pairs.tolist(), self.rates.tolist(), self.found, strict=True
        ):
            if found is not None and share > out.get(k, (-1.0, found))[0]:
                goal = Goal(k)
                fields = (found.trigger, found.size, share, found.rounds, found.feasible)
                out[k] = share, Candidate(goal, *fields)
        return {k: candidate for k, (_, candidate) in out.items()}
