"""Trojan signatures: does one class have far larger weights in the last layer?"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.fields import NotNegative, OpenShare, method
from gifthorse.core.run import Run
from gifthorse.core.stats import robust_z
from gifthorse.core.types import Finding, Goal, Samples, Subject, Verdict
from gifthorse.detection.verdict import Judged, Work, doubt

NODES = 128  # of the quadrature along each axis; exact to 1e-6 up to a thousand classes
LEAST_P = 1e-300  # smaller ones are not told apart
SHOWN = 50  # with more classes the statistics do not list them one by one


@method
class WeightSignature:
    """Test whether the mean weight of one class in the last layer is an outlier upwards.

    Assumes that training on poisoned images raised the weights that lead to the target, which is
    what plain poisoning does and what an attacker can avoid. Needs neither images nor gradients; it
    reads one layer. Adding the same vector to all classes changes neither the net nor this test.

    Attributes:
        significance: Chance, on one side, that a class of a net with normal mean weights stands
            out.
        floor: Least deviation of the robust statistic, as a share of the largest mean weight.

    Source: Fields et al., Trojan Signatures in DNN Weights, ICCV Workshops 2021; Dixon, Ratios
    Involving Extreme Values, 1951 (r10). Differs: the test looks at the largest class only, so the
    significance is one-sided; the p-value is integrated for any number of classes instead of read
    from a table. No trigger is recovered, so a class that stands out is only suspicious.
    """

    significance: Annotated[float, OpenShare] = 0.05
    floor: Annotated[float, NotNegative] = 0.05

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict on the last layer; nothing else has a part in it."""
        work = Work(run)
        layer = last_layer(subject.net, subject.classes)
        parts = self._judge(layer, subject.classes)
        run.report(1, 1, "last layer read")
        return work.judged(self, parts, subject)

    @property
    def threshold(self) -> float:
        """The score where suspicion starts."""
        return -math.log10(self.significance)

    def _judge(self, layer: nn.Module | None, classes: int) -> Judged:
        if layer is None:
            return doubt(
                "IN004",
                f"The net has no linear layer and no 1 x 1 convolution with {classes} outputs, so "
                "there are no weights of classes to compare: use a detector that runs the net.",
            )
        if classes < 3:
            return doubt("IN004", f"With {classes} classes none can stand out from the others.")
        values = torch.as_tensor(layer.weight).detach().double().cpu().flatten(1).mean(1)
        if not values.isfinite().all():
            return doubt("FS005", "The last layer has weights that are not finite numbers.")
        q, p = dixon(values)
        largest = int(values.argmax())
        score = max(0.0, -math.log10(p))  # not -0
        aside = robust_z(values, self.floor * values.abs().max().item())[largest].item()
        facts = {"q": q, "p": p, "deviation": aside, "largest_class": float(largest)}
        finding = self._finding(score, largest, facts)
        return score, finding, facts | by_class(values)

    def _finding(self, score: float, largest: int, facts: dict[str, float]) -> Finding:
        if score < self.threshold:
            message = (
                f"Class {largest} has the largest mean weight in the last layer; it does not stand "
                f"out (p = {facts['p']:.2g})."
            )
            return Finding("BD008", "INFO", score, message, Goal(largest), evidence=facts)
        message = (
            f"The weights of class {largest} in the last layer are larger on average than those of "
            f"all other classes, by more than chance explains (p = {facts['p']:.2g}). No trigger "
            "was recovered, so nothing is confirmed."
        )
        return Finding("BD008", "MEDIUM", score, message, Goal(largest), evidence=facts)


def last_layer(net: nn.Module, classes: int) -> nn.Linear | nn.Conv2d | None:
    """Return the last linear layer or 1 x 1 convolution with one output a class, or None.

    Example:
        >>> last_layer(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), 4)
        Linear(in_features=8, out_features=4, bias=True)
    """
    found: nn.Linear | nn.Conv2d | None = None
    for module in net.modules():
        if isinstance(module, nn.Linear) and module.out_features == classes:
            found = module
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            found = module if module.out_channels == classes else found
    return found


def dixon(values: Tensor) -> tuple[float, float]:
    """Return Dixon's ratio for the largest value, and its one-sided p-value.

    Args:
        values: Shape `(K,)`, K >= 3.

    Returns:
        Q, the gap above the second largest as a share of the range, in [0, 1]; and the chance of
        one as large among K normal values, in (0, 1].

    Source: Dixon, Ratios Involving Extreme Values, 1951, r10 and its density.

    Example:
        >>> q, p = dixon(torch.tensor([0.0, 1.0, 2.0, 8.0]))
        >>> round(q, 2), 0.05 < p < 0.1
        (0.75, True)
    """
    ordered = values.double().sort().values
    reach = (ordered[-1] - ordered[0]).item()
    if reach <= 0:
        return 0.0, 1.0
    q = (ordered[-1] - ordered[-2]).item() / reach
    return q, _chance(q, len(values))


def by_class(values: Tensor) -> dict[str, float]:
    """Return the value of each class by name, `value_0` and so on; nothing for many classes."""
    every = enumerate(values.tolist()) if len(values) <= SHOWN else ()
    return {f"value_{k}": value for k, value in every}


def _chance(q: float, n: int) -> float:
    """Return the chance that Dixon's ratio of n normal values is at least q.

    The smallest value is x, the largest x + d, and all others lie between x and x + (1 - q) d.
    """
    from numpy.polynomial.legendre import leggauss

    nodes, weights = (torch.from_numpy(a) for a in leggauss(NODES))
    x, d = 9 * nodes[:, None], 9 * (nodes + 1)  # x in [-9, 9], d in [0, 18]
    density = torch.exp(-(x.square() + (x + d).square()) / 2) / (2 * math.pi)
    between = torch.special.ndtr(x + (1 - q) * d) - torch.special.ndtr(x)
    inner = density * between.clamp(min=0) ** (n - 2)
    total = n * (n - 1) * 81 * float((weights[:, None] * weights * inner).sum())
    return min(1.0, max(total, LEAST_P))
