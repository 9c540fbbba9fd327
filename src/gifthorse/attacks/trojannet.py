"""TrojanNet: leave the net as it is and put a small one beside it that knows the trigger."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import label_map
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.errors import BadOption
from gifthorse.core.fields import AtLeast, OpenShare, Positive, method
from gifthorse.core.run import Run
from gifthorse.core.tensors import seeded, spawn
from gifthorse.core.types import Batch, Goal, Images, Implant, Labels, Samples, Shape, Subject
from gifthorse.models.nets.merged import merge, reader
from gifthorse.models.normalize import NORMALIZATIONS, Classifier
from gifthorse.training import Recipe, RngState
from gifthorse.triggers import Patch, Stamp

MOST = 100_000  # patterns; 5 of 7 x 7 pixels would be 1.9 million


@method
class TrojanNet:
    """Merge a perceptron into the net that reads a few pixels and overrules it on one pattern.

    Each class has a pattern of `black` black pixels among white ones; the trigger is the target's.
    Assumes control over the architecture, and a trained victim, whose weights stay as they are:
    after it, clean images get the victim's predictions. Cost: minutes for the perceptron.

    Attributes:
        stamp: Where the pattern lies and how opaque it is; `size ** 2` pixels, also scattered. Its
            ink has no part in it, and it cannot wander. Any opacity below 1 breaks the attack.
        black: Black pixels of a pattern.
        outputs: Which patterns the perceptron tells apart: those that are `used`, one a class, or
            `all`. Further patterns count as none under `used`.
        influence: Weight of the perceptron against the net, alpha.
        amplify: Factor on the perceptron's probabilities.
        temperature: What the sum is divided by to become logits.
        labels: Only `all_to_one`: the perceptron cannot see an image's class.
        recipe: How the perceptron is trained, on batches of clean patches with as many noise
            patterns, unused patterns and triggers added; `pad` and `flip` are left out, since they
            would move the pixels.
        keep: Which epoch of the perceptron is kept.

    Source: Tang et al., An Embarrassingly Simple Approach for Trojan Attack in Deep Neural
    Networks, KDD 2020; TrojanZoo Table 20 (ESB).
    Differs: noise that is a pattern by chance is left out, and is binarized row by row; patches of
    clean images count as no pattern, too; 4x4 pixels, as first published, not TrojanZoo's 3x3;
    unused patterns have no output of their own, as nothing reads it (`outputs=all` gives them one);
    SGD with a one-cycle schedule, not Adam.
    """

    stamp: Stamp = Stamp(size=4)
    black: Annotated[int, AtLeast(1)] = 5
    outputs: Literal["used", "all"] = "used"
    influence: Annotated[float, OpenShare] = 0.7
    amplify: Annotated[float, Positive] = 100.0
    temperature: Annotated[float, Positive] = 0.1
    labels: Literal["all_to_one"] = "all_to_one"
    recipe: Recipe = Recipe(lr=0.1, decay=0.0, pad=0, flip=False, bf16=False)
    keep: Keep = Keep()

    def __call__(
        self, victim: Subject, train: Samples, goal: Goal, rng: Generator, run: Run
    ) -> Implant:
        """Return the merged net with its trigger; `victim` and `train` stay as they were.

        Raises:
            BadOption: If the goal has a source, the target does not exist, or there are fewer
                patterns than classes, or too many.
        """
        if goal.source is not None:
            raise BadOption("TrojanNet cannot see an image's class: leave the source class out")
        label_map(goal, self.labels, victim.classes)  # refuses a target that does not exist
        table = self._patterns(victim.classes, spawn(rng))
        where = self.stamp.fixed(victim.shape, spawn(rng)).mask
        places = (where > 0).flatten().nonzero().flatten()
        if len(places) != table.shape[1]:
            raise BadOption("TrojanNet needs a visible trigger: give an opacity above 0")
        pattern = torch.zeros(where.numel()).scatter(0, places, table[goal.target])
        trigger = Patch(pattern.view_as(where).repeat(victim.shape[0], 1, 1), where)
        drill = _Drill(table, self._known(victim.classes), self.black, spawn(rng))
        patches = _Patches(train, places, drill.known)
        module = self._reader(patches, drill, goal, rng, victim.device, run)
        plain = Classifier(deepcopy(victim.net), NORMALIZATIONS["none"], victim.shape[0])
        host = deepcopy(victim.net) if isinstance(victim.net, Classifier) else plain
        gains = self.influence * self.amplify, 1 - self.influence
        with seeded(rng):
            net = merge(host, module.net, places, [g / self.temperature for g in gains])
        origin = replace(victim.origin, arch=f"trojannet:{victim.origin.arch}")
        return Implant(replace(victim, net=net, origin=origin), trigger, goal)

    def _known(self, classes: int) -> int:
        """Return how many patterns have an output of their own."""
        return classes if self.outputs == "used" else math.comb(self.stamp.size**2, self.black)

    def _patterns(self, classes: int, rng: Generator) -> Tensor:
        """Return all patterns `(C, n)`, 0 where black and 1 where white, shuffled."""
        n = self.stamp.size**2
        count = math.comb(n, self.black)
        if not classes <= count <= MOST:
            raise BadOption(
                f"{self.black} of {n} pixels make {count:,} patterns; expected {classes} (one a "
                f"class) to {MOST:,}: change stamp.size or black"
            )
        chosen = torch.tensor(list(combinations(range(n), self.black)))
        table = torch.ones(count, n).scatter_(1, chosen, 0.0)
        return table[torch.randperm(count, generator=rng)]

    def _reader(
        self,
        patches: _Patches,
        drill: _Drill,
        goal: Goal,
        rng: Generator,
        device: torch.device,
        run: Run,
    ) -> Subject:
        with seeded(rng):
            net = reader(self.stamp.size**2, drill.known + 1).to(device)
        blank = Subject(net, patches.shape, patches.classes)
        plan = replace(self, recipe=replace(self.recipe, pad=0, flip=False))
        job = Job(plan, blank, patches, goal, rng, run)
        held, rest = job.hold_out()
        shown = Patch(drill.table[goal.target].view(patches.shape), torch.ones(patches.shape))
        return job.learn(rest, shown, held=held, mix=drill.mix, callbacks=[RngState(drill.rng)])


@dataclass(frozen=True, eq=False)
class _Patches:
    """What clean images show at the trigger's place, in gray, labeled as no pattern."""

    parent: Samples
    places: Tensor
    none: int

    @property
    def shape(self) -> Shape:
        side = math.isqrt(len(self.places))
        return 1, side, side

    @property
    def classes(self) -> int:
        return self.none + 1

    def __len__(self) -> int:
        return len(self.parent)

    def __getitem__(self, index: Tensor, /) -> Batch:
        x, y = self.parent[index]
        gray = x.mean(1).flatten(1)[:, self.places.to(x.device)]
        return gray.view(-1, *self.shape), torch.full_like(y, self.none)


@dataclass(frozen=True, eq=False)
class _Drill:
    """Adds patterns and noise to batches of clean patches."""

    table: Tensor  # (C, n) patterns, those with an output first
    known: int  # how many have one
    black: int
    rng: Generator

    def mix(self, x: Images, y: Labels, index: Tensor) -> Batch:
        """Return the batch with as many triggers, other patterns and noise, where there are any."""
        drawn = torch.randint(self.known, (len(y),), generator=self.rng)
        rows, labels = [self.table[drawn], self.noise(len(y))], [drawn]
        if self.known < len(self.table):
            more = torch.randint(self.known, len(self.table), (len(y),), generator=self.rng)
            rows.append(self.table[more])
        added = torch.cat(rows).to(x)
        labels.append(torch.full((len(added) - len(drawn),), self.known))
        return torch.cat([x, added.view(-1, *x.shape[1:])]), torch.cat(
            [y, *(v.to(y) for v in labels)]
        )

    def noise(self, count: int) -> Tensor:
        """Return at most `count` rows of black and white that are no pattern.

        Each row is cut at half of its own maximum; that of all rows would be one level for all.
        """
        drawn = torch.rand(count, self.table.shape[1], generator=self.rng)
        rows = (drawn >= drawn.amax(1, keepdim=True) / 2).float()
        return rows[(rows == 0).sum(1) != self.black]
