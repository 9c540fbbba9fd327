"""FreeEagle: does what stands for any other class in the middle of the net look like one class?"""

from __future__ import annotations

from itertools import repeat
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import Adam

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Finding, Goal, Logits, Samples, Subject, Verdict
from gifthorse.detection.verdict import Judged, Work, doubt
from gifthorse.detection.weight_signature import by_class
from gifthorse.models.cutting import Cut, halfway
from gifthorse.models.folding import TRIED, frozen
from gifthorse.training import Player, descend


@method
class FreeEagle:
    """Test whether the second half of a net takes what stands for other classes for the target.

    The net is cut in the middle. For each class an activation is found there, from random values,
    that the second half takes for this class. `M[s, t]` is the probability of t for what stands for
    s, with nothing on the diagonal. A backdoor that acts on all classes raises the mean of its
    target's column, one for a pair of classes its cell. Assumes that the features of the trigger
    are put together before the cut. Needs gradients and no images.

    Attributes:
        steps: Steps of Adam.
        lr: Its learning rate.
        decay: Its weight decay, which keeps the activations small.
        threshold: Score where suspicion starts.
        floor: Least distance of the quartiles; guards columns that are all but empty.
        least: Fewest classes for a verdict.
        max_batch: Classes at a time; fewer take less memory.

    Source: Fu et al., FreeEagle, USENIX Security 2023, and its released code
    backdoor_inspection_new.py (Adam, 1000 steps, activations of a ReLU kept at 0 or above; the
    largest mean of a column less the third quartile, over the distance of the quartiles).

    Differs: the cut is the place nearest to half of the layers that everything passes, not one
    chosen for each net; quartiles are interpolated and have a least distance.
    """

    steps: Annotated[int, AtLeast(1)] = 1000
    lr: Annotated[float, NotNegative] = 0.01
    decay: Annotated[float, NotNegative] = 0.005
    threshold: Annotated[float, NotNegative] = 2.0
    floor: Annotated[float, NotNegative] = 0.001
    least: Annotated[int, AtLeast(1)] = 4
    max_batch: Annotated[int, AtLeast(1)] = 100

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict on all classes; the images have no part in it."""
        work = Work(run)
        if subject.classes < self.least:
            words = f"With {subject.classes} classes there are too few columns to compare."
            return work.judged(self, doubt("IN004", words), subject)
        likely = torch.rand(TRIED, *subject.shape, generator=Generator().manual_seed(0))
        try:
            cut = halfway(frozen(subject.net, likely.to(subject.device)), subject.shape)
        except NotApplicable as error:
            return work.judged(self, doubt("IN004", f"{error}."), subject)
        table, stopped = self.table(cut, subject.classes, rng, run)
        if stopped:
            words = f"The search was not finished: {stopped}; raise the limit."
            return work.judged(self, doubt("IN003", words), subject)
        return work.judged(self, self._judge(table, cut), subject)

    def table(self, cut: Cut, classes: int, rng: Generator, run: Run) -> tuple[Tensor, str]:
        """Return `M`, `(K, K)` with nothing on the diagonal, and why it was stopped early."""
        device = cut.image.device
        start = torch.rand(classes, *cut.shape, generator=rng).to(device)
        parts, wanted = [], torch.arange(classes, device=device)
        for group in wanted.split(self.max_batch):
            inside = start[group].requires_grad_()
            adam = Adam([inside], self.lr, weight_decay=self.decay)
            player = Player((inside,), _Loss(cut), adam)
            for step, _ in enumerate(descend([player], repeat((inside, group), self.steps)), 1):
                if cut.positive:
                    with torch.no_grad():
                        inside.clamp_(min=0)
                run.charge(len(group))
                done = int(group[0]) * self.steps + step * len(group)
                run.report(done, classes * self.steps, f"activations, step {step}")
                if run.stop_reason and done < classes * self.steps:
                    return torch.zeros(classes, classes), run.stop_reason
            with torch.no_grad():
                parts.append(cut(inside).softmax(1).cpu())
        return torch.cat(parts).fill_diagonal_(0), ""

    def _judge(self, table: Tensor, cut: Cut) -> Judged:
        if not table.isfinite().all():
            return doubt("FS005", "The net gives outputs that are not finite numbers.")
        columns = table.sum(0) / (len(table) - 1)
        score, largest = outlier(columns, self.floor), int(columns.argmax())
        source, target = divmod(int(table.argmax()), len(table))
        facts = {
            "largest_class": float(largest),
            "largest": columns[largest].item(),
            "third_quartile": columns.quantile(0.75).item(),
            "depth": cut.depth,
            "pair_source": float(source),
            "pair_target": float(target),
            "pair_share": table[source, target].item(),
        }
        finding = self._finding(score, largest, facts)
        return score, finding, facts | by_class(columns)

    def _finding(self, score: float, largest: int, facts: dict[str, float]) -> Finding:
        words = (
            f"What stands for other classes in the middle of the net is taken for class {largest} "
            f"with probability {facts['largest']:.2g} on average"
        )
        if score < self.threshold:
            message = f"{words}; that is no outlier."
            return Finding("BD010", "INFO", score, message, Goal(largest), evidence=facts)
        message = (
            f"{words}, far above the {facts['third_quartile']:.2g} that three of four classes stay "
            "below. No trigger was recovered, so nothing is confirmed."
        )
        return Finding("BD010", "MEDIUM", score, message, Goal(largest), evidence=facts)


class _Loss:
    """The sum of cross entropies, so that no class has a part in another's."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut

    def __call__(self, batch: Batch) -> Tensor:
        inside, wanted = batch
        logits: Logits = self.cut(inside)
        return F.cross_entropy(logits, wanted, reduction="sum")


def outlier(values: Tensor, floor: float) -> float:
    """Return how far the largest value is above the third quartile, in distances of the quartiles.

    Args:
        values: Shape `(K,)`.
        floor: Least distance of the quartiles.

    Example:
        >>> round(outlier(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.9]), 0.01), 3)
        3.0
    """
    low, high = values.double().quantile(torch.tensor([0.25, 0.75]).double()).tolist()
    above: float = (float(values.max()) - high) / max(high - low, floor)
    return max(0.0, above)
