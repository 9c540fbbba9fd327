"""Fine-pruning: take away filters that clean images do not use, and fine-tune the rest."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import PositiveShare, Share, method
from gifthorse.core.metrics import accuracy
from gifthorse.core.run import Run
from gifthorse.core.types import Samples, Subject
from gifthorse.data.samples import labels_of
from gifthorse.models.features import head
from gifthorse.remedies.clp import pairs
from gifthorse.training import Recipe, evaluate, fit

log = logging.getLogger("gifthorse")


@method
class FinePruning:
    """Silence the filters of the last convolution that clean images stir least, then tune the net.

    Filters are ranked on the clean images without augmentation, by their mean output behind the
    norm that follows and a ReLU, and those silenced stay so while the net is tuned. In a residual
    net the skip beside the convolution keeps its channels alive, which softens the loss but need
    not prevent it; in a plain net the last layer tells the classes apart by these very filters, so
    that the published ratio alone ruins it. The tolerance decides how many can go. Cost: `ratio /
    step` forwards over the clean images at most, one where accuracy bears it all, then
    `recipe.epochs` passes over them.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        ratio: Most filters that are silenced, as a share, in [0, 1]; rounded down.
        tolerance: How much accuracy on the clean images pruning may cost before the tuning: a
            share, not points; with 1 it is always `ratio`.
        step: Share of the filters that come back at a time where `ratio` costs more.
        recipe: How the rest is tuned; no epochs leave it as it is.

    Source: Liu et al., Fine-Pruning, RAID 2018, which has no ratio and usually a tolerance of 0.04;
    TrojanZoo Table 21 (0.95), and its code (0.2, looked at over the last ten filters only).
    Differs: a silenced filter is zero behind its norm, not before it, where a constant would be
    left; the most filters within the tolerance are silenced, not the first number beyond it;
    clean images set it, never test images; filters are ranked before a residual sum (TrojanZoo's
    code: behind it).
    """

    ratio: Annotated[float, Share] = 0.95
    tolerance: Annotated[float, Share] = 0.2
    step: Annotated[float, PositiveShare] = 0.01
    recipe: Recipe = Recipe(epochs=20, lr=0.01, schedule="cosine")

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the pruned and tuned net.

        An interrupted tuning goes on from what the run kept of it.

        Raises:
            NotApplicable: If the net has no convolution but one that makes the logits.
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        names = last_filters(subject)
        order = activity(subject, clean, names[-1]).argsort(stable=True)
        masked, kept = _masked(subject, names[-1], len(order))
        self._prune(masked, kept, order, clean)
        return _folded(fit(masked, clean, self.recipe, rng, run), names)

    def _prune(self, masked: Subject, kept: Tensor, order: Tensor, clean: Samples) -> None:
        """Silence as many of the first filters in `order` as may go, in `kept`, which masks."""
        y, filters = labels_of(clean), len(order)
        bar = accuracy(evaluate(masked, clean), y).value - self.tolerance - 1e-9
        count, stride = math.floor(self.ratio * filters + 1e-9), max(1, round(self.step * filters))
        kept[order[:count]] = 0.0
        while count > 0 and accuracy(evaluate(masked, clean), y).value < bar:
            kept[order[max(0, count - stride) : count]] = 1.0
            count -= stride
        log.info("%d of %d filters were silenced", max(0, count), filters)


class Kept(nn.Module):
    """Zeroes some channels of maps `(N, d, H, W)`.

    Attributes:
        mask: 1 for channels that pass and 0 for others, `(d,)`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels that pass, zeros for the others."""
        return x * self.mask[:, None, None]


def last_filters(subject: Subject) -> list[str]:
    """Return the name of the last convolution before the logits, and of the norm behind it if any.

    That is the one which runs last on a black image, wherever it was declared.

    Raises:
        NotApplicable: If there is none.
    """
    net, order = deepcopy(subject.net).eval(), list[str]()
    names = {m: name for name, m in net.named_modules()}
    convolutions = [m for m in names if isinstance(m, nn.Conv2d)]
    for conv in convolutions:
        conv.register_forward_hook(lambda m, *_: order.append(names[m]))
    found = pairs(replace(subject, net=net))
    inner = [name for name in order if name != head(net)]
    if not inner:
        raise NotApplicable(
            "this net has no convolution before its logits, so no filters to prune: use another "
            "remedy, e.g. fine_tuning"
        )
    norms = [names[norm] for conv, norm in found if names[conv] == inner[-1]]
    return [inner[-1], *norms]


def activity(subject: Subject, clean: Samples, layer: str) -> Tensor:
    """Return the mean over clean images and places of each channel of a layer, `(d,)`.

    Channels count from 0 up, as a ReLU behind the layer lets them through.
    """
    net, sums = deepcopy(subject.net).eval(), list[Tensor]()

    def note(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        sums.append(out.double().relu().mean((2, 3)).sum(0))

    net.get_submodule(layer).register_forward_hook(note)
    evaluate(replace(subject, net=net), clean)
    return torch.stack(sums).sum(0) / len(clean)


def _masked(subject: Subject, layer: str, filters: int) -> tuple[Subject, Tensor]:
    """Return a copy with a mask behind a layer, and that mask, all ones."""
    net = deepcopy(subject.net).eval()
    mask = torch.ones(filters, device=subject.device)
    net.set_submodule(layer, nn.Sequential(net.get_submodule(layer), Kept(mask)))
    return replace(subject, net=net), mask


@torch.no_grad()
def _folded(masked: Subject, names: list[str]) -> Subject:
    """Return the same net without the mask, which goes into filters and norm, `names`."""
    net = masked.net
    layer, mask = net.get_submodule(names[-1]).children()
    assert isinstance(mask, Kept)
    net.set_submodule(names[-1], layer)
    for name in names:
        for values in net.get_submodule(name).parameters():
            values[mask.mask == 0] = 0.0
    return masked
