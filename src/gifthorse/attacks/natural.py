"""Natural backdoor: find a trigger that a clean net obeys already, and change nothing."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import label_map
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.run import LocalSession, fingerprint
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Hunt, Implant, Inverter, Samples, Session, Subject
from gifthorse.data.samples import Subset, batches

SAVE_EVERY = 60.0  # seconds between two writes of an unfinished search


@dataclass(frozen=True)
class Natural:
    """Search the smallest trigger of a net that nobody poisoned.

    Assumes the weights and a few clean images. Cost: one search for one goal, no training. The net
    stays bit for bit what it was, so whoever calls it backdoored for this trigger is wrong about
    its origin, if not about its weakness: the hardest negatives for a scanner.

    Attributes:
        inverter: What searches the trigger.
        images: Most clean images that the search uses, of the source class, or of all classes but
            the target.

    Source: Tao et al., PixelBackdoor, CVPR 2022, sec. 5 and appendix L.1 (100 images of the source
    class, 1000 steps, 90 % success).
    Differs: images come from the training set given, so success must be counted on others; a goal
    without a source is allowed; one random start, where the paper's class distance takes the best
    of three.
    """

    inverter: Inverter
    images: int = 100

    def __post_init__(self) -> None:
        if self.images < 1:
            raise BadOption(f"images must be 1 or more; got {self.images}")

    def __call__(
        self,
        victim: Subject,
        train: Samples,
        goal: Goal,
        rng: Generator,
        *,
        session: Session | None = None,
    ) -> Implant:
        """Return a copy of the net with the trigger found; `victim` and `train` stay as they were.

        Raises:
            BadOption: If a class does not exist, or is source and target.
            NotApplicable: If a class has no images.
        """
        session = session or LocalSession()
        few = Subset(train, self._index(victim, train, goal, spawn(rng)))
        key = fingerprint((self, goal), victim, few, rng)
        hunt = self.inverter(victim, few, [goal], spawn(rng))
        _pursue(hunt, session, key)
        copy = replace(victim, net=deepcopy(victim.net))
        return Implant(copy, hunt.best[0].trigger, goal)

    def _index(self, victim: Subject, train: Samples, goal: Goal, rng: Generator) -> Tensor:
        label_map(goal, "all_to_one", victim.classes)  # refuses goals that make no sense
        y = torch.cat([labels for _, labels in batches(train, 1024)]).cpu()
        index = goal.meant(y).nonzero().flatten()
        if not len(index):
            raise NotApplicable(f"no training image is of the classes that {goal} starts from")
        return index[torch.randperm(len(index), generator=rng)[: self.images]]


def _pursue(hunt: Hunt, session: Session, key: str) -> None:
    """Step a hunt for one goal until it is settled or must stop."""
    kept = session.recall(key)
    if kept is not None:
        hunt.restore(kept)
    saved, spent = time.monotonic(), hunt.image_steps if kept is not None else 0.0
    while not bool(hunt.settled.all()) and not session.over:
        hunt.step(torch.arange(1))
        session.spend(hunt.image_steps - spent)
        spent = hunt.image_steps
        at = hunt.standing
        session.report(0, 1, f"{int(at.rounds[0])} rounds, smallest {at.size[0].item():.0f} px")
        if time.monotonic() - saved > SAVE_EVERY:
            session.keep(key, hunt.state())
            saved = time.monotonic()
    session.keep(key, hunt.state())
    session.report(1, 1, f"{hunt.best[0].size:.0f} px, {hunt.best[0].asr:.0%} success")
