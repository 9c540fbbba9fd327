"""Training a net, and asking it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from gifthorse.core.device import half
from gifthorse.core.errors import Incomplete
from gifthorse.core.fields import AtLeast, NotNegative, Share, method
from gifthorse.core.memory import fitting
from gifthorse.core.metrics import accuracy
from gifthorse.core.pacing import breathe
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Batch, Images, Labels, Logits, Rate, Samples, Subject
from gifthorse.data.augment import augment
from gifthorse.data.samples import batches, near, whole
from gifthorse.models.features import head
from gifthorse.training.callbacks import Callback, RngState
from gifthorse.training.loop import Player, Together, descend

log = logging.getLogger("gifthorse")

BatchLoss: TypeAlias = Callable[[Subject, Batch], Tensor]
Mix: TypeAlias = Callable[[Images, Labels, Tensor], Batch]  # images, labels, their indices


@method
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
        part: What is trained: `full`, or only the `classifier` (the last linear layer) or only the
            `features` before it. What is not trained keeps its BatchNorm statistics, too.
    """

    epochs: Annotated[int, NotNegative] = 15
    batch: Annotated[int, AtLeast(1)] = 128
    lr: Annotated[float, NotNegative] = 0.2
    momentum: Annotated[float, Share] = 0.9
    decay: Annotated[float, NotNegative] = 5e-4
    schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    pad: Annotated[int, NotNegative] = 4
    flip: bool = True
    smoothing: Annotated[float, Share] = 0.0
    bf16: bool = True
    part: Literal["full", "features", "classifier"] = "full"

    def precision(self, device: torch.device) -> torch.autocast:
        """Return the context that the net runs in: bfloat16, if that is wanted and quick there."""
        wanted = self.bf16 and half(device) == torch.bfloat16
        return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def cross_entropy(subject: Subject, batch: Batch) -> Tensor:
    """Return the mean cross entropy of a batch."""
    x, y = batch
    return F.cross_entropy(subject(x), y)


def fit(
    victim: Subject,
    train: Samples,
    recipe: Recipe,
    rng: Generator,
    run: Run,
    *,
    loss: BatchLoss | None = None,
    mix: Mix | None = None,
    callbacks: Sequence[Callback] = (),
) -> Subject:
    """Return a trained copy of a subject; the given one stays as it was.

    Args:
        victim: Where training starts from.
        train: Training data, kept where it lies.
        recipe: Epochs, schedule, augmentation, and what is trained.
        rng: Source of order and augmentation.
        loss: Loss of a batch; default cross entropy.
        mix: Turns a batch, after augmentation, into the batch to train on (poisoning).
        callbacks: What trains beside the net or watches it.
        run: Where the state is kept after every epoch and, if there is one, gone on from; its
            run is told now and then of steps done, steps in all and the loss, is charged one
            image-step for every image, and may end the training between two epochs.

    Raises:
        Incomplete: If the run is over before the last epoch; what was learned is kept in it.
    """
    net = deepcopy(victim.net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner, device, train = replace(victim, net=net), victim.device, near(train, victim)
    objective = loss or usual_loss(recipe)

    def precise(batch: Batch) -> Tensor:
        run.charge(len(batch[0]))
        with recipe.precision(device):
            return objective(learner, batch)

    each = max(1, len(train) // recipe.batch)
    with seeded(rng, device):  # dropout draws from the global generator
        course = _Course(learner, recipe, each, callbacks, rng)
        player = Player(course.variables, precise, Together(course.optimizers))
        for epoch in range(course.resume(run), recipe.epochs):
            if any(one.should_stop() for one in callbacks):
                break
            course.permit(epoch, run)
            course.begin(epoch)
            stream = _epoch(train, recipe, course.order, course.noise, mix)
            for done, (value,) in enumerate(descend([player], stream), epoch * each + 1):
                course.stepped(done, value, run)
            course.end(epoch, run)
    net.eval()
    return learner


class _Course:
    """A training with everything that it goes on from, kept in a run after every epoch."""

    def __init__(
        self,
        learner: Subject,
        recipe: Recipe,
        each: int,
        callbacks: Sequence[Callback],
        rng: Generator,
    ) -> None:
        self.learner, self.part, self.callbacks = learner, recipe.part, callbacks
        self.epochs = recipe.epochs
        live, self.steps = _set_trainable(learner.net, recipe.part), max(1, recipe.epochs * each)
        momentum, nesterov = recipe.momentum, recipe.momentum > 0
        first = SGD(live, recipe.lr, momentum, weight_decay=recipe.decay, nesterov=nesterov)
        self.optimizers = [first, *(o for c in callbacks for o in c.extra_optimizers(learner))]
        joined = [
            p for o in self.optimizers[1:] for group in o.param_groups for p in group["params"]
        ]
        self.variables = (*live, *joined)
        self.schedule = _schedule(recipe, first, self.steps)
        self.order, self.noise = spawn(rng), spawn(rng)
        rng_states = [RngState(self.order), RngState(self.noise)]
        scheduled = [self.schedule] if self.schedule else []
        self.parts: list[Any] = [learner.net, *self.optimizers, *scheduled, *rng_states, *callbacks]

    def resume(self, run: Run) -> int:
        """Put everything where it was; return how many epochs are done."""
        kept = run.load()
        if kept is None:
            return 0
        for part, state in zip(self.parts, kept["parts"], strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(kept["global"])
        if kept.get("card") is not None and self.learner.device.type == "cuda":
            torch.cuda.set_rng_state(kept["card"], self.learner.device)
        return int(kept["epoch"])

    def permit(self, epoch: int, run: Run) -> None:
        """Refuse another epoch if the run is over; the ones before it are kept by then."""
        why = run.stop_reason
        if why:
            raise Incomplete(
                f"training stopped after {epoch} of {self.epochs} epochs, since {why}; go on with "
                "a higher limit"
            )

    def begin(self, epoch: int) -> None:
        _set_trainable(self.learner.net, self.part)
        for one in self.callbacks:
            one.on_epoch_start(self.learner, epoch)

    def stepped(self, done: int, value: Tensor, run: Run) -> None:
        if self.schedule is not None and done < self.steps:
            self.schedule.step()
        if run.progress is not None and (done % 20 == 0 or done == self.steps):
            run.report(done, self.steps, f"loss {value.item():.3f}")

    def end(self, epoch: int, run: Run) -> None:
        for one in self.callbacks:
            one.on_epoch_end(self.learner, epoch)
        if run.store is not None:
            states = [part.state_dict() for part in self.parts]
            kept = {"epoch": epoch + 1, "parts": states, "global": torch.get_rng_state()}
            if self.learner.device.type == "cuda":
                kept["card"] = torch.cuda.get_rng_state(self.learner.device)
            run.save(kept)


def predict(subject: Subject, x: Images, size: int = 512) -> Logits:
    """Return logits `(N, K)` without gradients, at most `size` images at a time.

    Images come to the net from wherever they are, and the logits go back there. Not in inference
    mode: a net may keep what it computes first (a grid, a mask), and could not be searched with it.
    """
    there, out = subject.device, list[Logits]()
    with torch.no_grad():
        for part in x.split(fitting(x, size)):
            breathe()
            out.append(subject(part.to(there)).to(x.device))
    return torch.cat(out)


def _set_trainable(net: nn.Module, part: str) -> list[nn.Parameter]:
    """Put the part that is trained into training mode; return its parameters."""
    net.train()
    name = head(net) if part != "full" else ""
    live: list[nn.Parameter] = []
    for key, module in net.named_modules():
        trained = part == "full" or (key == name) == (part == "classifier")
        module.training = trained
        for p in module.parameters(recurse=False):
            p.requires_grad_(trained)
            live += [p] if trained else []
    return live


def _epoch(
    train: Samples, recipe: Recipe, order: Generator, noise: Generator, mix: Mix | None
) -> Iterator[Batch]:
    n, size = len(train), min(recipe.batch, len(train))
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


def charged(loss: BatchLoss, run: Run, more: float) -> BatchLoss:
    """Return a loss that charges a run for what it does beside one way forward and back.

    Args:
        loss: The loss of a batch.
        run: What is charged.
        more: Image-steps an image, on top of the one that `fit` counts.
    """

    def counted(subject: Subject, batch: Batch) -> Tensor:
        run.charge(more * len(batch[0]))
        return loss(subject, batch)

    return counted


def usual_loss(recipe: Recipe) -> BatchLoss:
    """Return the cross entropy that a recipe asks for."""

    def loss(subject: Subject, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(subject(x), y, label_smoothing=recipe.smoothing)

    return loss if recipe.smoothing else cross_entropy


def evaluate(subject: Subject, samples: Samples, size: int = 512) -> Tensor:
    """Return the predicted classes `(N,)` for all samples, in order, on the CPU."""
    every = batches(near(samples, subject), size)
    with torch.no_grad():
        return torch.cat([subject(x).argmax(1).cpu() for x, _ in every])


@dataclass(frozen=True)
class FlipCheck:
    """What a net makes of clean images from left to right and from right to left.

    Attributes:
        plain: Accuracy on the images as they are.
        mirrored: Accuracy on the same images mirrored, with the same labels.
        points: How much of it mirroring may cost and still count as harmless.
    """

    plain: Rate
    mirrored: Rate
    points: float = 0.05

    @property
    def harmless(self) -> bool:
        """Whether a net that is trained on may see its images mirrored, too."""
        return self.mirrored.value >= self.plain.value - self.points - 1e-9


def flippable(subject: Subject, samples: Samples, points: float = 0.05) -> FlipCheck:
    """Measure whether classes survive mirroring, as cats do, or not, as signs and digits do.

    A net that was trained with mirrored images, or on classes that are alike from both sides, is as
    right about them; one for which left and right matter is not, and would be taught wrong labels.

    Args:
        subject: The net; what it learned is the evidence.
        samples: Clean images with their labels.
        points: Share of the images that mirroring may cost.
    """
    x, y = whole(samples)
    plain, mirrored = (accuracy(predict(subject, v).argmax(1), y) for v in (x, x.flip(-1)))
    found = FlipCheck(plain, mirrored, points)
    word = "may" if found.harmless else "must not"
    log.info(
        "images %s be mirrored: accuracy %.3f mirrored, %.3f as they are",
        word, mirrored.value, plain.value,
    )  # fmt: skip
    return found
