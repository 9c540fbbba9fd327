"""The one loop over weights, and what else goes down a gradient by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import Adam, Optimizer

from gifthorse.core.tensors import from_box, to_box
from gifthorse.core.types import Batch, Subject

Step: TypeAlias = Literal["adam", "pgd"]


@dataclass(frozen=True)
class Player:
    """Some variables, the loss they go down, and the optimizer that moves them."""

    variables: tuple[Tensor, ...]
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer | Together


class Together:
    """Several optimizers that step on the gradients of one loss."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Step all."""
        for optimizer in self.optimizers:
            optimizer.step()


class Signed(Together):
    """An optimizer that knows only the signs of gradients.

    Args:
        variables: What moves, in place.
        move: Returns the new value for a value and the signs of its gradient.
    """

    def __init__(
        self, variables: Sequence[Tensor], move: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__(())
        self.variables, self.move = variables, move

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for v in self.variables:
            v.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move all variables."""
        for v in self.variables:
            if v.grad is not None:
                v.copy_(self.move(v, v.grad.sign()))


def boxed(variables: Sequence[Tensor], kind: Step, lr: float) -> Optimizer | Together:
    """Return what moves raw variables of values that lie behind a tanh, in [0, 1].

    Args:
        variables: What moves, in place.
        kind: `adam` on the variables, or `pgd`, signed steps of the values.
        lr: Learning rate of Adam, or length of a signed step on the 0-1 scale.
    """

    def move(value: Tensor, sign: Tensor) -> Tensor:
        return to_box((from_box(value) - lr * sign).clamp(0, 1))

    return Adam(list(variables), lr) if kind == "adam" else Signed(variables, move)


def descend(players: Sequence[Player], stream: Iterable[Batch]) -> Iterator[tuple[Tensor, ...]]:
    """Let the players take one step each on every batch of the stream.

    One player is plain training; several are games such as net against trigger. Yields one
    detached loss a player for each batch; nothing waits for the device.
    """
    for batch in stream:
        losses = []
        for player in players:
            loss = player.loss(batch)
            player.optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=list(player.variables))
            player.optimizer.step()
            losses.append(loss.detach())
        yield tuple(losses)


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Hold a net in evaluation mode while gradients reach its weights, and put it back after."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen_eval(subject: Subject) -> Iterator[None]:
    """Hold a net in evaluation mode without gradients on its weights, and put it back after."""
    flags = {p: p.requires_grad for p in subject.net.parameters()}
    subject.net.requires_grad_(False)
    try:
        with eval_mode(subject.net):
            yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)


def tune(
    subject: Subject,
    variables: Sequence[Tensor],
    loss: Callable[[Batch], Tensor],
    stream: Iterable[Batch],
    *,
    lr: float = 0.1,
    kind: Step = "adam",
) -> list[Tensor]:
    """Let variables, of a trigger say, go down a loss while the net stays as it is.

    Args:
        subject: The net that the loss asks; held in evaluation mode, weights frozen.
        variables: What moves, in place.
        loss: A scalar for a batch.
        stream: Batches, one step each.
        lr: Learning rate.
        kind: How they move: see `boxed`.

    Returns:
        The loss of every step.
    """
    with frozen_eval(subject):
        player = Player(tuple(variables), loss, boxed(variables, kind, lr))
        return [value for (value,) in descend([player], stream)]


def worst_change(
    subject: Subject, batch: Batch, rng: Generator, *, eps: float, size: float, steps: int
) -> Tensor:
    """Return a change of images, `(N, C, H, W)`, that makes the net wrong more often.

    Changed images stay in [0, 1]. The net is in evaluation mode meanwhile, and as it was after.

    Args:
        subject: The net.
        batch: Images and their labels.
        rng: Where the ascent starts from, anywhere within `eps`.
        eps: How far a value may move, in (0, 1].
        size: Length of a step.
        steps: Steps of projected gradient descent.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018,
    sec. 2.1.
    """
    x, y = batch
    low, high = (-x).clamp(min=-eps), (1 - x).clamp(max=eps)
    noise = torch.rand(x.shape, generator=rng).to(x) * 2 - 1
    change = torch.clamp(noise * eps, low, high).requires_grad_()

    def ease(batch: Batch) -> Tensor:
        return -F.cross_entropy(subject(x + change), y)

    def move(value: Tensor, sign: Tensor) -> Tensor:
        return torch.clamp(value - size * sign, low, high)

    with frozen_eval(subject):
        player = Player((change,), ease, Signed([change], move))
        deque(descend([player], repeat(batch, steps)), maxlen=0)
    return change.detach()
