"""Randomized smoothing: the mean of what a net says of many noisy copies of an image."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Images, Logits, Samples, Subject

Aggregate: TypeAlias = Literal["prob", "logit", "vote"]
MOST = 1024  # images that go through the net at once


@method
class Smoothing:
    """Let a net see noisy copies of every image, and average.

    Needs no data and changes no weight. Cost: nothing now, `copies` forwards for every image later.
    Noise this weak takes away triggers that are as weak; next to an opaque patch it is nothing.

    The result is not a bare net behind a normalization: its weights alone, in a file, would be
    those of the net as it was.

    Attributes:
        copies: Noisy copies of each image.
        sigma: Standard deviation of the noise, on the 0-1 scale; 0 adds none.
        aggregate: What is averaged: `prob` (probabilities), `logit` or `vote` (the class of each
            copy).

    Source: Cohen et al., Certified Adversarial Robustness via Randomized Smoothing, ICML 2019;
    TrojanZoo Table 21 (100 copies, 0.01). Differs: averages probabilities, where the
    code of TrojanZoo averages logits; all images get the same noise, so that what is said of one
    does not depend on the others.
    """

    copies: Annotated[int, AtLeast(1)] = 100
    sigma: Annotated[float, NotNegative] = 0.01
    aggregate: Aggregate = "prob"

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the smoothed classifier; its noise is fixed by a draw from `rng`."""
        seed = spawn(rng).initial_seed()
        net = Smoothed(deepcopy(subject.net), self.copies, self.sigma, self.aggregate, seed)
        return replace(subject, net=net.eval())


class Smoothed(nn.Module):
    """A net behind noise: images `(N, C, H, W)` in [0, 1] in, logits `(N, K)` out.

    Attributes:
        net: From raw pixels to logits.
        copies: Noisy copies of each image.
        sigma: Standard deviation of the noise.
        aggregate: What is averaged.
        seed: What the noise is drawn from, anew in every forward: the same for all images.
    """

    def __init__(
        self, net: nn.Module, copies: int, sigma: float, aggregate: Aggregate, seed: int
    ) -> None:
        super().__init__()
        self.net = net
        self.copies, self.sigma, self.aggregate, self.seed = copies, sigma, aggregate, seed

    def forward(self, x: Images) -> Logits:
        """Return the mean logits, or logarithms of mean probabilities or of shares of votes.

        A class without votes has a share of the smallest normal number, not of zero.
        """
        draw, total = Generator().manual_seed(self.seed), None
        for some in torch.arange(self.copies).split(max(1, MOST // max(1, len(x)))):
            # One draw a copy: what is drawn must not depend on how many go through at once.
            noise = [torch.randn(x.shape[1:], generator=draw) for _ in some]
            noisy = (x + self.sigma * torch.stack(noise).to(x)[:, None]).clamp(0, 1)
            logits = self.net(noisy.flatten(0, 1)).unflatten(0, (len(noise), len(x)))
            total = self._joined(total, logits)
        assert total is not None
        if self.aggregate == "prob":
            return total - torch.tensor(self.copies).log().to(total)
        mean = total / self.copies
        return mean if self.aggregate == "logit" else mean.clamp(torch.finfo(x.dtype).tiny).log()

    def _joined(self, total: Tensor | None, logits: Tensor) -> Tensor:
        """Add what the net says of some copies, `(n, N, K)`, to what it said of others, `(N, K)`.

        Probabilities are added as logarithms, in which those near zero keep their digits.
        """
        if self.aggregate == "prob":
            more = logits.log_softmax(2).logsumexp(0)
            return more if total is None else torch.logaddexp(total, more)
        if self.aggregate == "vote":
            logits = F.one_hot(logits.argmax(2), logits.shape[2]).to(logits)
        return logits.sum(0) if total is None else total + logits.sum(0)
