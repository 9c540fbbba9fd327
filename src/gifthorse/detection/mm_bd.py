"""MM-BD: can one class be pushed to a far larger margin than the others?"""

from __future__ import annotations

import math
from itertools import repeat
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.optim import SGD

from gifthorse.core.fields import AtLeast, NotNegative, OpenShare, Share, method
from gifthorse.core.run import Run
from gifthorse.core.stats import median
from gifthorse.core.tensors import spawn
from gifthorse.core.types import (
    Batch,
    Finding,
    Goal,
    Images,
    Labels,
    Logits,
    Samples,
    Subject,
    Verdict,
)
from gifthorse.detection.verdict import Judged, Work, doubt
from gifthorse.detection.weight_signature import LEAST_P, by_class
from gifthorse.models.folding import TRIED, frozen
from gifthorse.training import Player, descend


@method
class MMBD:
    """Test whether the largest margin that any image gives a class is an outlier.

    The margin of class c is its logit less the largest other logit. It is driven up from random
    images by gradient ascent within [0, 1]; a Gamma distribution is fitted to the classes without
    the largest one, and `p = 1 - F(r_max)^K`. Assumes that a backdoor of any kind lets its target
    grow without a rival, and classes of like scale: training on unbalanced classes breaks it. Needs
    gradients and no images.

    The p-value is too small, since the fit leaves out the largest value and takes its own
    parameters for true: of nets whose margins are Gamma distributed or normal it flags about 20 %
    with 10 classes and about 50 % with 4, not 5 %. Calibrate it, or read it as a hint.

    Attributes:
        starts: Random images a class.
        steps: Most steps of ascent.
        lr: Learning rate of SGD.
        momentum: Its momentum.
        tolerance: A class is done once its sum of margins changes by a smaller share in a step.
        significance: p below which a class is suspicious.
        floor: Least spread of the fitted distribution, as a share of its mean; guards near-equal
            margins.
        least: Fewest classes for a verdict.
        max_batch: Images in one run through the net; fewer take less memory.

    Source: Wang et al., MM-BD, IEEE S&P 2024, and its released code univ_bd.py (exponent K).
    Differs: momentum acts (the code makes a new optimizer every step); pixels are put back into
    [0, 1] after every step instead of being clipped on the way in; the best margin of all steps
    counts, not the last; a chunk of classes goes on until the last of them is done; the Gamma
    distribution starts at 0 (the code fits its start as well) and has a least spread; classes that
    no start reaches (margin 0 or below) are left out.
    """

    starts: Annotated[int, AtLeast(1)] = 30
    steps: Annotated[int, AtLeast(1)] = 300
    lr: Annotated[float, NotNegative] = 1e-2
    momentum: Annotated[float, Share] = 0.2
    tolerance: Annotated[float, NotNegative] = 1e-5
    significance: Annotated[float, OpenShare] = 0.05
    floor: Annotated[float, NotNegative] = 0.05
    least: Annotated[int, AtLeast(1)] = 4
    max_batch: Annotated[int, AtLeast(1)] = 300

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict on all classes; the images have no part in it."""
        work = Work(run)
        if subject.classes < self.least:
            parts = doubt("IN004", self._too_few(subject.classes))
        else:
            parts = self._judge(*self.margins(subject, rng, run))
        return work.judged(self, parts, subject)

    @property
    def threshold(self) -> float:
        """The score where suspicion starts."""
        return -math.log10(self.significance)

    def margins(self, subject: Subject, rng: Generator, run: Run) -> tuple[Tensor, str]:
        """Return the largest margin found for each class, and why the ascent stopped early.

        Args:
            subject: The classifier.
            rng: Source of the random images.
            run: Told of every step; asked whether to go on.

        Returns:
            Margins `(K,)` in logits, `-inf` for classes that had no turn; and words, empty if
            nothing was cut short.
        """
        noise, device = spawn(rng), subject.device
        likely = torch.rand(TRIED, *subject.shape, generator=torch.Generator().manual_seed(0))
        net = frozen(subject.net, likely.to(device))
        found = torch.full((subject.classes,), -math.inf, device=device)
        groups = torch.arange(len(found), device=device).split(
            max(1, self.max_batch // self.starts)
        )
        for done, group in enumerate(groups):
            x = torch.rand(len(group) * self.starts, *subject.shape, generator=noise).to(device)
            found[group], stopped = self._ascend(net, x, group, run, (done, len(groups)))
            if stopped:
                return found.cpu(), stopped
        return found.cpu(), ""

    def _ascend(
        self, net: nn.Module, x: Images, group: Labels, run: Run, part: tuple[int, int]
    ) -> tuple[Tensor, str]:
        """Return the largest margins of some classes, `(k,)`, and why it stopped early.

        `part` tells how many groups of classes are done, and how many there are.
        """
        done, total = part
        x = x.requires_grad_()
        climb = _Climb(net, self.starts)
        player = Player((x,), climb, SGD([x], self.lr, self.momentum))
        batch = (x, group.repeat_interleave(self.starts))
        for step, _ in enumerate(descend([player], repeat(batch, self.steps)), 1):
            with torch.no_grad():
                x.clamp_(0, 1)
            run.charge(len(x))
            words = f"classes {int(group[0])} to {int(group[-1])}"
            run.report(done * self.steps + step, total * self.steps, words)
            last = step == self.steps or climb.done(self.tolerance)
            stopped = "" if last and done + 1 == total else run.stop_reason
            if last or stopped:
                return climb.best, stopped
        raise AssertionError("there is a last step")

    def _judge(self, margins: Tensor, stopped: str) -> Judged:
        if stopped:
            return doubt("IN003", f"The ascent was not finished: {stopped}; raise the limit.")
        if not margins.isfinite().all():
            return doubt("FS005", "The net gives outputs that are not finite numbers.")
        reached = margins[margins > 0]
        if len(reached) < self.least:
            return doubt("IN004", self._too_few(len(reached)))
        score = surprise(reached, self.floor)
        largest, top, middle = int(margins.argmax()), margins.max().item(), median(reached).item()
        facts = {
            "p": 10**-score,
            "largest": top,
            "median": middle,
            "ratio": top / middle,
            "largest_class": float(largest),
            "unreached": float(len(margins) - len(reached)),
        }
        return score, self._finding(score, largest, facts), facts | by_class(margins)

    def _too_few(self, classes: int) -> str:
        return (
            f"Only {classes} classes have a margin to compare; a distribution fitted to the others "
            f"needs at least {self.least} in all, so none can stand out."
        )

    def _finding(self, score: float, largest: int, facts: dict[str, float]) -> Finding:
        seen = (
            f"{facts['largest']:.1f} beside a median of {facts['median']:.1f}, p = {facts['p']:.2g}"
        )
        if score < self.threshold:
            message = f"The largest margin is that of class {largest} ({seen}); it is no outlier."
            return Finding("BD010", "INFO", score, message, Goal(largest), evidence=facts)
        message = (
            f"Class {largest} can be pushed to a far larger margin than the others ({seen}). "
            "No trigger was recovered, so nothing is confirmed."
        )
        return Finding("BD010", "MEDIUM", score, message, Goal(largest), evidence=facts)


def surprise(margins: Tensor, floor: float = 0.05) -> float:
    """Return `-log10 p` of the largest margin, `p = 1 - F(r_max)^K`.

    F is the Gamma distribution that starts at 0 and fits the other K - 1 margins best.

    Args:
        margins: Shape `(K,)`, all above 0, K >= 3.
        floor: Least spread of F, as a share of its mean.

    Returns:
        A number in [0, 300].

    Example:
        >>> surprise(torch.tensor([9.0, 10.0, 11.0, 10.5, 30.0])) > 5
        True
    """
    from scipy.stats import gamma

    ordered = margins.double().cpu().sort().values
    null, largest = ordered[:-1], ordered[-1].item()
    mean, shape = null.mean().item(), floor**-2
    # What the likelihood sees of the spread, about half its square; the fit needs it above 0.
    if math.log(mean) - null.log().mean().item() > floor**2 / 2:
        shape = min(shape, float(gamma.fit(null.numpy(), floc=0)[0]))
    beyond = max(LEAST_P, float(gamma.sf(largest, shape, scale=mean / shape)))
    p = -math.expm1(len(margins) * math.log1p(-beyond)) if beyond < 1 else 1.0
    return max(0.0, -math.log10(p))


class _Climb:
    """The negated sum of margins as a loss, and a memory of the best."""

    def __init__(self, net: nn.Module, starts: int) -> None:
        self.net, self.starts = net, starts
        self.best = self.total = self.last = torch.tensor(math.nan)

    def __call__(self, batch: Batch) -> Tensor:
        x, y = batch
        each = margin(self.net(x), y).view(-1, self.starts)  # (k, starts)
        top = each.detach().amax(1)
        self.best = top if self.best.ndim == 0 else self.best.maximum(top)
        self.last, self.total = self.total, each.detach().sum(1)
        return -each.sum()

    def done(self, tolerance: float) -> bool:
        """Whether the margins of every class have all but stopped to change."""
        return bool(((self.total - self.last).abs() < tolerance * self.last.abs()).all())


def margin(logits: Logits, y: Labels) -> Tensor:
    """Return by how much the logit of class `y` leads the largest other one, `(N,)`.

    Example:
        >>> margin(torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([2])).item()
        -3.0
    """
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).amax(1)
