"""DLTND: does one perturbation for all images act like the best one for each image?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.run import Run
from gifthorse.core.stats import median
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Batch,
    Candidate,
    Goal,
    Images,
    Labels,
    Logits,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.data.samples import near, whole
from gifthorse.detection.confirmation import Proof
from gifthorse.detection.scored import paced, penultimate, verdict
from gifthorse.detection.statistics import log_anomaly_index
from gifthorse.detection.verdict import Scores
from gifthorse.models.folding import frozen
from gifthorse.search import PatchInit
from gifthorse.training import Player, descend

MIDDLE = 0.5  # of the range of a pattern: where it starts


def soft_threshold(m: Tensor, by: Tensor | float) -> Tensor:
    """Return `clip(sign(m) max(|m| - by, 0), 0, 1)`: the proximal step of `by |m|` on [0, 1].

    Example:
        >>> soft_threshold(torch.tensor([-0.5, 0.1, 0.75, 2.0]), 0.25).tolist()
        [0.0, 0.0, 0.5, 1.0]
    """
    return (m.sign() * (m.abs() - by).clamp(min=0)).clamp(0, 1)


def margin(z: Logits, label: Labels) -> Tensor:
    """Return by how much the logit of `label` `(...)` leads all others in `z` `(..., K)`."""
    own = F.one_hot(label, z.shape[-1]).bool()
    return z[own].view(label.shape) - z.masked_fill(own, -torch.inf).amax(-1)


def few(x: Images, y: Labels, each: int) -> Batch:
    """Return the first `each` images of every class, class by class.

    Example:
        >>> few(torch.zeros(4, 1, 2, 2), torch.tensor([1, 0, 1, 1]), 2)[1].tolist()
        [0, 1, 1]
    """
    index = torch.cat([(y == k).nonzero().flatten()[:each] for k in y.unique()])
    return x[index], y[index]


@dataclass(frozen=True, eq=False)
class Veil:
    """Replace a share of each value: `T(x) = x + M * (P - x)`, with an opacity for each channel.

    Attributes:
        pattern: P, `(C, H, W)` in [0, 1].
        mask: M, `(C, H, W)` in [0, 1].
    """

    pattern: Tensor
    mask: Tensor

    def __call__(self, x: Images, /) -> Images:
        """Return stamped copies of `(..., C, H, W)` images."""
        return torch.lerp(x, self.pattern.to(x.device), self.mask.to(x.device))

    def shuffled(self, rng: Generator, /) -> Veil:
        """Return the same opacities and colors at shuffled pixels."""
        order = torch.randperm(self.mask[0].numel(), generator=rng).to(self.mask.device)
        pattern, mask = (p.flatten(1)[:, order].view_as(p) for p in (self.pattern, self.mask))
        return Veil(pattern, mask)

    def render(self) -> tuple[Tensor, Tensor]:
        """Return the pattern and the largest opacity of any channel."""
        return self.pattern, self.mask.amax(0, keepdim=True)


@dataclass(frozen=True)
class _Contest:
    """Some labels (arms) on the same images: what each image is to leave (+1) or to reach (-1)."""

    net: nn.Module
    images: Images  # (n, C, H, W)
    label: Tensor  # (a, n)
    sign: Tensor  # (a, n)

    def stamped(self, m: Tensor, q: Tensor) -> Images:
        """The images under masks and patterns `(a, 1 or n, C, H, W)`, flat: `(a * n, C, H, W)`."""
        return (self.images + m * (q - self.images)).flatten(0, 1)

    def terms(self, m: Tensor, q: Tensor) -> Tensor:
        """By how far each image is from what it is to do, `(a, n)`; done at 0 and below."""
        z = self.net(self.stamped(m, q)).view(*self.label.shape, -1)
        return self.sign * margin(z, self.label)


@method
class DLTND:
    """Compare the outputs under one perturbation for all images with those under one for each.

    For each label k a sparse universal perturbation `(1 - m) x + m q` drives the images of other
    classes out of their class and keeps those of class k; a perturbation for each image drives it
    to k. In a backdoored model both take the shortcut to the target, so their outputs agree.
    Assumes a trigger that covers few pixels and sends all classes to one target. Needs gradients
    and a few clean images of each class.

    Attributes:
        lr: Adam's learning rate for the universal mask and pattern.
        image_lr: The same for the perturbations of single images.
        steps: Steps of either.
        rounds: Bisections of c; the mask shrinks by `lr / c` in every step.
        initial: c at the start.
        upper: Largest c.
        image_weight: c for the perturbations of single images.
        slack: A hinge term counts no further than this below 0.
        passed: Share of terms at or below 0 above which a solution is one, and c falls.
        least: A universal mask must sum up to more than this to count.
        near: A solution within this factor of the smallest of all labels may stand for its label.
        quantile: Quantile of a label's cosines that is its score.
        threshold: Score above which a label is suspected.
        outlier: Robust deviations (log scale) by which a label's mask must also be smaller than
            the median to have a score; None leaves that out, as published.
        outputs: Cosines of `logits` (the code), or of `features` that the last linear layer reads
            (logits where there is none).
        each: Most images of a class that are searched with.
        max_batch: Most images in one forward; labels beyond it take turns.
        probe: Small plain patches of which each label's best one is where its universal
            perturbation begins; None begins with nothing, as published.
        proof: What it takes to call a suspected class backdoored.

    Source: Wang et al., Practical Detection of Trojan Neural Networks: Data-Limited and Data-Free
    Cases, ECCV 2020, and its released code (TrojanNetDetector, DLTND). Differs: images and q lie
    in [0, 1], where lr 0.01 moves q (in 0-255 it hardly does), and q starts in the middle, not
    black; a universal perturbation begins with a patch that speaks for its label, since Adam moves
    every pixel by lr, whatever it is good for, so that c alone would set how large a mask grows;
    q steps before m; success is judged on the final mask; a label's mask must be an outlier in
    size, too, since in a linear net, and where every class has a shape that works on any image,
    all labels have cosines near 1, and the published rule accuses clean ones. So far it is shown
    to work on planted toys alone, not on trained nets.
    """

    lr: Annotated[float, Positive] = 0.01
    image_lr: Annotated[float, Positive] = 0.1
    steps: Annotated[int, AtLeast(1)] = 101
    rounds: Annotated[int, AtLeast(1)] = 8
    initial: Annotated[float, Positive] = 0.01
    upper: Annotated[float, Positive] = 6.0
    image_weight: Annotated[float, NotNegative] = 1.0
    slack: Annotated[float, NotNegative] = 15.0
    passed: Annotated[float, Share] = 0.7
    least: Annotated[float, NotNegative] = 0.5
    near: Annotated[float, Positive] = 1.1
    quantile: Annotated[float, Share] = 0.25
    threshold: float = 0.75
    outlier: Annotated[float, NotNegative] | None = 2.0
    outputs: Literal["logits", "features"] = "logits"
    each: Annotated[int, AtLeast(1)] = 5
    max_batch: Annotated[int, AtLeast(1)] = 512
    probe: PatchInit | None = PatchInit()
    proof: Proof = Proof()

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over all classes.

        Raises:
            NotApplicable: If all images that the search may use are of one class, or if there are
                fewer than three classes, among which no size is an outlier.
        """
        return verdict(self, subject, clean, rng, run)

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, run: Run
    ) -> Scores:
        """Return each label's quantile of cosines, or 0 where it has no perturbation to count."""
        if self.outlier is not None and subject.classes < 3:
            raise NotApplicable(
                f"DLTND needs K >= 3 classes for an outlier in size; the model has "
                f"{subject.classes}: set outlier to null"
            )
        x, y = few(*whole(near(search, subject)), self.each)
        net = frozen(subject.net, x)
        if len(y.unique()) < 2:
            raise NotApplicable("DLTND needs images of two or more classes: add other classes")
        parts, start = [], self._kept_start(net, x, spawn(rng), run.checkpoint("start"))
        for group in torch.arange(subject.classes).split(max(1, self.max_batch // len(x))):
            k = group.to(y.device)[:, None].expand(-1, len(y))
            label = y.expand_as(k)
            leave = _Contest(net, x, label, torch.where(label == k, -1.0, 1.0))
            reach = _Contest(net, x, k, torch.full_like(k, -1.0, dtype=torch.float32))
            kept = run.checkpoint(f"classes from {int(group[0])}")
            rows = self._rounds(leave, reach, tuple(part[k[:, :1]] for part in start), kept)
            parts.append([torch.stack(column) for column in zip(*rows, strict=True)])
        return self._scores(subject, *(torch.cat(p, 1) for p in zip(*parts, strict=True)))

    def _kept_start(
        self, net: nn.Module, x: Images, rng: Generator, run: Run
    ) -> tuple[Tensor, Tensor]:
        """Return what `_start` does, or what was kept of it."""
        state = run.load()
        if state is None:
            m, q = self._start(net, x, rng, run)
            state = {"mask": m.cpu(), "pattern": q.cpu()}
            run.save(state)
        return state["mask"].to(x), state["pattern"].to(x)

    def _start(self, net: nn.Module, x: Images, rng: Generator, run: Run) -> tuple[Tensor, Tensor]:
        """Return the masks and patterns `(K, C, H, W)` that universal perturbations begin with."""
        if self.probe is None:
            m = x.new_zeros(net(x[:1]).shape[1], *x.shape[1:])
            return m, m + MIDDLE

        def ask(images: Images) -> Logits:
            run.charge(len(images) / 2)
            logits: Logits = net(images)
            return logits

        patches = self.probe.best_patches(ask, x, rng)
        seen = patches.support.expand_as(patches.pattern)
        return seen.to(x), torch.where(seen, patches.pattern, MIDDLE)

    def _rounds(
        self, leave: _Contest, reach: _Contest, start: tuple[Tensor, ...], run: Run
    ) -> list[tuple[Tensor, ...]]:
        """Return what `_round` does, of each bisection; go on with those that were kept."""
        device = reach.label.device
        one = torch.ones(len(reach.label))
        new = {"rows": [], "bounds": (one * self.initial, one * 0, one * self.upper)}
        state: dict[str, Any] = run.load() or new
        rows: list[tuple[Tensor, ...]] = state["rows"]
        if len(rows) == self.rounds:
            return rows
        try:
            if "wanted" not in state:
                state["wanted"] = self._wanted(reach, one.to(device), run).cpu()
            for done in range(len(rows), self.rounds):
                words = f"classes {reach.label[0, 0]} to {reach.label[-1, 0]}"
                run.report(done, self.rounds, words)
                c, low, high = state["bounds"]
                wanted = state["wanted"].to(device)
                m, q = self._solve(leave, c.to(device), self.lr, start, run)
                row = self._judge(leave, reach, (m, q), wanted, run)
                rows.append(tuple(column.cpu() for column in row))
                passed = rows[-1][-1]
                low, high = torch.where(passed, low, c), torch.where(passed, c, high)
                state["bounds"] = ((low + high) / 2, low, high)
        finally:
            run.save(state)
        return rows

    def _wanted(self, reach: _Contest, one: Tensor, run: Run) -> Tensor:
        """Return the outputs under perturbations of single images, `(a, n, D)`."""
        nothing = reach.images.new_zeros(len(one), *reach.images.shape)
        begin = nothing, nothing + MIDDLE
        alone = self._solve(reach, one * self.image_weight, self.image_lr, begin, run)
        run.charge(reach.label.numel() / 2)
        return self._outputs(reach, *alone)

    def _judge(
        self,
        leave: _Contest,
        reach: _Contest,
        solved: tuple[Tensor, Tensor],
        wanted: Tensor,
        run: Run,
    ) -> tuple[Tensor, ...]:
        """Return masks, patterns, score, hits and success `(a, ...)` of universal solutions."""
        (m, q), others = solved, reach.label != leave.label  # (a, n)
        run.charge(1.5 * others.numel())
        with torch.no_grad():
            passed = (leave.terms(m, q) <= 0).float().mean(1) > self.passed
            hits = ((reach.terms(m, q) < 0) & others).sum(1) / others.sum(1)
        cosines = F.cosine_similarity(self._outputs(leave, m, q), wanted, dim=-1)
        scores = cosines.masked_fill(~others, torch.nan).nanquantile(self.quantile, dim=1)
        return m[:, 0], q[:, 0], scores, hits, passed

    def _solve(
        self, contest: _Contest, c: Tensor, lr: float, start: tuple[Tensor, ...], run: Run
    ) -> tuple[Tensor, Tensor]:
        """Return masks and patterns `(a, own, C, H, W)`: one for all images or one for each."""
        m, q = (part.clone().requires_grad_() for part in start)
        shrink = (lr / c).view(-1, 1, 1, 1, 1)

        def loss(batch: Batch) -> Tensor:
            return contest.terms(m, q).clamp(min=-self.slack).sum()

        players = [Player((v,), loss, Adam([v], lr)) for v in (q, m)]
        batches = repeat((contest.images, contest.label[0]), self.steps)
        for _ in descend(players, paced(batches, run, 2.0 * contest.label.numel())):
            with torch.no_grad():
                m.copy_(soft_threshold(m, shrink))
                q.clamp_(0, 1)
        return m.detach(), q.detach()

    def _outputs(self, contest: _Contest, m: Tensor, q: Tensor) -> Tensor:
        """Return logits or features under the perturbations, `(a, n, D)`."""
        look = contest.net if self.outputs == "logits" else partial(penultimate, contest.net)
        with torch.no_grad():
            out: Tensor = look(contest.stamped(m, q))
        return out.view(*contest.label.shape, -1)

    def _scores(self, subject: Subject, *found: Tensor) -> Scores:
        """Choose a solution for each label from rounds by labels `(R, K, ...)`."""
        masks, patterns, quantiles, hits, passed = found
        channels, height, width = subject.shape
        sums = masks.flatten(2).sum(2)
        usable = passed & (sums > self.least)
        sums = sums.masked_fill(~usable, torch.inf)
        smallest = sums.amin(0)  # (K,)
        near = usable & (sums <= smallest.maximum(self.near * smallest.min()))
        row, k = quantiles.masked_fill(~near, -torch.inf).argmax(0), torch.arange(subject.classes)
        feasible, quantile = usable.any(0), quantiles[row, k]
        sizes = torch.where(feasible, sums[row, k] / channels, float(height * width))
        middle = median(sizes)
        counts = feasible
        if self.outlier is not None:
            counts = feasible & (log_anomaly_index(sizes) >= self.outlier)
        scores = quantile * counts
        best = []
        for i, (r, size) in enumerate(zip(row.tolist(), sizes.tolist(), strict=True)):
            veil, hit = Veil(patterns[r, i], masks[r, i]), hits[r, i].item()
            best.append(Candidate(Goal(i), veil, size, hit, self.rounds, bool(feasible[i])))
        figures = {
            "quantile": (quantile * feasible).max().item(),
            "smallest": sizes.min().item(),
            "median": middle.item(),
            "ratio": (sizes.min() / middle).item(),
        }
        return Scores(tuple(best), scores, figures)
