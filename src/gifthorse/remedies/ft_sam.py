"""FT-SAM: fine-tune towards weights around which the loss is flat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gifthorse.core.fields import NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.types import Batch, Images, Logits, Samples, Subject
from gifthorse.training import BatchLoss, Recipe, charged, fit, usual_loss

TUNING = Recipe(epochs=100, lr=0.01, schedule="cosine", smoothing=0.1)


@method
class FTSAM:
    """Fine-tune by the gradient at the worst weights near the present ones.

    Assumes that a backdoor hangs on few neurons of large weights, which such steps shrink. Cost:
    twice that of fine-tuning, which it is to be compared with.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        rho: How far the ascent goes. BackdoorBench takes 2 for CIFAR-10, 8 for GTSRB and Tiny
            ImageNet, all with `adaptive`; without, 0.05 is usual and 2 far too much.
        adaptive: Whether each weight moves in proportion to its own square, or all alike.
        recipe: How the net is tuned; its weight decay belongs to the step, not to the ascent.

    Source: Zhu et al., Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
    Minimization, ICCV 2023; defaults of BackdoorBench (label smoothing for CIFAR-10). Differs:
    Nesterov momentum; batches of 128.
    """

    rho: Annotated[float, NotNegative] = 2.0
    adaptive: bool = True
    recipe: Recipe = TUNING

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the tuned net.

        An interrupted training goes on from what the run kept of it.

        Raises:
            Incomplete: If the run is over before the last epoch; what was learned is kept.
        """
        run = run.keyed(self, subject, clean, rng)
        loss = charged(self.loss(), run, 1.0)
        return fit(subject, clean, self.recipe, rng, loss=loss, run=run)

    def loss(self) -> BatchLoss:
        """Return the loss at the ascended weights, whose gradient reaches the present ones.

        The ascent itself is held fixed, so the gradient is the one at the ascended weights.
        """
        plain = usual_loss(self.recipe)

        def loss(learner: Subject, batch: Batch) -> Tensor:
            steps = self.ascent(learner, plain(learner, batch))
            higher = {k: p + steps[k] for k, p in learner.net.named_parameters() if k in steps}

            with unmoved(learner.net):
                return plain(replace(learner, net=Moved(learner.net, higher)), batch)

        return loss

    def ascent(self, learner: Subject, loss: Tensor) -> dict[str, Tensor]:
        """Return the step to nearby weights of greater loss, by the name of the weight.

        With g the gradient and w the weights, all together, it is `rho w^2 g / |w g|`, or without
        `adaptive` `rho g / |g|`.
        """
        weights = {k: p for k, p in learner.net.named_parameters() if p.requires_grad}
        slopes = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        with torch.no_grad():
            scales = [p.abs() if self.adaptive else torch.ones_like(p) for p in weights.values()]
            uphill = [s * g for s, g in zip(scales, slopes, strict=True)]
            length = torch.stack([u.norm() for u in uphill]).norm().clamp(min=1e-12)
            steps = [self.rho / length * s * u for s, u in zip(scales, uphill, strict=True)]
        return dict(zip(weights, steps, strict=True))


class Moved(nn.Module):
    """A net with other weights in the place of some of its own, and the rest as it is.

    Args:
        net: The net, in whatever mode it is.
        weights: Tensors by the names of the weights that they stand for.
    """

    def __init__(self, net: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net, self.weights = net, weights

    def forward(self, x: Images) -> Logits:
        """Return what the net would say with those weights."""
        logits: Logits = functional_call(self.net, dict(self.weights), (x,))
        return logits


@contextmanager
def unmoved(net: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorm as they are, while it goes on using the batch's."""
    flags = {m: m.track_running_stats for m in net.modules() if isinstance(m, _BatchNorm)}
    for module in flags:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.track_running_stats = flag
