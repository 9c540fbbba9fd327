"""Targeted universal perturbation: a change of all pixels within a bound, by a clipped loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.core.fields import Positive, Share, method
from gifthorse.core.types import Goal, Inversion, Samples, Subject
from gifthorse.data.samples import whole
from gifthorse.search import BoundedChange, CostController, Objective, Search, SearchConfig
from gifthorse.search.losses import Clipped
from gifthorse.training import predict


@method
class UAP:
    """Minimize `mean min(CE(f(clip(x + d)), t), beta)` over d with `|d| <= eps`.

    Assumes nothing of a backdoor: it is what triggers are compared with, and how models are
    hardened. Needs clean images and gradients. The size is the number of changed pixels, which is
    nearly all of them; there is no success bar, the trigger that works most often is kept.

    Attributes:
        eps: The bound on every channel of every pixel, on the 0-1 scale.
        beta: Where a sample's loss is cut; None takes the 95 % quantile of the losses at the
            start, at least 9, so that no confident sample is dead from the start.
        spread: Start uniform within this share of the bound; 0 starts at no change.
        rate: Adam's learning rate as a share of the bound; it takes the place of the config's.
        config: Steps and rounds.

    Source: Shafahi et al., Universal Adversarial Training, AAAI 2020; PixelBackdoor, appendix B,
    eqs. 10 and 11. Differs: the paper leaves beta, optimizer and step open.
    """

    eps: Annotated[float, Positive] = 8 / 255
    beta: float | None = None
    spread: Annotated[float, Share] = 0.0
    rate: Annotated[float, Positive] = 0.1
    config: SearchConfig = SearchConfig(success_threshold=0.0, rounds=1000, rule="success")

    def __call__(
        self, subject: Subject, clean: Samples, goals: Sequence[Goal], rng: Generator
    ) -> Inversion:
        """Return a search over bounded changes, one arm a goal."""
        cost = CostController.fixed(len(goals))
        loss = Clipped(self._beta(subject, clean, goals))
        objective = Objective(BoundedChange(self.eps, self.spread), cost, loss=loss)
        config = replace(self.config, lr=self.rate * self.eps)
        search = Search(subject, clean, goals, rng, objective, config)
        search.data.image_steps += len(clean) / 2 if self.beta is None else 0.0  # for the cut
        return search

    def _beta(self, subject: Subject, clean: Samples, goals: Sequence[Goal]) -> Tensor:
        """Return where the loss of every goal is cut, `(A,)`."""
        if self.beta is not None:
            return torch.full((len(goals),), self.beta)
        x, y = whole(clean)
        logits = predict(subject, x)
        cuts = []
        for goal in goals:
            keep = goal.applies_to(y)
            losses = F.cross_entropy(
                logits[keep], torch.full_like(y[keep], goal.target), reduction="none"
            )
            cuts.append(torch.quantile(losses.float(), 0.95).clamp(min=9.0))
        return torch.stack(cuts)
