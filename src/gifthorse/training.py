"""The one loop over weights, and plain training with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from gifthorse.data.augment import augment
from gifthorse.data.samples import batches
from gifthorse.tensors import seeded, spawn
from gifthorse.types import Batch, Images, Labels, Logits, Progress, Samples, Subject

log = logging.getLogger("gifthorse")

BatchLoss: TypeAlias = Callable[[Subject, Batch], Tensor]
Mix: TypeAlias = Callable[[Images, Labels, Tensor], Batch]  # images, labels, their indices


@dataclass(frozen=True)
class Player:
    """Some variables, the loss they go down, and the optimizer that moves them."""

    variables: tuple[Tensor, ...]
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer


@dataclass(frozen=True)
class Recipe:
    """How to train a classifier.

    Attributes:
        epochs: Passes over the training set.
        batch: Images a step.
        lr: Peak learning rate.
        momentum: Nesterov momentum of SGD.
        decay: Weight decay.
        schedule: `onecycle` (warm-up over 30 % of the steps), `cosine` or `constant`.
        pad: Random shift in pixels; 0 turns it off.
        flip: Whether to mirror images at random (wrong for signs and digits).
        smoothing: Label smoothing.
        bf16: Forward in bfloat16 where the processor or GPU has it in hardware.
    """

    epochs: int = 15
    batch: int = 128
    lr: float = 0.2
    momentum: float = 0.9
    decay: float = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    pad: int = 4
    flip: bool = True
    smoothing: float = 0.0
    bf16: bool = True


def cross_entropy(subject: Subject, batch: Batch) -> Tensor:
    """Return the mean cross entropy of a batch."""
    x, y = batch
    return F.cross_entropy(subject(x), y)


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


def fit(
    victim: Subject,
    train: Samples,
    recipe: Recipe,
    rng: Generator,
    *,
    loss: BatchLoss | None = None,
    mix: Mix | None = None,
    progress: Progress | None = None,
) -> Subject:
    """Return a trained copy of a subject; the given one stays as it was.

    Args:
        victim: Where training starts from.
        train: Training data, kept where it lies.
        recipe: Epochs, schedule, augmentation.
        rng: Source of order and augmentation.
        loss: Loss of a batch; default cross entropy.
        mix: Turns a batch, after augmentation, into the batch to train on (poisoning).
        progress: Called now and then with steps done, steps in all and words.
    """
    net = deepcopy(victim.net).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    for p in net.parameters():
        p.requires_grad_(True)
    learner = replace(victim, net=net)
    optimizer = SGD(
        net.parameters(),
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.decay,
        nesterov=recipe.momentum > 0,
    )
    steps = max(1, recipe.epochs * max(1, len(train) // recipe.batch))
    schedule = _schedule(recipe, optimizer, steps)
    objective = loss or _smooth(recipe.smoothing)
    device = next(net.parameters()).device

    def precise(batch: Batch) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16 and fast_bf16(device)):
            return objective(learner, batch)

    player = Player(tuple(net.parameters()), precise, optimizer)
    with seeded(rng, device):  # dropout draws from the global generator
        stream = _stream(train, recipe, rng, mix)
        for done, (value,) in enumerate(descend([player], stream), 1):
            if schedule is not None and done < steps:
                schedule.step()
            if progress is not None and (done % 20 == 0 or done == steps):
                progress(done, steps, f"loss {value.item():.3f}")
    net.eval()
    return learner


def predict(subject: Subject, x: Images, size: int = 512) -> Logits:
    """Return logits `(N, K)` without gradients, `size` images at a time."""
    with torch.inference_mode():
        return torch.cat([subject(part) for part in x.split(size)])


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run in hardware here (AMX or a recent GPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def _stream(train: Samples, recipe: Recipe, rng: Generator, mix: Mix | None) -> Iterator[Batch]:
    n, size = len(train), min(recipe.batch, len(train))
    order, noise = spawn(rng), spawn(rng)
    for _ in range(recipe.epochs):
        for index in torch.randperm(n, generator=order).split(size):
            if len(index) < size:  # a last, smaller batch would upset BatchNorm and the schedule
                continue
            x, y = train[index]
            if recipe.pad or recipe.flip:
                x = augment(x, noise, pad=recipe.pad, flip=recipe.flip)
            if mix is not None:
                x, y = mix(x, y, index)
            yield x.contiguous(memory_format=torch.channels_last), y


def _schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler | None:
    if recipe.schedule == "onecycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=steps, cycle_momentum=False)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    return None


def _smooth(smoothing: float) -> BatchLoss:
    def loss(subject: Subject, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(subject(x), y, label_smoothing=smoothing)

    return loss if smoothing else cross_entropy


def evaluate(subject: Subject, samples: Samples, size: int = 512) -> Tensor:
    """Return the predicted classes `(N,)` for all samples, in order."""
    with torch.inference_mode():
        return torch.cat([subject(x).argmax(1) for x, _ in batches(samples, size)])
