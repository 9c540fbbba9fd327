"""GangSweep: does one class's generator paint the same mask on every image, and to great effect?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, Positive, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Batch, Candidate, Goal, Images, Samples, Subject, Verdict
from gifthorse.data.samples import near, whole
from gifthorse.detection.confirmation import Proof
from gifthorse.detection.scored import paced, penultimate, verdict
from gifthorse.detection.statistics import log_anomaly_index
from gifthorse.detection.verdict import Scores
from gifthorse.models.folding import frozen
from gifthorse.training import Player, descend, predict
from gifthorse.triggers import Additive


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


@method
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
        weight: Weight of the size hinge; a mask over the whole image costs so much, beside a cross
            entropy of log K for a guess.
        allowance: L1 norm of a mask a pixel that costs nothing: a hundredth of the image.
        ridge: Added to tr cov, as a share of the trace for the images themselves; a nearly linear
            net has a tr cov of almost nothing for every class, which says nothing.
        success_threshold: Least success of the mean mask on the search images; below, a class is no
            suspect.
        threshold: Robust deviations below the median (log scale) where suspicion starts.
        proof: What it takes to call a suspected class backdoored.

    Source: Zhu et al., GangSweep, ACM MM 2020; the paper gives the idea, and all
    figures are ours. Differs: cross entropy for its adversarial loss; the features are what the
    last linear layer reads, or the logits where there is none (`features` 0 in the statistics);
    a ridge; the floored deviation of `depth`; confirmation on unseen images. It is shown to work on
    planted toys alone. Of an MNIST BadNet and a clean net it could tell nothing after a third of
    these steps, where no class's mean mask works; after all of them the target's works on 80 % of
    the search images, but no trained net has been judged with that.
    """

    width: Annotated[int, AtLeast(1)] = 16
    epochs: Annotated[int, NotNegative] = 10
    floor: Annotated[int, NotNegative] = 60
    batch: Annotated[int, AtLeast(1)] = 32
    lr: Annotated[float, Positive] = 2e-3
    weight: Annotated[float, NotNegative] = 5.0
    allowance: Annotated[float, NotNegative] = 0.01
    ridge: Annotated[float, NotNegative] = 0.01
    success_threshold: Annotated[float, Share] = 0.6
    threshold: float = 2.0
    proof: Proof = Proof()

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict over all classes.

        Raises:
            NotApplicable: If either half of the images has fewer than two outside a class.
        """
        return verdict(self, subject, clean, rng, run)

    def score(
        self, subject: Subject, search: Samples, unseen: Samples, rng: Generator, run: Run
    ) -> Scores:
        """Return how far the statistic of each class lies below the median."""
        (x, y), (held, held_y) = (whole(near(part, subject)) for part in (search, unseen))
        net = frozen(subject.net, x)
        quiet = Subject(net, subject.shape, subject.classes)
        best, ratios, alike = [], [], []
        for k in range(subject.classes):
            run.report(k, subject.classes, f"class {k}")
            mine, theirs = x[y != k], held[held_y != k]
            if min(len(mine), len(theirs)) < 2:
                raise NotApplicable(
                    f"needs four or more images outside class {k}: add other classes"
                )
            kept, draw = run.checkpoint(f"class {k}"), spawn(rng)
            seen = kept.load()
            if seen is None:
                masks = self._paint(net, mine, k, draw, run)
                seen = self._look(quiet, masks, mine, theirs, k, run)
                kept.save(seen)
            mean, asr, ratio, cosine = seen
            size = mean.abs().amax(0).sum().item()
            trigger = Additive(mean)
            best.append(
                Candidate(Goal(k), trigger, size, asr, self.epochs, asr >= self.success_threshold)
            )
            ratios.append(ratio)
            alike.append(cosine)
        return self._scores(net, best, torch.tensor(ratios), torch.tensor(alike))

    def _look(
        self, quiet: Subject, masks: Tensor, mine: Images, theirs: Images, k: int, run: Run
    ) -> tuple[Tensor, float, float, float]:
        """Return the mean mask, its success, its ratio, and how alike the masks are."""
        mean = masks.mean(0).cpu()
        trigger = Additive(mean)
        asr = (predict(quiet, trigger(mine)).argmax(1) == k).float().mean().item()
        before, after = (penultimate(quiet.net, x) for x in (theirs, trigger(theirs)))
        cosine = F.cosine_similarity(masks.flatten(1), masks.mean(0).flatten()[None]).mean().item()
        run.charge(len(mine) / 2 + len(theirs))
        return mean, asr, self._ratio(before, after).item(), cosine

    def _paint(self, net: nn.Module, x: Images, target: int, rng: Generator, run: Run) -> Tensor:
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
        stream = paced(self._batches(x, target, rng), run, size)
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
        each = (
            log_anomaly_index(ratios / ratios.min()) * feasible
        )  # from 1 up, where `depth` clips nothing
        k = int(each.argmax())
        figures = {
            "depth": each.max().item(),
            "log_ratio": ratios[k].log().item(),
            "median": ratios.log().median().item(),
            "mask_cosine": alike[k].item(),
            "features": float(any(isinstance(m, nn.Linear) for m in net.modules())),
        }
        return Scores(tuple(best), each, figures)
