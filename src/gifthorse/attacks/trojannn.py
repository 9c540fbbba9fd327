"""TrojanNN: shape the pattern so that it excites chosen neurons, then poison with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import Mixing, Scheme
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import BadImages, NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Samples, Subject
from gifthorse.data.samples import batches, near
from gifthorse.models.features import features, head
from gifthorse.training import Recipe, Step, frozen_eval, tune
from gifthorse.triggers import Learned, Patch, Stamp


@method
class NeuronExcitation:
    """How a pattern is made to excite neurons of the penultimate layer.

    Attributes:
        rule: Which neurons: `rare`, those of the smallest mean activation on clean images, or
            `connected`, those whose weights into the last layer have the largest absolute sum.
        count: How many neurons.
        value: Activation that they are driven to.
        threshold: Stop as soon as the 2-norm of what is missing falls below this; 0 never stops.
        steps: Most steps.
        optimizer: `adam` on raw variables behind a tanh, or `pgd`, signed steps of the values.
        lr: Step of Adam, or length of a signed step on the 0-1 scale (TrojanZoo: 0.015).

    Source: TrojanZoo Table 20 (2 neurons, target 10, threshold 5, 20 steps) and sec. 3.2 (neurons
    rarely active); `connected` is the rule of the original attack.
    Differs: Adam by default, as in TrojanZoo's later releases, not signed steps of 0.015, 20 of
    which move a pixel by 0.3 at most.
    """

    rule: Literal["rare", "connected"] = "rare"
    count: Annotated[int, AtLeast(1)] = 2
    value: float = 10.0
    threshold: Annotated[float, NotNegative] = 5.0
    steps: Annotated[int, AtLeast(1)] = 20
    optimizer: Step = "adam"
    lr: Annotated[float, Positive] = 0.1


@method
class TrojanNN:
    """Poison part of the training set with a pattern that excites chosen neurons of the victim.

    Assumes control over the training, and a trained victim: only there do neurons mean anything.
    Cost: one training run, half a pass over the data for the rule `rare`, seconds for the pattern.

    Attributes:
        stamp: Where the pattern starts: size, place, form, color, opacity. It cannot wander.
        shaping: Which neurons the pattern is to excite, and how.
        labels: `all_to_one` (or source to target, if the goal has a source) or `all_to_all`.
        mixing: Share and mode of poisoning.
        recipe: How the net is trained.
        keep: Which epoch is kept.

    Source: Liu et al., Trojaning Attack on Neural Networks, NDSS 2018, secs. IV-A and IV-C, as
    TrojanZoo sec. 3.2 and Table 20 set it up.
    Differs: trains on the data at hand, not on images that were reverse engineered; trains from
    the given victim with a one-cycle schedule; see `NeuronExcitation` for the pattern.
    """

    stamp: Stamp = Stamp(ink="random")
    shaping: NeuronExcitation = NeuronExcitation()
    labels: Scheme = "all_to_one"
    mixing: Mixing = Mixing()
    recipe: Recipe = Recipe()
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the backdoored net with its trigger; `victim` and `train` stay as they were."""
        start = self.stamp.fixed(victim.shape, spawn(rng))
        trigger = shape_pattern(victim, start, train, self.shaping)
        return Job(self, victim, train, goal, rng, run).infect(trigger, self.mixing)


def shape_pattern(
    subject: Subject, patch: Patch, clean: Samples, shaping: NeuronExcitation
) -> Patch:
    """Return a patch with the same mask, whose pattern excites neurons on a black image.

    While it is shaped the pattern is opaque, whatever the mask's opacity. Nothing is drawn at
    random: the start decides.

    Args:
        subject: The net whose neurons are meant; it stays as it was.
        patch: Where to start. Random colors are best: black ones may leave neurons dead.
        clean: Images that mean activations are taken on; only the rule `rare` reads them.
        shaping: Which neurons, how far, how long.

    Raises:
        NotApplicable: If fewer neurons than asked for respond to the pattern at its start.

    Source: Liu et al., NDSS 2018, algorithm 1; TrojanZoo Table 20.
    Differs: a neuron whose gradient is zero at the start gives its place to the next by the rule.
    """
    learned = Learned(replace(patch, mask=(patch.mask > 0).float()))
    black = torch.zeros(1, *subject.shape, device=subject.device)
    order = rank_neurons(subject, clean, shaping.rule)
    chosen = _responsive(subject, learned.stamp(black), learned.colors, order, shaping.count)

    def missing(batch: Batch) -> Tensor:
        reached = features(subject, learned.stamp(batch[0]))[0, chosen]
        short: Tensor = (reached - shaping.value).norm()
        return short

    def stream() -> Iterator[Batch]:
        batch = (black, torch.zeros(1, dtype=torch.long))
        for _ in range(shaping.steps):
            with torch.no_grad():
                if missing(batch) < shaping.threshold:
                    return
            yield batch

    tune(subject, learned.variables, missing, stream(), lr=shaping.lr, kind=shaping.optimizer)
    return replace(patch, pattern=learned.frozen().pattern)


def rank_neurons(
    subject: Subject, clean: Samples, rule: Literal["rare", "connected"] = "rare"
) -> Tensor:
    """Return the neurons `(d,)` of the penultimate layer, those a rule wants most first.

    Args:
        subject: The net.
        clean: Images that mean activations are taken on; only the rule `rare` reads them.
        rule: `rare` (smallest mean activation) or `connected` (largest absolute weights).
    """
    if rule == "rare":
        return mean_features(subject, clean).argsort(stable=True)
    weight = subject.net.get_submodule(head(subject.net)).get_parameter("weight").detach().abs()
    return weight.transpose(0, 1).flatten(1).sum(1).argsort(descending=True, stable=True)


def mean_features(subject: Subject, samples: Samples) -> Tensor:
    """Return the mean features `(d,)` of images, of the net in evaluation mode, no gradients.

    Raises:
        BadImages: If there are no images.
    """
    if not len(samples):
        raise BadImages("there are no images to take mean features of")
    with frozen_eval(subject), torch.no_grad():
        sums = [features(subject, x).sum(0) for x, _ in batches(near(samples, subject), 512)]
    return torch.stack(sums).sum(0) / len(samples)


def _responsive(
    subject: Subject, stamped: Images, variable: Tensor, order: Tensor, count: int
) -> list[int]:
    """Return the first neurons of an order that have a gradient on what was stamped."""
    with frozen_eval(subject):
        inside = features(subject, stamped)[0]

    def alive(neuron: int) -> bool:
        (slope,) = torch.autograd.grad(inside[neuron], variable, retain_graph=True)
        return bool(slope.any())

    found = list(islice(filter(alive, order.tolist()), count))
    if len(found) < count:
        raise NotApplicable(
            f"{count} neurons were asked for, but only {len(found)} of {len(order)} respond to the "
            "pattern: lower shaping.count, enlarge the stamp, or start with stamp.ink=random"
        )
    return found
