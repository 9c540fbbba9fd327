"""I-BAU: unlearn the one change of all images that harms most, and see it react while doing so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd import grad
from torch.optim import SGD, Adam

from gifthorse.core.errors import Incomplete
from gifthorse.core.fields import AtLeast, NotNegative, Positive, PositiveShare, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Samples, Subject
from gifthorse.data.samples import batches, near
from gifthorse.training import Player, descend, eval_mode, frozen_eval


@method
class IBAU:
    """Solve `min_theta max_d CE(f(x + d), y)` with one change d for all images, round by round.

    Each step of the weights follows the hypergradient: it knows how the worst change would move in
    answer. Assumes that a trigger acts much like a small change of all pixels. Cost: in each of
    the rounds a pass for the change and one for the weights, `terms + 3` times as dear; second
    derivatives take memory for three batches.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        rounds: How often a change is found and unlearned.
        terms: Fixed-point iterations of the hypergradient; 0 takes the change as given.
        batch: Images a step.
        lr: Adam's learning rate on the weights.
        ascent: Learning rate of the change.
        inner: Step of the map whose fixed point the hypergradient is taken at.
        decay: Weight of the squared length of the change, which is taken from the harm.
        bound: Greatest length of the change, over all pixels and channels.
        share: Share of every batch that carries the change while the weights move.

    Source: Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient, ICLR 2022
    and the authors' code. Differs: stamped images are clipped to [0, 1]; batches are
    drawn anew in every pass and the inner map is that of the same batch, not of the first one; at
    least one image of a batch carries the change.
    """

    rounds: Annotated[int, AtLeast(1)] = 5
    terms: Annotated[int, NotNegative] = 5
    batch: Annotated[int, AtLeast(1)] = 100
    lr: Annotated[float, Positive] = 1e-3
    ascent: Annotated[float, Positive] = 10.0
    inner: Annotated[float, Positive] = 0.1
    decay: Annotated[float, NotNegative] = 1e-3
    bound: Annotated[float, Positive] = 10.0
    share: Annotated[float, PositiveShare] = 0.01

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net; its BatchNorm statistics stay as they were.

        Raises:
            Incomplete: If the run ends before the last round.
        """
        draw, clean = spawn(rng), near(clean, subject)
        learner = replace(subject, net=deepcopy(subject.net).eval().requires_grad_(True))
        weights = tuple(learner.net.parameters())
        adam = Adam(weights, self.lr)
        for done in range(self.rounds):
            if run.stop_reason:
                raise Incomplete(
                    f"the net is not repaired: {run.stop_reason}; give it a higher limit"
                )
            change = self.worst(learner, clean, draw)
            player = Player(weights, self.unlearning(learner, change, draw), adam)
            with eval_mode(learner.net):
                deque(descend([player], batches(clean, self.batch, draw)), maxlen=0)
            run.charge(len(clean) * (self.terms + 4))
            words = f"unlearned a change of length {change.norm().item():.2f}"
            run.report(done + 1, self.rounds, words)
        return learner

    def worst(self, subject: Subject, clean: Samples, rng: Generator) -> Tensor:
        """Return one change `(C, H, W)`, no longer than the bound, that turns many images."""
        first = clean[torch.arange(1)][0][0]
        change = torch.zeros_like(first).requires_grad_()

        def gain(batch: Batch) -> Tensor:
            x, _ = batch
            with torch.no_grad():
                said = subject(x).argmax(1)
            return self.harm(subject, (x, said), change)

        with frozen_eval(subject):
            player = Player((change,), gain, SGD([change], self.ascent))
            deque(descend([player], batches(clean, self.batch, rng)), maxlen=0)
        found = change.detach()
        shrunk: Tensor = found * (self.bound / found.norm().clamp(min=1e-12)).clamp(max=1)
        return shrunk

    def harm(self, subject: Subject, batch: Batch, change: Tensor) -> Tensor:
        """Return the loss that the change goes down: `decay |d|^2 - mean CE(f(x + d), y)`."""
        x, y = batch
        loss = F.cross_entropy(subject((x + change).clamp(0, 1)), y)
        return self.decay * change.square().sum() - loss

    def unlearning(
        self, subject: Subject, change: Tensor, rng: Generator
    ) -> Callable[[Batch], Tensor]:
        """Return a loss of batches whose gradient at the weights is the hypergradient.

        With the map `P(d) = d - inner * grad harm(d)` and `v = sum_k J^k g`, k below `terms`, where
        J is its Jacobian and g the gradient of the outer loss at d, it is the outer loss plus `v P`
        with d and v held fixed.
        """

        def loss(batch: Batch) -> Tensor:
            x, y = batch
            point = change.detach().requires_grad_()
            count = max(1, round(self.share * len(x)))
            rows = torch.randperm(len(x), generator=rng).to(x.device) < count
            stamped = (x + rows.view(-1, 1, 1, 1) * point).clamp(0, 1)
            outer = F.cross_entropy(subject(stamped), y)
            if not self.terms:
                return outer
            with torch.no_grad():
                said = subject(x).argmax(1)
            (slope,) = grad(self.harm(subject, (x, said), point), point, create_graph=True)
            mapped = point - self.inner * slope
            (direct,) = grad(outer, point, retain_graph=True)
            v = torch.zeros_like(direct)
            for _ in range(self.terms):
                v = direct + grad(mapped, point, v, retain_graph=True)[0]
            return outer + (v * mapped).sum()

        return loss
