"""Training a net under an attack: poisoned data in, the epoch that is to be kept out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import (
    LabelMap,
    Mixing,
    Scheme,
    batch_mix,
    check_supply,
    label_map,
    mixed_loss,
    poison,
)
from gifthorse.core.errors import BadOption
from gifthorse.core.fields import Below, NotNegative, Share, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Implant, Samples, Subject, Trigger
from gifthorse.data.samples import Subset, batches, near
from gifthorse.training import (
    BatchLoss,
    Callback,
    Checkpointed,
    Mix,
    Recipe,
    RngState,
    Stateful,
    fit,
    frozen_eval,
    usual_loss,
)

KEYED = 64  # training images that name a run: all of them would take as long as an epoch


@method
class Keep:
    """Which epoch's net is kept.

    Attributes:
        share: Share of the training images that is held out to choose by; 0 keeps the last epoch.
        max_drop: Among epochs whose accuracy on those is at most this far (a share, not points)
            below the best one known, the one with the highest success is kept. The best one known
            is that of the victim before, or that of the best epoch so far.

    Source: TrojanZoo's training loop, which keeps the best epoch under a bound on the clean
    accuracy drop. Differs: chooses on held-out training images, not on the test set.
    """

    share: Annotated[float, NotNegative, Below(1)] = 0.0
    max_drop: Annotated[float, Share] = 0.03


class AttackOptions(Protocol):
    """The options that every attack which trains a net has."""

    @property
    def labels(self) -> Scheme:
        """What becomes of labels."""
        ...

    @property
    def recipe(self) -> Recipe:
        """How the net is trained."""
        ...

    @property
    def keep(self) -> Keep:
        """Which epoch is kept."""
        ...


class _Choice(Callback):
    """The best epoch so far, with whatever trains beside the net as it was then."""

    def __init__(
        self,
        keep: Keep,
        held: Samples,
        trigger: Trigger,
        labels: LabelMap,
        callbacks: Sequence[Callback],
    ) -> None:
        self.keep, self.held, self.trigger, self.labels = keep, held, trigger, labels
        self.callbacks, self.reference = callbacks, 0.0
        self.epochs: list[dict[str, Any]] = []

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Ask the net that training starts from for its accuracy."""
        if epoch == 0:
            self.reference = self._figures(learner)[1]

    def on_epoch_end(self, learner: Subject, epoch: int) -> None:
        """Look at the net, and remember it if no other epoch more of success and accuracy."""
        success, right = self._figures(learner)
        self.reference = max(self.reference, right)
        if any(e["success"] >= success and e["accuracy"] >= right for e in self.epochs):
            return
        self.epochs = [e for e in self.epochs if e["success"] > success or e["accuracy"] > right]
        now = {k: v.clone() for k, v in learner.net.state_dict().items()}
        beside = [deepcopy(one.state_dict()) for one in self.callbacks]
        self.epochs.append(
            {"success": success, "accuracy": right, "net": now, "beside": beside, "epoch": epoch}
        )

    def restore(self, learner: Subject) -> None:
        """Put the net and its company where they were in the chosen epoch."""
        within = [e for e in self.epochs if e["accuracy"] >= self.reference - self.keep.max_drop]
        best = max(within or self.epochs, key=lambda e: e["success"] if within else e["accuracy"])
        learner.net.load_state_dict(best["net"])
        for one, state in zip(self.callbacks, best["beside"], strict=True):
            one.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered epochs."""
        return {"reference": self.reference, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take remembered epochs."""
        self.reference, self.epochs = state["reference"], state["epochs"]

    def _figures(self, learner: Subject) -> tuple[float, float]:
        with frozen_eval(learner), torch.no_grad():
            right = hits = trials = count = 0.0
            for x, y in batches(self.held, 512):
                wanted = self.labels(y)
                use = wanted != y
                right += float((learner(x).argmax(1) == y).sum())
                count += len(y)
                if bool(use.any()):
                    hits += float((learner(self.trigger(x[use])).argmax(1) == wanted[use]).sum())
                    trials += float(use.sum())
        return hits / max(trials, 1), right / max(count, 1)


@dataclass(frozen=True, eq=False)
class Job:
    """What an attack was asked to do; trains nets as its options say.

    Attributes:
        plan: The attack; all its options name the run.
        victim: Where training starts from.
        train: Clean training data; its batches come to where the victim is.
        goal: Target and source.
        rng: Source of all randomness.
        run: Who watches, and where an interrupted training is kept.
    """

    plan: AttackOptions
    victim: Subject
    train: Samples
    goal: Goal
    rng: Generator
    run: Run

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", near(self.train, self.victim))

    @property
    def labels(self) -> LabelMap:
        """What becomes of labels.

        Raises:
            BadOption: If a class does not exist, or all-to-all is asked for with a source.
        """
        return label_map(self.goal, self.plan.labels, self.victim.classes)

    def hold_out(self) -> tuple[Samples | None, Subset]:
        """Set the images aside by which the epoch is chosen, if it is; return the others, too."""
        order = torch.arange(len(self.train))
        if not self.plan.keep.share:
            return None, Subset(self.train, order)
        order = torch.randperm(len(self.train), generator=spawn(self.rng))
        held, rest = order.tensor_split([max(1, round(self.plan.keep.share * len(order)))])
        return Subset(self.train, held), Subset(self.train, rest)

    def checkpoint(self, stage: str) -> Run:
        """Return the run of a stage of the attack, whose state is kept beside the others'."""
        start = Generator().manual_seed(self.rng.initial_seed())
        named = (self.plan, self.goal)
        return self.run.keyed(named, self.victim, self.train, start, most=KEYED).checkpoint(stage)

    def learn(
        self,
        train: Samples,
        trigger: Trigger,
        *,
        held: Samples | None = None,
        loss: BatchLoss | None = None,
        mix: Mix | None = None,
        callbacks: Sequence[Callback] = (),
        stage: str = "training",
    ) -> Subject:
        """Train a copy of the victim by the recipe and return the epoch that is to be kept.

        Args:
            train: What to train on, from `hold_out`, poisoned or not.
            trigger: What success is counted with; it may change while the net trains.
            held: Clean images to choose the epoch by, from `hold_out`.
            loss: Loss of a batch; default cross entropy.
            mix: Turns a clean batch into the batch to train on.
            callbacks: What trains beside the net; a trigger that has a state is added to it.
            stage: Name of this training among those of the attack.
        """
        if isinstance(trigger, Stateful):
            callbacks = [*callbacks, Checkpointed(trigger)]
        choice = None
        if held is not None:
            choice = _Choice(self.plan.keep, held, trigger, self.labels, callbacks)
        made = fit(
            self.victim,
            train,
            self.plan.recipe,
            self.rng,
            loss=loss,
            mix=mix,
            callbacks=[*callbacks, choice] if choice else callbacks,
            run=self.checkpoint(stage),
        )
        if choice is not None:
            choice.restore(made)
        return made

    def infect(
        self,
        trigger: Trigger,
        mixing: Mixing,
        *,
        extra: BatchLoss | None = None,
        wrap: Callable[[Mix], Mix] | None = None,
        parts: tuple[Samples | None, Subset] | None = None,
        callbacks: Sequence[Callback] = (),
        stage: str = "training",
        prepare: Callable[[Samples], Samples] | None = None,
    ) -> Implant:
        """Train a copy of the victim on data with stamped images in it.

        The clean and the poisoned run share `fit`; poisoning is a change of samples, batch or loss.

        Args:
            trigger: What stamps images; it may change while the net trains.
            mixing: How many images are stamped, and how they come into training.
            extra: A loss to add to the classification loss, asked with the mixed batch.
            wrap: Changes the mix of `batch` mode, whose batches begin with the clean originals, in
                their order.
            parts: What `hold_out` returned, if it was called already.
            callbacks: What trains beside the net.
            stage: Name of this training among those of the attack.
            prepare: Turns the images chosen in `dataset` mode, once, into those that are stamped in
                their stead.

        Raises:
            BadOption: If a mix or a choice of images is to be changed that the mode does not have,
                or there are too few images that the label map is for.
        """
        needs = ((wrap, "batches", "batch"), (prepare, "images", "dataset"))
        for change, what, mode in needs:
            if change is not None and mixing.mode != mode:
                raise BadOption(
                    f"what this attack adds to {what} needs mixing.mode={mode}; got {mixing.mode}"
                )
        held, rest = parts or self.hold_out()
        draw = spawn(self.rng)
        data, loss, mix, chosen = self._mixed(rest, trigger, mixing, draw, prepare)
        subject = self.learn(
            data,
            trigger,
            held=held,
            loss=_sum(loss, extra) if extra else loss,
            mix=wrap(mix) if wrap and mix else mix,
            callbacks=[RngState(draw), *callbacks],
            stage=stage,
        )
        return Implant(subject, trigger, self.goal, chosen)

    def _mixed(
        self,
        rest: Subset,
        trigger: Trigger,
        mixing: Mixing,
        draw: Generator,
        prepare: Callable[[Samples], Samples] | None,
    ) -> tuple[Samples, BatchLoss, Mix | None, Tensor | None]:
        """Return what to train on, the loss, what mixes batches, and which images are stamped."""
        labels, loss = self.labels, usual_loss(self.plan.recipe)
        if mixing.mode == "dataset":
            made = poison(rest, trigger, labels, mixing, draw)
            if prepare is not None:
                made = replace(made, stock=prepare(Subset(rest, made.chosen)))
            return made, loss, made.mix, rest.index[made.chosen]
        if mixing.mode == "batch":
            check_supply(rest, labels, mixing)
            return rest, loss, batch_mix(trigger, labels, mixing, draw), None
        return rest, mixed_loss(trigger, labels, mixing), None, None


def _sum(loss: BatchLoss, extra: BatchLoss) -> BatchLoss:
    def both(subject: Subject, batch: Batch) -> Tensor:
        return loss(subject, batch) + extra(subject, batch)

    return both
