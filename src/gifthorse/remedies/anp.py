"""Adversarial neuron pruning: cut the channels that small perturbations of weights work through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, OpenShare, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Images, Logits, Samples, Subject
from gifthorse.data.samples import batches, labels_of, near, split
from gifthorse.training import Player, Signed, Together, descend, evaluate, frozen_eval

SCAN = [round(0.05 * k, 2) for k in range(19)]  # 0 to 0.9, as the authors do


@method
class ANP:
    """Learn a mask of BatchNorm channels that withstands perturbations, and cut what it drops.

    Assumes BatchNorm, and that the neurons of a backdoor are more easily turned than others. Cost:
    `steps` batches, `ascents + 2` times forward and back each; no weight is trained.

    The result has the given net's architecture: its weights can be saved as a file.

    Attributes:
        steps: Steps of the masks.
        batch: Images a step; fewer if there are fewer.
        eps: How far scales and shifts may be perturbed, as a share of themselves.
        ascents: Steps of the perturbation for every step of the masks, `eps / ascents` long.
        weight: Weight of the loss without perturbation; the loss with it has the rest.
        lr: Learning rate of the masks.
        momentum: Momentum of the masks.
        threshold: Channels with a mask at or below it are cut; None takes the largest of 0 to 0.9
            that costs no more than `max_drop` of the accuracy on the held-out images.
        max_drop: Most accuracy (a share, not points) that may be lost.
        share: Share of the clean images held out to choose the threshold by, if it is None.

    Source: Wu and Wang, Adversarial Neuron Pruning Purifies Backdoored Deep Models, NeurIPS 2021,
    and the authors' code. Differs: a cut channel loses scale and shift, so that it is
    exactly 0, where the code leaves it at its shift; perturbations are cut back to the bound;
    images are not augmented, dropout stays off; the threshold is chosen on held-out clean images.
    """

    steps: Annotated[int, AtLeast(1)] = 2000
    batch: Annotated[int, AtLeast(2)] = 128
    eps: Annotated[float, NotNegative] = 0.4
    ascents: Annotated[int, AtLeast(1)] = 1
    weight: Annotated[float, Share] = 0.2
    lr: Annotated[float, NotNegative] = 0.2
    momentum: Annotated[float, Share] = 0.9
    threshold: float | None = None
    max_drop: Annotated[float, Share] = 0.03
    share: Annotated[float, OpenShare] = 0.2

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        """Return the pruned net.

        Raises:
            NotApplicable: If the net has no BatchNorm.
            Incomplete: If the run ends before the masks are learned.
        """
        if self.threshold is not None:
            return pruned(subject, self.masks(subject, clean, rng, run), self.threshold)
        held, rest = split(clean, self.share, spawn(rng))
        masks, y = self.masks(subject, rest, rng, run), labels_of(held)

        def right(judged: Subject) -> float:
            return float((evaluate(judged, held) == y).float().mean())

        least = right(subject) - self.max_drop - 1e-6  # rounding is no drop
        return next(
            (
                cut
                for cut in (pruned(subject, masks, t) for t in reversed(SCAN))
                if right(cut) >= least
            ),
            replace(subject, net=deepcopy(subject.net)),
        )

    def masks(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> dict[str, Tensor]:
        """Return what is kept of each channel, in [0, 1]: `(C,)` by name of its BatchNorm."""
        run, size = run, min(self.batch, len(clean))
        copy = replace(subject, net=deepcopy(subject.net))  # its running statistics will move
        neurons, draw = Neurons(copy), spawn(rng)

        def restart(batch: Batch) -> Tensor:
            neurons.disturb(self.eps, draw)
            return ease(batch)

        def ease(batch: Batch) -> Tensor:
            return -F.cross_entropy(neurons(batch[0], disturbed=True), batch[1])

        def withstand(batch: Batch) -> Tensor:
            plain = F.cross_entropy(neurons(batch[0]), batch[1])
            return self.weight * plain - (1 - self.weight) * ease(batch)

        def move(value: Tensor, sign: Tensor) -> Tensor:
            return (value - self.eps / self.ascents * sign).clamp(-self.eps, self.eps)

        shifts = Signed(neurons.noise, move)
        losses = [restart] + [ease] * (self.ascents - 1)
        players = [Player(tuple(neurons.noise), loss, shifts) for loss in losses]
        step = Within(SGD(neurons.kept, self.lr, self.momentum), neurons.kept)
        players.append(Player(tuple(neurons.kept), withstand, step))
        with frozen_eval(copy):
            neurons.set_trainable()
            stream = _stream(near(clean, subject), size, self.steps, spawn(rng))
            for done, (*_, loss) in enumerate(descend(players, stream), 1):
                run.charge(size * (self.ascents + 2))
                if done % 20 == 0 or done == self.steps:
                    run.report(done, self.steps, f"masks, loss {loss.item():.3f}")
                if run.stop_reason and done < self.steps:
                    raise Incomplete(
                        f"nothing was pruned: {run.stop_reason}; give it a higher limit"
                    )
        return {name: m.detach() for name, m in zip(neurons.names, neurons.kept, strict=True)}


class Neurons:
    """The channels of a net's BatchNorms, with masks on their scales and noise on both weights.

    Attributes:
        names: The BatchNorms that have weights.
        kept: What is kept of the scales, `(C,)` each.
        noise: Relative changes, `(C,)` each, of all scales, then of all shifts.

    Raises:
        NotApplicable: If the net has no BatchNorm with weights.
    """

    def __init__(self, subject: Subject) -> None:
        self.net = subject.net
        self.names = [name for name, m in _norms(self.net).items() if m.affine]
        if not self.names:
            raise NotApplicable(
                "the net has no BatchNorm with weights: take another remedy than anp"
            )
        scales = [self.net.get_parameter(f"{name}.weight") for name in self.names]
        self.kept = [torch.ones_like(s).requires_grad_() for s in scales]
        self.noise = [torch.zeros_like(s).requires_grad_() for s in scales * 2]

    def __call__(self, x: Images, *, disturbed: bool = False) -> Logits:
        """Return logits with scales `(m + d) g` and shifts `(1 + e) b`; undisturbed, d = e = 0."""
        values: dict[str, Tensor] = {}
        count = len(self.names)
        for k, (name, kept) in enumerate(zip(self.names, self.kept, strict=True)):
            scale, shift = (self.net.get_parameter(f"{name}.{w}") for w in ("weight", "bias"))
            d, e = (self.noise[k], self.noise[count + k]) if disturbed else (0.0, 0.0)
            values |= {f"{name}.weight": (kept + d) * scale, f"{name}.bias": (1 + e) * shift}
        logits: Logits = functional_call(self.net, values, (x,))
        return logits

    @torch.no_grad()
    def disturb(self, eps: float, rng: Generator) -> None:
        """Draw the noise anew, uniform within `eps`."""
        for noise in self.noise:
            noise.copy_((torch.rand(noise.shape, generator=rng) * 2 - 1) * eps)

    def set_trainable(self) -> None:
        """Let BatchNorm use the statistics of each batch, as the authors do."""
        for module in _norms(self.net).values():
            module.training = True


class Within(Together):
    """An optimizer whose variables are cut back to [0, 1] after every step."""

    def __init__(self, optimizer: SGD, variables: Sequence[Tensor]) -> None:
        super().__init__([optimizer])
        self.variables = variables

    @torch.no_grad()
    def step(self) -> None:
        """Step, and cut back."""
        super().step()
        for v in self.variables:
            v.clamp_(0, 1)


def pruned(subject: Subject, masks: Mapping[str, Tensor], threshold: float) -> Subject:
    """Return a copy in which channels with a mask at or below the threshold are exactly 0.

    Args:
        subject: The net.
        masks: `(C,)` by name of a BatchNorm.
        threshold: In [0, 1].
    """
    copy = replace(subject, net=deepcopy(subject.net))
    with torch.no_grad():
        for name, mask in masks.items():
            for weight in ("weight", "bias"):
                copy.net.get_parameter(f"{name}.{weight}")[mask <= threshold] = 0
    return copy


def _norms(net: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in net.named_modules() if isinstance(m, _BatchNorm)}


def _stream(samples: Samples, size: int, steps: int, rng: Generator) -> Iterator[Batch]:
    """Yield full batches, a fresh order for each pass."""
    while steps > 0:
        for batch in batches(samples, size, rng):
            if len(batch[1]) == size and steps > 0:
                steps -= 1
                yield batch
