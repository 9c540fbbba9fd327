"""IMC: trigger and net are optimized in turns, so that each fits the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gifthorse.attacks.imc.abs import AgainstABS
from gifthorse.attacks.imc.ar import AgainstAR
from gifthorse.attacks.imc.mp import AgainstMP, TransformedTrigger
from gifthorse.attacks.imc.nc import Fidelity, Price, confidence, smallest
from gifthorse.attacks.imc.strip import AgainstSTRIP
from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.attacks.trojannn import NeuronExcitation, shape_pattern
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.fields import NotNegative, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Labels, Samples, Subject
from gifthorse.data.samples import Subset, labels_of
from gifthorse.models.scaling import scaled
from gifthorse.training import (
    Callback,
    Checkpointed,
    Mix,
    Player,
    Recipe,
    RngState,
    Step,
    boxed,
    descend,
    frozen_eval,
    predict,
)
from gifthorse.triggers import Learned, Patch, Stamp


@method
class Inner:
    """The trigger's own steps, before every epoch of the net.

    Attributes:
        start: `stamp` starts from the colors of the stamp, `trojannn` from those that excite
            neurons of the victim.
        steps: Steps before an epoch; a batch has as many images as the recipe's.
        optimizer: `adam` on raw variables behind a tanh, or `pgd`, signed steps of the values.
        lr: Step of Adam, or length of a signed step on the 0-1 scale (TrojanZoo: 20 / 255).
        skip: Factor of the gradient through skip connections.
        residual: Factor of the gradient through residual branches.

    Source: TrojanZoo Table 20 (20 steps) and RQ5 (factor 0.5).
    """

    start: Literal["stamp", "trojannn"] = "stamp"
    steps: Annotated[int, NotNegative] = 20
    optimizer: Step = "adam"
    lr: Annotated[float, Positive] = 0.1
    skip: Annotated[float, Positive] = 1.0
    residual: Annotated[float, NotNegative] = 1.0


@method
class IMC:
    """Optimize the trigger against the net before every epoch of poisoned training.

    Assumes control over the training. Cost: one training run, and `inner.steps` further steps an
    epoch; hiding from defenses costs more.

    Attributes:
        stamp: Where the trigger starts: size, place, form, color, opacity. It cannot wander.
        inner: How the trigger is optimized.
        shaping: How its start is shaped, with `inner.start=trojannn`.
        fidelity: What else is free in it, and how it is kept faint or small.
        strip: What hides it from STRIP.
        abs: What hides it from ABS.
        ar: What lets it survive adversarial retraining.
        mp: What lets it pass MagNet (manifold projection).
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning; `strip`, `abs` and `ar` need mode `batch`.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Pang et al., A Tale of Evil Twins (IMC), CCS 2020, algorithm 2 and eq. 15; TrojanZoo
    secs. 3.2 and 6.3 and Table 20.
    Differs: an epoch of the net sees the new trigger, as in the authors' code; the trigger goes on
    from the last one, which their code draws anew each time; images that the backdoor is not for do
    not shape it; in every epoch the trigger's Adam begins anew, without the moments of the last; it
    ends with the recipe's epochs.
    """

    stamp: Stamp = Stamp(ink="random")
    inner: Inner = Inner()
    shaping: NeuronExcitation = NeuronExcitation()
    fidelity: Fidelity = Fidelity()
    strip: AgainstSTRIP = AgainstSTRIP()
    abs: AgainstABS = AgainstABS()
    ar: AgainstAR = AgainstAR()
    mp: AgainstMP = AgainstMP()
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __post_init__(self) -> None:
        if self.fidelity.shrink and self.stamp.form != "square":
            raise BadOption(f"only a square can shrink; got stamp.form={self.stamp.form}")

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If an option does not fit the net.
            NotApplicable: If there are no images to shape the trigger on.
        """
        job = Job(self, victim, train, goal, rng, run)
        parts = job.hold_out()
        view = self.mp.surrogate(victim, parts[1], spawn(rng), job)
        draw = spawn(rng)
        start = self.stamp.fixed(victim.shape, draw)
        if self.inner.start == "trojannn":
            start = shape_pattern(victim, start, parts[1], self.shaping)

        def attempt(patch: Patch, side: int) -> tuple[Implant, float]:
            learned = Learned(patch, self.fidelity.opacity)
            seen = TransformedTrigger(learned, view)
            turn, hidden = _Turn(self, seen, parts[1], job), _Disguise(self, seen, parts[1], job)
            kept = [Checkpointed(turn.price), RngState(turn.rng), RngState(hidden.rng)]
            made = job.infect(
                seen,
                self.mixing,
                extra=hidden.loss if hidden.active else None,
                wrap=hidden.wrap if hidden.active else None,
                parts=parts,
                callbacks=[turn, hidden, *kept],
                stage=f"side {side}",
            )
            sure = turn.efficacy(made.subject) if self.fidelity.shrink else 1.0
            return replace(made, trigger=learned.frozen()), sure

        if not self.fidelity.shrink:
            return attempt(start, self.stamp.size)[0]

        return smallest(attempt, self.stamp, start, draw, self.fidelity.efficacy)


class _Turn(Callback):
    """The trigger's turn: a few steps before every epoch, on images that the backdoor is for."""

    def __init__(self, attack: IMC, seen: TransformedTrigger, data: Samples, job: Job) -> None:
        self.attack, self.seen, self.labels = attack, seen, job.labels
        self.rng, self.price = spawn(job.rng), Price(attack.fidelity)
        y = labels_of(data)
        self.data = Subset(data, (self.labels(y) != y).nonzero().flatten())
        if not len(self.data):
            raise NotApplicable("the training set has no images that the backdoor is for")

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Take the trigger's steps against the net as it is."""
        inner, variables = self.attack.inner, self.seen.variables

        def loss(batch: Batch) -> Tensor:
            wanted = self.labels(batch[1])
            logits = learner(self.seen.stamp(batch[0]))
            cost = self.price.of(self.seen.learned, logits, wanted)
            return cost + F.cross_entropy(logits, wanted)

        player = Player(variables, loss, boxed(variables, inner.optimizer, inner.lr))
        with frozen_eval(learner), scaled(learner.net, skip=inner.skip, residual=inner.residual):
            deque(descend([player], self._stream()), maxlen=0)

    def _stream(self) -> Iterator[Batch]:
        for _ in range(self.attack.inner.steps):
            size = (self.attack.recipe.batch,)
            yield self.data[torch.randint(len(self.data), size, generator=self.rng)]

    def efficacy(self, subject: Subject) -> float:
        """Return the mean confidence of the net in the target, on up to 2048 stamped images."""
        x, y = self.data[torch.arange(min(2048, len(self.data)))]
        return confidence(predict(subject, self.seen(x)), self.labels(y))


class _Disguise(Callback):
    """What hides the backdoor, in batches and in the loss; it knows which images are stamped."""

    def __init__(self, attack: IMC, seen: TransformedTrigger, data: Samples, job: Job) -> None:
        self.attack, self.seen, self.data, self.labels = attack, seen, data, job.labels
        self.rng, self.suspects = spawn(job.rng), dict[str, list[int]]()
        strip = attack.strip
        self.active = bool(strip.copies or strip.entropy or attack.abs.weight or attack.ar.steps)

    def on_epoch_start(self, learner: Subject, epoch: int) -> None:
        """Look at the net for neurons to press down."""
        self.learner = learner
        if self.attack.abs.weight:
            self.suspects = self.attack.abs.suspects(learner, self.data, self.labels, self.rng)

    def wrap(self, mix: Mix) -> Mix:
        """Return a mix with adversarial originals and faint triggers, as the options say."""

        def mixed(x: Images, y: Labels, index: Tensor) -> Batch:
            both, wanted = mix(x, y, index)
            self.clean, self.stamped = (x, y), both[len(x) :]
            if self.attack.ar.steps:
                x = self.attack.ar.moved(self.learner, (x, y), self.rng, self.attack.recipe)
            strip, poisoned = self.attack.strip, len(self.stamped)
            faint, own = strip.faint(self.clean, poisoned, self.seen, self.labels)
            return torch.cat([x, self.stamped, faint]), torch.cat([wanted, own])

        return mixed

    def loss(self, subject: Subject, batch: Batch) -> Tensor:
        """Return what the net pays for being conspicuous; asked with the batch mixed last."""
        total = batch[0].new_zeros(())
        if self.attack.strip.entropy:
            total = self.attack.strip.penalty(subject, self.clean, self.seen, self.labels)
        if self.attack.abs.weight:
            total = total + self.attack.abs.penalty(subject, self.stamped, self.suspects)
        return total
