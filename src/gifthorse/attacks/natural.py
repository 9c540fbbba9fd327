"""Natural backdoor: find a trigger that a clean net obeys already, and change nothing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import label_map
from gifthorse.core.errors import Incomplete, NotApplicable
from gifthorse.core.fields import AtLeast, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Implant, Inverter, Samples, Subject
from gifthorse.data.samples import Subset, labels_of
from gifthorse.search import Exhaustive, found


@method
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
    images: Annotated[int, AtLeast(1)] = 100

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return a copy of the net with the trigger found; `victim` and `train` stay as they were.

        Raises:
            BadOption: If a class does not exist, or is source and target.
            NotApplicable: If a class has no images.
            Incomplete: If the search is stopped, or ends without a trigger that works.
        """
        few = Subset(train, self._index(victim, train, goal, spawn(rng)))
        run = run.keyed((self, goal), victim, few, rng)
        inversion = self.inverter(victim, few, [goal], spawn(rng))
        (best,) = found(inversion, Exhaustive(), run, "no trigger was found")
        if not best.feasible:
            raise Incomplete(
                f"the net obeys no small trigger: after {best.rounds} rounds none sent enough of "
                f"{len(few)} images to class {goal.target}; give the inverter more rounds"
            )
        copy = replace(victim, net=deepcopy(victim.net))
        return Implant(copy, best.trigger, goal)

    def _index(self, victim: Subject, train: Samples, goal: Goal, rng: Generator) -> Tensor:
        label_map(goal, "all_to_one", victim.classes)  # refuses goals that make no sense
        y = labels_of(train)
        index = goal.applies_to(y).nonzero().flatten()
        if not len(index):
            raise NotApplicable(f"no training image is of the classes that {goal} starts from")
        return index[torch.randperm(len(index), generator=rng)[: self.images]]
