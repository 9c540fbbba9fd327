"""The verdict of detectors that score every class by the trigger that they found for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import Incomplete
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Arm, Batch, Images, Samples, Subject, Verdict
from gifthorse.data.samples import split
from gifthorse.detection.confirmation import DIFFUSE, Confirmer, Proof, Suspect
from gifthorse.detection.sentences import scored
from gifthorse.detection.verdict import Scores, Work, too_few, unfinished


class Scorer(Protocol):
    """Scores every class; `threshold` is where suspicion starts."""

    @property
    def threshold(self) -> float:
        """Least score of a suspect."""
        ...

    @property
    def proof(self) -> Proof:
        """What it takes to call a suspect backdoored."""
        ...

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, run: Run
    ) -> Scores:
        """Return a score for each class, or raise Incomplete if the run must stop before."""
        ...


def verdict(scorer: Scorer, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
    """Split the images, score every class and try the suspects' triggers.

    A trigger over more than a quarter of the image proves nothing: hardly an image is left.
    """
    work, kept, proof = Work(run), run.keyed(scorer, subject, clean, rng), scorer.proof
    search, unseen = split(clean, proof.share, spawn(rng))
    try:
        scores = scorer.score(subject, search, unseen, spawn(rng), kept)
    except Incomplete as stop:
        return work.verdict(scorer, 0.0, [unfinished(str(stop))], {})
    most = DIFFUSE * subject.shape[1] * subject.shape[2]
    rows = zip(scores.best, scores.each.tolist(), strict=True)
    suspects = [
        Suspect(
            found,
            score,
            found.feasible and score >= scorer.threshold,
            held=found.size > most,
            facts={"size": found.size, "score": score},
        )
        for found, score in sorted(rows, key=lambda row: row[1], reverse=True)
    ]
    confirmer = Confirmer(subject, unseen, proof, spawn(rng), run)
    findings = confirmer.findings(suspects, scored) + too_few(scores.best)
    rows = zip(scores.best, scores.each.tolist(), strict=True)
    return work.verdict(
        scorer,
        scores.each.max().item(),
        findings,
        scores.figures,
        arms=(Arm(c.goal, c.size, c.asr, s, c.feasible, c.rounds) for c, s in rows),
        coverage=(c.goal for c in scores.best),
    )


def paced(batches: Iterable[Batch], run: Run, cost: float) -> Iterator[Batch]:
    """Yield batches and count `cost` image-steps for each.

    Raises:
        Incomplete: If the run must stop before the last batch.
    """
    for batch in batches:
        if run.stop_reason:
            raise Incomplete(run.stop_reason)
        run.charge(cost)
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
