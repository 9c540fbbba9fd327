"""GangSweep: does one class's generator paint the same mask on every image, and to great effect?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from gifthorse.data.samples import split, whole
from gifthorse.detection.confirmation import confirm, exhibit
from gifthorse.detection.statistics import depth
from gifthorse.errors import BadImages, Incomplete
from gifthorse.models.folding import frozen
from gifthorse.options import describe
from gifthorse.session import LocalSession
from gifthorse.tensors import seeded, spawn
from gifthorse.training import Player, descend, predict
from gifthorse.triggers import Additive
from gifthorse.types import (
    Arm,
    Batch,
    Candidate,
    Confirmation,
    Finding,
    Goal,
    Images,
    Label,
    Samples,
    Session,
    Severity,
    Subject,
    Verdict,
)

CONFIRMING = 5.0  # image-steps an image: forward with the trigger, 8 shuffled ones, and without


# 1. From scores of classes to a verdict -----------------------------------------------------------


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


@dataclass(frozen=True)
class Proof:
    """What it takes to call a suspected class backdoored: a trigger that works on unseen images.

    Attributes:
        share: Share of the clean images that the search may use; the others stay unseen.
        success: Least success on unseen images for a confirmed trigger.
        margin: Least difference between that and the shuffled control.
    """

    share: float = 0.5
    success: float = 0.6
    margin: float = 0.3

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
            severity = self._severity(seen, suspect, {f.severity for f in out})
            facts = {"size": found.size, "score": score}
            evidence = exhibit(subject, found.trigger, found.goal, unseen) | facts
            words = _words(found, score, seen, suspect)
            out.append(Finding("BD001", severity, score, words, found.goal, seen, evidence))
        return out

    def _severity(self, seen: Confirmation, suspect: bool, before: set[Severity]) -> Severity:
        lead = seen.asr.value - seen.control.value
        if suspect and seen.asr.value >= self.success and lead >= self.margin:
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
    return [Finding("IN003", "HIGH", float(missing), words)] if 2 * missing > len(best) else []


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


# 2. The method ------------------------------------------------------------------------------------


class Painter(nn.Module):
    """A small U-Net from an image to a mask `(N, C, H, W)` in (-1, 1) that is added to it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Images) -> Tensor:
        """Return one mask an image."""
        fine = self.fine(x).relu()
        deep = self.deep(self.down(fine).relu()).relu()
        wide = F.interpolate(deep, size=fine.shape[-2:])
        return torch.tanh(self.out(self.up(torch.cat([fine, wide], 1)).relu()))


@dataclass(frozen=True)
class GangSweep:
    """Train a generator of perturbations for each class and look at what its mean mask does.

    The mean mask shifts the features of clean images; for a backdoor's target the shift is long
    and nearly the same for all images. The statistic is `log(tr cov) - log |mean|^2` of the shift,
    low for a target. Assumes one target for all classes. Needs clean images and gradients.

    Attributes:
        width: Channels of the generator's first layer.
        epochs: Passes over the search images.
        floor: Least steps in an epoch; images come up again where a pass is shorter.
        batch: Images a step.
        lr: Adam's learning rate.
        weight: Weight of the size hinge.
        allowance: L1 norm of a mask a pixel that costs nothing.
        ridge: Added to tr cov, as a share of the trace for the images themselves; a nearly linear
            net has a tr cov of almost nothing for every class, which says nothing.
        bar: Least success of the mean mask on the search images; below, a class is no suspect.
        threshold: Robust deviations below the median (log scale) where suspicion starts.
        proof: What it takes to call a suspected class backdoored.

    Source: Zhu et al., GangSweep, ACM MM 2020; the method is recalled from the abstract, and all
    figures are ours. Differs: cross entropy for its adversarial loss; the features are what the
    last linear layer reads, or the logits where there is none (`features` 0 in the statistics);
    a ridge; the floored deviation of `depth`; confirmation on unseen images.
    """

    width: int = 16
    epochs: int = 10
    floor: int = 20
    batch: int = 32
    lr: float = 2e-3
    weight: float = 0.05
    allowance: float = 0.1
    ridge: float = 0.01
    bar: float = 0.6
    threshold: float = 2.0
    proof: Proof = Proof()

    def __call__(
        self, subject: Subject, clean: Samples, rng: Generator, *, session: Session | None = None
    ) -> Verdict:
        """Return the verdict over all classes.

        Raises:
            BadImages: If either half of the images has fewer than two outside a class.
        """
        return self.proof.verdict(self, subject, clean, rng, session or LocalSession())

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, session: Session
    ) -> Scores:
        """Return how far the statistic of each class lies below the median."""
        net, (x, y), (held, held_y) = frozen(subject.net), whole(search), whole(unseen)
        quiet = Subject(net, subject.shape, subject.classes)
        best, ratios, alike = [], [], []
        for k in range(subject.classes):
            session.report(k, subject.classes, f"class {k}")
            mine, theirs = x[y != k], held[held_y != k]
            if min(len(mine), len(theirs)) < 2:
                raise BadImages(f"needs four or more images outside class {k}: add other classes")
            masks = self._paint(net, mine, k, spawn(rng), session)
            trigger = Additive(masks.mean(0))
            asr = (predict(quiet, trigger(mine)).argmax(1) == k).float().mean().item()
            size = trigger.delta.abs().amax(0).sum().item()
            best.append(Candidate(Goal(k), trigger, size, asr, self.epochs, asr >= self.bar))
            ratios.append(self._ratio(penultimate(net, theirs), penultimate(net, trigger(theirs))))
            alike.append(
                F.cosine_similarity(masks.flatten(1), masks.mean(0).flatten()[None]).mean()
            )
            session.spend(len(mine) / 2 + len(theirs))
        return self._scores(net, best, torch.stack(ratios), torch.stack(alike))

    def _paint(
        self, net: nn.Module, x: Images, target: int, rng: Generator, session: Session
    ) -> Tensor:
        """Train a generator and return its masks of the images, `(N, C, H, W)`."""
        with seeded(rng, x.device):
            painter = Painter(x.shape[1], self.width).to(x.device)

        def loss(batch: Batch) -> Tensor:
            images, labels = batch
            masks: Tensor = painter(images)
            size = masks.abs().flatten(1).sum(1) / masks[0, 0].numel()
            excess = (size - self.allowance).clamp(min=0).mean()
            fault = F.cross_entropy(net((images + masks).clamp(0, 1)), labels)
            return fault + self.weight * excess

        weights = tuple(painter.parameters())
        size = min(self.batch, len(x))
        stream = paced(self._batches(x, target, rng), session, size)
        for _ in descend([Player(weights, loss, Adam(weights, self.lr))], stream):
            pass
        with torch.no_grad():
            return torch.cat([painter(part) for part in x.split(512)])

    def _batches(self, x: Images, target: int, rng: Generator) -> Iterator[Batch]:
        size = min(self.batch, len(x))
        labels = torch.full((size,), target, device=x.device)
        for _ in range(self.epochs * max(self.floor, -(-len(x) // size))):
            yield x[torch.randperm(len(x), generator=rng)[:size].to(x.device)], labels

    def _ratio(self, before: Tensor, after: Tensor) -> Tensor:
        """Return tr cov over |mean|^2 of the shift of features `(N, D)`."""
        shift = after - before
        spread = shift.var(0).sum() + self.ridge * before.var(0).sum()
        ratio: Tensor = spread.clamp(min=1e-12) / shift.mean(0).square().sum().clamp(min=1e-12)
        return ratio

    def _scores(
        self, net: nn.Module, best: Sequence[Candidate], ratios: Tensor, alike: Tensor
    ) -> Scores:
        ratios = ratios.double().cpu()
        feasible = torch.tensor([c.feasible for c in best])
        each = depth(ratios / ratios.min()) * feasible  # from 1 up, where `depth` clips nothing
        k = int(each.argmax())
        figures = {
            "depth": each.max().item(),
            "log_ratio": ratios[k].log().item(),
            "median": ratios.log().median().item(),
            "mask_cosine": alike[k].item(),
            "features": float(any(isinstance(m, nn.Linear) for m in net.modules())),
        }
        return Scores(tuple(best), each, figures)
